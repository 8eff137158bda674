//! The data path in the kernel, over aya maps.

use super::gc::{FlowSweeper, Used};
use super::hash::Hash;
use super::loader::{LoadOptions, Loaded, data};
use super::pod::Raw;
use super::prefixes::Prefixes;
use super::sockets::{SocketTables, Sockets};
use super::{Capacity, Datapath, Hook, LinkPlan, MapFill, NodeFacts, OpError, Programmed, Sweeper, sys};
use crate::plan::op::Op;
use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use lb_common::abi::{
    Addr, Affinity, AffinityKey, Backend, BackendFlags, BackendId, Device, Flow, FlowKey, Foreign,
    FragmentKey, Fragments, Frontend, FrontendKey, NodeAddress, NodeConfig, Proto, Reason, ServiceCounters,
    ServiceId, TABLE_BLOCK, Table, Ticks, map, prefix_set,
};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

mod probe;

/// Maps and programs of this node.
pub struct Bpf {
    loaded: Loaded,
    capacity: Capacity,
    frontends: Hash<FrontendKey, Frontend>,
    backends: sys::Mapped<Backend>,
    tables: sys::Mapped<[BackendId; TABLE_BLOCK]>,
    flows: Hash<FlowKey, Flow>,
    transient: Hash<FlowKey, Flow>,
    foreign: Hash<FlowKey, Foreign>,
    fragments: Hash<FragmentKey, Fragments>,
    affinity: Hash<AffinityKey, Affinity>,
    addresses: Hash<Addr, NodeAddress>,
    devices: Hash<u32, Device>,
    prefixes: Prefixes,
    node: Array<MapData, Raw<NodeConfig>>,
    counters: PerCpuArray<MapData, u64>,
    service_counters: sys::Mapped<ServiceCounters>,
    /// The maps that are mapped into memory. XDP is loaded when the first device wants it, and
    /// its code names maps by descriptors: a closed one may by then be another map's.
    _arrays: [Map; 3],
    sockets: Sockets,
    used: Arc<Used>,
}

impl Bpf {
    /// Loads programs and opens maps; see [`Loaded::new`].
    ///
    /// # Errors
    /// Those of [`Loaded::new`], and when a map cannot be mapped into memory.
    pub fn new(options: LoadOptions) -> Result<Self> {
        let mut loaded = Loaded::new(options)?;
        let arrays = [
            loaded.take_map(map::BACKENDS)?,
            loaded.take_map(map::TABLES)?,
            loaded.take_map(map::SERVICE_COUNTERS)?,
        ];
        let [backends, tables, service_counters] = &arrays;
        let socket_backends = mapped(backends, map::BACKENDS)?;
        let backends = mapped(backends, map::BACKENDS)?;
        let tables = mapped(tables, map::TABLES)?;
        let service_counters = mapped(service_counters, map::SERVICE_COUNTERS)?;
        let frontends: Hash<FrontendKey, Frontend> = hash(&mut loaded, map::FRONTENDS)?;
        let socket_tables = SocketTables {
            frontends: frontends.again()?,
            backends: socket_backends,
            peers: hash(&mut loaded, map::SOCKETS)?,
        };
        let flows = hash(&mut loaded, map::FLOWS)?;
        let transient = hash(&mut loaded, map::TRANSIENT)?;
        let prefixes = Prefixes::new(loaded.take_map(map::PREFIXES)?)?;
        // An older agent's maps may have other sizes than we would choose: theirs count.
        let capacity = Capacity {
            frontends: frontends.capacity(),
            backends: backends.len() as u32,
            table_blocks: tables.len() as u32,
            flows: flows.capacity(),
            transient: transient.capacity(),
            services: service_counters.len() as u32,
            prefixes: prefixes.capacity(),
        };
        Ok(Self {
            foreign: hash(&mut loaded, map::FOREIGN)?,
            fragments: hash(&mut loaded, map::FRAGMENTS)?,
            affinity: hash(&mut loaded, map::AFFINITY)?,
            addresses: hash(&mut loaded, map::NODE_ADDRESSES)?,
            devices: hash(&mut loaded, map::DEVICES)?,
            node: loaded.take_map(map::NODE)?.try_into()?,
            counters: loaded.take_map(map::COUNTERS)?.try_into()?,
            loaded,
            capacity,
            prefixes,
            frontends,
            backends,
            tables,
            flows,
            transient,
            service_counters,
            _arrays: arrays,
            sockets: Sockets::spawn(socket_tables).context("start the thread of sockets")?,
            used: Arc::default(),
        })
    }

    /// The loaded object, for aya-log.
    pub fn ebpf(&mut self) -> &mut aya::Ebpf {
        self.loaded.ebpf()
    }

    fn one(&mut self, op: &Op) -> Result<(), OpError> {
        match op {
            Op::PutBackend(id, backend) => self.put_backend(*id, *backend),
            Op::DeleteBackend(id) => {
                // Without flags it is in no set and serves nobody, but a packet or connect()
                // that read the old table a moment ago still finds an address.
                let last = self.backends.get(*id as usize).unwrap_or_default();
                self.put_backend(*id, Backend { flags: BackendFlags::default(), ..last })
            }
            Op::WriteTable { block, ids } => self.write_table(*block, ids),
            Op::PutFrontend(key, frontend) => {
                if key.proto == Proto::UDP {
                    self.sockets.changed();
                }
                self.frontends.put(key, frontend)
            }
            Op::DeleteFrontend(key) => self.frontends.remove(key).map(drop),
            Op::PutPrefix(prefix, held) => self.prefixes.put(prefix, *held),
            Op::DeletePrefix(prefix) => self.prefixes.remove(prefix),
            Op::DeleteService(service) => {
                self.service_counters.set(*service as usize, ServiceCounters::default());
                Ok(())
            }
        }
    }

    fn put_backend(&mut self, id: BackendId, backend: Backend) -> Result<(), OpError> {
        if backend.proto == Proto::UDP {
            self.sockets.changed();
        }
        let written = self.backends.set(id as usize, backend);
        if written {
            Ok(())
        } else {
            Err(OpError::Full { map: map::BACKENDS, capacity: self.capacity.backends })
        }
    }

    fn write_table(&mut self, block: u32, ids: &[BackendId]) -> Result<(), OpError> {
        for (n, chunk) in ids.chunks(TABLE_BLOCK).enumerate() {
            let mut entry = [0; TABLE_BLOCK];
            for (slot, id) in entry.iter_mut().zip(chunk) {
                *slot = *id;
            }
            if !self.tables.set(block as usize + n, entry) {
                return Err(OpError::Full { map: map::TABLES, capacity: self.capacity.table_blocks });
            }
        }
        Ok(())
    }
}

fn hash<K: bytemuck::Pod + Ord, V: bytemuck::Pod + PartialEq>(
    loaded: &mut Loaded,
    name: &'static str,
) -> Result<Hash<K, V>> {
    Hash::new(name, loaded.take_map(name)?)
}

fn mapped<T: bytemuck::Pod>(map: &Map, name: &'static str) -> Result<sys::Mapped<T>> {
    let inner = data(map)?;
    let len = inner.info()?.max_entries();
    sys::Mapped::new(inner.fd().as_fd(), len as usize).with_context(|| format!("map {name} into memory"))
}

/// Whether a backend is programmed: one that was deleted has no flags left.
fn is_live(backend: &Backend) -> bool {
    backend.service != 0 && backend.flags != BackendFlags::default()
}

impl Datapath for Bpf {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn read(&mut self) -> Result<Programmed> {
        let prefixes = self.prefixes.all().context("read the prefixes")?;
        let (reach, ranges): (BTreeMap<_, _>, BTreeMap<_, _>) =
            prefixes.into_iter().partition(|(prefix, _)| prefix.set >= prefix_set::FIRST);
        let prefixes = ranges.into_keys().collect();
        let mut programmed = Programmed { prefixes, reach, ..Programmed::default() };
        self.frontends
            .for_each(|key, frontend| {
                programmed.frontends.insert(*key, *frontend);
            })
            .context("read the frontends")?;
        for id in 1..self.backends.len() {
            if let Some(backend) = self.backends.get(id).filter(is_live) {
                programmed.backends.insert(id as BackendId, backend);
            }
        }
        Ok(programmed)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        ops.iter().map(|op| self.one(op)).collect()
    }

    fn set_node(&mut self, facts: &NodeFacts) -> Result<()> {
        self.devices.replace(&facts.devices)?;
        self.addresses.replace(&facts.addresses)?;
        self.node.set(0, Raw(facts.config), 0).context("write the node's configuration")?;
        Ok(())
    }

    fn counters(&mut self) -> Vec<u64> {
        (0..Reason::COUNT)
            .map(|slot| self.counters.get(&slot, 0).map_or(0, |values| values.iter().sum()))
            .collect()
    }

    fn service_counters(&mut self, service: ServiceId) -> ServiceCounters {
        self.service_counters.get(service as usize).unwrap_or_default()
    }

    fn attach(&mut self, links: &[LinkPlan], keep_unknown: bool) -> Vec<Hook> {
        let mut hooks = self.loaded.attach_devices(links, keep_unknown);
        hooks.extend(self.loaded.attach_sockets());
        hooks
    }

    fn fill(&mut self) -> Vec<MapFill> {
        let mut frontends = 0;
        // What cannot be counted is shown as empty; the map itself tells when it is full.
        let _ = self.frontends.for_each(|_, _| frontends += 1);
        let backends = (1..self.backends.len())
            .filter(|id| self.backends.get(*id).is_some_and(|backend| is_live(&backend)))
            .count();
        let used = |count: &AtomicU32| count.load(Ordering::Relaxed);
        vec![
            MapFill { map: map::FRONTENDS, used: frontends, capacity: self.capacity.frontends },
            MapFill { map: map::BACKENDS, used: backends as u32, capacity: self.capacity.backends },
            MapFill { map: map::FLOWS, used: used(&self.used.flows), capacity: self.capacity.flows },
            MapFill {
                map: map::TRANSIENT,
                used: used(&self.used.transient),
                capacity: self.capacity.transient,
            },
        ]
    }

    fn sweeper(&mut self) -> Result<Box<dyn Sweeper>> {
        let (flows, transient) = (self.flows.again()?, self.transient.again()?);
        Ok(Box::new(FlowSweeper {
            flows,
            transient,
            used: Arc::clone(&self.used),
            ended: Arc::clone(&self.sockets.ended),
        }))
    }

    fn flows(&mut self, limit: usize, wanted: &dyn Fn(&FlowKey, &Flow) -> bool) -> Vec<(FlowKey, Flow)> {
        let mut found = Vec::new();
        for map in [&self.flows, &self.transient] {
            // A map that cannot be read shows no flows.
            let _ = map.for_each(|key, flow| {
                if found.len() < limit && wanted(key, flow) {
                    found.push((*key, *flow));
                }
            });
        }
        found
    }

    fn slots(&mut self, table: &Table) -> Vec<BackendId> {
        let index = |slot| (table.slots as usize + slot / TABLE_BLOCK, slot % TABLE_BLOCK);
        let slots = (0..table.count as usize).map(index);
        slots.map_while(|(block, place)| Some(self.tables.get(block)?[place])).collect()
    }

    fn affinity(&mut self, key: &AffinityKey) -> Option<(BackendId, u64)> {
        let entry = self.affinity.get(key)?;
        let age = sys::monotonic_nanos().saturating_sub(entry.seen_nanos);
        Some((entry.backend, age / 1_000_000_000))
    }

    fn in_kernel(&self) -> bool {
        true
    }

    fn now(&self) -> Ticks {
        Ticks::from_nanos(sys::monotonic_nanos())
    }

    fn foreign(&mut self) -> Result<BTreeMap<FlowKey, Foreign>> {
        let mut found = BTreeMap::new();
        self.foreign.for_each(|key, foreign| {
            found.insert(*key, *foreign);
        })?;
        Ok(found)
    }

    fn set_foreign(&mut self, flows: &BTreeMap<FlowKey, Foreign>) -> Result<()> {
        Ok(self.foreign.replace(flows)?)
    }
}
