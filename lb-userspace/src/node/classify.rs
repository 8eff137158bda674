//! From tables to facts: which addresses are ours, which devices matter and why.

use super::netlink::{Link, Route, Tables};
use super::{LinkClass, LinkPlan, NodeState, Options};
use crate::args::value::{Devices, NodePortAddresses};
use crate::datapath::NodeFacts;
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use ipnet::IpNet;
use lb_common::abi::{Addr, Device, Family, NodeAddress, NodeConfig, NodeFlags, PortRange};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What is known of this node from objects.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inputs {
    /// The Node's InternalIPs.
    pub internal_ips: Vec<IpAddr>,
    /// Addresses of pods that run here, those on the host's network left out or not.
    pub pod_ips: BTreeSet<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
}

/// Decides facts and links.
pub fn derive(tables: &Tables, options: &Options, inputs: &Inputs) -> NodeState {
    let mut problems = Vec::new();
    let primary = [Family::V4, Family::V6].map(|family| primary(tables, inputs, family));
    let links = links(tables, options, inputs, &mut problems);
    problems.extend(ipvs(tables));
    let facts = NodeFacts {
        config: NodeConfig {
            v4: primary[0].map_or(Addr::ANY_V4, Addr::from),
            v6: primary[1].map_or(Addr::ANY_V6, Addr::from),
            node_ports: PortRange::EMPTY,
            flags: NodeFlags::default(),
        },
        addresses: addresses(tables, options, inputs, primary, &mut problems),
        devices: devices(tables, &links),
    };
    NodeState { facts, links, problems }
}

/// Where kube-proxy's IPVS mode keeps the addresses of Services.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// Addresses of Services that are the node's own are left to the node (S82).
fn ipvs(tables: &Tables) -> Option<Problem> {
    let there = tables.links.values().any(|link| link.name == IPVS_DEVICE);
    there.then(|| {
        problem(
            "takeover",
            format!(
                "device {IPVS_DEVICE} of kube-proxy's IPVS mode is on this node and makes addresses of Services \
                 the node's own; its open connections are not taken over: switch kube-proxy to its nftables or \
                 iptables mode first, or run `kube-proxy --cleanup` here"
            ),
        )
    })
}

/// The node's address in a family: the first of the Node's that is here, else what the
/// default route would use, else the first global one.
fn primary(tables: &Tables, inputs: &Inputs, wanted: Family) -> Option<IpAddr> {
    let ours = inputs.internal_ips.iter().copied().filter(|ip| Family::from(*ip) == wanted);
    if let Some(ip) = ours.clone().find(|ip| tables.local.contains(ip)) {
        return Some(ip);
    }
    let mut defaults: Vec<&Route> = tables
        .routes
        .iter()
        .filter(|route| {
            route.destination.prefix_len() == 0 && Family::from(route.destination.addr()) == wanted
        })
        .collect();
    defaults.sort_by_key(|route| route.metric);
    let by_route =
        defaults.iter().find_map(|route| route.source.or_else(|| source(tables, route.ifindex, wanted)));
    by_route.or_else(|| {
        let up = tables.links.iter().filter(|(_, link)| link.up && !link.loopback);
        up.map(|(index, _)| *index).find_map(|index| source(tables, index, wanted))
    })
}

/// The address that flows leaving over a device are masqueraded to: its first global one,
/// a deprecated one only without another (RFC 6724 5, rule 3).
fn source(tables: &Tables, ifindex: u32, wanted: Family) -> Option<IpAddr> {
    let mut candidates: Vec<_> = tables
        .addresses
        .iter()
        .filter(|address| {
            address.ifindex == ifindex && address.global && Family::from(address.prefix.addr()) == wanted
        })
        .collect();
    candidates.sort_by_key(|address| address.deprecated);
    candidates.first().map(|address| address.prefix.addr())
}

/// Every local address, and whether node ports answer on it (S17, S18).
fn addresses(
    tables: &Tables,
    options: &Options,
    inputs: &Inputs,
    primary: [Option<IpAddr>; 2],
    problems: &mut Vec<Problem>,
) -> BTreeMap<Addr, NodeAddress> {
    if let NodePortAddresses::Within(prefixes) = &options.nodeport_addresses {
        for prefix in prefixes.iter().filter(|prefix| prefix.addr().is_loopback()) {
            problems.push(problem(
                "--nodeport-addresses",
                format!("{prefix} is loopback: node ports never answer there, and this prefix has no effect"),
            ));
        }
    }
    let eligible = |ip: IpAddr| match &options.nodeport_addresses {
        NodePortAddresses::All => true,
        NodePortAddresses::Primary => {
            let of_node = inputs
                .internal_ips
                .iter()
                .any(|own| Family::from(*own) == Family::from(ip) && tables.local.contains(own));
            if of_node { inputs.internal_ips.contains(&ip) } else { primary.contains(&Some(ip)) }
        }
        NodePortAddresses::Within(prefixes) => {
            prefixes.iter().any(|prefix| prefix.contains(&ip))
                || !prefixes.iter().any(|prefix| Family::from(prefix.addr()) == Family::from(ip))
        }
    };
    let local =
        tables.local.iter().filter(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast());
    local.map(|ip| (Addr::from(*ip), NodeAddress { node_port: eligible(*ip).into() })).collect()
}

/// Every device that packets can leave by, so that a flow over it has a source.
fn devices(tables: &Tables, links: &[LinkPlan]) -> BTreeMap<u32, Device> {
    let mut devices = BTreeMap::new();
    for (index, link) in &tables.links {
        let class = links.iter().find(|plan| plan.ifindex == *index).map(|plan| plan.class);
        let [v4, v6] = [Family::V4, Family::V6].map(|family| source(tables, *index, family));
        if link.loopback || class.is_none() && v4.is_none() && v6.is_none() {
            continue;
        }
        let (v4, v6) = (v4.map_or(Addr::ANY_V4, Addr::from), v6.map_or(Addr::ANY_V6, Addr::from));
        devices.insert(*index, Device { v4, v6 });
    }
    devices
}

/// Devices that the packet path belongs on.
fn links(tables: &Tables, options: &Options, inputs: &Inputs, problems: &mut Vec<Problem>) -> Vec<LinkPlan> {
    let pods = if options.pod_devices { pod_links(tables, inputs) } else { PodLinks::default() };
    let mut classes: BTreeMap<u32, LinkClass> = BTreeMap::new();
    match &options.devices {
        Devices::Auto => {
            let up = tables.links.iter().filter(|(_, link)| link.up && !link.loopback);
            for (index, _) in up.filter(|(index, _)| !pods.bridges.contains(index)) {
                if has_global(tables, *index) {
                    classes.insert(*index, LinkClass::External);
                }
            }
            // What carries a pod bridge to the network has no address of its own.
            classes.extend(pods.uplinks.iter().map(|index| (*index, LinkClass::External)));
        }
        Devices::Named(names) => {
            for name in names {
                match tables.links.iter().find(|(_, link)| link.name == *name) {
                    Some((index, link)) if !link.loopback => {
                        classes.insert(*index, LinkClass::External);
                    }
                    Some(_) => {
                        problems.push(problem("--devices", format!("{name} is loopback and is left alone")))
                    }
                    None => problems.push(problem("--devices", format!("{name} does not exist; waited for"))),
                }
            }
        }
    }
    let named = |index: &u32| options.devices != Devices::Auto && classes.contains_key(index);
    let pods: Vec<u32> = pods.links.iter().copied().filter(|index| !named(index)).collect();
    classes.extend(pods.into_iter().map(|index| (index, LinkClass::Pod)));
    classes
        .into_iter()
        .filter_map(|(ifindex, class)| {
            let link = tables.links.get(&ifindex)?;
            Some(LinkPlan {
                ifindex,
                name: link.name.clone(),
                class,
                l3: !link.ethernet,
                xdp_capable: link.ethernet && link.kind.is_none(),
            })
        })
        .collect()
}

fn has_global(tables: &Tables, ifindex: u32) -> bool {
    tables.addresses.iter().any(|address| address.ifindex == ifindex && address.global)
}

#[derive(Default)]
struct PodLinks {
    links: BTreeSet<u32>,
    /// Bridges that pods hang on: neither class, their ports carry the programs.
    bridges: BTreeSet<u32>,
    /// Ports of such bridges that lead to the network.
    uplinks: BTreeSet<u32>,
}

/// The host-side links of this node's pods.
///
/// A route to a pod address that is as narrow as a point-to-point link leads to the pod's
/// own device. A bridge whose subnet holds pod addresses leads to its ports.
fn pod_links(tables: &Tables, inputs: &Inputs) -> PodLinks {
    let mut found = PodLinks::default();
    for ip in inputs.pod_ips.iter().filter(|ip| !tables.local.contains(ip)) {
        let route = tables
            .routes
            .iter()
            .filter(|route| route.destination.contains(ip))
            .max_by_key(|route| (route.destination.prefix_len(), std::cmp::Reverse(route.metric)));
        let Some(route) = route.filter(|route| !route.gateway) else { continue };
        let Some(link) = tables.links.get(&route.ifindex).filter(|link| !link.loopback) else { continue };
        if is_bridge(link) {
            found.bridges.insert(route.ifindex);
        } else if route.destination.prefix_len() >= if ip.is_ipv4() { 30 } else { 126 } {
            found.links.insert(route.ifindex);
        }
    }
    // A bridge of the node's pod subnet is one before its first pod.
    let bridged = tables.addresses.iter().filter(|address| {
        tables.links.get(&address.ifindex).is_some_and(is_bridge)
            && inputs.pod_cidrs.iter().any(|cidr| cidr.contains(&address.prefix.addr()))
    });
    found.bridges.extend(bridged.map(|address| address.ifindex));
    for (index, link) in &tables.links {
        if link.controller.is_some_and(|bridge| found.bridges.contains(&bridge)) {
            if is_pod_side(link) {
                found.links.insert(*index)
            } else {
                found.uplinks.insert(*index)
            };
        }
    }
    found
}

fn is_bridge(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge")
}

/// Kinds of device that a pod or a virtual machine is plugged in by.
fn is_pod_side(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("veth" | "netkit" | "tun" | "tap" | "macvtap" | "ipvtap"))
}

fn problem(field: &str, reason: String) -> Problem {
    Problem {
        object: ObjectRef { kind: Kind::Agent, key: ObjectKey::new("", "node") },
        field: field.to_string(),
        reason,
    }
}
