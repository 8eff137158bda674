//! Who holds which address and port when several Services ask for it.
//!
//! The older Service wins, then the one whose namespace and name sort first: every node comes
//! to the same answer, and a newcomer never takes traffic from what works. The others wait in
//! line and are told.

use crate::problem::ObjectKey;
use lb_common::abi::{Addr, Proto};
use std::collections::{BTreeMap, BTreeSet};

/// An address, port (host order) and protocol. Node ports are claimed at the family's "any".
pub(super) type Claim = (Addr, u16, Proto);

/// A Service in line; the order is that of precedence.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Claimant {
    pub(super) created: i64,
    pub(super) service: ObjectKey,
}

#[derive(Debug, Default)]
pub(super) struct Claims {
    lines: BTreeMap<Claim, BTreeSet<Claimant>>,
    held: BTreeMap<ObjectKey, (i64, BTreeSet<Claim>)>,
}

impl Claims {
    /// Replaces what a Service asks for. Returns every Service whose lot may have changed by it:
    /// those in a line that has a new head.
    pub(super) fn set(&mut self, claimant: Claimant, claims: BTreeSet<Claim>) -> BTreeSet<ObjectKey> {
        let (old_created, old) = self.held.remove(&claimant.service).unwrap_or_default();
        let moved = old_created != claimant.created;
        let before = Claimant { created: old_created, service: claimant.service.clone() };
        let mut touched = BTreeSet::new();
        for claim in old.iter().filter(|claim| moved || !claims.contains(claim)) {
            if let Some(line) = self.lines.get_mut(claim) {
                let led = line.first() == Some(&before);
                line.remove(&before);
                if led {
                    touched.extend(line.iter().map(|c| c.service.clone()));
                }
                if line.is_empty() {
                    self.lines.remove(claim);
                }
            }
        }
        for claim in claims.iter().filter(|claim| moved || !old.contains(claim)) {
            let line = self.lines.entry(*claim).or_default();
            line.insert(claimant.clone());
            if line.first() == Some(&claimant) {
                touched.extend(line.iter().map(|c| c.service.clone()));
            }
        }
        if !claims.is_empty() {
            self.held.insert(claimant.service, (claimant.created, claims));
        }
        touched
    }

    /// The Service that has a claim.
    pub(super) fn holder(&self, claim: &Claim) -> Option<&ObjectKey> {
        self.lines.get(claim)?.first().map(|claimant| &claimant.service)
    }
}
