//! The narrow door to the kernel: read what is programmed, apply a plan, read counters.
//!
//! [`sim`] keeps the same state in memory and can be told to fail; the BPF side is the only
//! user of aya. Neither knows Kubernetes.

pub mod bpf;
mod earlier;
mod gc;
mod hash;
mod layout;
pub mod loader;
pub mod log;
mod pod;
mod prefixes;
pub mod retire;
pub mod sim;
mod sockets;
mod sys;

use crate::plan::op::Op;
use lb_common::abi::{
    AffinityKey, Backend, BackendId, Device, Flow, FlowKey, Foreign, Frontend, FrontendKey, Held,
    NodeAddress, NodeConfig, Prefix, ServiceCounters, ServiceId, Table, Ticks,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What the maps hold, as read back at start.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Programmed {
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Live backends; free ids are absent.
    pub backends: BTreeMap<BackendId, Backend>,
    /// Source ranges, by Service.
    pub prefixes: BTreeSet<Prefix>,
    /// The sets of the whole node.
    pub reach: BTreeMap<Prefix, Held>,
}

/// Sizes of the maps, in entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    pub frontends: u32,
    pub backends: u32,
    pub table_blocks: u32,
    pub flows: u32,
    pub transient: u32,
    pub services: u32,
    pub prefixes: u32,
}

impl Capacity {
    /// For programs that are loaded to be looked at, and for data paths of tests.
    pub const SMALL: Self = Self {
        frontends: 64,
        backends: 64,
        table_blocks: 64,
        flows: 64,
        transient: 64,
        services: 64,
        prefixes: 64,
    };
}

/// Why one operation failed.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The map is full: the object that needs the entry waits.
    #[error("map {map} is full ({capacity} entries)")]
    Full { map: &'static str, capacity: u32 },
    /// The kernel refused; tried again with backoff.
    #[error("{map}: {source}")]
    Kernel {
        map: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// The live node facts that the data path needs, whole.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeFacts {
    pub config: NodeConfig,
    pub addresses: BTreeMap<lb_common::abi::Addr, NodeAddress>,
    pub devices: BTreeMap<u32, Device>,
}

/// What a device's packets are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub enum LinkClass {
    /// From and to the network: clients behind it are outside.
    External,
    /// The host side of a pod's link: clients behind it are inside.
    Pod,
}

/// A device that the packet path belongs on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct LinkPlan {
    pub ifindex: u32,
    pub name: String,
    pub class: LinkClass,
    /// Packets begin with their IP header: tun, WireGuard, ipip.
    pub l3: bool,
    /// A network card: neither veth nor bridge, tunnel, bond, nor any other virtual device.
    pub xdp_capable: bool,
}

/// A place in the kernel where a program is, or should be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Hook {
    /// The device, or the control group's path.
    pub place: String,
    /// `tcx ingress`, `clsact egress`, `xdp native`, `connect4`, …
    pub hook: String,
    /// Why the program is not there; `None`: it is.
    pub error: Option<String>,
}

/// How full a map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct MapFill {
    pub map: &'static str,
    pub used: u32,
    pub capacity: u32,
}

/// Looks through the flows, apart from all else that a data path does: reading many of them
/// takes seconds, and changes must not wait for that (S63).
pub trait Sweeper: Send {
    /// Removes flows that have been idle for too long and counts the rest by Service.
    /// `None`: not done, so nothing may be concluded.
    fn sweep(&mut self) -> Option<Sweep>;
}

/// Sweeps where there are no flows.
struct NoFlows;

impl Sweeper for NoFlows {
    fn sweep(&mut self) -> Option<Sweep> {
        Some(Sweep::default())
    }
}

/// What one sweep over the flow maps did and saw.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sweep {
    /// Flows that are left, by Service: one with none may be forgotten.
    pub flows: BTreeMap<ServiceId, u32>,
    /// Entries removed because they had been idle for too long: IPv4, IPv6.
    pub expired: [u64; 2],
    /// Connected UDP sockets of the host that were ended since the last sweep, as their backend
    /// is gone (S64).
    pub sockets_ended: u64,
    /// Why such sockets cannot be ended.
    pub sockets_failure: Option<String>,
}

/// A data path: BPF maps, or the simulator.
pub trait Datapath: Send {
    fn capacity(&self) -> Capacity;

    /// What is programmed now.
    ///
    /// # Errors
    /// When a map cannot be read.
    fn read(&mut self) -> anyhow::Result<Programmed>;

    /// Applies operations in order; the answer has one result for each. A failed one stops
    /// nothing.
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>>;

    /// Replaces the node's facts.
    ///
    /// # Errors
    /// When a map cannot be written; what was there stays.
    fn set_node(&mut self, facts: &NodeFacts) -> anyhow::Result<()>;

    /// Counters by [`lb_common::abi::Reason`] slot, summed over CPUs.
    fn counters(&mut self) -> Vec<u64>;

    /// Counters of one Service.
    fn service_counters(&mut self, service: ServiceId) -> ServiceCounters;

    /// Puts the programs on these devices, and takes them off all others unless `keep_unknown`:
    /// then not all devices of pods are known yet, and what an earlier agent attached elsewhere
    /// stays. Said again, it heals: what somebody detached is attached anew. Answers every hook
    /// there is.
    fn attach(&mut self, links: &[LinkPlan], keep_unknown: bool) -> Vec<Hook> {
        let _ = (links, keep_unknown);
        Vec::new()
    }

    /// How full each map is.
    fn fill(&mut self) -> Vec<MapFill> {
        Vec::new()
    }

    /// What sweeps the flows, on a thread of its own.
    ///
    /// # Errors
    /// When the flow maps cannot be opened a second time.
    fn sweeper(&mut self) -> anyhow::Result<Box<dyn Sweeper>> {
        Ok(Box::new(NoFlows))
    }

    /// Up to `limit` flows that `wanted` accepts.
    fn flows(&mut self, limit: usize, wanted: &dyn Fn(&FlowKey, &Flow) -> bool) -> Vec<(FlowKey, Flow)> {
        let _ = (limit, wanted);
        Vec::new()
    }

    /// The backend ids in a table's slots, as the map holds them; empty where it cannot tell.
    fn slots(&mut self, table: &Table) -> Vec<BackendId> {
        let _ = table;
        Vec::new()
    }

    /// The backend that a client is remembered for, and how long ago it was used, in seconds.
    fn affinity(&mut self, key: &AffinityKey) -> Option<(BackendId, u64)> {
        let _ = key;
        None
    }

    /// Whether packets of this node run through it.
    fn in_kernel(&self) -> bool {
        false
    }

    /// The time by which flows are aged.
    fn now(&self) -> Ticks {
        Ticks::default()
    }

    /// Flows that are left to netfilter, as they were last written down.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn foreign(&mut self) -> anyhow::Result<BTreeMap<FlowKey, Foreign>> {
        Ok(BTreeMap::new())
    }

    /// Replaces the flows that are left to netfilter.
    ///
    /// # Errors
    /// When the map cannot be written whole.
    fn set_foreign(&mut self, flows: &BTreeMap<FlowKey, Foreign>) -> anyhow::Result<()> {
        let _ = flows;
        Ok(())
    }
}
