//! The cases of a world: each client asks each of its addresses, and others that nobody serves.

use super::dice::Dice;
use super::probe::{How, Probe};
use super::world::{HOSTS, Kind, Service, State, World};
use crate::topology::{NODE1, NODE2, Place};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longer than a TCP client needs that is told of a refusal while it still sends its SYN: it
/// hears of it with the next one, a second later.
const PATIENCE_MS: u64 = 2_600;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Client {
    /// A pod of the node that is no endpoint.
    Pod,
    /// The same, out of reach of socket hooks.
    PodPacket,
    Host,
    Outside,
    /// A pod that is an endpoint of the Service itself.
    Hairpin,
    HairpinPacket,
    /// A pod of the other node.
    Remote,
}

impl Client {
    pub(super) const ALL: [Self; 7] = [
        Self::Pod,
        Self::PodPacket,
        Self::Host,
        Self::Outside,
        Self::Hairpin,
        Self::HairpinPacket,
        Self::Remote,
    ];

    pub(super) fn place(self) -> Place {
        match self {
            Self::Pod => Place::pod("cli"),
            Self::PodPacket => Place::unhooked("cli"),
            Self::Host => Place::Host,
            Self::Outside => Place::Outside,
            Self::Hairpin => Place::pod(HOSTS[0].name),
            Self::HairpinPacket => Place::unhooked(HOSTS[0].name),
            Self::Remote => Place::pod("far"),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::PodPacket => "pod-packet",
            Self::Host => "host",
            Self::Outside => "outside",
            Self::Hairpin => "hairpin",
            Self::HairpinPacket => "hairpin-packet",
            Self::Remote => "other-node",
        }
    }

    const fn hairpins(self) -> bool {
        matches!(self, Self::Hairpin | Self::HairpinPacket)
    }
}

/// What kind of address is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Door {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
    /// What no Service serves: undefined ports, unallocated ClusterIPs, node ports elsewhere.
    Nobodys,
}

impl Door {
    pub(super) const SERVED: [Self; 4] =
        [Self::ClusterIp, Self::NodePort, Self::LoadBalancer, Self::ExternalIp];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "externalIP",
            Self::Nobodys => "nobody's",
        }
    }
}

/// What coverage is counted by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Cell {
    pub(super) door: Door,
    /// The policy that governs this kind of address is Local.
    pub(super) local: bool,
    pub(super) client: Client,
    pub(super) v6: bool,
    pub(super) state: State,
}

impl Cell {
    /// All that can be: a pod without a place among the endpoints does not reach itself, and the
    /// other node's way to this one's Services is their node ports.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for door in Door::SERVED {
            for local in [false, true] {
                for client in Client::ALL {
                    for v6 in [false, true] {
                        let cells = State::ALL.map(|state| Self { door, local, client, v6, state });
                        all.extend(cells.into_iter().filter(|cell| cell.can_be()));
                    }
                }
            }
        }
        all
    }

    fn can_be(self) -> bool {
        let nowhere_here = matches!(self.state, State::None | State::Elsewhere);
        (!self.client.hairpins() || !nowhere_here)
            && (self.client != Client::Remote || self.door == Door::NodePort)
    }
}

/// One question of one client, as both are asked it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) cell: Cell,
    /// Index of the Service.
    pub(super) service: usize,
    /// Of a Service whose clients stay with an endpoint: the same question to the one that is the
    /// same without, by its index among the cases.
    pub(super) plain: Option<usize>,
    pub(super) probe: Probe,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { door, local, client, state, .. } = self.cell;
        let policy = if local { "Local" } else { "Cluster" };
        let (how, to) = (self.probe.how, self.probe.to);
        write!(
            f,
            "{} to {to} ({how:?}): {}, policy {policy}, endpoints {}",
            client.name(),
            door.name(),
            state.name()
        )
    }
}

/// All cases of a world, the same for the same seed.
pub(super) fn cases(world: &World, seed: u64) -> Vec<Case> {
    let mut dice = Dice::new(seed ^ 0x00ca_5e00);
    let mut all: Vec<Case> = Vec::new();
    for (place, service) in world.services.iter().enumerate() {
        for v6 in [false, true].into_iter().filter(|v6| service.families[usize::from(*v6)]) {
            for (door, ip, number) in doors(service, v6) {
                for client in Client::ALL {
                    if !asks(client, door, service) {
                        continue;
                    }
                    for how in hows(service, door, number, &mut dice) {
                        let local = match door {
                            Door::ClusterIp | Door::Nobodys => service.internal_local,
                            Door::NodePort | Door::LoadBalancer | Door::ExternalIp => service.external_local,
                        };
                        let counted = if served(service, door) { door } else { Door::Nobodys };
                        let cell = Cell { door: counted, local, client, v6, state: service.state };
                        let to = SocketAddr::new(ip, number);
                        let probe = Probe { how, to, tries: 1, patience_ms: PATIENCE_MS };
                        all.push(Case { cell, service: place, plain: None, probe });
                    }
                }
            }
        }
    }
    link_sticky(world, &mut all);
    all
}

/// Finds for each case of a sticky Service the same question to its like.
fn link_sticky(world: &World, all: &mut [Case]) {
    let mut more = Vec::new();
    for at in 0..all.len() {
        let case = &all[at];
        let service = &world.services[case.service];
        let Some(plain) = case.service.checked_sub(1).and_then(|n| world.services.get(n)) else { continue };
        if !service.sticky || case.cell.door == Door::Nobodys {
            continue;
        }
        let to = like(service, plain, case);
        let found = all.iter().position(|other| {
            other.cell == case.cell
                && other.probe.to == to
                && (other.probe.how == How::Tcp) == (case.probe.how == How::Tcp)
        });
        more.push((at, found));
    }
    for (at, found) in more {
        all[at].plain = found;
    }
}

/// The address of a Service's like that corresponds to the one which a case asks.
fn like(service: &Service, plain: &Service, case: &Case) -> SocketAddr {
    let (v6, port) = (case.cell.v6, case.probe.to.port());
    let ip = match case.cell.door {
        Door::ClusterIp | Door::Nobodys => plain.cluster_ip(v6),
        Door::NodePort => {
            let at = service.ports.iter().position(|p| p.node_port == port).unwrap_or(0);
            return SocketAddr::new(case.probe.to.ip(), plain.ports[at].node_port);
        }
        Door::LoadBalancer => plain.balanced(v6),
        Door::ExternalIp => plain.external(v6),
    };
    SocketAddr::new(ip, port)
}

fn node(of: (Ipv4Addr, Ipv6Addr), v6: bool) -> IpAddr {
    if v6 { of.1.into() } else { of.0.into() }
}

/// The addresses of a Service in a family, and some that are near to them.
fn doors(service: &Service, v6: bool) -> Vec<(Door, IpAddr, u16)> {
    let mut doors = Vec::new();
    for port in &service.ports {
        doors.push((Door::ClusterIp, service.cluster_ip(v6), port.number));
        if port.node_port != 0 {
            doors.push((Door::NodePort, node(NODE1, v6), port.node_port));
        }
        if service.kind == Kind::LoadBalancer {
            doors.push((Door::LoadBalancer, service.balanced(v6), port.number));
        }
        if service.external_ip {
            doors.push((Door::ExternalIp, service.external(v6), port.number));
        }
    }
    doors.extend(nobodys(service, v6));
    doors
}

/// One address near to the Service's that nobody serves, another for each Service.
fn nobodys(service: &Service, v6: bool) -> Option<(Door, IpAddr, u16)> {
    let node_port = service.ports[0].node_port;
    let (ip, number) = match service.index % 12 {
        // A port that is not named, in the other protocol's number too (S38, S39).
        0 => (service.cluster_ip(v6), 7),
        1 => (service.balanced(v6), 7),
        2 => (service.external(v6), 7),
        // A ClusterIP that nobody has.
        3 if v6 => (Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xfefe).into(), 80),
        3 => (Ipv4Addr::new(10, 96, 254, 254).into(), 80),
        // Node ports where there are none: another node, loopback, the pods' gateway (S17, S19, S21).
        4 if node_port != 0 => (node(NODE2, v6), node_port),
        5 if node_port != 0 && !v6 => (Ipv4Addr::LOCALHOST.into(), node_port),
        6 if node_port != 0 && v6 => (Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1).into(), node_port),
        6 if node_port != 0 => (Ipv4Addr::new(10, 244, 1, 1).into(), node_port),
        // The node's port of that number is a closed one of its own.
        7 => (node(NODE1, v6), service.ports[0].number),
        _ => return None,
    };
    Some((Door::Nobodys, ip, number))
}

/// Whether these two have to serve it: neither what is another proxy's nor what is left to the
/// network (`ipMode: Proxy`).
fn served(service: &Service, door: Door) -> bool {
    !service.foreign && (door != Door::LoadBalancer || !service.proxy_mode)
}

fn asks(client: Client, door: Door, service: &Service) -> bool {
    if client.hairpins() && !service.has_endpoint(HOSTS[0].name) {
        return false;
    }
    match (client, door) {
        (Client::Remote, door) => door == Door::NodePort,
        // The wrong side of loopback is the client's own.
        (_, Door::Nobodys) => !client.hairpins(),
        _ => true,
    }
}

/// By which protocols an address is asked: those of the port, and the other one too at times.
fn hows(service: &Service, door: Door, number: u16, dice: &mut Dice) -> Vec<How> {
    let port = service.ports.iter().find(|port| port.number == number || port.node_port == number);
    let udp = if dice.often(50) { How::Udp } else { How::UdpConnected };
    let (mut tcp, mut datagrams) = port.map_or((true, true), |port| (port.tcp, port.udp));
    if door == Door::ClusterIp && dice.often(5) {
        (tcp, datagrams) = (true, true);
    }
    [(tcp, How::Tcp), (datagrams, udp)].into_iter().filter(|(asked, _)| *asked).map(|(_, how)| how).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn worlds_reach_every_cell() {
        let mut seen: BTreeMap<Cell, usize> = BTreeMap::new();
        let mut sticky = (0, 0);
        for seed in 0..12 {
            let world = World::new(seed, 150);
            for case in cases(&world, seed) {
                *seen.entry(case.cell).or_default() += 1;
                if world.services[case.service].sticky && case.cell.door != Door::Nobodys {
                    sticky.0 += 1;
                    sticky.1 += usize::from(case.plain.is_some());
                }
            }
        }
        let missing: Vec<_> = Cell::all().into_iter().filter(|cell| !seen.contains_key(cell)).collect();
        assert!(missing.is_empty(), "{} cells: {missing:?}", missing.len());
        assert!(sticky.0 > 0 && sticky.1 * 10 > sticky.0 * 9, "{sticky:?}");
    }
}
