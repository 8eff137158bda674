//! The loop: the only place where all stages meet.
//!
//! A round drains changes into the objects, has the model recompute what they touch, plans
//! the Services whose state differs and carries the plans out. It is level-triggered and
//! keyed by Service: work is that of the changed Services, and what failed is asked for
//! again with backoff. Nothing is planned before every kind that Services are decided from
//! has been listed (S8). All state lives on one thread; whoever wants to know sends a
//! question ([`Ask`]) that runs between two rounds.

mod drive;
mod l7;
mod node;
mod problems;
mod reach;
mod reports;
mod retry;
mod sweep;
mod takeover;

pub use drive::{Ask, Handle, Intake, spawn};
pub use l7::L7Parts;
pub use sweep::Swept;
pub use takeover::Seen;

use crate::board::{Board, Phase, Snapshot};
use crate::datapath::{Datapath, Hook, NodeFacts, OpError, Programmed};
use crate::metrics::{Metrics, Reading, Round, Stages};
use crate::model::{HealthCheck, Model, ModelOptions, NodeView};
use crate::node::{NodeState, Options, Tables};
use crate::plan::Planner;
use crate::plan::op::Op;
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use crate::service_health::Wanted;
use crate::source::{Batch, Change, Object, Objects};
use ipnet::IpNet;
use l7::L7;
use node::PodWait;
use problems::Problems;
use reach::Reach;
use retry::Retries;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use takeover::Following;
use tokio::sync::watch;

/// How often everything is compared with what the kernel holds.
const CHECK: Duration = Duration::from_secs(60);

/// What a reconciler is built from.
pub struct Parts {
    pub node_name: String,
    /// A Node that is not there is wrong (API server), or its absence means nothing (manifests).
    pub node_required: bool,
    pub model: ModelOptions,
    pub node: Options,
    pub datapath: Box<dyn Datapath>,
    pub board: Arc<Board>,
    pub metrics: Arc<Metrics>,
    /// `None`: `--l7 off`.
    pub l7: Option<L7Parts>,
    /// `--service-cidr`, in manifests mode: ServiceCIDR objects say the rest.
    pub service_cidrs: Vec<IpNet>,
    /// `--cluster-cidr`.
    pub cluster_cidrs: Option<Vec<IpNet>>,
    /// Told which health checks of Services are to be served.
    pub health: watch::Sender<Arc<Wanted>>,
    /// What of the configuration cannot be honoured, for as long as this agent runs.
    pub problems: Vec<Problem>,
}

/// All stages and what has been done so far.
pub struct Reconciler {
    pub(crate) objects: Objects,
    pub(crate) model: Model,
    pub(crate) planner: Planner,
    pub(crate) datapath: Box<dyn Datapath>,
    pub(crate) node: NodeState,
    pub(crate) view: NodeView,
    pub(crate) inputs: crate::node::Inputs,
    options: Options,
    tables: Arc<Tables>,
    /// The kernel's tables have been read: until then nothing may be concluded from them.
    tables_known: bool,
    node_required: bool,
    /// Addresses of this node's endpoints, by Service: pods whose links are looked for.
    local_endpoints: BTreeMap<ObjectKey, BTreeSet<IpAddr>>,
    facts: Option<NodeFacts>,
    hooks: Arc<Vec<Hook>>,
    dirty: BTreeSet<ObjectKey>,
    /// Everything is to be planned anew, whether the model changed or not.
    plan_all: bool,
    /// Node facts may differ.
    node_dirty: bool,
    retries: Retries,
    problems: Problems,
    pub(crate) l7: Option<L7>,
    reach: Reach,
    service_cidrs: Vec<IpNet>,
    health: watch::Sender<Arc<Wanted>>,
    /// Health checks by Service, as the model has them.
    checks: BTreeMap<ObjectKey, HealthCheck>,
    phase: Phase,
    /// Leftovers of Services that went away while no agent ran are still to be retired.
    leftovers: bool,
    /// Some operation on leftovers failed.
    leftovers_refused: bool,
    /// Hearing of the oldest change of the coming round.
    heard: Option<Instant>,
    triggers: Vec<SystemTime>,
    slices: u64,
    /// Time that taking the changes of the coming round took.
    taking: Duration,
    started: Instant,
    started_at: SystemTime,
    next_check: Instant,
    /// The last sweep, until a round has done what follows from it.
    swept: Option<Swept>,
    /// Of a kube-proxy that was here before.
    following: Following,
    /// Packets that found no room for their flow, as last read.
    flows_refused: u64,
    /// Maps of an earlier agent were taken over: its programs may be anywhere.
    took_over: bool,
    pods: PodWait,
    /// Facts or hooks failed, or wait: tried again then.
    node_retry: Option<Instant>,
    rounds: u64,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
}

impl Reconciler {
    /// Takes over what an earlier agent left in the maps.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn new(parts: Parts) -> anyhow::Result<Self> {
        let Parts {
            node_name,
            node_required,
            model,
            node,
            mut datapath,
            board,
            metrics,
            l7,
            service_cidrs,
            cluster_cidrs,
            health,
            problems,
        } = parts;
        let mut planner = Planner::new(datapath.capacity());
        let mut programmed = datapath.read()?;
        let reach = std::mem::take(&mut programmed.reach);
        planner.restore(programmed, 0);
        let took_over = !planner.frontends().is_empty();
        let following = Following::over(datapath.foreign()?.into_keys());
        let flows_refused = sweep::refused(datapath.as_mut());
        let started = Instant::now();
        let view = NodeView { name: node_name.clone(), ..NodeView::default() };
        let state = crate::node::derive(&Tables::default(), &node, &crate::node::Inputs::default());
        Ok(Self {
            objects: Objects::new(node_name),
            model: Model::new(model),
            planner,
            datapath,
            node: state,
            view,
            inputs: crate::node::Inputs::default(),
            options: node,
            tables: Arc::default(),
            tables_known: false,
            node_required,
            local_endpoints: BTreeMap::new(),
            facts: None,
            hooks: Arc::default(),
            dirty: BTreeSet::new(),
            plan_all: false,
            node_dirty: true,
            retries: Retries::default(),
            problems: Problems::new(problems),
            l7: l7.map(L7::new),
            reach: Reach::new(cluster_cidrs.as_deref(), reach),
            service_cidrs,
            health,
            checks: BTreeMap::new(),
            phase: Phase::Listing,
            leftovers: true,
            leftovers_refused: false,
            heard: None,
            triggers: Vec::new(),
            slices: 0,
            taking: Duration::ZERO,
            started,
            started_at: SystemTime::now(),
            next_check: started + CHECK,
            swept: None,
            following,
            flows_refused,
            node_retry: None,
            took_over,
            pods: PodWait::default(),
            rounds: 0,
            board,
            metrics,
        })
    }

    /// Folds a batch in; `heard` is when it came.
    pub fn take(&mut self, heard: Instant, batch: Batch) {
        let began = Instant::now();
        self.heard.get_or_insert(heard);
        for change in &batch {
            if let Change::Upsert(Object::EndpointSlice(slice)) = change {
                self.slices += 1;
                let at =
                    slice.trigger_time.and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos);
                // Older than this agent: its latency would be that of somebody else (S59).
                self.triggers.extend(at.map(|at| UNIX_EPOCH + at).filter(|at| *at > self.started_at));
            }
        }
        let touched = self.objects.apply_all(batch);
        if let Some(l7) = &mut self.l7 {
            l7.touch(&touched);
        }
        self.dirty.extend(touched.services);
        self.node_dirty |= touched.node | touched.pods;
        self.problems.set_sources(&self.objects.source_problems);
        self.taking += began.elapsed();
    }

    /// The kernel's tables, whole.
    pub fn set_tables(&mut self, tables: Arc<Tables>) {
        self.tables = tables;
        self.tables_known = true;
        self.node_dirty = true;
    }

    /// When the next round is due without any change.
    pub fn next_wake(&self) -> Instant {
        let l7 = self.l7.as_ref().and_then(L7::next_wake);
        let timers = [Some(self.next_check), self.retries.next(), self.node_retry, l7];
        timers.into_iter().flatten().min().unwrap_or(self.next_check)
    }

    /// One round: does whatever is due.
    pub fn round(&mut self) {
        self.board.round_begins();
        // Empty tables would take the programs off every device that an earlier agent left them on.
        let took = if self.objects.ready_l4() && self.tables_known {
            self.round_l4()
        } else {
            if !self.objects.ready_l4() {
                self.board.nothing_to_apply();
            }
            Duration::ZERO
        };
        self.round_l7();
        self.publish(took);
    }

    /// Services, from the objects to the maps; how long it took.
    fn round_l4(&mut self) -> Duration {
        let now = Instant::now();
        if now >= self.next_check {
            self.next_check = now + CHECK;
            self.check();
            self.metrics.checked(now.elapsed());
        }
        if self.node_dirty {
            self.update_view();
        }
        let mut stages = Stages { objects: std::mem::take(&mut self.taking), ..Stages::default() };
        let began = Instant::now();
        let dirty = std::mem::take(&mut self.dirty);
        let full = self.plan_all || self.phase == Phase::Listing;
        let mut work = self.model.update(&self.objects, &self.view, &dirty);
        if std::mem::take(&mut self.plan_all) {
            work.extend(self.model.states().keys().cloned());
        }
        for key in &work {
            self.note(key);
        }
        for key in work.union(&dirty) {
            self.note_pods(key);
            self.reach.note(key, self.objects.services.get(key).map(|service| &**service));
        }
        work.extend(self.retries.due(now));
        stages.model = began.elapsed();
        let mut round = Round { full, services: work.len() as u64, stages, ..Round::default() };
        for key in &work {
            self.carry_out(key, now, &mut round);
        }
        if self.leftovers && !self.files_hide_objects() {
            self.retire_leftovers(&mut round);
        }
        self.update_reach(&mut round);
        if let Some(swept) = self.swept.take() {
            self.forget_unused(&swept, &mut round);
        }
        let began = Instant::now();
        self.follow_netfilter();
        self.update_node();
        round.stages.node = began.elapsed();
        self.phase = Phase::Synced;
        self.tell_checks();
        self.finish(now, round)
    }

    fn seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Remembers what a recomputed Service says about problems.
    fn note(&mut self, key: &ObjectKey) {
        let state = self.model.state(key);
        self.problems.set_service(key, state.map_or(&[], |state| &state.problems));
        match state.and_then(|state| state.health.as_ref()) {
            Some(check) => self.checks.insert(key.clone(), check.clone()),
            None => self.checks.remove(key),
        };
    }

    /// Plans one Service and applies the plan.
    fn carry_out(&mut self, key: &ObjectKey, now: Instant, round: &mut Round) {
        let seconds = self.seconds();
        let began = Instant::now();
        let plan = self.planner.diff(key, self.model.state(key), seconds);
        let planned = Instant::now();
        let datapath = &mut self.datapath;
        let failed = self.planner.carry_out(&plan.ops, seconds, |ops| datapath.apply(ops));
        round.stages.plan += planned - began;
        round.stages.apply += planned.elapsed();
        round.ops += plan.ops.len() as u64;
        round.failed += failed.len() as u64;
        let refused = failed.iter().any(|failure| matches!(failure.error, OpError::Kernel { .. }));
        let mut problems = plan.problems;
        problems
            .extend(failed.iter().take(3).map(|failure| failure_problem(key, &failure.op, &failure.error)));
        if problems.is_empty() {
            self.retries.succeeded(key);
        } else {
            self.retries.failed(key, now, refused);
        }
        self.problems.set_failure(key, problems);
    }

    /// Applies operations that belong to no living Service; says whether all succeeded.
    fn apply_loose(&mut self, ops: &[Op], round: &mut Round) -> bool {
        let seconds = self.seconds();
        let datapath = &mut self.datapath;
        let failed = self.planner.carry_out(ops, seconds, |ops| datapath.apply(ops));
        round.ops += ops.len() as u64;
        round.failed += failed.len() as u64;
        for failure in &failed {
            tracing::debug!(op = ?failure.op, error = %failure.error, "operation failed");
        }
        failed.is_empty()
    }

    /// Whether a manifest file is at fault: what it holds, or held before this agent started, is
    /// then unknown, and may be whose leftovers are in the maps. It may be half-written.
    fn files_hide_objects(&self) -> bool {
        self.objects.source_problems.iter().any(|problem| problem.object.kind == Kind::File)
    }

    /// What was found in the maps and claimed by no Service in the first round (S80).
    fn retire_leftovers(&mut self, round: &mut Round) {
        let ops = self.planner.finish_first_round();
        if !ops.is_empty() {
            tracing::info!(operations = ops.len(), "removing what is left of Services that are gone");
        }
        self.leftovers = !self.apply_loose(&ops, round);
        self.leftovers_refused = self.leftovers;
    }

    /// Compares what is programmed with what was applied, and starts anew from what is
    /// there if they differ: somebody else wrote to the maps.
    fn check(&mut self) {
        match self.datapath.read() {
            Ok(Programmed { frontends, backends, prefixes, reach }) => {
                if reach != *self.reach.applied() {
                    self.reach.restore(reach.clone());
                }
                let same = frontends == *self.planner.frontends()
                    && backends == *self.planner.backends()
                    && prefixes == self.planner.prefixes().copied().collect();
                if !same {
                    tracing::warn!(
                        frontends = frontends.len(),
                        backends = backends.len(),
                        "maps are not as they were left; programming them anew"
                    );
                    self.planner.restore(Programmed { frontends, backends, prefixes, reach }, self.seconds());
                    self.plan_all = true;
                    self.leftovers = true;
                }
            }
            Err(error) => tracing::error!(%error, "maps cannot be read back"),
        }
        // Said again even if nothing changed: detached programs come back.
        self.facts = None;
        self.node_dirty = true;
    }

    fn finish(&mut self, started: Instant, mut round: Round) -> Duration {
        round.took = started.elapsed();
        round.since_event = self.heard.take().map(|heard| heard.elapsed());
        let now = SystemTime::now();
        round.since_trigger = self.triggers.drain(..).filter_map(|at| now.duration_since(at).ok()).collect();
        round.endpoints = std::mem::take(&mut self.slices);
        let worked = round.ops > 0 || round.since_event.is_some();
        if worked {
            self.metrics.round(&round);
            tracing::debug!(
                services = round.services,
                operations = round.ops,
                failed = round.failed,
                micros = round.took.as_micros() as u64,
                "round"
            );
        }
        self.board.applied(!self.retries.refused() && !self.leftovers_refused);
        round.took
    }

    fn publish(&mut self, took: Duration) {
        self.rounds += 1;
        // Not listed yet: nothing says that the node is not, or that it leaves.
        let unknown = !self.node_required || !self.objects.listed.contains(&Kind::Node);
        let eligible = self.objects.node.as_ref().map_or(unknown, |node| !node.leaving);
        let config = &self.node.facts.config;
        let addresses = [config.v4, config.v6].into_iter().filter(|addr| !addr.is_unspecified());
        let first = self.phase == Phase::Synced && self.board.snapshot().phase != Phase::Synced;
        self.board.publish(Snapshot {
            phase: self.phase,
            node_eligible: eligible,
            node_addresses: addresses.map(|addr| addr.to_string()).collect(),
            links: Arc::new(self.node.links.clone()),
            hooks: Arc::clone(&self.hooks),
            awaiting_pods: matches!(self.pods, PodWait::Waiting(_)),
            services: self.model.states().len(),
            frontends: self.planner.frontends().len(),
            backends: self.planner.backends().len(),
            rounds: self.rounds,
            last_round_micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            pending_ops: self.retries.len(),
            takeover: self.following.told.clone(),
            problems: self.problems.settle(),
        });
        self.board.round_ends();
        if first {
            tracing::info!(
                services = self.model.states().len(),
                frontends = self.planner.frontends().len(),
                backends = self.planner.backends().len(),
                micros = took.as_micros() as u64,
                "first sync is applied"
            );
        }
    }

    /// Everything that metrics read at the moment of asking.
    pub(crate) fn reading(&mut self) -> Reading {
        let mut services: BTreeMap<ObjectKey, lb_common::abi::ServiceCounters> = BTreeMap::new();
        for port in self.model.states().values().flat_map(|state| state.ports.keys()) {
            let Some(id) = self.planner.service_id(port) else { continue };
            let counters = self.datapath.service_counters(id);
            if counters == lb_common::abi::ServiceCounters::default() {
                continue;
            }
            let sum = services.entry(port.service.clone()).or_default();
            sum.packet_flows += counters.packet_flows;
            sum.socket_flows += counters.socket_flows;
            sum.no_endpoint += counters.no_endpoint;
            sum.dropped += counters.dropped;
        }
        Reading {
            counters: self.datapath.counters(),
            fill: self.datapath.fill(),
            services,
            problems: self.board.problems(),
            programmed: [
                self.model.states().len(),
                self.planner.frontends().len(),
                self.planner.backends().len(),
            ],
            pending_ops: self.retries.len(),
            changes_pending: [
                self.dirty.len() + self.retries.len(),
                usize::try_from(self.slices).unwrap_or(usize::MAX),
            ],
            without_local: self.planner.without_local(),
            health_ports: self.board.health_ports(),
            carried: self.following.told.carried,
            l7: self.reading_l7(),
        }
    }
}

fn failure_problem(key: &ObjectKey, op: &Op, error: &OpError) -> Problem {
    let what = match op {
        Op::PutBackend(_, backend) => format!("backend {}:{}", backend.addr, backend.port),
        Op::WriteTable { .. } => "backend table".to_string(),
        Op::PutFrontend(frontend, _) | Op::DeleteFrontend(frontend) => {
            format!("frontend {}:{}/{}", frontend.addr, frontend.port, frontend.proto)
        }
        Op::DeleteBackend(id) => format!("backend {id}"),
        Op::PutPrefix(prefix, _) | Op::DeletePrefix(prefix) => {
            format!("source range {}/{}", prefix.addr, prefix.bits())
        }
        Op::DeleteService(id) => format!("service id {id}"),
    };
    Problem {
        object: ObjectRef { kind: Kind::Service, key: key.clone() },
        field: "datapath".into(),
        reason: format!("{what}: {error}; tried again"),
    }
}

#[cfg(test)]
mod tests;
