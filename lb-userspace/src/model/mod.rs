//! What should be programmed, decided from objects alone.
//!
//! Pure: no client, no clock, no kernel. A Service becomes one [`PortState`] for each of
//! its ports and families; the same objects always give the same answer. [`Model`] keeps the
//! answers and recomputes those that a change touches.

use crate::problem::{ObjectKey, Problem};
use crate::source::Objects;
use claims::Claims;
use ipnet::IpNet;
use lb_common::abi::{Addr, Family, Proto};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

mod claims;
mod endpoints;
pub mod l7;
mod limits;
mod options;
mod policy;
mod ranges;
pub mod routes;
mod service;
#[cfg(test)]
mod tests;

pub use options::{ExternalIps, ModelOptions};

/// A Service port in one family: what gets an id in the data path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortKey {
    pub service: ObjectKey,
    pub port_name: String,
    pub proto: Proto,
    pub family: Family,
}

/// Which rules a frontend follows. The order is that of precedence over one address and port.
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
    /// Who may use load-balancer addresses; `None`: everybody (S51).
    pub source_ranges: Option<BTreeSet<IpNet>>,
    /// An empty set drops (endpoints exist elsewhere, S37) instead of refusing (S35).
    pub cluster_ip_drops: bool,
    pub inside_drops: bool,
    pub outside_drops: bool,
    /// Clients of frontends other than the ClusterIP take this node's address (S44).
    pub masquerades: bool,
}

/// What load balancers ask this node about a Service, by `healthCheckNodePort` (S52, S53).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    pub port: u16,
    pub uid: String,
    /// Families of this node's addresses that it is answered at: IPv4, IPv6.
    pub families: [bool; 2],
    /// Ready endpoints on this node, each address once, by family.
    pub local: [usize; 2],
}

impl HealthCheck {
    /// Has a Service of one family answered at this node's addresses of both: a load balancer asks
    /// the node, not the Service, as upstream's test of `healthCheckNodePort` does.
    pub(super) fn at_all_addresses(mut self) -> Self {
        match self.families {
            [true, false] => self.local[1] = self.local[0],
            [false, true] => self.local[0] = self.local[1],
            [true, true] | [false, false] => return self,
        }
        self.families = [true; 2];
        self
    }
}

/// The answer for one Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceState {
    pub ports: BTreeMap<PortKey, PortState>,
    pub health: Option<HealthCheck>,
    pub problems: Vec<Problem>,
}

/// Facts about this node that decide about Services.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeView {
    pub name: String,
    pub zone: Option<String>,
    /// Every address that this node has now.
    pub addresses: BTreeSet<IpAddr>,
    /// What the Node object says are its addresses inside the cluster.
    pub internal_ips: Vec<IpAddr>,
    /// And those outside of it.
    pub external_ips: Vec<IpAddr>,
}

impl NodeView {
    /// Whether protected ports of an address are the node's, whoever asks for them (H36).
    ///
    /// An address that a load balancer announces from this node, as kube-vip or keepalived do, is
    /// on one of its devices as well: it is the Service's unless the Node object names it.
    /// Anybody may write into `spec.externalIPs`, so there every address of the node counts.
    fn keeps(&self, ip: IpAddr, kind: FrontendKind) -> bool {
        let named = self.internal_ips.contains(&ip) || self.external_ips.contains(&ip);
        let unnamed = self.internal_ips.is_empty() && self.external_ips.is_empty();
        named || self.addresses.contains(&ip) && (kind != FrontendKind::LoadBalancer || unnamed)
    }
}

/// The answers for all Services, and who holds which address.
#[derive(Debug, Default)]
pub struct Model {
    options: ModelOptions,
    node: NodeView,
    claims: Claims,
    states: BTreeMap<ObjectKey, ServiceState>,
}

impl Model {
    pub fn new(options: ModelOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Recomputes the dirty Services and returns those whose state changed.
    ///
    /// Work is that of the dirty Services and of those that share a frontend with them: when
    /// the holder of an address and port lets go, the next in line takes over in the same
    /// call. A node that differs from the last call's makes everything dirty.
    pub fn update(
        &mut self,
        objects: &Objects,
        node: &NodeView,
        dirty: &BTreeSet<ObjectKey>,
    ) -> BTreeSet<ObjectKey> {
        let mut pending = dirty.clone();
        if self.node != *node {
            self.node = node.clone();
            pending.extend(objects.services.keys().cloned());
            pending.extend(objects.slices_of.keys().cloned());
            pending.extend(self.states.keys().cloned());
        }
        let mut touched = BTreeSet::new();
        for key in &pending {
            let (created, wanted) = match objects.services.get(key) {
                Some(service) => (service.created, service::frontends(service, node, &self.options).wanted),
                None => (0, Vec::new()),
            };
            // Not `append`, which walks all that is there already.
            touched.extend(self.claims.set(key, created, service::asked(&wanted)));
        }
        pending.append(&mut touched);
        pending.into_iter().filter(|key| self.refresh(objects, key)).collect()
    }

    /// Recomputes one Service; says whether its state changed.
    fn refresh(&mut self, objects: &Objects, key: &ObjectKey) -> bool {
        let state = service::build(objects, &self.node, &self.options, &self.claims, key);
        if self.states.get(key) == state.as_ref() {
            return false;
        }
        match state {
            Some(state) => self.states.insert(key.clone(), state),
            None => self.states.remove(key),
        };
        true
    }

    /// The answer for one Service; `None` when it does not exist or nothing is to be said.
    pub fn state(&self, key: &ObjectKey) -> Option<&ServiceState> {
        self.states.get(key)
    }

    /// All answers, by Service.
    pub fn states(&self) -> &BTreeMap<ObjectKey, ServiceState> {
        &self.states
    }

    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.states.values().flat_map(|state| &state.problems)
    }
}
