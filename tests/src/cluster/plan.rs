//! What a cluster is to be: how many nodes, which families, who balances; and every name and
//! address that follows from that. Pure: nothing is looked up or made here.
//!
//! All addresses live in namespaces of the cluster's own, so they meet nobody's.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The most nodes of one cluster.
pub const MOST_NODES: u8 = 3;
/// The namespace of the control plane, which is the outside client's too.
pub const OUTSIDE: &str = "weir-cp";
/// Every namespace of the cluster carries this; the lab's are named after processes.
pub const PREFIX: &str = "weir-";
/// The cgroup folder, in each hierarchy, that holds the nodes' own.
pub const CGROUP: &str = "weir-cluster";
/// Where the control plane sits on the nodes' network.
pub const CONTROL_PLANE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(172, 31, 77, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x31, 0x77, 0, 0, 0, 0, 1))];
/// Where cluster DNS answers.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// An address of the outside client that is in no node's subnet.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 99, 1);
/// Where Services of type LoadBalancer get their addresses: the first three parts.
pub const BALANCER_POOL: [u8; 3] = [172, 31, 78];

/// Who forwards to Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Proxy {
    /// Weir, from `deploy/`.
    Weir,
    /// The real kube-proxy in its nftables mode, as a DaemonSet.
    KubeProxyNftables,
    /// The real kube-proxy in its iptables mode, as a DaemonSet.
    KubeProxyIptables,
    /// Nobody.
    None,
}

impl Proxy {
    /// The mode of kube-proxy; none where it does not run.
    pub fn kube_proxy_mode(self) -> Option<&'static str> {
        match self {
            Self::KubeProxyNftables => Some("nftables"),
            Self::KubeProxyIptables => Some("iptables"),
            Self::Weir | Self::None => None,
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.to_possible_value();
        f.write_str(name.as_ref().map_or("", |name| name.get_name()))
    }
}

/// The families of Pods and Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
pub enum IpFamily {
    /// Both, IPv4 first.
    #[default]
    Dual,
    Ipv4,
}

/// How Pods are linked to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
pub enum Cni {
    /// A routed pair of devices for each Pod.
    #[default]
    Ptp,
    /// One bridge for all Pods of a node.
    Bridge,
}

/// A cluster as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub nodes: u8,
    pub ip_family: IpFamily,
    pub cni: Cni,
}

impl Default for Plan {
    fn default() -> Self {
        Self { nodes: MOST_NODES, ip_family: IpFamily::Dual, cni: Cni::Ptp }
    }
}

impl Plan {
    pub fn dual(&self) -> bool {
        self.ip_family == IpFamily::Dual
    }

    /// `--service-cluster-ip-range`.
    pub fn service_cidrs(&self) -> String {
        self.families("10.96.0.0/16", "fd00:10:96::/112")
    }

    /// What counts as a pod.
    pub fn pod_cidrs(&self) -> String {
        self.families("10.244.0.0/16", "fd00:10:244::/48")
    }

    /// The nodes, by number.
    pub fn places(&self) -> Vec<Place> {
        (1..=self.nodes).map(|number| Place { number }).collect()
    }

    fn families(&self, v4: &str, v6: &str) -> String {
        if self.dual() { format!("{v4},{v6}") } else { v4.to_owned() }
    }
}

/// Where a node is: all its names and addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub number: u8,
}

impl Place {
    /// The Node's name.
    pub fn name(self) -> String {
        format!("node{}", self.number)
    }

    /// The network namespace.
    pub fn netns(self) -> String {
        format!("{PREFIX}n{}", self.number)
    }

    /// The device of the control plane's namespace that leads to the node.
    pub fn port(self) -> String {
        format!("p{}", self.number)
    }

    pub fn v4(self) -> IpAddr {
        Ipv4Addr::new(172, 31, 77, 10 + self.number).into()
    }

    pub fn v6(self) -> IpAddr {
        Ipv6Addr::new(0xfd00, 0x31, 0x77, 0, 0, 0, 0, 0x10 + u16::from(self.number)).into()
    }

    /// Where its Pods get their addresses, IPv4 first.
    pub fn pod_cidrs(self) -> [String; 2] {
        [format!("10.244.{}.0/24", self.number), format!("fd00:10:244:{}::/64", self.number)]
    }
}

/// Where the API server listens.
pub fn api_address() -> SocketAddr {
    SocketAddr::new(CONTROL_PLANE[0], 6443)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_names_and_addresses_of_their_own() {
        let places = Plan::default().places();
        assert_eq!(places.len(), 3);
        let third = places[2];
        assert_eq!((third.name().as_str(), third.netns().as_str()), ("node3", "weir-n3"));
        assert_eq!(third.v4().to_string(), "172.31.77.13");
        assert_eq!(third.v6().to_string(), "fd00:31:77::13");
        assert_eq!(third.pod_cidrs(), ["10.244.3.0/24", "fd00:10:244:3::/64"]);
    }

    #[test]
    fn single_stack_has_no_second_range() {
        let plan = Plan { ip_family: IpFamily::Ipv4, ..Plan::default() };
        assert_eq!(
            (plan.service_cidrs().as_str(), plan.pod_cidrs().as_str()),
            ("10.96.0.0/16", "10.244.0.0/16")
        );
        assert_eq!(Plan::default().service_cidrs(), "10.96.0.0/16,fd00:10:96::/112");
    }

    #[test]
    fn proxies_are_spelled_as_on_the_command_line() {
        assert_eq!(Proxy::KubeProxyNftables.to_string(), "kube-proxy-nftables");
        assert_eq!(Proxy::KubeProxyIptables.kube_proxy_mode(), Some("iptables"));
        assert_eq!(Proxy::Weir.kube_proxy_mode(), None);
    }
}
