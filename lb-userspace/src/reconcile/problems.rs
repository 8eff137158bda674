//! All problems of all stages, and which of them are new.

use crate::problem::{ObjectKey, ObjectRef, Problem};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Problems by who found them.
#[derive(Debug, Default)]
pub(super) struct Problems {
    configuration: Vec<Problem>,
    sources: Vec<Problem>,
    node: Vec<Problem>,
    datapath: Vec<Problem>,
    /// Of routes, pools and certificates; objects without any are absent.
    l7: BTreeMap<ObjectRef, Vec<Problem>>,
    flows: Vec<Problem>,
    reach: Vec<Problem>,
    takeover: Vec<Problem>,
    /// Of the model and of the last plan; Services without any are absent.
    services: BTreeMap<ObjectKey, Vec<Problem>>,
    failures: BTreeMap<ObjectKey, Vec<Problem>>,
    changed: bool,
    told: BTreeSet<Problem>,
    all: Arc<Vec<Problem>>,
}

impl Problems {
    pub(super) fn new(configuration: Vec<Problem>) -> Self {
        Self { changed: !configuration.is_empty(), configuration, ..Self::default() }
    }

    pub(super) fn set_sources(&mut self, problems: &[Problem]) {
        replace(&mut self.sources, problems.to_vec(), &mut self.changed);
    }

    pub(super) fn set_node(&mut self, problems: Vec<Problem>) {
        replace(&mut self.node, problems, &mut self.changed);
    }

    /// Of the data path as a whole: hooks, node facts, reading back.
    pub(super) fn set_datapath(&mut self, problems: Vec<Problem>) {
        replace(&mut self.datapath, problems, &mut self.changed);
    }

    /// Of routes, pools and certificates: those of some objects, in place of what they had.
    pub(super) fn set_l7(&mut self, problems: BTreeMap<ObjectRef, Vec<Problem>>) {
        for (object, problems) in problems {
            self.changed |= set(&mut self.l7, &object, problems);
        }
    }

    /// Of the room for flows.
    pub(super) fn set_flows(&mut self, problems: Vec<Problem>) {
        replace(&mut self.flows, problems, &mut self.changed);
    }

    /// Of the addresses that are for Services.
    pub(super) fn set_reach(&mut self, problems: Vec<Problem>) {
        replace(&mut self.reach, problems, &mut self.changed);
    }

    /// Of what a kube-proxy left.
    pub(super) fn set_takeover(&mut self, problems: Vec<Problem>) {
        replace(&mut self.takeover, problems, &mut self.changed);
    }

    /// What the model found wrong with a Service.
    pub(super) fn set_service(&mut self, key: &ObjectKey, problems: &[Problem]) {
        self.changed |= set(&mut self.services, key, problems.to_vec());
    }

    /// Why a Service's plan could not be carried out.
    pub(super) fn set_failure(&mut self, key: &ObjectKey, problems: Vec<Problem>) {
        self.changed |= set(&mut self.failures, key, problems);
    }

    /// All of them, each once. New ones are logged at warn, those that are gone at info.
    pub(super) fn settle(&mut self) -> Arc<Vec<Problem>> {
        if !std::mem::take(&mut self.changed) {
            return Arc::clone(&self.all);
        }
        let parts = [
            &self.configuration,
            &self.sources,
            &self.node,
            &self.datapath,
            &self.flows,
            &self.reach,
            &self.takeover,
        ];
        let of_objects = self.services.values().chain(self.failures.values()).chain(self.l7.values());
        let now: BTreeSet<Problem> = parts.into_iter().chain(of_objects).flatten().cloned().collect();
        for problem in now.difference(&self.told) {
            let Problem { object, field, reason } = problem;
            tracing::warn!(%object, field, reason, "problem");
        }
        for problem in self.told.difference(&now) {
            let Problem { object, field, reason } = problem;
            tracing::info!(%object, field, reason, "problem is gone");
        }
        self.all = Arc::new(now.iter().cloned().collect());
        self.told = now;
        Arc::clone(&self.all)
    }
}

fn replace(old: &mut Vec<Problem>, new: Vec<Problem>, changed: &mut bool) {
    if *old != new {
        *old = new;
        *changed = true;
    }
}

fn set<K: Ord + Clone>(map: &mut BTreeMap<K, Vec<Problem>>, key: &K, problems: Vec<Problem>) -> bool {
    if problems.is_empty() {
        map.remove(key).is_some()
    } else {
        map.insert(key.clone(), problems.clone()).as_ref() != Some(&problems)
    }
}
