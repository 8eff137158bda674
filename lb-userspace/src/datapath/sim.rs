//! The data path in memory: same operations, same limits, and it can be told to fail.
//!
//! What tests look at instead of a kernel. [`Sim::text`] spells what is programmed without
//! ids, so that two runs which gave out different ones compare equal. The packet path of
//! `lb_common` runs on it as it runs on the maps ([`path`]); time, chance and routes are what
//! the test says.

use super::{Capacity, Datapath, MapFill, NodeFacts, OpError, Programmed, Sweep, Sweeper, gc};
use crate::plan::op::Op;
use lb_common::abi::{
    AffinityKey, Backend, BackendFlags, BackendId, Flow, FlowFlags, FlowKey, Foreign, Frontend,
    FrontendFlags, FrontendKey, Held, Prefix, ServiceCounters, ServiceId, TABLE_BLOCK, Table, Ticks, map,
    prefix_set, timeout,
};
use path::Memory;
use std::collections::BTreeMap;
use std::fmt::Write as _;

pub mod path;
#[cfg(test)]
mod tests;

/// The maps, in memory.
#[derive(Clone, Debug)]
pub struct Sim {
    capacity: Capacity,
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    pub backends: BTreeMap<BackendId, Backend>,
    /// Blocks that were ever written.
    pub tables: BTreeMap<u32, [BackendId; TABLE_BLOCK]>,
    pub prefixes: BTreeMap<Prefix, Held>,
    pub node: Option<NodeFacts>,
    /// What the packet path remembers.
    pub memory: Memory,
    fail_every: Option<u32>,
    applied: u32,
}

impl Sim {
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            tables: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            node: None,
            memory: Memory::default(),
            fail_every: None,
            applied: 0,
        }
    }

    /// Refuses every n-th operation from now on; `None` refuses none.
    pub fn fail_every(&mut self, n: Option<u32>) {
        self.fail_every = n;
        self.applied = 0;
    }

    fn apply_one(&mut self, op: &Op) -> Result<(), OpError> {
        self.applied = self.applied.wrapping_add(1);
        if self.fail_every.is_some_and(|n| self.applied.is_multiple_of(n)) {
            return Err(OpError::Kernel { map: "sim", source: std::io::ErrorKind::Other.into() });
        }
        match op {
            Op::PutBackend(id, backend) => {
                within(map::BACKENDS, *id, 1, self.capacity.backends)?;
                self.backends.insert(*id, *backend);
            }
            Op::WriteTable { block, ids } => {
                let blocks = u32::try_from(ids.len().div_ceil(TABLE_BLOCK)).unwrap_or(u32::MAX);
                within(map::TABLES, *block, blocks, self.capacity.table_blocks)?;
                for (number, chunk) in (*block..).zip(ids.chunks(TABLE_BLOCK)) {
                    let slots = self.tables.entry(number).or_insert([0; TABLE_BLOCK]);
                    for (slot, id) in slots.iter_mut().zip(chunk) {
                        *slot = *id;
                    }
                }
            }
            Op::PutFrontend(key, frontend) => {
                let full = self.frontends.len() >= self.capacity.frontends as usize;
                if full && !self.frontends.contains_key(key) {
                    return Err(OpError::Full { map: map::FRONTENDS, capacity: self.capacity.frontends });
                }
                self.frontends.insert(*key, *frontend);
            }
            Op::DeleteFrontend(key) => {
                self.frontends.remove(key);
            }
            Op::DeleteBackend(id) => {
                self.backends.remove(id);
            }
            Op::PutPrefix(prefix, held) => {
                let full = self.prefixes.len() >= self.capacity.prefixes as usize;
                if full && !self.prefixes.contains_key(prefix) {
                    return Err(OpError::Full { map: map::PREFIXES, capacity: self.capacity.prefixes });
                }
                self.prefixes.insert(*prefix, *held);
            }
            Op::DeletePrefix(prefix) => {
                self.prefixes.remove(prefix);
            }
            Op::DeleteService(id) => {
                self.memory.services.borrow_mut().remove(id);
            }
        }
        Ok(())
    }

    /// One id of a run in the tables map; 0 where nothing was written.
    pub fn id_at(&self, block: u32, index: u32) -> BackendId {
        let number = block.saturating_add(index / TABLE_BLOCK as u32);
        self.tables.get(&number).map_or(0, |slots| slots[index as usize % TABLE_BLOCK])
    }

    /// The slots of a table.
    pub fn slots(&self, table: &Table) -> Vec<BackendId> {
        (0..table.count).map(|index| self.id_at(table.slots, index)).collect()
    }

    /// The Maglev table of a table.
    pub fn maglev(&self, table: &Table) -> Vec<BackendId> {
        (0..table.maglev_len).map(|index| self.id_at(table.maglev, index)).collect()
    }

    /// What is programmed, in stable order and without ids: Services are numbered in the order
    /// of their frontends.
    pub fn text(&self) -> String {
        let mut names: BTreeMap<ServiceId, usize> = BTreeMap::new();
        for frontend in self.frontends.values() {
            let next = names.len() + 1;
            names.entry(frontend.service).or_insert(next);
        }
        let mut out = String::new();
        for (key, frontend) in &self.frontends {
            let affinity = match frontend.affinity_seconds {
                0 => String::new(),
                seconds => format!(" affinity {seconds}s"),
            };
            let kind = spell_flags(frontend.flags);
            let name = names.get(&frontend.service).copied().unwrap_or(0);
            let _ = writeln!(out, "{} {kind} S{name}{affinity}", spell_key(key));
            if frontend.inside == frontend.outside {
                let _ = writeln!(out, "  all: {}", self.spell_table(&frontend.inside));
            } else {
                let _ = writeln!(out, "  inside: {}", self.spell_table(&frontend.inside));
                let _ = writeln!(out, "  outside: {}", self.spell_table(&frontend.outside));
            }
        }
        let mut lines: Vec<_> = self
            .backends
            .values()
            .map(|b| {
                let name = names.get(&b.service).copied().unwrap_or(0);
                let flags = [
                    (BackendFlags::CLUSTER, "cluster-ip"),
                    (BackendFlags::INSIDE, "inside"),
                    (BackendFlags::OUTSIDE, "outside"),
                    (BackendFlags::SERVING, "serving"),
                    (BackendFlags::LOCAL, "local"),
                ];
                let flags: Vec<_> =
                    flags.into_iter().filter(|(flag, _)| b.flags.has(*flag)).map(|(_, t)| t).collect();
                let address = spell_address(b.addr.into(), b.port.get());
                (name, b.addr, b.port, format!("S{name} {address}/{} {}\n", b.proto, flags.join(" ")))
            })
            .collect();
        lines.sort();
        out.extend(lines.into_iter().map(|(.., line)| line));
        let mut lines: Vec<_> = self
            .prefixes
            .keys()
            .filter(|prefix| prefix.set < prefix_set::FIRST)
            .map(|prefix| {
                let name = names.get(&prefix.set).copied().unwrap_or(0);
                format!("S{name} from {}/{}\n", prefix.addr, prefix.bits())
            })
            .collect();
        lines.sort();
        out.extend(lines);
        out
    }

    fn spell_table(&self, table: &Table) -> String {
        let spell = |id| match self.backends.get(&id) {
            Some(b) => spell_address(b.addr.into(), b.port.get()),
            None => format!("(no backend {id})"),
        };
        let slots = self.slots(table);
        let mut text = match slots.len() {
            0 => "none".to_owned(),
            _ => slots.iter().copied().map(spell).collect::<Vec<_>>().join(", "),
        };
        if table.maglev_len > 0 {
            let _ = write!(text, "; maglev {}", table.maglev_len);
            if let Some(stray) = self.maglev(table).into_iter().find(|id| !slots.contains(id)) {
                let _ = write!(text, ", which also names {}", spell(stray));
            }
        }
        text
    }
}

fn within(map: &'static str, first: u32, count: u32, capacity: u32) -> Result<(), OpError> {
    if first != 0 && first.checked_add(count).is_some_and(|end| end <= capacity) {
        Ok(())
    } else {
        Err(OpError::Full { map, capacity })
    }
}

fn spell_flags(flags: FrontendFlags) -> String {
    let names = [
        (FrontendFlags::CLUSTER_IP, "cluster-ip"),
        (FrontendFlags::NODE_PORT, "node-port"),
        (FrontendFlags::EXTERNAL, "external"),
        (FrontendFlags::RETIRED, "retired"),
        (FrontendFlags::INSIDE_DROPS, "inside-drops"),
        (FrontendFlags::OUTSIDE_DROPS, "outside-drops"),
        (FrontendFlags::SOURCE_RANGES, "source-ranges"),
        (FrontendFlags::MASQUERADE, "masquerade"),
    ];
    let set: Vec<_> = names.into_iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, name)| name).collect();
    set.join(" ")
}

fn spell_key(key: &FrontendKey) -> String {
    format!("{}/{}", spell_address(key.addr.into(), key.port.get()), key.proto)
}

fn spell_address(ip: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

impl Sweeper for Sim {
    fn sweep(&mut self) -> Option<Sweep> {
        let now = Ticks::from_nanos(self.memory.nanos.get());
        let mut sweep = Sweep::default();
        let flows = self.memory.flows.get_mut();
        let over =
            |(key, flow): &(&FlowKey, &Flow)| gc::over(key, flow, flows.get(&flow.pair(key.proto)), now);
        let ended: Vec<_> = flows.iter().filter(over).map(|(key, _)| *key).collect();
        for key in ended {
            flows.remove(&key);
            sweep.expired[usize::from(!key.destination.is_v4())] += 1;
        }
        let opening = self.memory.transient.get_mut().values().map(|(_, flow)| flow);
        let opening = opening.filter(|flow| now.since(flow.seen) < timeout::UDP);
        for flow in flows.values().chain(opening).filter(|flow| !flow.flags.has(FlowFlags::REPLY)) {
            *sweep.flows.entry(flow.service).or_default() += 1;
        }
        Some(sweep)
    }
}

impl Datapath for Sim {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn read(&mut self) -> anyhow::Result<Programmed> {
        Ok(Programmed {
            frontends: self.frontends.clone(),
            backends: self.backends.clone(),
            prefixes: self.prefixes.keys().filter(|p| p.set < prefix_set::FIRST).copied().collect(),
            reach: self
                .prefixes
                .range(..)
                .filter(|(p, _)| p.set >= prefix_set::FIRST)
                .map(|(p, h)| (*p, *h))
                .collect(),
        })
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        ops.iter().map(|op| self.apply_one(op)).collect()
    }

    fn set_node(&mut self, facts: &NodeFacts) -> anyhow::Result<()> {
        self.node = Some(facts.clone());
        Ok(())
    }

    fn counters(&mut self) -> Vec<u64> {
        self.memory.counters.borrow().clone()
    }

    fn service_counters(&mut self, service: ServiceId) -> ServiceCounters {
        self.memory.services.borrow().get(&service).copied().unwrap_or_default()
    }
    fn fill(&mut self) -> Vec<MapFill> {
        let used = |map, used: usize, capacity| MapFill {
            map,
            used: u32::try_from(used).unwrap_or(u32::MAX),
            capacity,
        };
        vec![
            used(map::FRONTENDS, self.frontends.len(), self.capacity.frontends),
            used(map::BACKENDS, self.backends.len(), self.capacity.backends),
            used(map::FLOWS, self.memory.flows.borrow().len(), self.capacity.flows),
            used(map::TRANSIENT, self.memory.transient.borrow().len(), self.capacity.transient),
        ]
    }

    fn flows(&mut self, limit: usize, wanted: &dyn Fn(&FlowKey, &Flow) -> bool) -> Vec<(FlowKey, Flow)> {
        let flows = self.memory.flows.borrow();
        let transient = self.memory.transient.borrow();
        let all = flows.iter().chain(transient.iter().map(|(key, (_, flow))| (key, flow)));
        all.filter(|(key, flow)| wanted(key, flow)).take(limit).map(|(key, flow)| (*key, *flow)).collect()
    }

    fn now(&self) -> Ticks {
        Ticks::from_nanos(self.memory.nanos.get())
    }

    fn foreign(&mut self) -> anyhow::Result<BTreeMap<FlowKey, Foreign>> {
        Ok(self.memory.foreign.clone())
    }

    fn set_foreign(&mut self, flows: &BTreeMap<FlowKey, Foreign>) -> anyhow::Result<()> {
        self.memory.foreign.clone_from(flows);
        Ok(())
    }

    fn slots(&mut self, table: &Table) -> Vec<BackendId> {
        Sim::slots(self, table)
    }

    fn affinity(&mut self, key: &AffinityKey) -> Option<(BackendId, u64)> {
        let affinity = *self.memory.affinity.borrow().get(key)?;
        let age = self.memory.nanos.get().saturating_sub(affinity.seen_nanos);
        Some((affinity.backend, age / 1_000_000_000))
    }
}
