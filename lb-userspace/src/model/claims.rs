//! Who holds which address and port when several Services ask for it.
//!
//! What the cluster gave out wins over what anybody may write: a ClusterIP over a node port,
//! that over an address of `status.loadBalancer`, and `externalIPs` come last, so that nobody
//! can squat the address of a Service to come (H36). Among equals the older Service wins, then
//! the one whose namespace and name sort first: every node comes to the same answer, and a
//! newcomer never takes traffic from what works. The others wait in line and are told.

use super::FrontendKind;
use crate::problem::ObjectKey;
use lb_common::abi::{Addr, Proto};
use std::collections::{BTreeMap, BTreeSet};

/// An address, port (host order) and protocol. Node ports are claimed at the family's "any".
pub(super) type Claim = (Addr, u16, Proto);

/// What a Service asks for, and as what.
pub(super) type Asked = BTreeMap<Claim, FrontendKind>;

/// A Service in line; the order is that of precedence.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Claimant {
    pub(super) kind: FrontendKind,
    created: i64,
    pub(super) service: ObjectKey,
}

#[derive(Debug, Default)]
pub(super) struct Claims {
    lines: BTreeMap<Claim, BTreeSet<Claimant>>,
    held: BTreeMap<ObjectKey, (i64, Asked)>,
}

impl Claims {
    /// Replaces what a Service asks for. Returns every Service whose lot may have changed by it:
    /// those in a line that has a new head.
    pub(super) fn set(&mut self, service: &ObjectKey, created: i64, asked: Asked) -> BTreeSet<ObjectKey> {
        let (old_created, old) = self.held.remove(service).unwrap_or_default();
        let moved = |claim: &Claim| old_created != created || old.get(claim) != asked.get(claim);
        let mut touched = BTreeSet::new();
        for (claim, &kind) in old.iter().filter(|(claim, _)| moved(claim)) {
            if let Some(line) = self.lines.get_mut(claim) {
                let before = Claimant { kind, created: old_created, service: service.clone() };
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
        for (claim, &kind) in asked.iter().filter(|(claim, _)| moved(claim)) {
            let line = self.lines.entry(*claim).or_default();
            let claimant = Claimant { kind, created, service: service.clone() };
            line.insert(claimant.clone());
            if line.first() == Some(&claimant) {
                touched.extend(line.iter().map(|c| c.service.clone()));
            }
        }
        if !asked.is_empty() {
            self.held.insert(service.clone(), (created, asked));
        }
        touched
    }

    /// The head of a line.
    pub(super) fn holder(&self, claim: &Claim) -> Option<&Claimant> {
        self.lines.get(claim)?.first()
    }
}
