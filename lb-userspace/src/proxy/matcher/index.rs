//! Finds a rule by the elements of a path, however many rules there are.
//!
//! What a Prefix can match ends where an element of the path ends (I10), so one pass over the
//! path gives all candidates: the hash of what lies before each such end is looked up. The cost
//! follows from the path, not from the rules, which anybody may write by the thousand.

use crate::model::routes::{PathKind, PathRule};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hasher, RandomState};

/// Positions of rules by the hash of their path. The keys are random: nobody can aim at
/// collisions.
#[derive(Debug)]
pub(super) struct Index {
    keys: RandomState,
    exact: HashMap<u64, usize>,
    prefix: HashMap<u64, usize>,
    /// Bytes of the longest path among the rules.
    longest: usize,
}

impl Index {
    pub(super) fn of(rules: &[PathRule]) -> Self {
        loop {
            if let Some(index) = Self::keyed(rules, RandomState::new()) {
                return index;
            }
        }
    }

    /// `None` when two paths have one hash under these keys.
    fn keyed(rules: &[PathRule], keys: RandomState) -> Option<Self> {
        let longest = rules.iter().map(|rule| rule.path.len()).max().unwrap_or_default();
        let mut index = Self { keys, exact: HashMap::new(), prefix: HashMap::new(), longest };
        for (at, rule) in rules.iter().enumerate() {
            let (_, hash) = index.ends(rule.path.as_bytes()).last()?;
            let places = match rule.kind {
                PathKind::Exact => &mut index.exact,
                PathKind::Prefix => &mut index.prefix,
            };
            match places.entry(hash) {
                Entry::Vacant(place) => {
                    place.insert(at);
                }
                // The first of equals wins.
                Entry::Occupied(held) if rules[*held.get()].path == rule.path => {}
                Entry::Occupied(_) => return None,
            }
        }
        Some(index)
    }

    /// The position of the first of `rules` that matches.
    pub(super) fn find(&self, rules: &[PathRule], path: &[u8]) -> Option<usize> {
        let mut first: Option<usize> = None;
        for (end, hash) in self.ends(path).take_while(|(end, _)| *end <= self.longest) {
            let exact = if end == path.len() { self.exact.get(&hash) } else { None };
            for &at in self.prefix.get(&hash).into_iter().chain(exact) {
                if rules[at].path.as_bytes() == &path[..end] {
                    first = Some(first.map_or(at, |first| first.min(at)));
                }
            }
        }
        first
    }

    /// Where the elements of a path end, each with the hash of all that lies before.
    fn ends<'a>(&self, path: &'a [u8]) -> impl Iterator<Item = (usize, u64)> + use<'a> {
        let mut hasher = self.keys.build_hasher();
        let mut from = 0;
        memchr::memchr_iter(b'/', path).chain([path.len()]).map(move |end| {
            hasher.write(&path[from..end]);
            from = end;
            (end, hasher.clone().finish())
        })
    }
}
