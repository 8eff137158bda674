//! What should be programmed, decided from objects alone.
//!
//! Pure: no client, no clock, no kernel. A Service becomes one [`PortState`] for each of
//! its ports and families; the same objects always give the same answer.

use crate::problem::{ObjectKey, Problem};
use lb_common::abi::{Addr, Family, Proto};
use std::collections::BTreeMap;

/// A Service port in one family: what gets an id in the data path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortKey {
    pub service: ObjectKey,
    pub port_name: String,
    pub proto: Proto,
    pub family: Family,
}

/// Which rules a frontend follows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrontendKind {
    /// Internal traffic policy; chosen from the `cluster_ip` set.
    ClusterIp,
    /// The node's own addresses: the address is the family's "any" (S17).
    NodePort,
    LoadBalancer,
    ExternalIp,
}

/// An address and port that clients use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendState {
    pub addr: Addr,
    /// Host order.
    pub port: u16,
    pub kind: FrontendKind,
}

/// An endpoint and the sets it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendState {
    pub addr: Addr,
    /// Host order.
    pub port: u16,
    /// On this node (S7).
    pub local: bool,
    /// Ready, or serving while it terminates: open UDP flows stay (S60).
    pub serving: bool,
    /// Chosen from by ClusterIP frontends.
    pub in_cluster_ip: bool,
    /// Chosen from by clients on this node that use an external frontend (S46, S47).
    pub in_inside: bool,
    /// Chosen from by clients from outside that use an external frontend.
    pub in_outside: bool,
}

/// Everything that the data path needs for one Service port in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortState {
    /// Sorted; no two equal address and port.
    pub frontends: Vec<FrontendState>,
    /// Sorted; no two equal address and port. Those in no set are there only while they serve.
    pub backends: Vec<BackendState>,
    pub affinity_seconds: u32,
    /// An empty set drops (endpoints exist elsewhere, S37) instead of refusing (S35).
    pub cluster_ip_drops: bool,
    pub inside_drops: bool,
    pub outside_drops: bool,
}

/// The answer for one Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceState {
    pub ports: BTreeMap<PortKey, PortState>,
    pub problems: Vec<Problem>,
}

/// Facts about this node that decide about Services.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeView {
    pub name: String,
    pub zone: Option<String>,
}
