#![expect(clippy::unwrap_used, reason = "tests")]

use super::path::Socket;
use super::*;
use lb_common::abi::{
    Addr, Be16, DropReason, NodeAddress, NodeConfig, NodeFlags, PassReason, Peer, PortRange, Proto, Reason,
    SocketKey, SocketPeer,
};
use lb_common::packet::Frame;
use lb_common::path::socket::{Call, Remote, connect};
use lb_common::path::{self, Origin, Place, Route, Scratch, Tables, Verdict};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddrV4};

const SMALL: Capacity =
    Capacity { frontends: 4, backends: 8, table_blocks: 8, flows: 2, transient: 4, services: 8, prefixes: 8 };

fn v4(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn key(text: &str, proto: Proto) -> FrontendKey {
    FrontendKey::new((*v4(text).ip()).into(), Be16::new(v4(text).port()), proto)
}

/// A node with a UDP Service: ClusterIP, and node port 30000, with one backend elsewhere.
fn node() -> Sim {
    let mut sim = Sim::new(SMALL);
    let table = Table { slots: 1, count: 1, maglev: 0, maglev_len: 0 };
    let frontend = |flags, table| Frontend {
        service: 1,
        flags,
        affinity_seconds: 0,
        pad: 0,
        inside: table,
        outside: table,
    };
    let backend = Backend {
        addr: Ipv4Addr::new(10, 0, 1, 5).into(),
        service: 1,
        port: Be16::new(8080),
        proto: Proto::UDP,
        flags: BackendFlags::SERVING,
    };
    let results = sim.apply(&[
        Op::PutBackend(1, backend),
        Op::WriteTable { block: 1, ids: vec![1] },
        Op::PutFrontend(key("10.96.0.1:53", Proto::UDP), frontend(FrontendFlags::CLUSTER_IP, table)),
        Op::PutFrontend(key("0.0.0.0:30000", Proto::UDP), frontend(FrontendFlags::NODE_PORT, table)),
        Op::PutFrontend(
            key("10.96.0.2:53", Proto::UDP),
            frontend(FrontendFlags::CLUSTER_IP, Table::default()),
        ),
        Op::PutFrontend(
            key("10.96.0.3:53", Proto::UDP),
            frontend(FrontendFlags::CLUSTER_IP.with(FrontendFlags::INSIDE_DROPS), Table::default()),
        ),
    ]);
    assert!(results.iter().all(Result::is_ok));
    let own = Addr::from(Ipv4Addr::new(192, 0, 2, 1));
    let config = NodeConfig {
        v4: own,
        v6: Addr::ANY_V6,
        node_ports: PortRange { first: 30000, last: 30000 },
        flags: NodeFlags::default(),
    };
    let addresses = [(own, NodeAddress { node_port: 1 })].into();
    sim.set_node(&NodeFacts { config, addresses, devices: BTreeMap::new() }).unwrap();
    sim.memory.default_route = Ok(Route { ifindex: 2, next_hop: Ipv4Addr::new(192, 0, 2, 254).into() });
    sim
}

/// An IPv4 UDP datagram without payload and without a checksum of its own.
fn datagram(from: &str, to: &str) -> Vec<u8> {
    let (from, to) = (v4(from), v4(to));
    let mut bytes = vec![0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0];
    bytes.extend(from.ip().octets());
    bytes.extend(to.ip().octets());
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend([0, 8, 0, 0]);
    bytes
}

/// Source and destination of a datagram.
fn ends(bytes: &[u8]) -> (String, String) {
    let end = |ip: usize, port: usize| {
        let ip: [u8; 4] = bytes[ip..ip + 4].try_into().unwrap();
        SocketAddrV4::new(ip.into(), u16::from_be_bytes([bytes[port], bytes[port + 1]])).to_string()
    };
    (end(12, 20), end(16, 22))
}

fn arrives(sim: &Sim, from: &str, to: &str, origin: Origin) -> (Verdict, (String, String)) {
    let mut bytes = datagram(from, to);
    let len = bytes.len();
    bytes.resize(256, 0);
    let mut frame = Frame::new(&mut bytes, len, 0);
    let verdict = path::ingress(&mut frame, sim, sim, &mut Scratch::default(), origin);
    (verdict, ends(&bytes))
}

fn leaves(sim: &Sim, from: &str, to: &str) -> (Verdict, (String, String)) {
    let mut bytes = datagram(from, to);
    let len = bytes.len();
    let mut frame = Frame::new(&mut bytes, len, 0);
    let verdict = path::egress(&mut frame, sim, &mut Scratch::default());
    (verdict, ends(&bytes))
}

fn pair(from: &str, to: &str) -> (String, String) {
    (from.into(), to.into())
}

#[test]
fn a_pods_packet_goes_to_a_backend_and_the_reply_comes_back_as_the_service() {
    let sim = node();
    let (verdict, ends) = arrives(&sim, "10.0.0.9:4000", "10.96.0.1:53", Origin::Inside);
    assert_eq!(verdict, Verdict::Pass(PassReason::NewFlow));
    let (source, destination) = ends;
    assert!(source.starts_with("10.0.0.9:") && source != "10.0.0.9:4000", "{source}");
    assert_eq!(destination, "10.0.1.5:8080");
    let (verdict, ends) = leaves(&sim, "10.0.1.5:8080", &source);
    assert_eq!(verdict, Verdict::Pass(PassReason::Reply));
    assert_eq!(ends, pair("10.96.0.1:53", "10.0.0.9:4000"));
}

#[test]
fn a_node_port_masquerades_towards_another_node() {
    let sim = node();
    let (verdict, (source, destination)) =
        arrives(&sim, "198.51.100.7:4000", "192.0.2.1:30000", Origin::Outside);
    assert!(matches!(verdict, Verdict::Redirect(PassReason::NewFlow, _)), "{verdict:?}");
    assert!(source.starts_with("192.0.2.1:"), "{source}");
    assert_eq!(destination, "10.0.1.5:8080");
    let (verdict, ends) = arrives(&sim, "10.0.1.5:8080", &source, Origin::Outside);
    assert!(matches!(verdict, Verdict::Redirect(PassReason::Reply, _)), "{verdict:?}");
    assert_eq!(ends, pair("192.0.2.1:30000", "198.51.100.7:4000"));
}

#[test]
fn a_sweep_counts_flows_by_service_and_ends_the_silent_ones() {
    let mut sim = node();
    for _ in 0..2 {
        let (_, (source, _)) = arrives(&sim, "10.0.0.9:4000", "10.96.0.1:53", Origin::Inside);
        leaves(&sim, "10.0.1.5:8080", &source);
    }
    assert_eq!(sim.sweep().unwrap().flows, [(1, 1)].into());
    sim.memory.advance_seconds(300);
    let sweep = sim.sweep().unwrap();
    assert_eq!((sweep.flows.len(), sweep.expired), (0, [2, 0]));
}

#[test]
fn without_an_endpoint_it_refuses_or_drops() {
    let sim = node();
    let (verdict, _) = arrives(&sim, "10.0.0.9:4000", "10.96.0.2:53", Origin::Inside);
    assert_eq!(verdict, Verdict::Answer(DropReason::NoEndpoint));
    let (verdict, _) = arrives(&sim, "10.0.0.9:4000", "10.96.0.3:53", Origin::Inside);
    assert_eq!(verdict, Verdict::Drop(DropReason::NoLocalEndpoint));
}

#[test]
fn a_socket_is_connected_straight_to_a_backend() {
    let mut sim = node();
    let to = |text| Remote { addr: (*v4(text).ip()).into(), port: Be16::new(v4(text).port()) };
    let socket = Socket { sim: &sim, cookie: 7, netns: 9, port: 40_000, peer: Cell::new(None) };
    let connect = |asked| {
        let mut remote = to(asked);
        (connect(&sim, &socket, &mut remote, Proto::UDP), remote)
    };
    assert_eq!(connect("10.96.0.1:53"), (Call::Translated, to("10.0.1.5:8080")));
    assert_eq!(connect("10.96.0.2:53"), (Call::Refused, to("10.96.0.2:53")));
    assert_eq!(connect("10.96.0.9:53"), (Call::Untouched, to("10.96.0.9:53")));
    let counters = sim.counters();
    assert_eq!(counters[PassReason::Socket.slot() as usize], 1);
    assert_eq!(counters.len(), Reason::COUNT as usize);
    assert_eq!(sim.service_counters(1).socket_flows, 1);
}

/// S64: a datagram of a connected socket, which the kernel hands on with its sender.
#[test]
fn a_connected_sockets_datagrams_leave_a_backend_that_is_gone() {
    let mut sim = node();
    let to = |text| Remote { addr: (*v4(text).ip()).into(), port: Be16::new(v4(text).port()) };
    let socket = Socket { sim: &sim, cookie: 7, netns: 9, port: 40_000, peer: Cell::new(None) };
    connect(&sim, &socket, &mut to("10.96.0.1:53"), Proto::UDP);
    let peer = socket.peer.get();
    sim.memory.sender.set(peer);
    let sends = |sim: &Sim| arrives(sim, "10.0.0.9:4000", "10.0.1.5:8080", Origin::Inside);
    let untouched = (Verdict::Pass(PassReason::NoService), pair("10.0.0.9:4000", "10.0.1.5:8080"));
    assert_eq!(sends(&sim), untouched, "its backend serves");

    let old = sim.backends[&1];
    let without = |table| Frontend {
        service: 1,
        flags: FrontendFlags::CLUSTER_IP,
        affinity_seconds: 0,
        pad: 0,
        inside: table,
        outside: table,
    };
    sim.apply(&[
        Op::PutFrontend(key("10.96.0.1:53", Proto::UDP), without(Table::default())),
        Op::PutBackend(1, Backend { flags: BackendFlags::default(), ..old }),
    ]);
    assert_eq!(sends(&sim), untouched, "nobody is left who would serve it better");

    let addr = Ipv4Addr::new(10, 0, 1, 6).into();
    sim.apply(&[
        Op::PutBackend(2, Backend { addr, ..old }),
        Op::WriteTable { block: 1, ids: vec![2] },
        Op::PutFrontend(
            key("10.96.0.1:53", Proto::UDP),
            without(Table { slots: 1, count: 1, maglev: 0, maglev_len: 0 }),
        ),
    ]);
    for verdict in [PassReason::NewFlow, PassReason::Forward] {
        let (said, (source, destination)) = sends(&sim);
        assert_eq!((said, destination.as_str()), (Verdict::Pass(verdict), "10.0.1.6:8080"));
        let answer = leaves(&sim, "10.0.1.6:8080", &source);
        assert_eq!(answer.0, Verdict::Pass(PassReason::Reply));
        assert_eq!(answer.1, pair("10.0.1.5:8080", "10.0.0.9:4000"), "from whom it is connected to");
    }
    // The id may be another's by now, and the socket connected elsewhere.
    sim.apply(&[Op::PutBackend(1, Backend { addr, service: 2, ..old })]);
    assert_eq!(sends(&sim).0, Verdict::Pass(PassReason::Forward));
    for other in [None, peer.map(|peer| Peer { backend_port: Be16::new(8081), ..peer })] {
        sim.memory.sender.set(other);
        assert_eq!(sends(&sim), untouched, "{other:?}");
    }
    sim.memory.sender.set(peer);
    let outside = arrives(&sim, "10.0.0.9:4000", "10.0.1.5:8080", Origin::Outside);
    assert_eq!(outside, untouched, "another node's");
}

#[test]
fn a_connected_socket_of_the_host_is_kept_for_the_agent_to_find() {
    let sim = node();
    let to = |text| Remote { addr: (*v4(text).ip()).into(), port: Be16::new(v4(text).port()) };
    for (netns, cookie) in [(1, 7), (9, 8)] {
        let socket = Socket { sim: &sim, cookie, netns, port: 40_000, peer: Cell::new(None) };
        connect(&sim, &socket, &mut to("10.96.0.1:53"), Proto::UDP);
    }
    let backend = to("10.0.1.5:8080");
    let key = SocketKey {
        cookie: 7,
        addr: backend.addr,
        port: backend.port,
        proto: Proto::UDP,
        reverse: 1,
        pad: 0,
    };
    let frontend = to("10.96.0.1:53");
    let peer = SocketPeer { addr: frontend.addr, backend: 1, port: frontend.port, pad: 0 };
    assert_eq!(*sim.memory.datagrams.borrow(), [(key, peer)].into());
}

#[test]
fn the_transient_map_forgets_what_was_used_least_recently() {
    let sim = node();
    let flow = Flow::default();
    let key = |n: u16| FlowKey { source_port: Be16::new(n), ..FlowKey::default() };
    for n in 1..=4 {
        assert!(sim.put_flow(Place::Transient, &key(n), &flow, true));
    }
    assert!(sim.flow(Place::Transient, &key(1), &mut Flow::default()));
    assert!(sim.put_flow(Place::Transient, &key(5), &flow, true));
    assert!(sim.flow(Place::Transient, &key(1), &mut Flow::default()));
    assert!(!sim.flow(Place::Transient, &key(2), &mut Flow::default()));
    assert!(sim.put_flow(Place::Confirmed, &key(1), &flow, true));
    assert!(!sim.put_flow(Place::Confirmed, &key(1), &flow, true), "new only");
    assert!(sim.put_flow(Place::Confirmed, &key(2), &flow, true));
    assert!(!sim.put_flow(Place::Confirmed, &key(3), &flow, false), "full");
}

#[test]
fn full_maps_and_chosen_failures_refuse_one_operation_each() {
    let mut sim = node();
    let outside = [
        Op::PutBackend(0, Backend::default()),
        Op::PutBackend(8, Backend::default()),
        Op::WriteTable { block: 0, ids: vec![1] },
        Op::WriteTable { block: 7, ids: vec![1; 17] },
        Op::PutFrontend(key("10.96.0.9:53", Proto::UDP), sim.frontends.values().next().copied().unwrap()),
    ];
    assert!(sim.apply(&outside).iter().all(|result| matches!(result, Err(OpError::Full { .. }))));
    sim.fail_every(Some(3));
    let ops = vec![Op::DeleteBackend(7); 6];
    let failed: Vec<_> = sim.apply(&ops).iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, true, false, false, true]);
}
