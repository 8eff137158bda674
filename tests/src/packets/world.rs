//! The node that every packet row runs on: its devices, addresses and routes, said once, and
//! made twice: as facts and a table for the simulator, as a namespace for the kernel.
//!
//! ```text
//!  clients, other nodes ── eth0 (10) ─┐
//!  a second network     ── eth1 (12) ─┼─ node ── pod0 (20) ── pods of this node
//! ```

use super::build::RECEIVER;
use super::row::Row;
use crate::netns::Netns;
use anyhow::Result;
use lb_common::abi::{Addr, Device, FlowKey, NodeAddress, NodeConfig, NodeFlags, Peer, PortRange, Proto};
use lb_common::path::{Network, NoRoute, Route};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use weir::datapath::NodeFacts;

pub const ETH0: u32 = 10;
pub const ETH1: u32 = 12;
pub const POD0: u32 = 20;

pub const NODE4: &str = "192.0.2.1";
pub const NODE6: &str = "2001:db8:1::1";
/// Frames that are longer do not fit through eth0 and eth1.
pub const MTU: usize = 1500;

/// Prefix, length, device, gateway, whether the neighbour's hardware address is known.
type Way = (&'static str, u8, u32, Option<&'static str>, bool);

const WAYS: [Way; 14] = [
    ("192.0.2.0", 24, ETH0, None, true),
    ("203.0.113.0", 24, ETH1, None, true),
    ("10.244.1.0", 24, POD0, None, true),
    ("10.244.2.0", 24, ETH0, Some("192.0.2.2"), true),
    ("10.244.3.0", 24, ETH1, Some("203.0.113.2"), true),
    ("10.244.4.0", 24, ETH0, Some("192.0.2.99"), false),
    ("0.0.0.0", 0, ETH0, Some("192.0.2.254"), true),
    ("2001:db8:1::", 64, ETH0, None, true),
    ("2001:db8:2::", 64, ETH1, None, true),
    ("fd00:1::", 64, POD0, None, true),
    ("fd00:2::", 64, ETH0, Some("2001:db8:1::2"), true),
    ("fd00:3::", 64, ETH1, Some("2001:db8:2::2"), true),
    ("fd00:4::", 64, ETH0, Some("2001:db8:1::99"), false),
    ("::", 0, ETH0, Some("2001:db8:1::fe"), true),
];
/// Neighbours that are no gateways.
const NEIGHBOURS: [(&str, u32); 6] = [
    ("10.244.1.5", POD0),
    ("10.244.1.6", POD0),
    ("fd00:1::5", POD0),
    ("fd00:1::6", POD0),
    ("192.0.2.7", ETH0),
    ("2001:db8:1::7", ETH0),
];
/// Where no route leads.
const UNREACHABLE: [(&str, u8); 2] = [("10.244.9.0", 24), ("fd00:9::", 64)];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn addr(text: &str) -> Addr {
    ip(text).into()
}

/// What the agent would tell the data path about this node.
pub fn facts() -> NodeFacts {
    let device = |v4: &str, v6: &str| Device { v4: addr(v4), v6: addr(v6) };
    NodeFacts {
        config: NodeConfig {
            v4: addr(NODE4),
            v6: addr(NODE6),
            node_ports: PortRange { first: 30_000, last: 32_767 },
            flags: NodeFlags::default(),
        },
        addresses: [(NODE4, 1), (NODE6, 1), ("203.0.113.1", 0), ("2001:db8:2::1", 0)]
            .map(|(text, node_port)| (addr(text), NodeAddress { node_port }))
            .into(),
        devices: BTreeMap::from([
            (ETH0, device(NODE4, NODE6)),
            (ETH1, device("203.0.113.1", "2001:db8:2::1")),
            (POD0, device("0.0.0.0", "::")),
        ]),
    }
}

/// The same while netfilter has the flows that a row says.
pub fn facts_of(row: &Row) -> NodeFacts {
    let mut facts = facts();
    facts.config.flags = row.flags();
    facts
}

/// The routing table, as the simulator asks it about one packet.
#[derive(Clone, Debug)]
pub struct Routes<'a> {
    /// Length of the frame in hand, without its link-layer header.
    pub length: usize,
    /// Only neighbours whose hardware address is known count, and the packet's length does
    /// not: what XDP is told.
    pub early: bool,
    /// Ports of this node that its own sockets have.
    pub sockets: &'a [SocketAddr],
    /// Its connected sockets and their peers.
    pub connected: &'a [(SocketAddr, SocketAddr)],
}

impl Network for Routes<'_> {
    fn route(&self, _: &Addr, destination: &Addr, _: Proto) -> Result<Route, NoRoute> {
        let to = IpAddr::from(*destination);
        if UNREACHABLE.iter().any(|(net, bits)| inside(to, ip(net), *bits)) {
            return Err(NoRoute::Unreachable);
        }
        let way = WAYS
            .iter()
            .filter(|(net, bits, ..)| inside(to, ip(net), *bits))
            .max_by_key(|(_, bits, ..)| *bits)
            .ok_or(NoRoute::Unreachable)?;
        let (_, _, ifindex, gateway, known) = *way;
        if self.early && !known {
            return Err(NoRoute::Unreachable);
        }
        // A socket buffer may be longer than the device's MTU by a VLAN tag.
        if !self.early && self.length > MTU + 4 {
            return Err(NoRoute::TooBig);
        }
        Ok(Route { ifindex, next_hop: gateway.map_or(*destination, addr) })
    }

    fn socket_owns(&self, tuple: &FlowKey) -> bool {
        let to = SocketAddr::new(tuple.destination.into(), tuple.destination_port.get());
        !self.early && (self.sockets.contains(&to) || self.socket_expects(tuple))
    }

    fn socket_expects(&self, tuple: &FlowKey) -> bool {
        let to = SocketAddr::new(tuple.destination.into(), tuple.destination_port.get());
        let from = SocketAddr::new(tuple.source.into(), tuple.source_port.get());
        !self.early && self.connected.contains(&(to, from))
    }

    fn sender(&self) -> Option<Peer> {
        // Packets of a test run have no sender.
        None
    }
}

fn inside(address: IpAddr, net: IpAddr, bits: u8) -> bool {
    match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            (u32::from(a) ^ u32::from(n)).checked_shr(32 - u32::from(bits)).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            (u128::from(a) ^ u128::from(n)).checked_shr(128 - u32::from(bits)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// The node as a namespace: devices without traffic, permanent neighbours.
///
/// # Errors
/// Without root.
pub fn namespace(name: String) -> Result<Netns> {
    let netns = Netns::new(name)?;
    let mut lines = Vec::new();
    let hardware = RECEIVER.map(|byte| format!("{byte:02x}")).join(":");
    for (name, index, addresses) in [
        ("eth0", ETH0, &["192.0.2.1/24", "2001:db8:1::1/64"][..]),
        ("eth1", ETH1, &["203.0.113.1/24", "2001:db8:2::1/64"]),
        ("pod0", POD0, &[]),
    ] {
        let peer = index + 1;
        lines.push(format!(
            "link add {name} address {hardware} index {index} type veth peer name {name}p index {peer}"
        ));
        lines.push(format!("link set {name}p up"));
        lines.push(format!("link set {name} up"));
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            lines.push(format!("addr add {address} dev {name}{nodad}"));
        }
    }
    let device = |index| match index {
        ETH0 => "eth0",
        ETH1 => "eth1",
        _ => "pod0",
    };
    netns.ip(&lines)?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        netns.sysctl(key, "1")?;
    }
    let mut lines = Vec::new();
    let mut neighbours: Vec<(&str, u32)> = NEIGHBOURS.to_vec();
    for (net, bits, index, gateway, known) in WAYS {
        match gateway {
            Some(gateway) => {
                lines.push(format!("route add {net}/{bits} via {gateway} dev {}", device(index)));
                if known {
                    neighbours.push((gateway, index));
                }
            }
            None if index == POD0 => lines.push(format!("route add {net}/{bits} dev pod0")),
            // Comes with the device's address.
            None => {}
        }
    }
    for (net, bits) in UNREACHABLE {
        lines.push(format!("route add unreachable {net}/{bits}"));
    }
    for (address, index) in neighbours {
        lines.push(format!(
            "neigh add {address} lladdr 02:00:00:00:00:03 nud permanent dev {}",
            device(index)
        ));
    }
    netns.ip(&lines)?;
    Ok(netns)
}
