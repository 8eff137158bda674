//! How much of what all share one object, one namespace and all together may take (H41).
//!
//! Tables and the thread that computes them are shared by everybody, and whoever may write
//! objects may write large ones. What goes beyond a limit is cut, the newest first, and told
//! with the object that it is cut from: what others have is never touched by it.

use super::claim::Rank;
use crate::problem::ObjectKey;
use crate::source::{Ingress, IngressBackend};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Paths of one Ingress that are served.
pub(super) const PATHS: usize = 10_000;
/// Names that one Ingress asks a certificate for.
pub(super) const NAMES: usize = 10_000;
/// Entries of `spec.tls` without hosts, each of which is held against all rules.
pub(super) const WITHOUT_HOSTS: usize = 64;
/// Bytes of a rule's path.
pub(super) const PATH: usize = 4_096;

/// Paths of one host, over all Ingresses, and bytes of its rules: a host goes to the proxy in one
/// message, which is longer than that.
pub(super) const RULES: usize = 20_000;
pub(super) const RULE_BYTES: usize = 8 << 20;
/// Bytes of why there is no way to a Service, as a rule repeats it.
pub(super) const REASON: usize = 256;

/// Ports of one Service that are led to.
pub(super) const PORTS: usize = 1_000;
/// Endpoints of one Service, counted over those ports. Never fewer than [`PORTS`], so that each
/// of them gets some.
pub(super) const ENDPOINTS: usize = 10_000;
/// Endpoints that are looked at for one Service, counted in the same way.
pub(super) const VISITS: usize = 10 * ENDPOINTS;

/// Bytes of Ingresses, as [`weight`] counts them.
pub(super) const ROUTES: Limit = Limit { of_namespace: 64 << 20, in_all: 256 << 20 };
/// Endpoints of Services that Ingresses lead to, counted over their ports.
pub(super) const ALL_ENDPOINTS: Limit = Limit { of_namespace: 250_000, in_all: 1_000_000 };

/// What the objects of one namespace, and all of them, may come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limit {
    pub(super) of_namespace: usize,
    pub(super) in_all: usize,
}

/// Which limit an object is beyond.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beyond {
    Namespace(usize),
    All(usize),
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(limit) => write!(f, "the limit of {limit} for one namespace"),
            Self::All(limit) => write!(f, "the limit of {limit} for all namespaces together"),
        }
    }
}

/// Who has a part in something that is limited: older objects before newer ones.
#[derive(Debug)]
pub(super) struct Ledger {
    limit: Limit,
    parts: BTreeMap<Rank, usize>,
    ranks: BTreeMap<ObjectKey, Rank>,
    sums: BTreeMap<String, usize>,
    sum: usize,
    refused: BTreeMap<ObjectKey, Beyond>,
    changed: bool,
}

impl Ledger {
    pub(super) fn new(limit: Limit) -> Self {
        Self {
            limit,
            parts: BTreeMap::new(),
            ranks: BTreeMap::new(),
            sums: BTreeMap::new(),
            sum: 0,
            refused: BTreeMap::new(),
            changed: false,
        }
    }

    pub(super) fn limit(&self) -> Limit {
        self.limit
    }

    /// Puts down what an object asks for; `None`: it is not there any more.
    pub(super) fn put(&mut self, key: &ObjectKey, asks: Option<(Rank, usize)>) {
        let old = self.ranks.get(key).map(|rank| (rank, self.parts.get(rank).copied().unwrap_or(0)));
        if old == asks.as_ref().map(|(rank, part)| (rank, *part)) {
            return;
        }
        self.changed = true;
        if let Some(rank) = self.ranks.remove(key) {
            let part = self.parts.remove(&rank).unwrap_or(0);
            self.sum -= part;
            if let Entry::Occupied(mut sum) = self.sums.entry(key.namespace.clone()) {
                *sum.get_mut() -= part;
                if *sum.get() == 0 {
                    sum.remove();
                }
            }
        }
        if let Some((rank, part)) = asks {
            self.sum += part;
            if part > 0 {
                *self.sums.entry(key.namespace.clone()).or_default() += part;
            }
            self.ranks.insert(key.clone(), rank.clone());
            self.parts.insert(rank, part);
        }
    }

    /// Decides anew, and returns the objects for which that makes a difference.
    pub(super) fn settle(&mut self) -> BTreeSet<ObjectKey> {
        if !std::mem::take(&mut self.changed) {
            return BTreeSet::new();
        }
        let Limit { of_namespace, in_all } = self.limit;
        let mut refused = BTreeMap::new();
        if self.sum > in_all || self.sums.values().any(|sum| *sum > of_namespace) {
            let (mut sums, mut sum) = (BTreeMap::<&str, usize>::new(), 0);
            for (rank, part) in &self.parts {
                let of = sums.entry(&rank.key.namespace).or_default();
                let beyond = if *of + part > of_namespace {
                    Beyond::Namespace(of_namespace)
                } else if sum + part > in_all {
                    Beyond::All(in_all)
                } else {
                    *of += part;
                    sum += part;
                    continue;
                };
                refused.insert((*rank.key).clone(), beyond);
            }
        }
        let before = std::mem::replace(&mut self.refused, refused);
        let keys = before.keys().chain(self.refused.keys());
        keys.filter(|key| before.get(*key) != self.refused.get(*key)).cloned().collect()
    }

    /// The limit that an object is beyond, if so.
    pub(super) fn refuses(&self, key: &ObjectKey) -> Option<Beyond> {
        self.refused.get(key).copied()
    }
}

/// How many bytes an Ingress may come to in the table, about: each rule repeats whose it is and
/// where it leads.
pub(super) fn weight(ingress: &Ingress) -> usize {
    /// Of each entry, beside its texts.
    const ENTRY: usize = 128;
    let key = ingress.key.namespace.len() + ingress.key.name.len();
    let backend = |backend: &IngressBackend| match backend {
        IngressBackend::Service { name, .. } => name.len() + ingress.key.namespace.len(),
        IngressBackend::Unsupported(reason) => reason.len().min(REASON),
    };
    let default = ingress.default_backend.as_ref().map_or(0, backend);
    let mut bytes = ENTRY + default;
    for rule in &ingress.rules {
        bytes += ENTRY + rule.host.len() + key + default;
        for path in rule.paths.iter().flatten() {
            bytes += ENTRY + path.path.len() + key + backend(&path.backend);
        }
    }
    for tls in &ingress.tls {
        let secret = tls.secret.as_ref().map_or(0, String::len) + ingress.key.namespace.len();
        bytes += ENTRY + secret;
        bytes += tls.hosts.iter().map(|(_, host)| ENTRY + host.len() + secret).sum::<usize>();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn put(ledger: &mut Ledger, text: &str, created: i64, part: usize) {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        let key = ObjectKey::new(namespace, name);
        let rank = Rank { ending: false, created, key: Arc::new(key.clone()) };
        ledger.put(&key, Some((rank, part)));
    }

    fn settled(ledger: &mut Ledger) -> Vec<String> {
        ledger.settle().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_newest_go_and_come_back_when_there_is_room() {
        let mut ledger = Ledger::new(Limit { of_namespace: 60, in_all: 100 });
        for (text, created, part) in [("a/1", 5, 30), ("a/2", 6, 30), ("b/1", 9, 40)] {
            put(&mut ledger, text, created, part);
        }
        assert!(settled(&mut ledger).is_empty());
        // Of its namespace the newest; another one's is not touched.
        put(&mut ledger, "a/3", 7, 1);
        assert_eq!(settled(&mut ledger), ["a/3"]);
        assert_eq!(ledger.refuses(&ObjectKey::new("a", "3")), Some(Beyond::Namespace(60)));
        // An older one takes the place of a newer one.
        put(&mut ledger, "c/1", 1, 10);
        assert_eq!(settled(&mut ledger), ["b/1"]);
        assert_eq!(ledger.refuses(&ObjectKey::new("b", "1")), Some(Beyond::All(100)));
        ledger.put(&ObjectKey::new("a", "1"), None);
        assert_eq!(settled(&mut ledger), ["a/3", "b/1"]);
        assert_eq!(ledger.refuses(&ObjectKey::new("b", "1")), None);
        assert!(settled(&mut ledger).is_empty());
        assert_eq!((ledger.sum, ledger.sums.len()), (81, 3));
    }
}
