//! What the API server is told of Ingresses: those that a round may have changed, each with whose
//! it is and what is wrong with it (I69, I70).

use crate::model::l7::L7Model;
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use crate::source::{Objects, Touched};
use crate::status::{Report, Reports};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What was told last, as far as it says what may differ.
#[derive(Debug)]
pub(super) struct Reporting {
    reports: Arc<Reports>,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    /// Some table was published when all were told last.
    published: bool,
    /// The newest table that a proxy routes by.
    in_force: u64,
    /// Ingresses whose routes are in a newer one, and in which.
    awaited: BTreeMap<ObjectKey, u64>,
}

impl Reporting {
    /// `proxies`: there are some whose word is waited for; without any, what is published is in
    /// force.
    pub(super) fn new(reports: Arc<Reports>, proxies: bool) -> Self {
        Self {
            reports,
            problems: BTreeMap::new(),
            published: false,
            in_force: if proxies { 0 } else { u64::MAX },
            awaited: BTreeMap::new(),
        }
    }

    /// Whether all were told that their routes are published.
    pub(super) fn published(&self) -> bool {
        self.published
    }

    /// Tells what a round changed. `problems` are those of objects of which they may differ;
    /// `published` is the table that the routes are in.
    pub(super) fn report(
        &mut self,
        objects: &Objects,
        model: &L7Model,
        touched: &Touched,
        problems: &BTreeMap<ObjectRef, Vec<Problem>>,
        published: Option<u64>,
    ) {
        let mut keys: BTreeSet<ObjectKey> = touched.ingresses.clone();
        for (object, now) in problems.iter().filter(|(object, _)| object.kind == Kind::Ingress) {
            let before = if now.is_empty() {
                self.problems.remove(&object.key)
            } else {
                self.problems.insert(object.key.clone(), now.clone())
            };
            if before.as_deref().unwrap_or_default() != now {
                keys.insert(object.key.clone());
            }
        }
        // Whose each one is may differ, or all of them are published from now on.
        if touched.ingress_classes || published.is_some() != self.published {
            self.published = published.is_some();
            keys.extend(objects.ingresses.keys().cloned());
        }
        for key in keys {
            let in_force = published.is_some_and(|table| table <= self.in_force);
            self.put(objects, model, &key, in_force);
            match published {
                Some(table) if !in_force && objects.ingresses.contains_key(&key) => {
                    self.awaited.insert(key, table);
                }
                Some(_) | None => {
                    self.awaited.remove(&key);
                }
            }
        }
    }

    /// Tells of those Ingresses whose routes are in force now that a proxy routes by this table.
    pub(super) fn in_force(&mut self, objects: &Objects, model: &L7Model, table: u64) {
        self.in_force = self.in_force.max(table);
        let arrived = self.awaited.extract_if(.., |_, awaited| *awaited <= table);
        let arrived: Vec<ObjectKey> = arrived.map(|(key, _)| key).collect();
        for key in arrived {
            self.put(objects, model, &key, true);
        }
    }

    fn put(&self, objects: &Objects, model: &L7Model, key: &ObjectKey, in_force: bool) {
        let report = objects.ingresses.get(key).map(|ingress| Report {
            ingress: Arc::clone(ingress),
            ours: model.is_ours(key),
            in_force,
            problems: self.problems.get(key).cloned().unwrap_or_default(),
        });
        self.reports.put(key, report);
    }
}
