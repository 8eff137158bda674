//! ICMP errors about translated packets (S70, H47).

use super::super::build::{Packet, internet_sum, other, tcp, udp};
use super::super::row::{Hook, Row};
use super::super::world::{ETH0, POD0};
use super::{Connection, Family, V4, V6, named};
use lb_common::abi::{PassReason, Proto};
use std::net::{IpAddr, SocketAddr};

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [V4, V6] {
        rows.extend([towards_the_backend(&family), towards_the_client(&family)]);
        rows.extend([from_a_local_backend(&family), to_a_pod(&family), strangers(&family)]);
        rows.push(about_a_fragment(&family));
    }
    rows
}

/// What an error says, IPv4 and IPv6.
#[derive(Clone, Copy)]
enum Says {
    TooBig,
    PortUnreachable,
}

fn ip(at: &str) -> IpAddr {
    at.parse::<SocketAddr>().map_or_else(|error| panic!("{at}: {error}"), |at| at.ip())
}

/// An error from one address to another, with so many bytes of what the quoted packet carries.
fn error(from: &str, to: &str, says: Says, about: &Packet, quote: usize) -> Packet {
    let (source, destination) = (ip(from), ip(to));
    let v4 = source.is_ipv4();
    let mut icmp = match (says, v4) {
        (Says::TooBig, true) => vec![3, 4, 0, 0, 0, 0, 0x05, 0x14],
        (Says::TooBig, false) => vec![2, 0, 0, 0, 0, 0, 0x05, 0x14],
        (Says::PortUnreachable, true) => vec![3, 3, 0, 0, 0, 0, 0, 0],
        (Says::PortUnreachable, false) => vec![1, 4, 0, 0, 0, 0, 0, 0],
    };
    let quoted = about.bytes();
    let quoted = &quoted[about.link.len()..];
    icmp.extend(&quoted[..quoted.len().min(if v4 { 20 } else { 40 } + quote)]);
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(_) => Vec::new(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut pseudo = [octets(source), octets(destination)].concat();
    if !v4 {
        pseudo.extend((icmp.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, 58]);
    }
    let sum = internet_sum(&[&pseudo, &icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    other(if v4 { 1 } else { 58 }, from, to, &icmp)
}

/// An address of the family with a port that means nothing.
fn router(family: &Family) -> &'static str {
    if family.name == "v4" { "198.51.100.1:0" } else { "[2001:db8:ffff::1]:0" }
}

/// A datagram in pieces meets a narrow link behind this node. Of a later piece nothing says whose
/// it is.
fn about_a_fragment(family: &Family) -> Row {
    let mut row = named("too big for the backend's side, in pieces", family);
    row.service(family.service(Proto::UDP).remote(family.remote));
    let whole = udp(family.client, family.node_port).payload(&[7; 1400]);
    let [first, later] = [whole.first_fragment(1000), whole.later_fragment(1000)];
    let asked = |piece: &Packet| piece.from(family.source).to(family.remote).ttl(63);
    row.outside(&first).redirected(PassReason::NewFlow, ETH0, &asked(&first));
    row.outside(&later).redirected(PassReason::Forward, ETH0, &asked(&later));
    for quote in [16, 40, 500] {
        let told = error(router(family), family.source, Says::TooBig, &asked(&first), quote);
        let turned = error(family.node_port, family.client, Says::TooBig, &first.ttl(63), quote).ttl(63);
        row.outside(&told).redirected(PassReason::IcmpError, ETH0, &turned);
        let told = error(router(family), family.source, Says::TooBig, &asked(&later), quote);
        row.outside(&told).untouched(PassReason::OtherProtocol);
    }
    row
}

/// The client's side has a narrow link: the backend learns of it, by the tuple that it knows.
fn towards_the_backend(family: &Family) -> Row {
    let mut row = named("too big for the client's side, backend elsewhere", family);
    let connection = Connection::new(family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    connection.open(&mut row);
    let data = connection.answer("PA").seq(9001).ack(1001).payload(&[7; 1000]);
    let sent = connection.answered(&data);
    for quote in [8, 20, 500] {
        let told = error(router(family), family.node_port, Says::TooBig, &sent, quote);
        let turned = error(family.source, family.remote, Says::TooBig, &data.ttl(63), quote).ttl(63);
        row.outside(&told).redirected(PassReason::IcmpError, ETH0, &turned);
    }
    // The flow goes on as it was.
    let ask = connection.ask("A").seq(1001).ack(9001);
    row.outside(&ask).by_xdp().redirected(PassReason::Forward, ETH0, &connection.asked(&ask));
    row
}

/// The backend's side has one: the client learns of it, as if the Service had said so.
fn towards_the_client(family: &Family) -> Row {
    let mut row = named("too big for the backend's side, backend elsewhere", family);
    let connection = Connection::new(family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    connection.open(&mut row);
    let data = connection.ask("PA").seq(1001).ack(9001).payload(&[7; 1000]);
    let sent = connection.asked(&data);
    let gateway = if family.name == "v4" { "10.244.2.1:0" } else { "[fd00:2::1]:0" };
    let told = error(gateway, family.source, Says::TooBig, &sent, 64);
    let turned = error(family.node_port, family.client, Says::TooBig, &data.ttl(63), 64).ttl(63);
    row.outside(&told).redirected(PassReason::IcmpError, ETH0, &turned);
    row
}

/// A pod here says "port unreachable" to a client that knows the Service alone.
fn from_a_local_backend(family: &Family) -> Row {
    let mut row = named("unreachable from a backend here", family);
    row.service(family.service(Proto::UDP).local(family.local));
    let ask = udp(family.client, family.external);
    let asked = ask.to(family.local);
    row.outside(&ask).passes(PassReason::NewFlow, &asked);
    let told = error(family.local, family.client, Says::PortUnreachable, &asked, 8);
    row.inside(&told).untouched(PassReason::OtherProtocol);
    let turned = error(family.external, family.client, Says::PortUnreachable, &ask, 8);
    row.frame(Hook::Egress, ETH0, told.bytes()).passes(PassReason::IcmpError, &turned);
    row
}

/// A pod's packets to a Service, and what comes of them on another node.
fn to_a_pod(family: &Family) -> Row {
    let mut row = named("too big on a pod's way to a Service", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    let ask = tcp(family.pod, family.cluster_ip, "S");
    let asked = ask.from(family.pod_source).to(family.remote);
    row.inside(&ask).passes(PassReason::NewFlow, &asked);
    let told = error(router(family), family.pod_source, Says::TooBig, &asked, 20);
    row.outside(&told).untouched(PassReason::OtherProtocol);
    let turned = error(family.cluster_ip, family.pod, Says::TooBig, &ask, 20);
    row.frame(Hook::Egress, POD0, told.bytes()).passes(PassReason::IcmpError, &turned);
    row
}

/// Nothing is turned for whoever makes up a flow, or quotes another's.
fn strangers(family: &Family) -> Row {
    let mut row = named("errors about nothing that was sent", family);
    let connection = Connection::new(family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    connection.open(&mut row);
    let sent = connection.answered(&connection.answer("A").seq(9001).ack(1001));
    let unknown = sent.to(family.stranger);
    row.outside(&error(router(family), family.node_port, Says::TooBig, &unknown, 20))
        .untouched(PassReason::OtherProtocol);
    // Addressed to somebody else than who sent what it quotes.
    row.outside(&error(router(family), family.external, Says::TooBig, &sent, 20))
        .untouched(PassReason::OtherProtocol);
    // Half a port.
    row.outside(&error(router(family), family.node_port, Says::TooBig, &sent, 3))
        .untouched(PassReason::OtherProtocol);
    row
}
