//! What has been applied, and what may be given out: the memory between two plans.

use super::holding::{Holding, Stored};
use super::ids::Ids;
use super::op::Op;
use super::tables::Blocks;
use crate::datapath::{Capacity, Programmed};
use crate::model::{PortKey, ServiceState};
use crate::problem::{ObjectKey, Problem, bounded};
use lb_common::abi::{
    Addr, Backend, BackendId, Family, Frontend, FrontendFlags, FrontendKey, PortRange, Prefix, Proto,
    ServiceId, Table,
};
use std::collections::{BTreeMap, BTreeSet};

/// The operations that bring one Service to its desired state, in order.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    pub ops: Vec<Op>,
    /// What has to wait because a map is full. The Service is to be planned again later.
    pub problems: Vec<Problem>,
}

/// An operation that failed, and why.
#[derive(Debug)]
pub struct Failed<E> {
    pub op: Op,
    pub error: E,
}

/// Compares what is applied with what should be, one Service at a time.
#[derive(Debug)]
pub struct Planner {
    pub(super) capacity: Capacity,
    pub(super) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(super) backends: BTreeMap<BackendId, Backend>,
    /// Since when.
    pub(super) retired: BTreeMap<FrontendKey, u64>,
    pub(super) holdings: BTreeMap<ServiceId, Holding>,
    pub(super) ports: BTreeMap<PortKey, ServiceId>,
    /// Ids that nothing refers to and whose counters are still to be forgotten.
    pub(super) spent: BTreeSet<ServiceId>,
    /// First blocks of runs that were written since they were given out.
    pub(super) written: BTreeSet<u32>,
    pub(super) service_ids: Ids,
    pub(super) backend_ids: Ids,
    pub(super) blocks: Blocks,
}

impl Planner {
    pub fn new(capacity: Capacity) -> Self {
        Self {
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            retired: BTreeMap::new(),
            holdings: BTreeMap::new(),
            ports: BTreeMap::new(),
            spent: BTreeSet::new(),
            written: BTreeSet::new(),
            service_ids: Ids::new(capacity.services),
            backend_ids: Ids::new(capacity.backends),
            blocks: Blocks::new(capacity.table_blocks),
            capacity,
        }
    }

    /// Takes over what an earlier agent left in the maps, before the first plan.
    ///
    /// A Service port that asks for a frontend which is there goes on with its id, and with
    /// the ids of the backends under it, so that flows and affinity stay valid (S80).
    /// What the tables hold is not read back. One whose size still fits is written anew in
    /// place, after the new backends are put and before the old ones go: each slot names a live
    /// backend at any time. Where the size has changed a new table takes its place, as always.
    pub fn restore(&mut self, programmed: Programmed, now: u64) {
        *self = Self::new(self.capacity);
        for (key, frontend) in &programmed.frontends {
            let holding = self.holdings.entry(frontend.service).or_default();
            holding.frontends.insert(*key);
            if frontend.flags.has(FrontendFlags::RETIRED) {
                self.retired.insert(*key, now);
            }
            for table in [frontend.inside, frontend.outside] {
                if table.count == 0 || holding.tables.iter().any(|stored| stored.table == table) {
                    continue;
                }
                let slots = self.blocks.reserve(table.slots, table.count);
                let maglev = table.maglev_len == 0 || self.blocks.reserve(table.maglev, table.maglev_len);
                if slots && maglev {
                    holding.tables.push(Stored { table, members: Vec::new(), planned: false });
                }
            }
        }
        for (id, backend) in &programmed.backends {
            let holding = self.holdings.entry(backend.service).or_default();
            holding.backends.entry((backend.addr, backend.port.get())).or_insert(*id);
        }
        for prefix in &programmed.prefixes {
            self.holdings.entry(prefix.set).or_default().prefixes.insert(*prefix);
        }
        self.service_ids.restore(&self.holdings.keys().copied().collect(), now);
        self.backend_ids.restore(&programmed.backends.keys().copied().collect(), now);
        self.frontends = programmed.frontends;
        self.backends = programmed.backends;
    }

    /// Plans one Service; `None` and a Service without ports remove what it has.
    ///
    /// Work is that of this Service alone. An unchanged one yields no operation.
    pub fn diff(&mut self, key: &ObjectKey, desired: Option<&ServiceState>, now: u64) -> Plan {
        let nothing = ServiceState::default();
        let desired = desired.unwrap_or(&nothing);
        let mut draft = Draft::default();
        for (port, state) in &desired.ports {
            let keys = state.frontends.iter().map(|f| super::port::frontend_key(f, port.proto));
            draft.claimed.extend(keys);
        }
        for (port, state) in &desired.ports {
            self.plan_port(port, state, now, &mut draft);
        }
        for port in self.ports_of(key) {
            if !desired.ports.contains_key(&port) {
                self.plan_leaving(&port, now, &mut draft);
            }
        }
        let Draft { backends, tables, switch, clear, mut problems, .. } = draft;
        problems.dedup();
        Plan { ops: [backends, tables, switch, clear].concat(), problems: bounded(problems) }
    }

    fn ports_of(&self, key: &ObjectKey) -> Vec<PortKey> {
        let first =
            PortKey { service: key.clone(), port_name: String::new(), proto: Proto(0), family: Family::V4 };
        self.ports
            .range(first..)
            .map(|(port, _)| port)
            .take_while(|port| port.service == *key)
            .cloned()
            .collect()
    }

    /// Applies a plan and records what took effect; returns what failed.
    ///
    /// Backends come first, then tables, frontends and deletions. After a failure in one
    /// of these steps the later ones are left out: no frontend switches to a table or a
    /// backend that is not there, and nothing is deleted while something still uses it.
    pub fn carry_out<E>(
        &mut self,
        ops: &[Op],
        now: u64,
        mut apply: impl FnMut(&[Op]) -> Vec<Result<(), E>>,
    ) -> Vec<Failed<E>> {
        let mut failed = Vec::new();
        for step in ops.chunk_by(|a, b| step(a) == step(b)) {
            let results = apply(step);
            self.applied(step, &results, now);
            let errors = step.iter().zip(results).filter_map(|(op, result)| Some((op, result.err()?)));
            failed.extend(errors.map(|(op, error)| Failed { op: op.clone(), error }));
            if !failed.is_empty() {
                break;
            }
        }
        failed
    }

    /// Records the results of operations. Only what succeeded counts.
    pub fn applied<E>(&mut self, ops: &[Op], results: &[Result<(), E>], now: u64) {
        let mut touched = BTreeSet::new();
        for (op, _) in ops.iter().zip(results).filter(|(_, result)| result.is_ok()) {
            self.record(op, now, &mut touched);
        }
        for id in touched {
            self.settle(id, now);
        }
    }

    fn record(&mut self, op: &Op, now: u64, touched: &mut BTreeSet<ServiceId>) {
        match op {
            Op::PutBackend(id, backend) => {
                self.backends.insert(*id, *backend);
            }
            Op::WriteTable { block, .. } => {
                self.written.insert(*block);
            }
            Op::PutFrontend(key, frontend) => {
                self.unlink(key, touched);
                self.frontends.insert(*key, *frontend);
                self.holdings.entry(frontend.service).or_default().frontends.insert(*key);
                if frontend.flags.has(FrontendFlags::RETIRED) {
                    self.retired.insert(*key, now);
                }
                touched.insert(frontend.service);
            }
            Op::DeleteFrontend(key) => self.unlink(key, touched),
            Op::DeleteBackend(id) => {
                let Some(backend) = self.backends.remove(id) else { return };
                self.backend_ids.free(*id, now);
                if let Some(holding) = self.holdings.get_mut(&backend.service) {
                    let key = (backend.addr, backend.port.get());
                    if holding.backends.get(&key) == Some(id) {
                        holding.backends.remove(&key);
                    }
                }
                touched.insert(backend.service);
            }
            Op::PutPrefix(prefix, _) => {
                self.holdings.entry(prefix.set).or_default().prefixes.insert(*prefix);
            }
            Op::DeletePrefix(prefix) => {
                if let Some(holding) = self.holdings.get_mut(&prefix.set) {
                    holding.prefixes.remove(prefix);
                }
                touched.insert(prefix.set);
            }
            Op::DeleteService(id) => {
                if self.spent.remove(id) {
                    self.holdings.remove(id);
                    self.service_ids.free(*id, now);
                }
            }
        }
    }

    /// Takes a frontend from whoever has it.
    fn unlink(&mut self, key: &FrontendKey, touched: &mut BTreeSet<ServiceId>) {
        self.retired.remove(key);
        if let Some(old) = self.frontends.remove(key) {
            if let Some(holding) = self.holdings.get_mut(&old.service) {
                holding.frontends.remove(key);
            }
            touched.insert(old.service);
        }
    }

    /// Lets go of what an id no longer needs: tables that no frontend and no plan uses, the
    /// port once all of it is gone, at last the id.
    pub(super) fn settle(&mut self, id: ServiceId, now: u64) {
        let Some(holding) = self.holdings.get_mut(&id) else { return };
        let used: Vec<Table> = holding
            .frontends
            .iter()
            .filter_map(|key| self.frontends.get(key))
            .flat_map(|frontend| [frontend.inside, frontend.outside])
            .collect();
        holding.tables.retain(|stored| {
            let keep = stored.planned || used.contains(&stored.table);
            if !keep {
                let Table { slots, count, maglev, maglev_len } = stored.table;
                self.blocks.free(slots, count, now);
                self.written.remove(&slots);
                if maglev_len > 0 {
                    self.blocks.free(maglev, maglev_len, now);
                    self.written.remove(&maglev);
                }
            }
            keep
        });
        let live = holding.frontends.iter().any(|key| !self.retired.contains_key(key));
        if holding.leaving && !live && holding.backends.is_empty() && holding.prefixes.is_empty() {
            holding.leaving = false;
            if let Some(port) = holding.port.take() {
                self.ports.remove(&port);
            }
        }
        if holding.is_spent() {
            self.spent.insert(id);
        }
    }

    /// After the first complete round: retires the frontends and deletes backends and ranges that
    /// nobody claimed, of Services that went away while no agent ran (S8, S80).
    ///
    /// To be carried out like a plan, and asked for again until it is empty.
    pub fn finish_first_round(&mut self) -> Vec<Op> {
        let unclaimed = |id: &ServiceId| self.holdings.get(id).is_none_or(|holding| holding.port.is_none());
        let mut ops: Vec<_> = self
            .frontends
            .iter()
            .filter(|(key, frontend)| unclaimed(&frontend.service) && !self.retired.contains_key(key))
            .map(|(key, frontend)| Op::PutFrontend(*key, retire(frontend)))
            .collect();
        ops.extend(self.backends.iter().filter_map(|(id, backend)| {
            let key = (backend.addr, backend.port.get());
            let kept = self.holdings.get(&backend.service).and_then(|holding| holding.backends.get(&key));
            (unclaimed(&backend.service) || kept != Some(id)).then_some(Op::DeleteBackend(*id))
        }));
        let left = self.prefixes().filter(|prefix| unclaimed(&prefix.set));
        ops.extend(left.map(|prefix| Op::DeletePrefix(*prefix)));
        ops
    }

    /// Frontends without a Service, kept for flows that are still open (S65), and since when.
    /// Once no flow through one is left it may be [forgotten](Self::forget).
    pub fn retired(&self) -> impl Iterator<Item = (FrontendKey, ServiceId, u64)> {
        self.retired.iter().filter_map(|(key, since)| Some((*key, self.frontends.get(key)?.service, *since)))
    }

    /// The operations that forget a retired frontend; none when it is in use again.
    pub fn forget(&self, key: &FrontendKey) -> Vec<Op> {
        if self.retired.contains_key(key) { vec![Op::DeleteFrontend(*key)] } else { Vec::new() }
    }

    /// The operations that free Service ids which nothing refers to any more. Cheap; to be
    /// asked for now and then, after [`Self::forget`] and after plans.
    pub fn sweep(&self) -> Vec<Op> {
        self.spent.iter().map(|id| Op::DeleteService(*id)).collect()
    }

    /// The smallest range that holds every node port in the maps.
    pub fn node_ports(&self) -> PortRange {
        let mut range = PortRange::EMPTY;
        for addr in [Addr::ANY_V4, Addr::ANY_V6] {
            let key = |port, proto| FrontendKey::new(addr, lb_common::abi::Be16::new(port), Proto(proto));
            let mut keys =
                self.frontends.range(key(0, 0)..=key(u16::MAX, u8::MAX)).map(|(key, _)| key.port.get());
            if let Some(first) = keys.next() {
                let last = keys.next_back().unwrap_or(first);
                range = if range.is_empty() {
                    PortRange { first, last }
                } else {
                    PortRange { first: range.first.min(first), last: range.last.max(last) }
                };
            }
        }
        range
    }

    /// Frontends as applied, retired ones included.
    pub fn frontends(&self) -> &BTreeMap<FrontendKey, Frontend> {
        &self.frontends
    }

    /// Service ports whose policy Local finds no endpoint on this node, though elsewhere: IPv4 and
    /// IPv6, each by internal and external policy (S58).
    pub fn without_local(&self) -> [[u32; 2]; 2] {
        let mut counts = [[0; 2]; 2];
        let mut seen = BTreeSet::new();
        for (key, frontend) in self.frontends.iter().filter(|(_, f)| !f.flags.has(FrontendFlags::RETIRED)) {
            let external = !frontend.flags.has(FrontendFlags::CLUSTER_IP);
            let drops = if external { FrontendFlags::OUTSIDE_DROPS } else { FrontendFlags::INSIDE_DROPS };
            let (family, policy) = (usize::from(!key.addr.is_v4()), usize::from(external));
            if frontend.flags.has(drops) && seen.insert((frontend.service, family, policy)) {
                counts[family][policy] += 1;
            }
        }
        counts
    }

    /// Backends as applied.
    pub fn backends(&self) -> &BTreeMap<BackendId, Backend> {
        &self.backends
    }

    /// Source ranges as applied.
    pub fn prefixes(&self) -> impl Iterator<Item = &Prefix> {
        self.holdings.values().flat_map(|holding| &holding.prefixes)
    }

    /// The id of a Service port.
    pub fn service_id(&self, port: &PortKey) -> Option<ServiceId> {
        self.ports.get(port).copied()
    }

    /// The Service port of an id.
    pub fn port(&self, id: ServiceId) -> Option<&PortKey> {
        self.holdings.get(&id)?.port.as_ref()
    }
}

/// A plan while it is made.
#[derive(Default)]
pub(super) struct Draft {
    /// Frontends that this Service keeps, through whichever port.
    pub(super) claimed: BTreeSet<FrontendKey>,
    pub(super) backends: Vec<Op>,
    pub(super) tables: Vec<Op>,
    pub(super) switch: Vec<Op>,
    pub(super) clear: Vec<Op>,
    pub(super) problems: Vec<Problem>,
}

/// The same frontend without a Service: no backend for new flows.
pub(super) fn retire(frontend: &Frontend) -> Frontend {
    let kind = FrontendFlags::CLUSTER_IP.0 | FrontendFlags::NODE_PORT.0 | FrontendFlags::EXTERNAL.0;
    Frontend {
        service: frontend.service,
        flags: FrontendFlags(frontend.flags.0 & kind).with(FrontendFlags::RETIRED),
        affinity_seconds: 0,
        pad: 0,
        inside: Table::default(),
        outside: Table::default(),
    }
}

/// Operations of one step do not depend on each other. Tables come after backends: after a
/// restart a table may be written where a frontend already reads it.
fn step(op: &Op) -> u8 {
    match op {
        Op::PutBackend(..) | Op::PutPrefix(..) => 0,
        Op::WriteTable { .. } => 1,
        Op::PutFrontend(..) | Op::DeleteFrontend(_) => 2,
        Op::DeleteBackend(_) | Op::DeletePrefix(_) | Op::DeleteService(_) => 3,
    }
}
