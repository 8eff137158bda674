//! What the API server is told of Ingresses: those that a round may have changed, each with whose
//! it is and what is wrong with it (I69, I70).

use crate::model::l7::L7Model;
use crate::problem::{Kind, ObjectKey, Problem};
use crate::source::{Objects, Touched};
use crate::status::{Report, Reports};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What was told last, as far as it says what may differ.
#[derive(Debug)]
pub(super) struct Reporting {
    reports: Arc<Reports>,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    applied: bool,
}

impl Reporting {
    pub(super) fn new(reports: Arc<Reports>) -> Self {
        Self { reports, problems: BTreeMap::new(), applied: false }
    }

    /// Whether all were told that their routes are published.
    pub(super) fn applied(&self) -> bool {
        self.applied
    }

    /// Tells what a round changed. `problems` are those of all objects; `applied`: routes are
    /// published.
    pub(super) fn report(
        &mut self,
        objects: &Objects,
        model: &L7Model,
        touched: &Touched,
        problems: &[Problem],
        applied: bool,
    ) {
        let mut now: BTreeMap<ObjectKey, Vec<Problem>> = BTreeMap::new();
        for problem in problems.iter().filter(|problem| problem.object.kind == Kind::Ingress) {
            now.entry(problem.object.key.clone()).or_default().push(problem.clone());
        }
        let before = std::mem::replace(&mut self.problems, now);
        let mut keys: BTreeSet<&ObjectKey> = touched.ingresses.iter().collect();
        keys.extend(
            self.problems.iter().filter(|(key, now)| before.get(*key) != Some(now)).map(|(key, _)| key),
        );
        keys.extend(before.keys().filter(|key| !self.problems.contains_key(*key)));
        // Whose each one is may differ, or all of them are in force from now on.
        if touched.ingress_classes || applied != self.applied {
            self.applied = applied;
            keys.extend(objects.ingresses.keys());
        }
        for key in keys {
            let report = objects.ingresses.get(key).map(|ingress| Report {
                ingress: Arc::clone(ingress),
                ours: model.is_ours(key),
                applied,
                problems: self.problems.get(key).cloned().unwrap_or_default(),
            });
            self.reports.put(key, report);
        }
    }
}
