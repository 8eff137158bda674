//! UDP: checksums that may be absent, flows that end by silence or with their backend.

use super::super::build::{Packet, Sum, internet_sum, udp};
use super::super::row::Row;
use super::super::world::ETH0;
use super::{Family, V4, V6, named};
use lb_common::abi::{PassReason, Proto, Reason};

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [V4, V6] {
        rows.extend([conversation(&family), no_checksum(&family), becomes_zero(&family), moved(&family)]);
        rows.extend([
            stays_while_serving(&family),
            server_streams(&family),
            stays_without_any(&family),
            silence(&family),
        ]);
        rows.push(short(&family));
    }
    rows
}

/// A datagram to another node, its answer, and the one that confirms; answers what became of
/// the first two.
fn open(row: &mut Row, family: &Family, ask: &Packet, answer: &Packet) -> (Packet, Packet) {
    let asked = ask.from(family.source).to(family.remote).ttl(63);
    let answered = answer.from(family.node_port).to(family.client).ttl(63);
    row.outside(ask).redirected(PassReason::NewFlow, ETH0, &asked);
    row.outside(answer).redirected(PassReason::Reply, ETH0, &answered);
    row.outside(ask).noting(Reason::Confirmed).redirected(PassReason::Forward, ETH0, &asked);
    (asked, answered)
}

/// Confirmed by the datagram after the reply; from then on XDP's.
fn conversation(family: &Family) -> Row {
    let mut row = named("a conversation over UDP", family);
    row.service(family.service(Proto::UDP).remote(family.remote));
    let ask = udp(family.client, family.node_port);
    let asked = ask.from(family.source).to(family.remote).ttl(63);
    row.outside(&ask).redirected(PassReason::NewFlow, ETH0, &asked);
    row.outside(&ask).redirected(PassReason::Forward, ETH0, &asked);
    let answer = udp(family.remote, family.source).payload(b"yes");
    let answered = answer.from(family.node_port).to(family.client).ttl(63);
    row.outside(&answer).redirected(PassReason::Reply, ETH0, &answered);
    row.outside(&ask).noting(Reason::Confirmed).redirected(PassReason::Forward, ETH0, &asked);
    row.outside(&ask).by_xdp().redirected(PassReason::Forward, ETH0, &asked);
    row.outside(&answer).by_xdp().redirected(PassReason::Reply, ETH0, &answered);
    row
}

/// RFC 768: zero means that the sender made none.
fn no_checksum(family: &Family) -> Row {
    let mut row = named("a datagram without checksum stays without", family);
    row.service(family.service(Proto::UDP).remote(family.remote));
    let ask = udp(family.client, family.node_port).sum(Sum::Zero);
    let answer = udp(family.remote, family.source).sum(Sum::Zero);
    let (asked, answered) = open(&mut row, family, &ask, &answer);
    row.outside(&ask).by_xdp().redirected(PassReason::Forward, ETH0, &asked);
    row.outside(&answer).by_xdp().redirected(PassReason::Reply, ETH0, &answered);
    row
}

/// A payload by which the translated datagram's sum comes out as zero.
fn zero_sum(translated: &Packet) -> Vec<u8> {
    let mut trial = translated.payload(&[0, 0]).bytes();
    let at = trial.len() - 4;
    let there = u16::from_be_bytes([trial[at], trial[at + 1]]);
    // What is missing to 0xffff in the sum is what the payload adds.
    trial.clear();
    let payload = there.to_be_bytes();
    debug_assert_ne!(internet_sum(&[&payload]), 0);
    payload.to_vec()
}

fn becomes_zero(family: &Family) -> Row {
    let mut row = named("a checksum that becomes zero is sent as all ones", family);
    row.service(family.service(Proto::UDP).remote(family.remote));
    let ask = udp(family.client, family.node_port);
    let asked = ask.from(family.source).to(family.remote).ttl(63);
    let payload = zero_sum(&asked);
    let (ask, asked) = (ask.payload(&payload), asked.payload(&payload));
    let bytes = asked.bytes();
    assert_eq!(bytes[bytes.len() - 4..bytes.len() - 2], [0xff, 0xff], "the row's own premise");
    let answer = udp(family.remote, family.source);
    let payload = zero_sum(&answer.from(family.node_port).to(family.client).ttl(63));
    open(&mut row, family, &ask, &answer.payload(&payload));
    row.outside(&ask).by_xdp().redirected(PassReason::Forward, ETH0, &asked);
    row
}

/// S60: UDP has no end, so flows must leave a backend that is gone.
fn moved(family: &Family) -> Row {
    let mut row = named("a UDP flow leaves a backend that is gone", family);
    let service = row.service(family.service(Proto::UDP).remote(family.remote).remote(family.remote_too));
    row.ops(service.draining(&[1]));
    let ask = udp(family.client, family.node_port);
    let answer = udp(family.remote, family.source);
    let (asked, _) = open(&mut row, family, &ask, &answer);
    row.outside(&ask).by_xdp().redirected(PassReason::Forward, ETH0, &asked);
    row.ops(service.without(&[0]).1);
    let moved = asked.to(family.remote_too);
    row.outside(&ask).noting(Reason::Moved).redirected(PassReason::NewFlow, ETH0, &moved);
    // The former backend's late answer meets no flow.
    row.outside(&answer).untouched(PassReason::NoService);
    row
}

/// S29: a stream from the server keeps the flow as well as the client's datagrams do.
fn server_streams(family: &Family) -> Row {
    let mut row = named("a UDP flow lives while its server sends", family);
    let service = row.service(family.service(Proto::UDP).local(family.local).local(family.local_too));
    row.ops(service.draining(&[1]));
    let ask = udp(family.client, family.node_port);
    let answer = udp(family.local, family.client);
    let answered = answer.from(family.node_port);
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local));
    row.egress(&answer).passes(PassReason::Reply, &answered);
    row.outside(&ask).noting(Reason::Confirmed).passes(PassReason::Forward, &ask.to(family.local));
    row.wait(100);
    row.egress(&answer).passes(PassReason::Reply, &answered);
    row.wait(100);
    row.outside(&ask).passes(PassReason::Forward, &ask.to(family.local));
    row.wait(200);
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local));
    row
}

fn stays_while_serving(family: &Family) -> Row {
    let mut row = named("a UDP flow stays with a backend that still serves", family);
    let service = row.service(family.service(Proto::UDP).local(family.local).local(family.local_too));
    row.ops(service.draining(&[1]));
    let ask = udp(family.client, family.node_port);
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local));
    row.ops(service.draining(&[0]));
    row.outside(&ask).passes(PassReason::Forward, &ask.to(family.local));
    let other = ask.from(family.stranger);
    row.outside(&other).passes(PassReason::NewFlow, &other.to(family.local_too));
    row
}

/// S60: without any backend flows are left as they are.
fn stays_without_any(family: &Family) -> Row {
    let mut row = named("a UDP flow stays when no backend is left", family);
    let service = row.service(family.service(Proto::UDP).local(family.local));
    let ask = udp(family.client, family.node_port);
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local));
    row.ops(service.without(&[0]).1);
    row.outside(&ask).passes(PassReason::Forward, &ask.to(family.local));
    row.outside(&ask.from(family.stranger)).refused();
    row
}

/// S67: 30 s without an answer, 120 s with one.
fn silence(family: &Family) -> Row {
    let mut row = named("a silent UDP flow is opened anew", family);
    let service = row.service(family.service(Proto::UDP).local(family.local).local(family.local_too));
    row.ops(service.draining(&[1]));
    let ask = udp(family.client, family.node_port);
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local));
    row.ops(service.draining(&[0]));
    row.wait(25);
    row.outside(&ask).passes(PassReason::Forward, &ask.to(family.local));
    row.wait(40);
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local_too));
    let answer = udp(family.local_too, family.client);
    row.egress(&answer).passes(PassReason::Reply, &answer.from(family.node_port));
    row.outside(&ask).noting(Reason::Confirmed).passes(PassReason::Forward, &ask.to(family.local_too));
    row.ops(service.draining(&[1]));
    row.wait(110);
    row.outside(&ask).passes(PassReason::Forward, &ask.to(family.local_too));
    row.wait(130);
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local));
    row
}

fn short(family: &Family) -> Row {
    let mut row = named("datagrams of no byte and of one", family);
    row.service(family.service(Proto::UDP).local(family.local));
    let empty = udp(family.client, family.node_port).payload(b"");
    row.outside(&empty).passes(PassReason::NewFlow, &empty.to(family.local));
    let one = empty.payload(b"1");
    row.outside(&one).passes(PassReason::Forward, &one.to(family.local));
    row
}
