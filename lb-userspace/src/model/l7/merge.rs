//! Who gets what several Ingresses ask for (I14, I17, H41).
//!
//! The claims of a host come in order of precedence. No Ingress changes a rule, a default or a
//! certificate of an earlier one; with a longer path, or a more specific host, a later one takes
//! what it is for, as the API has it (I7, I11).

use super::budget::{REASON, RULE_BYTES, RULES};
use super::claim::{Backend, Claims, Field, HostClaim, NameClaim, Rank, problem};
use crate::model::routes::{Action, HostPattern, PathKind, PathRule, PoolKey, Target, VirtualHost};
use crate::problem::{ObjectKey, Problem};
use crate::source::BackendPort;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Status of the redirect to HTTPS (I39).
const REDIRECT: u16 = 308;

/// The number of a Service's port, or why there is no way to it.
pub(super) type Resolve<'a> = &'a dyn Fn(&ObjectKey, &BackendPort) -> Result<u16, String>;

/// A rule's place among those of its host: longest first, Exact before Prefix (I11).
type Place<'a> = (Reverse<usize>, PathKind, &'a str);

/// Merges the claims of one host; the order of `claims` is that of precedence.
pub(super) fn host(
    pattern: &HostPattern,
    claims: &[(&Claims, &HostClaim)],
    resolve: Resolve<'_>,
) -> (VirtualHost, Vec<Problem>) {
    let mut merging = Merging { resolve, problems: Vec::new() };
    let mut rules: BTreeMap<Place<'_>, (&Rank, Action)> = BTreeMap::new();
    let mut default: Option<(&Rank, &Backend, Action)> = None;
    let mut redirects = Redirects::of(claims);
    let mut bytes = 0;
    // Once something is cut, so is all that comes later: what is shorter is not for its sake older.
    let mut full: Option<String> = None;
    for (claim, host) in claims {
        let rank = &claim.rank;
        let https_redirect = redirects.next(rank, host);
        let mut cut = false;
        for path in &host.paths {
            let place = (Reverse(path.path.len()), path.kind, &*path.path);
            let what = || format!("{pattern} {}", spell(path.kind, &path.path));
            if let Some((holder, _)) = rules.get(&place) {
                merging.tell(rank, path.field, format!("{}: {}", what(), lost(holder, rank)));
            } else if full.is_none() {
                let target = merging.target(rank, &path.backend, path.field, &what);
                let action = Action { ingress: Arc::clone(&rank.key), target, https_redirect };
                bytes += rule_bytes(&path.path, &action);
                if rules.len() == RULES {
                    full = Some(format!("more than {RULES} paths"));
                } else if bytes > RULE_BYTES {
                    full = Some(format!("more than {RULE_BYTES} bytes of paths"));
                } else {
                    rules.insert(place, (rank, action));
                }
                cut |= full.is_some();
            } else {
                cut = true;
            }
        }
        let what = || format!("default of {pattern}");
        match (&host.default, &default) {
            (Some(backend), None) => {
                let target = merging.target(rank, backend, Field::DefaultBackend, &what);
                let action = Action { ingress: Arc::clone(&rank.key), target, https_redirect };
                default = Some((rank, backend, action));
            }
            (Some(backend), Some((holder, held, _))) if *held != backend => {
                merging.tell(rank, Field::DefaultBackend, format!("{}: {}", what(), lost(holder, rank)));
            }
            (Some(_) | None, _) => {}
        }
        if let Some(limit) = full.as_ref().filter(|_| cut) {
            let reason = format!("{pattern} has {limit}: from here on they are not served");
            merging.problems.push(problem(&rank.key, "spec.rules", reason));
        }
    }
    let rule = |((_, kind, path), (_, action)): (Place<'_>, (&Rank, Action))| PathRule {
        kind,
        path: path.into(),
        action,
    };
    let rules = rules.into_iter().map(rule).collect();
    (VirtualHost { rules, default: default.map(|(.., action)| action) }, merging.problems)
}

/// At least as many bytes as a rule takes in the message to the proxy.
fn rule_bytes(path: &str, action: &Action) -> usize {
    let key = |key: &ObjectKey| key.namespace.len() + key.name.len();
    let target = match &action.target {
        Target::Pool(pool) => key(&pool.service),
        Target::Unavailable(reason) => reason.len(),
    };
    path.len() + key(&action.ingress) + target + 32
}

struct Merging<'a> {
    resolve: Resolve<'a>,
    problems: Vec<Problem>,
}

impl Merging<'_> {
    fn tell(&mut self, rank: &Rank, field: Field, reason: String) {
        self.problems.push(problem(&rank.key, field.to_string(), reason));
    }

    /// What cannot be served by its kind is told where it is read; a missing Service or port is
    /// told here (I15, I16).
    fn target(&mut self, rank: &Rank, backend: &Backend, field: Field, what: &dyn Fn() -> String) -> Target {
        match backend {
            Backend::Service(service, port) => match (self.resolve)(service, port) {
                Ok(port) => Target::Pool(PoolKey { service: Arc::clone(service), port }),
                Err(reason) => {
                    self.tell(rank, field, format!("{}: {reason}; it answers 503", what()));
                    unavailable(&reason)
                }
            },
            Backend::Unsupported(reason) => unavailable(reason),
        }
    }
}

/// Each rule repeats the reason, so it has a limit.
fn unavailable(reason: &str) -> Target {
    let end = reason.floor_char_boundary(REASON);
    Target::Unavailable(reason[..end].to_owned())
}

/// Which actions of a host are redirected to HTTPS (I39): those of an Ingress whose own `tls`
/// covers the host, or that of another one of its namespace, or of one that comes before it. A
/// newcomer from elsewhere cannot take HTTP from what works.
struct Redirects<'a> {
    namespaces: BTreeSet<&'a str>,
    seen: bool,
}

impl<'a> Redirects<'a> {
    fn of(claims: &[(&'a Claims, &HostClaim)]) -> Self {
        let with_tls = claims.iter().filter(|(_, host)| host.tls);
        Self { namespaces: with_tls.map(|(claim, _)| &*claim.rank.key.namespace).collect(), seen: false }
    }

    fn next(&mut self, rank: &Rank, host: &HostClaim) -> Option<u16> {
        self.seen |= host.tls;
        (self.seen || self.namespaces.contains(&*rank.key.namespace)).then_some(REDIRECT)
    }
}

/// Decides whose certificate a name is served with. A newcomer from another namespace than that
/// of `holder`, who holds the host, cannot put its own in front of what works (H41).
pub(super) fn name<'a>(
    pattern: &HostPattern,
    claims: &[(&Rank, &'a NameClaim)],
    holder: Option<&Rank>,
) -> (Option<&'a NameClaim>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut tell = |rank: &Rank, claim: &NameClaim, reason: String| {
        let field = format!("spec.tls[{}]", claim.index);
        problems.push(problem(&rank.key, field, format!("{pattern}: {reason}")));
    };
    let mut held: Option<(&Rank, &NameClaim)> = None;
    for &(rank, claim) in claims {
        let foreign = |holder: &&Rank| *holder < rank && holder.key.namespace != rank.key.namespace;
        match (held, holder.filter(foreign)) {
            (None, None) => held = Some((rank, claim)),
            (None, Some(holder)) => tell(rank, claim, lost(holder, rank)),
            (Some((holder, held)), _) if held.secret != claim.secret => tell(rank, claim, lost(holder, rank)),
            (Some(_), _) => {}
        }
    }
    (held.map(|(_, claim)| claim), problems)
}

/// Why a claim comes to nothing.
fn lost(holder: &Rank, rank: &Rank) -> String {
    if holder.key == rank.key {
        return "an earlier entry of this Ingress is for the same; this one is not served".into();
    }
    let why = match (rank.ending && !holder.ending, holder.created == rank.created) {
        (true, _) => "while this one is being deleted",
        (false, true) => "whose name sorts first",
        (false, false) => "which is older",
    };
    format!("held by Ingress {}, {why}; not served from here", holder.key)
}

/// `Prefix /api`; the root, which is held as an empty Prefix, as it was written.
fn spell(kind: PathKind, path: &str) -> String {
    format!("{kind:?} {}", if path.is_empty() { "/" } else { path })
}
