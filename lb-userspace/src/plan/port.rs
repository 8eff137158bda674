//! The plan of one Service port in one family.

use super::holding::Stored;
use super::maglev::{self, Member};
use super::op::Op;
use super::planner::{Draft, Planner, retire};
use crate::model::{BackendState, FrontendKind, FrontendState, PortKey, PortState};
use crate::problem::{Kind, ObjectRef, Problem};
use lb_common::abi::{
    Backend, BackendFlags, BackendId, Be16, Frontend, FrontendFlags, FrontendKey, Held, Prefix, Proto,
    ServiceId, Table,
};
use std::collections::BTreeSet;

pub(super) fn frontend_key(frontend: &FrontendState, proto: Proto) -> FrontendKey {
    FrontendKey::new(frontend.addr, Be16::new(frontend.port), proto)
}

impl Planner {
    pub(super) fn plan_port(&mut self, key: &PortKey, state: &PortState, now: u64, draft: &mut Draft) {
        let Some(id) = self.claim(key, state, now) else {
            let reason = format!("all {} Service ids are in use: the port waits", self.capacity.services);
            return draft.problems.push(full(key, reason));
        };
        let members = self.plan_backends(id, key, state, now, draft);
        self.plan_ranges(id, state, draft);
        match self.plan_tables(id, key, state, &members, now, draft) {
            Some(tables) => {
                self.plan_frontends(id, key, state, &tables, draft);
                self.plan_departures(id, state, now, draft);
            }
            // What is there stays as it is, and with it all that it refers to.
            None => draft.problems.push(full(
                key,
                format!("no room in the tables map ({} blocks): the port waits", self.capacity.table_blocks),
            )),
        }
        self.settle(id, now);
    }

    /// Retires and deletes all that a port has.
    pub(super) fn plan_leaving(&mut self, key: &PortKey, now: u64, draft: &mut Draft) {
        let Some(&id) = self.ports.get(key) else { return };
        let Some(holding) = self.holdings.get_mut(&id) else { return };
        holding.leaving = true;
        holding.tables.iter_mut().for_each(|stored| stored.planned = false);
        self.plan_retirements(id, draft);
        let nobody = PortState {
            frontends: Vec::new(),
            backends: Vec::new(),
            affinity_seconds: 0,
            source_ranges: None,
            cluster_ip_drops: false,
            inside_drops: false,
            outside_drops: false,
            masquerades: false,
        };
        self.plan_ranges(id, &nobody, draft);
        self.plan_departures(id, &nobody, now, draft);
        self.settle(id, now);
    }

    /// The port's id: the one it has, one that the maps hold for its frontends, or a new one.
    fn claim(&mut self, key: &PortKey, state: &PortState, now: u64) -> Option<ServiceId> {
        if let Some(&id) = self.ports.get(key) {
            self.holdings.get_mut(&id)?.leaving = false;
            return Some(id);
        }
        // The ClusterIP first: it stays with its Service for life.
        let kinds = [true, false];
        let frontends = kinds.into_iter().flat_map(|cluster_ip| {
            state.frontends.iter().filter(move |f| (f.kind == FrontendKind::ClusterIp) == cluster_ip)
        });
        let left_behind = frontends
            .filter_map(|f| self.frontends.get(&frontend_key(f, key.proto)))
            .filter(|found| !found.flags.has(FrontendFlags::RETIRED))
            .map(|found| found.service)
            .find(|id| {
                self.service_ids.holds(*id) && self.holdings.get(id).is_some_and(|h| h.port.is_none())
            });
        let id = left_behind.or_else(|| self.service_ids.take(now))?;
        self.holdings.entry(id).or_default().port = Some(key.clone());
        self.ports.insert(key.clone(), id);
        Some(id)
    }

    /// Puts new and changed backends. Those that find no id are left out, and told.
    fn plan_backends<'a>(
        &mut self,
        id: ServiceId,
        key: &PortKey,
        state: &'a PortState,
        now: u64,
        draft: &mut Draft,
    ) -> Vec<(&'a BackendState, BackendId)> {
        let Some(holding) = self.holdings.get_mut(&id) else { return Vec::new() };
        let mut members = Vec::with_capacity(state.backends.len());
        for backend in &state.backends {
            let address = (backend.addr, backend.port);
            let Some(backend_id) =
                holding.backends.get(&address).copied().or_else(|| self.backend_ids.take(now))
            else {
                continue;
            };
            holding.backends.insert(address, backend_id);
            let value = Backend {
                addr: backend.addr,
                service: id,
                port: Be16::new(backend.port),
                proto: key.proto,
                flags: flags_of(backend),
            };
            if self.backends.get(&backend_id) != Some(&value) {
                draft.backends.push(Op::PutBackend(backend_id, value));
            }
            members.push((backend, backend_id));
        }
        let left_out = state.backends.len() - members.len();
        if left_out > 0 {
            let reason = format!(
                "no room in the backends map ({} entries): {left_out} of {} endpoints wait",
                self.capacity.backends,
                state.backends.len()
            );
            draft.problems.push(full(key, reason));
        }
        members
    }

    /// Source ranges: the new ones before a frontend asks for them, those that are gone at last,
    /// so that nobody who may is turned away in between (S51).
    fn plan_ranges(&self, id: ServiceId, state: &PortState, draft: &mut Draft) {
        let Some(holding) = self.holdings.get(&id) else { return };
        let ranges = state.source_ranges.iter().flatten();
        let wanted: BTreeSet<Prefix> =
            ranges.map(|net| Prefix::new(id, net.network().into(), net.prefix_len())).collect();
        draft
            .backends
            .extend(wanted.difference(&holding.prefixes).map(|prefix| Op::PutPrefix(*prefix, Held::MEMBER)));
        draft.clear.extend(holding.prefixes.difference(&wanted).map(|prefix| Op::DeletePrefix(*prefix)));
    }

    /// The tables of the three sets, `None` when there is no room. Equal sets share one.
    fn plan_tables(
        &mut self,
        id: ServiceId,
        key: &PortKey,
        state: &PortState,
        members: &[(&BackendState, BackendId)],
        now: u64,
        draft: &mut Draft,
    ) -> Option<Tables> {
        let set = |wanted: bool, pick: fn(&BackendState) -> bool| -> Vec<Member> {
            let chosen = members.iter().filter(|(backend, _)| wanted && pick(backend));
            chosen.map(|(backend, id)| (backend.addr, backend.port, *id)).collect()
        };
        let of_kind = |cluster_ip: bool| {
            state.frontends.iter().find(move |f| (f.kind == FrontendKind::ClusterIp) == cluster_ip)
        };
        let present = |frontend: Option<&FrontendState>| {
            self.frontends.get(&frontend_key(frontend?, key.proto)).copied()
        };
        let (cluster_ip, external) = (of_kind(true), of_kind(false));
        let (old_cluster, old_external) = (present(cluster_ip), present(external));
        let cluster = set(cluster_ip.is_some(), |b| b.in_cluster_ip);
        let inside = set(external.is_some(), |b| b.in_inside);
        let outside = set(external.is_some(), |b| b.in_outside);

        for stored in &mut self.holdings.get_mut(&id)?.tables {
            stored.planned = false;
        }
        // Only external frontends choose by hash: nodes must agree where traffic arrives.
        let shared = cluster == inside || cluster == outside;
        let mut place = |set, hashed, old| self.place(id, set, hashed, old, now);
        let tables = Tables {
            inside: place(&inside, true, old_external.map(|f| f.inside))?,
            outside: place(&outside, true, old_external.map(|f| f.outside))?,
            cluster_ip: place(&cluster, shared && external.is_some(), old_cluster.map(|f| f.inside))?,
        };
        let holding = self.holdings.get(&id)?;
        for Stored { table, members, .. } in holding.tables.iter().filter(|stored| stored.planned) {
            if !self.written.contains(&table.slots) {
                let ids = members.iter().map(|(_, _, id)| *id).collect();
                draft.tables.push(Op::WriteTable { block: table.slots, ids });
            }
            if table.maglev_len > 0 && !self.written.contains(&table.maglev) {
                draft.tables.push(Op::WriteTable { block: table.maglev, ids: maglev::build(members) });
            }
        }
        Some(tables)
    }

    /// Finds the table of a set: one that is there, one left by an earlier agent in the same
    /// place and of the same shape, or a new one; `None` when there is no room for its slots.
    ///
    /// A new Maglev table is made only while a quarter of all blocks is free: it takes up to a
    /// hundred times the room of the slots, which nobody may be left without. The slots alone do,
    /// then; clients that land on another node may find another backend. It is made up for when
    /// the set changes next.
    fn place(
        &mut self,
        id: ServiceId,
        members: &[Member],
        hashed: bool,
        old: Option<Table>,
        now: u64,
    ) -> Option<Table> {
        let holding = self.holdings.get_mut(&id)?;
        let count = u32::try_from(members.len()).ok()?;
        if count == 0 {
            return Some(Table::default());
        }
        let mut kept = |maglev_len| {
            let same = |stored: &Stored| stored.members == members && stored.table.maglev_len == maglev_len;
            let left = |stored: &Stored| {
                stored.members.is_empty()
                    && Some(stored.table) == old
                    && (stored.table.count, stored.table.maglev_len) == (count, maglev_len)
            };
            let tables = &mut holding.tables;
            let index = tables.iter().position(same).or_else(|| tables.iter().position(left))?;
            let stored = &mut tables[index];
            stored.members = members.to_vec();
            stored.planned = true;
            Some(stored.table)
        };
        let mut maglev_len = if hashed { maglev::size(members.len()) } else { 0 };
        if let Some(table) = kept(maglev_len) {
            return Some(table);
        }
        let mut maglev = 0;
        if maglev_len > 0 {
            let block = if self.blocks.is_roomy(now) { self.blocks.take(maglev_len, now) } else { None };
            match block {
                Some(block) => maglev = block,
                None => {
                    maglev_len = 0;
                    if let Some(table) = kept(0) {
                        return Some(table);
                    }
                }
            }
        }
        let Some(slots) = self.blocks.take(count, now) else {
            if maglev_len > 0 {
                self.blocks.free(maglev, maglev_len, now);
            }
            return None;
        };
        let table = Table { slots, count, maglev, maglev_len };
        holding.tables.push(Stored { table, members: members.to_vec(), planned: true });
        Some(table)
    }

    fn plan_frontends(
        &self,
        id: ServiceId,
        key: &PortKey,
        state: &PortState,
        tables: &Tables,
        draft: &mut Draft,
    ) {
        for frontend in &state.frontends {
            let drops = |inside, outside| {
                let mut flags = FrontendFlags::default();
                if inside {
                    flags = flags.with(FrontendFlags::INSIDE_DROPS);
                }
                if outside {
                    flags = flags.with(FrontendFlags::OUTSIDE_DROPS);
                }
                flags
            };
            let mut external = drops(state.inside_drops, state.outside_drops);
            if state.masquerades {
                external = external.with(FrontendFlags::MASQUERADE);
            }
            let (flags, inside, outside) = match frontend.kind {
                FrontendKind::ClusterIp => (
                    drops(state.cluster_ip_drops, state.cluster_ip_drops).with(FrontendFlags::CLUSTER_IP),
                    tables.cluster_ip,
                    tables.cluster_ip,
                ),
                FrontendKind::NodePort => {
                    (external.with(FrontendFlags::NODE_PORT), tables.inside, tables.outside)
                }
                FrontendKind::LoadBalancer if state.source_ranges.is_some() => (
                    external.with(FrontendFlags::EXTERNAL).with(FrontendFlags::SOURCE_RANGES),
                    tables.inside,
                    tables.outside,
                ),
                FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {
                    (external.with(FrontendFlags::EXTERNAL), tables.inside, tables.outside)
                }
            };
            let value = Frontend {
                service: id,
                flags,
                affinity_seconds: state.affinity_seconds,
                pad: 0,
                inside,
                outside,
            };
            let address = frontend_key(frontend, key.proto);
            if self.frontends.get(&address) != Some(&value) {
                draft.switch.push(Op::PutFrontend(address, value));
            }
        }
        self.plan_retirements(id, draft);
    }

    /// Retires the frontends that the Service gave up. One that another port of it, or another
    /// Service, has taken over is left to that one.
    fn plan_retirements(&self, id: ServiceId, draft: &mut Draft) {
        let Some(holding) = self.holdings.get(&id) else { return };
        for key in holding.frontends.iter().filter(|key| !draft.claimed.contains(key)) {
            if let Some(frontend) = self.frontends.get(key)
                && !frontend.flags.has(FrontendFlags::RETIRED)
            {
                draft.switch.push(Op::PutFrontend(*key, retire(frontend)));
            }
        }
    }

    /// Deletes the backends that are gone from the slices, or serve no more.
    fn plan_departures(&mut self, id: ServiceId, state: &PortState, now: u64, draft: &mut Draft) {
        let Some(holding) = self.holdings.get_mut(&id) else { return };
        let wanted: BTreeSet<_> = state.backends.iter().map(|b| (b.addr, b.port)).collect();
        holding.backends.retain(|address, backend| {
            if wanted.contains(address) {
                return true;
            }
            let put = self.backends.contains_key(backend);
            if put {
                draft.clear.push(Op::DeleteBackend(*backend));
            } else {
                self.backend_ids.free(*backend, now);
            }
            put
        });
    }
}

/// The tables of a port's three sets.
struct Tables {
    cluster_ip: Table,
    inside: Table,
    outside: Table,
}

fn flags_of(backend: &BackendState) -> BackendFlags {
    [
        (backend.in_inside, BackendFlags::INSIDE),
        (backend.in_outside, BackendFlags::OUTSIDE),
        (backend.in_cluster_ip, BackendFlags::CLUSTER),
        (backend.serving, BackendFlags::SERVING),
        (backend.local, BackendFlags::LOCAL),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(BackendFlags::default(), |flags, (_, flag)| flags.with(flag))
}

fn full(key: &PortKey, reason: String) -> Problem {
    let name = if key.port_name.is_empty() { String::new() } else { format!("[{}]", key.port_name) };
    Problem {
        object: ObjectRef { kind: Kind::Service, key: key.service.clone() },
        field: format!("spec.ports{name}"),
        reason,
    }
}
