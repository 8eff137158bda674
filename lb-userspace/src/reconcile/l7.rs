//! The L7 half of a round: what Ingresses, Secrets and looked-up names give, to the proxies.
//!
//! It comes after L4's part and has its own gate: an Ingress list that is refused never holds
//! up Services, and a Node list that is refused never holds up Ingresses. Nothing is published
//! before every kind that routes are decided from has been listed, and the Secrets, names and
//! Namespaces that they depend on were answered for, or waited for long enough: a restart of the
//! agent must not take a certificate away from a proxy that goes on serving.

use super::Reconciler;
use super::reports::Reporting;
use crate::board::{L7Phase, L7Snapshot, now_ms};
use crate::link::Link;
use crate::metrics::{L7Reading, SERIES};
use crate::model::l7::{L7Input, L7Model, L7Options, Names, Orphan, WantedNames};
use crate::model::routes::Certificate;
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use crate::source::{Objects, Touched};
use crate::status::Reports;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long the first publication waits for Secrets, names and Namespaces, from the lists on. A
/// name server may be silent for ever, and the list of Namespaces be refused.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the L7 half is built from.
#[derive(Debug)]
pub struct L7Parts {
    pub options: L7Options,
    /// Where routes go.
    pub link: Link,
    /// Served where there is no other certificate (I30).
    pub self_signed: Arc<Certificate>,
    /// Told which Secrets have to be read.
    pub secrets: watch::Sender<BTreeSet<ObjectKey>>,
    /// Told which names have to be looked up.
    pub names: watch::Sender<WantedNames>,
    /// Told what the API server is to be told; `None` where there is none.
    pub reports: Option<Arc<Reports>>,
    /// Proxies say by which table they route ([`Reconciler::set_in_force`]).
    pub proxies: bool,
}

/// The model and what has been done so far.
#[derive(Debug)]
pub(crate) struct L7 {
    pub(crate) model: L7Model,
    link: Link,
    secrets: watch::Sender<BTreeSet<ObjectKey>>,
    names: watch::Sender<WantedNames>,
    reporting: Option<Reporting>,
    /// Of changes since the last round.
    touched: Touched,
    input: L7Input,
    /// Nothing goes out before, if it is still awaited then.
    due: Option<Instant>,
    published: bool,
    last_micros: u64,
}

impl L7 {
    pub(super) fn new(parts: L7Parts) -> Self {
        let L7Parts { options, link, self_signed, secrets, names, reports, proxies } = parts;
        Self {
            model: L7Model::new(options),
            link,
            secrets,
            names,
            reporting: reports.map(|reports| Reporting::new(reports, proxies)),
            touched: Touched::default(),
            input: L7Input { self_signed: Some(self_signed), ..L7Input::default() },
            due: None,
            published: false,
            last_micros: 0,
        }
    }

    pub(super) fn touch(&mut self, touched: &Touched) {
        self.touched.merge(touched.clone());
    }

    pub(super) fn set_names(&mut self, names: Arc<Names>) {
        self.input.names = names;
    }

    /// When the next round is due without any change.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let seconds = self.model.next_time().map(|at| u64::try_from(at - now()).unwrap_or(0));
        let timed = seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        [timed, self.due.filter(|_| !self.published)].into_iter().flatten().min()
    }

    /// Recomputes what is touched and publishes it; the Problems where they may differ.
    fn round(
        &mut self,
        objects: &Objects,
        node_addresses: BTreeSet<IpAddr>,
    ) -> Option<BTreeMap<ObjectRef, Vec<Problem>>> {
        if !objects.ready_l7() {
            return None;
        }
        let began = Instant::now();
        self.input.now = now();
        self.input.node_addresses = node_addresses;
        let touched = std::mem::take(&mut self.touched);
        let updates = self.model.update(objects, &self.input, &touched);
        let problems = self.model.take_problems();
        if problems.is_some() {
            set(&self.secrets, self.model.wanted_secrets());
            set(&self.names, self.model.wanted_names());
        }
        if self.published {
            if !updates.is_empty() {
                tracing::debug!(updates = updates.len(), "routes change");
                self.link.publish(updates);
            }
        } else {
            let due = *self.due.get_or_insert_with(|| Instant::now() + PATIENCE);
            let awaits = self.model.awaits() || !objects.listed.contains(&Kind::Namespace);
            if !awaits || Instant::now() >= due {
                let routes = self.model.routes();
                tracing::info!(
                    hosts = routes.hosts.len(),
                    pools = routes.pools.len(),
                    certificates = routes.certificates.len(),
                    "first routes are published"
                );
                self.link.publish(routes.updates());
                self.published = true;
            }
        }
        if let Some(reporting) = &mut self.reporting
            && (problems.is_some() || !touched.is_empty() || self.published != reporting.published())
        {
            let published = self.published.then(|| self.link.published());
            let none = BTreeMap::new();
            reporting.report(objects, &self.model, &touched, problems.as_ref().unwrap_or(&none), published);
        }
        if problems.is_some() {
            self.last_micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        }
        problems
    }

    fn snapshot(&self, objects: &Objects) -> L7Snapshot {
        let routes = self.model.routes();
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Ingress, Kind::IngressClass];
        let missing = kinds.into_iter().filter(|kind| !objects.listed.contains(kind)).collect();
        L7Snapshot {
            phase: match (self.published, objects.ready_l7()) {
                (true, _) => L7Phase::Synced,
                (false, true) => L7Phase::Awaiting,
                (false, false) => L7Phase::Listing,
            },
            missing,
            ingresses: self.model.owned().count(),
            hosts: routes.hosts.len(),
            pools: routes.pools.len(),
            certificates: routes.certificates.len(),
            last_round_micros: self.last_micros,
        }
    }

    fn reading(&self) -> L7Reading {
        let routes = self.model.routes();
        let mut orphans: BTreeMap<Orphan, (usize, Vec<ObjectKey>)> = BTreeMap::new();
        for (orphan, key) in self.model.orphans() {
            let (count, first) = orphans.entry(orphan).or_default();
            *count += 1;
            if first.len() < SERIES {
                first.push(key.clone());
            }
        }
        L7Reading {
            ingresses: self.model.owned().count(),
            hosts: routes.hosts.len(),
            rules: routes.hosts.values().map(|host| host.rules.len()).sum(),
            pools: routes.pools.len(),
            endpoints: routes.pools.values().map(|pool| pool.endpoints.len()).sum(),
            certificates: routes.certificates.len(),
            unusable_secrets: self.model.unusable_secrets(),
            first_expiry: routes.certificates.values().map(|certificate| certificate.not_after).min(),
            generation: self.link.published(),
            orphans,
            issued: self.model.issued(SERIES),
        }
    }
}

impl Reconciler {
    /// The L7 half of a round.
    pub(super) fn round_l7(&mut self) {
        let Some(l7) = &mut self.l7 else { return };
        let of_node = self.objects.node.iter().flat_map(|node| node.internal_ips.iter().copied());
        let local = self.tables.local.iter().copied().filter(|ip| !ip.is_loopback());
        if let Some(problems) = l7.round(&self.objects, local.chain(of_node).collect()) {
            self.problems.set_l7(problems);
        }
        self.board.publish_l7(l7.snapshot(&self.objects));
    }

    /// Answers of the name server.
    pub fn set_names(&mut self, names: Arc<Names>) {
        if let Some(l7) = &mut self.l7 {
            l7.set_names(names);
        }
    }

    /// A proxy routes by this table now.
    pub fn set_in_force(&mut self, table: u64) {
        if let Some(l7) = &mut self.l7
            && let Some(reporting) = &mut l7.reporting
        {
            reporting.in_force(&self.objects, &l7.model, table);
        }
    }

    pub(super) fn reading_l7(&self) -> Option<L7Reading> {
        self.l7.as_ref().map(L7::reading)
    }
}

/// Seconds since the epoch.
fn now() -> i64 {
    i64::try_from(now_ms() / 1000).unwrap_or(i64::MAX)
}

/// Tells a new value to whoever listens; the same one wakes nobody.
fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|old| {
        let differs = *old != value;
        if differs {
            *old = value;
        }
        differs
    });
}

#[cfg(test)]
#[path = "l7_tests.rs"]
mod tests;
