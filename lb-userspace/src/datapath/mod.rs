//! The narrow door to the kernel: read what is programmed, apply a plan, read counters.
//!
//! [`sim`] keeps the same state in memory and can be told to fail; the BPF side is the only
//! user of aya. Neither knows Kubernetes.

use crate::plan::op::Op;
use lb_common::abi::{
    Backend, BackendId, Device, Frontend, FrontendKey, NodeAddress, NodeConfig, ServiceCounters, ServiceId,
};
use std::collections::BTreeMap;

/// What the maps hold, as read back at start.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Programmed {
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Live backends; free ids are absent.
    pub backends: BTreeMap<BackendId, Backend>,
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
}
