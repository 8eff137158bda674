//! What is wrong with which object, over all parts of the model.
//!
//! One object may be wrong in thousands of places, which several parts find: of each the first
//! few are kept, and only the objects are looked at again whose findings differ.

use crate::model::routes::HostPattern;
use crate::problem::{Few, ObjectKey, ObjectRef, Problem};
use std::collections::{BTreeMap, BTreeSet};

/// Who found something.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Finder {
    /// Reading an Ingress.
    Ingress(ObjectKey),
    /// Merging the claims of a host.
    Host(HostPattern),
    /// Merging those of a name.
    Name(HostPattern),
    /// Looking at a Service.
    Service(ObjectKey),
    DefaultCertificate,
}

/// The Problems, by who found them.
#[derive(Debug, Default)]
pub(super) struct Told {
    found: BTreeMap<Finder, BTreeMap<ObjectRef, Few>>,
    finders: BTreeMap<ObjectRef, BTreeSet<Finder>>,
    changed: BTreeSet<ObjectRef>,
}

impl Told {
    /// Takes all that one finder has found, in place of what it found before.
    pub(super) fn put(&mut self, finder: &Finder, mut problems: Vec<Problem>) {
        problems.sort();
        problems.dedup();
        let mut now: BTreeMap<ObjectRef, Few> = BTreeMap::new();
        for Problem { object, field, reason } in problems {
            now.entry(object).or_default().add(field, reason);
        }
        let before = self.found.remove(finder).unwrap_or_default();
        for object in before.keys().filter(|object| !now.contains_key(*object)) {
            self.changed.insert(object.clone());
            if let Some(finders) = self.finders.get_mut(object) {
                finders.remove(finder);
                if finders.is_empty() {
                    self.finders.remove(object);
                }
            }
        }
        for (object, few) in &now {
            if before.get(object) != Some(few) {
                self.changed.insert(object.clone());
                self.finders.entry(object.clone()).or_default().insert(finder.clone());
            }
        }
        if !now.is_empty() {
            self.found.insert(finder.clone(), now);
        }
    }

    /// The Problems of each object for which they may differ since the last call; none: it has
    /// none any more.
    pub(super) fn take_changed(&mut self) -> BTreeMap<ObjectRef, Vec<Problem>> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .map(|object| {
                let problems = self.of(&object);
                (object, problems)
            })
            .collect()
    }

    /// All of them, by object.
    pub(super) fn all(&self) -> Vec<Problem> {
        self.finders.keys().flat_map(|object| self.of(object)).collect()
    }

    /// How many are held one by one.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.found.values().flat_map(BTreeMap::values).map(Few::kept).sum()
    }

    fn of(&self, object: &ObjectRef) -> Vec<Problem> {
        let mut few = Few::default();
        for finder in self.finders.get(object).into_iter().flatten() {
            if let Some(found) = self.found.get(finder).and_then(|found| found.get(object)) {
                few.merge(found);
            }
        }
        few.of(object)
    }
}
