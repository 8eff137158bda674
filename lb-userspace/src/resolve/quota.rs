//! Which of the wanted names are looked up.
//!
//! A name that is looked up already keeps its place for as long as it is wanted; free places go
//! round among the namespaces. So nobody, by writing many names or names that sort first, takes
//! another's away.

use crate::model::l7::WantedNames;
use std::collections::{BTreeMap, BTreeSet};

/// Names that are looked up.
pub(super) const NAMES: usize = 2_000;
/// Names of one namespace.
pub(super) const OF_NAMESPACE: usize = 200;

/// What came of sharing out the places.
pub(super) struct Admitted {
    /// Names, each with the namespace that it counts for.
    pub(super) names: BTreeMap<String, String>,
    /// The others, and why.
    pub(super) refused: BTreeMap<String, String>,
}

/// Shares out the places. `held` are the names that have one, each with the namespace that it
/// counts for.
pub(super) fn admit(wanted: &WantedNames, held: &BTreeMap<&str, &str>) -> Admitted {
    let mut places = Places::default();
    for (&name, &namespace) in held {
        let Some(by) = wanted.get(name) else { continue };
        let own = by.get(namespace);
        let heir = || by.iter().find(|other| places.room(other));
        if let Some(namespace) = own.or_else(heir) {
            places.give(name, namespace);
        }
    }
    let mut queues: BTreeMap<&str, std::vec::IntoIter<&str>> = BTreeMap::new();
    let mut waiting: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, by) in wanted.iter().filter(|(name, _)| !places.names.contains_key(*name)) {
        for namespace in by {
            waiting.entry(namespace).or_default().push(name);
        }
    }
    queues.extend(waiting.into_iter().map(|(namespace, names)| (namespace, names.into_iter())));
    // The namespace with the fewest names has the next turn.
    let mut turns: BTreeSet<(usize, &str)> =
        queues.keys().map(|namespace| (places.count(namespace), *namespace)).collect();
    while places.names.len() < NAMES
        && let Some((_, namespace)) = turns.pop_first()
    {
        let Some(queue) = queues.get_mut(namespace).filter(|_| places.room(namespace)) else { continue };
        if let Some(name) = queue.find(|name| !places.names.contains_key(*name)) {
            places.give(name, namespace);
            turns.insert((places.count(namespace), namespace));
        }
    }
    let refused = wanted.iter().filter(|(name, _)| !places.names.contains_key(*name));
    let refused = refused.map(|(name, by)| {
        let reason = match by.iter().find(|namespace| places.room(namespace)) {
            Some(_) => format!("more than {NAMES} names are wanted"),
            None => {
                let namespace = by.iter().next().map(String::as_str).unwrap_or_default();
                format!("more than {OF_NAMESPACE} names are wanted by Services of namespace {namespace}")
            }
        };
        (name.clone(), reason)
    });
    Admitted { refused: refused.collect(), names: places.names }
}

#[derive(Default)]
struct Places {
    names: BTreeMap<String, String>,
    counts: BTreeMap<String, usize>,
}

impl Places {
    fn count(&self, namespace: &str) -> usize {
        self.counts.get(namespace).copied().unwrap_or(0)
    }

    fn room(&self, namespace: &str) -> bool {
        self.count(namespace) < OF_NAMESPACE
    }

    fn give(&mut self, name: &str, namespace: &str) {
        *self.counts.entry(namespace.to_owned()).or_default() += 1;
        self.names.insert(name.to_owned(), namespace.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(wanted: &mut WantedNames, namespace: &str, names: impl IntoIterator<Item = String>) {
        for name in names {
            wanted.entry(name).or_default().insert(namespace.into());
        }
    }

    fn many(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{prefix}{n:05}")).collect()
    }

    fn counts(admitted: &Admitted) -> BTreeMap<&str, usize> {
        admitted.names.values().fold(BTreeMap::new(), |mut counts, namespace| {
            *counts.entry(namespace.as_str()).or_default() += 1;
            counts
        })
    }

    #[test]
    fn names_that_sort_first_take_no_place_away() {
        let mut wanted = WantedNames::default();
        want(&mut wanted, "honest", many("z", 3));
        let first = admit(&wanted, &BTreeMap::new());
        let held = first.names.iter().map(|(name, namespace)| (name.as_str(), namespace.as_str())).collect();
        for n in 0..20 {
            want(&mut wanted, &format!("greedy-{n}"), many(&format!("0-{n}-"), 1_000));
        }
        let then = admit(&wanted, &held);
        assert!(first.names.iter().all(|held| then.names.get_key_value(held.0) == Some(held)));
        assert_eq!(then.names.len(), NAMES);
        assert_eq!(then.refused.len() + NAMES, wanted.len());
        // And none that comes at the same time.
        assert_eq!(counts(&admit(&wanted, &BTreeMap::new()))["honest"], 3);
    }

    #[test]
    fn one_namespace_has_its_share_and_is_told() {
        let mut wanted = WantedNames::default();
        want(&mut wanted, "greedy", many("0-", OF_NAMESPACE + 5));
        want(&mut wanted, "other", ["0-00202".to_string(), "x".to_string()]);
        let admitted = admit(&wanted, &BTreeMap::new());
        assert_eq!(counts(&admitted), [("greedy", OF_NAMESPACE), ("other", 2)].into());
        assert_eq!(admitted.refused.len(), 4);
        assert!(
            admitted
                .refused
                .values()
                .all(|reason| reason.ends_with("wanted by Services of namespace greedy"))
        );
        // A name goes on in the share of another one that wants it.
        let held = [("shared", "gone")].into();
        let wanted = [("shared".to_string(), ["here".to_string()].into())].into();
        assert_eq!(admit(&wanted, &held).names["shared"], "here");
    }
}
