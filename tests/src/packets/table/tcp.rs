//! TCP connections: opened, confirmed, closed, opened again.

use super::super::build::{at, tcp, udp};
use super::super::row::{Row, Service};
use super::super::world::ETH0;
use super::{Connection, Family, V4, V6, named};
use lb_common::abi::{DropReason, PassReason, Proto, Reason};

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [V4, V6] {
        rows.extend([life(&family), local_life(&family), reset(&family), wrong_ack(&family)]);
        rows.extend([direct_after_close(&family), opened_again(&family), retransmitted(&family)]);
        rows.extend([drained(&family), moved_while_opening(&family), affinity(&family)]);
        rows.extend([affinity_membership(&family), affinity_across_frontends(&family)]);
        rows.extend([middle_of_a_connection(&family), opens_nothing(&family), late_ack(&family)]);
        rows.extend([host_connection(&family), forged(&family), loopback(&family)]);
    }
    rows
}

/// From SYN to the last acknowledgement, backend on another node.
fn life(family: &Family) -> Row {
    let mut row = named("a connection to another node from SYN to the last ACK", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    let flow = Connection::new(family);
    flow.open(&mut row);
    flow.talk(&mut row);
    let fin = flow.ask("FA").seq(1019).ack(9027);
    row.outside(&fin).by_xdp().redirected(PassReason::Forward, ETH0, &flow.asked(&fin));
    let ack = flow.answer("A").seq(9027).ack(1020);
    row.outside(&ack).by_xdp().redirected(PassReason::Reply, ETH0, &flow.answered(&ack));
    let fin = flow.answer("FA").seq(9027).ack(1020);
    row.outside(&fin).by_xdp().noting(Reason::Closed).redirected(
        PassReason::Reply,
        ETH0,
        &flow.answered(&fin),
    );
    // The flow is over and remembered as such: what still comes finds it, and tc sees to it.
    let last = flow.ask("A").seq(1020).ack(9028);
    row.outside(&last).redirected(PassReason::Forward, ETH0, &flow.asked(&last));
    row.outside(&fin).redirected(PassReason::Reply, ETH0, &flow.answered(&fin));
    row.outside(&last).redirected(PassReason::Forward, ETH0, &flow.asked(&last));
    row
}

/// The same through the stack, replies turned at egress: XDP has no part in it.
fn local_life(family: &Family) -> Row {
    let mut row = named("a connection to this node from SYN to the last ACK", family);
    row.service(family.service(Proto::TCP).local(family.local));
    let ask = |flags: &str| tcp(family.client, family.node_port, flags);
    let answer = |flags: &str| tcp(family.local, family.client, flags);
    let syn = ask("S");
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local));
    let syn_ack = answer("SA").seq(9000).ack(1001);
    row.egress(&syn_ack).passes(PassReason::Reply, &syn_ack.from(family.node_port));
    let ack = ask("A").seq(1001).ack(9001);
    row.outside(&ack).noting(Reason::Confirmed).passes(PassReason::Forward, &ack.to(family.local));
    let data = ask("PA").seq(1001).ack(9001).payload(b"ping");
    row.outside(&data).passes(PassReason::Forward, &data.to(family.local));
    let data = answer("PA").seq(9001).ack(1005).payload(b"pong!");
    row.egress(&data).passes(PassReason::Reply, &data.from(family.node_port));
    let fin = answer("FA").seq(9006).ack(1005);
    row.egress(&fin).passes(PassReason::Reply, &fin.from(family.node_port));
    let fin = ask("FA").seq(1005).ack(9007);
    row.outside(&fin).noting(Reason::Closed).passes(PassReason::Forward, &fin.to(family.local));
    let last = answer("A").seq(9007).ack(1006);
    row.egress(&last).passes(PassReason::Reply, &last.from(family.node_port));
    row
}

/// H49: a RST that nobody accepted (forged, out of window) costs the flow its place only
/// until the next packet.
fn reset(family: &Family) -> Row {
    let mut row = named("a reset demotes the flow, the next packet confirms it again", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    let flow = Connection::new(family);
    flow.open(&mut row);
    let reset = flow.ask("R").seq(77);
    row.outside(&reset).by_xdp().noting(Reason::Closed).redirected(
        PassReason::Forward,
        ETH0,
        &flow.asked(&reset),
    );
    let data = flow.ask("PA").seq(1001).ack(9001).payload(b"still here");
    row.outside(&data).noting(Reason::Confirmed).redirected(PassReason::Forward, ETH0, &flow.asked(&data));
    flow.talk(&mut row);
    // A reset from the other side: here the client's next packet proves that it goes on.
    let reset = flow.answer("R").seq(9001);
    row.outside(&reset).by_xdp().noting(Reason::Closed).redirected(
        PassReason::Reply,
        ETH0,
        &flow.answered(&reset),
    );
    let reply = flow.answer("PA").seq(9001).ack(1011).payload(b"not me");
    row.outside(&reply).redirected(PassReason::Reply, ETH0, &flow.answered(&reply));
    row.outside(&data).noting(Reason::Confirmed).redirected(PassReason::Forward, ETH0, &flow.asked(&data));
    flow.talk(&mut row);
    row
}

/// Who forges a source address has not seen the SYN-ACK (S69).
fn wrong_ack(family: &Family) -> Row {
    let mut row = named("a wrong acknowledgement does not confirm", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    let flow = Connection::new(family);
    let syn = flow.ask("S");
    row.outside(&syn).redirected(PassReason::NewFlow, ETH0, &flow.asked(&syn));
    // Without any SYN-ACK.
    let early = flow.ask("A").seq(1001).ack(1);
    row.outside(&early).redirected(PassReason::Forward, ETH0, &flow.asked(&early));
    let syn_ack = flow.answer("SA").seq(0xffff_ffff).ack(1001);
    row.outside(&syn_ack).redirected(PassReason::Reply, ETH0, &flow.answered(&syn_ack));
    for wrong in [0xffff_ffff, 0x0001_0000, 0x0100_0000, 0x8000_0000] {
        let forged = flow.ask("A").seq(1001).ack(wrong);
        row.outside(&forged).redirected(PassReason::Forward, ETH0, &flow.asked(&forged));
    }
    // Sequence numbers wrap.
    let right = flow.ask("A").seq(1001).ack(0);
    row.outside(&right).noting(Reason::Confirmed).redirected(PassReason::Forward, ETH0, &flow.asked(&right));
    row
}

/// A client that used the Service and now goes to the pod itself, from the same port.
fn direct_after_close(family: &Family) -> Row {
    let mut row = named("a direct SYN clears the reverse entry of a closed flow", family);
    row.service(family.service(Proto::TCP).local(family.local));
    let syn = tcp(family.client, family.node_port, "S");
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local));
    let reset = tcp(family.local, family.client, "RA").ack(1001);
    row.egress(&reset).passes(PassReason::Reply, &reset.from(family.node_port));
    let direct = tcp(family.client, family.local, "S");
    row.outside(&direct).untouched(PassReason::NoService);
    let syn_ack = tcp(family.local, family.client, "SA").seq(5).ack(1001);
    row.egress(&syn_ack).untouched(PassReason::NoService);
    row
}

/// S68: the same four-tuple again, after the flow is over.
fn opened_again(family: &Family) -> Row {
    let mut row = named("a SYN on a closed flow picks a backend anew", family);
    let service = row.service(family.service(Proto::TCP).remote(family.remote).remote(family.remote_too));
    row.ops(service.draining(&[1]));
    let flow = Connection::new(family);
    flow.open(&mut row);
    row.ops(service.draining(&[0]));
    let fin = flow.ask("FA").seq(1001).ack(9001);
    row.outside(&fin).by_xdp().redirected(PassReason::Forward, ETH0, &flow.asked(&fin));
    // Not over yet: the SYN (of a confused client) stays with the flow.
    let syn = flow.ask("S").seq(5_000_000);
    row.outside(&syn).redirected(PassReason::Forward, ETH0, &flow.asked(&syn));
    let fin = flow.answer("FA").seq(9001).ack(1002);
    row.outside(&fin).by_xdp().noting(Reason::Closed).redirected(
        PassReason::Reply,
        ETH0,
        &flow.answered(&fin),
    );
    let next = Connection { backend: family.remote_too, ..flow };
    row.outside(&syn).redirected(PassReason::NewFlow, ETH0, &next.asked(&syn));
    let syn_ack = next.answer("SA").seq(1).ack(5_000_001);
    row.outside(&syn_ack).redirected(PassReason::Reply, ETH0, &next.answered(&syn_ack));
    // The former backend's late packet meets no flow.
    row.outside(&fin).untouched(PassReason::NoService);
    row
}

fn retransmitted(family: &Family) -> Row {
    let mut row = named("a retransmitted SYN stays with its backend", family);
    let service = row.service(family.service(Proto::TCP).remote(family.remote).remote(family.remote_too));
    row.ops(service.draining(&[1]));
    let flow = Connection::new(family);
    let syn = flow.ask("S");
    row.outside(&syn).redirected(PassReason::NewFlow, ETH0, &flow.asked(&syn));
    row.ops(service.draining(&[0]));
    row.outside(&syn).redirected(PassReason::Forward, ETH0, &flow.asked(&syn));
    let syn_ack = flow.answer("SA").seq(9000).ack(1001);
    row.outside(&syn_ack).redirected(PassReason::Reply, ETH0, &flow.answered(&syn_ack));
    row.outside(&syn_ack).redirected(PassReason::Reply, ETH0, &flow.answered(&syn_ack));
    row
}

/// S30, S65: the backend is gone from every set; the connection lives on.
fn drained(family: &Family) -> Row {
    let mut row = named("an open connection stays with a backend that is gone", family);
    let service = row.service(family.service(Proto::TCP).remote(family.remote).remote(family.remote_too));
    row.ops(service.draining(&[1]));
    let flow = Connection::new(family);
    flow.open(&mut row);
    let (left, ops) = service.without(&[0]);
    row.ops(ops);
    flow.talk(&mut row);
    row.ops(left.without(&[0]).1);
    flow.talk(&mut row);
    row.outside(&tcp(family.stranger, family.node_port, "S")).refused();
    row
}

fn moved_while_opening(family: &Family) -> Row {
    let mut row = named("a SYN to a backend that is gone is moved", family);
    let service = row.service(family.service(Proto::TCP).remote(family.remote).remote(family.remote_too));
    row.ops(service.draining(&[1]));
    let flow = Connection::new(family);
    let syn = flow.ask("S");
    row.outside(&syn).redirected(PassReason::NewFlow, ETH0, &flow.asked(&syn));
    row.ops(service.without(&[0]).1);
    let next = Connection { backend: family.remote_too, ..flow };
    row.outside(&syn).noting(Reason::Moved).redirected(PassReason::NewFlow, ETH0, &next.asked(&syn));
    row
}

/// S31: while the time runs, a client keeps its backend, from any port.
fn affinity(family: &Family) -> Row {
    let mut row = named("affinity keeps a client's backend until it times out", family);
    let service = family.service(Proto::TCP).local(family.local).local(family.local_too);
    let service = row.service(service.affinity(50).maglev());
    let to = |row: &mut Row, client: &str, backend: &str| {
        let syn = tcp(client, family.node_port, "S");
        row.outside(&syn).passes(PassReason::NewFlow, &syn.to(backend));
    };
    row.ops(service.draining(&[1]));
    to(&mut row, family.client, family.local);
    // Now the table would send everybody to the second backend.
    row.ops(service.ops());
    row.wait(40);
    to(&mut row, family.client_too, family.local);
    to(&mut row, family.stranger, family.local_too);
    // The time starts anew with each flow.
    row.wait(40);
    to(&mut row, &family.client.replace("4000", "4002"), family.local);
    row.wait(60);
    to(&mut row, &family.client.replace("4000", "4003"), family.local_too);
    row
}

/// S32: a remembered backend that is in no set any more is not used.
fn affinity_membership(family: &Family) -> Row {
    let mut row = named("affinity is not honoured for a backend outside of the set", family);
    let service = family.service(Proto::TCP).local(family.local).local(family.local_too);
    let service = row.service(service.affinity(10_000).maglev());
    let first = tcp(family.client, family.node_port, "S");
    row.outside(&first).passes(PassReason::NewFlow, &first.to(family.local_too));
    row.ops(service.draining(&[1]));
    let next = tcp(family.client_too, family.node_port, "S");
    row.outside(&next).passes(PassReason::NewFlow, &next.to(family.local));
    // Back in the set: the client has been remembered anew meanwhile.
    row.ops(service.ops());
    let next = tcp(&family.client.replace("4000", "4002"), family.node_port, "S");
    row.outside(&next).passes(PassReason::NewFlow, &next.to(family.local));
    row
}

/// S31: all frontends of a Service port share the memory; another Service does not.
fn affinity_across_frontends(family: &Family) -> Row {
    let mut row = named("affinity holds across the frontends of a Service", family);
    let service = family.service(Proto::TCP).local(family.local).local(family.local_too);
    let service = row.service(service.affinity(10_000).maglev());
    row.ops(service.draining(&[1]));
    let first = tcp(family.client, family.node_port, "S");
    row.outside(&first).passes(PassReason::NewFlow, &first.to(family.local));
    row.ops(service.ops());
    for frontend in [family.external, family.cluster_ip] {
        let syn = tcp(family.client_too, frontend, "S");
        // Each frontend is a flow of its own, so each needs a client port of its own.
        let syn = syn
            .from(&family.client.replace("4000", if frontend == family.external { "4005" } else { "4006" }));
        row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local));
    }
    row.service(Service::new(Proto::TCP).node_port(30_081).local(family.local_too).affinity(10_000));
    let syn = tcp(family.client, &family.node_port.replace("30080", "30081"), "S");
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local_too));
    row
}

/// A packet of a connection that nobody remembers (our memory was lost, or the flow came from
/// another node): the table's choice stands in for it.
fn middle_of_a_connection(family: &Family) -> Row {
    let mut row = named("a packet from the middle of a connection opens a flow", family);
    row.service(family.service(Proto::TCP).local(family.local));
    let data = tcp(family.client, family.node_port, "PA").seq(4).ack(5).payload(b"hello?");
    row.outside(&data).passes(PassReason::NewFlow, &data.to(family.local));
    let reply = tcp(family.local, family.client, "A").seq(5).ack(10);
    row.egress(&reply).passes(PassReason::Reply, &reply.from(family.node_port));
    // Both sides have spoken, and no handshake is awaited.
    row.outside(&data).noting(Reason::Confirmed).passes(PassReason::Forward, &data.to(family.local));
    row
}

/// A RST or SYN-ACK without a flow is no beginning.
fn opens_nothing(family: &Family) -> Row {
    let mut row = named("a RST or SYN-ACK to a frontend opens no flow", family);
    row.service(family.service(Proto::TCP).local(family.local));
    for flags in ["R", "RA", "SA"] {
        row.outside(&tcp(family.client, family.node_port, flags)).untouched(PassReason::NoService);
        row.inside(&tcp(family.pod, family.cluster_ip, flags)).untouched(PassReason::NoService);
    }
    row
}

/// The first acknowledgement that passes here may not be the first one sent.
fn late_ack(family: &Family) -> Row {
    let mut row = named("a later acknowledgement confirms as well", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    let flow = Connection::new(family);
    let syn = flow.ask("S");
    row.outside(&syn).redirected(PassReason::NewFlow, ETH0, &flow.asked(&syn));
    let syn_ack = flow.answer("SA").seq(0xffff_fff0).ack(1001);
    row.outside(&syn_ack).redirected(PassReason::Reply, ETH0, &flow.answered(&syn_ack));
    let late = flow.ask("A").seq(1001).ack(0x0ff0);
    row.outside(&late).noting(Reason::Confirmed).redirected(PassReason::Forward, ETH0, &flow.asked(&late));
    row
}

/// H49: what a stranger can send without having seen an answer confirms nothing.
fn forged(family: &Family) -> Row {
    let mut row = named("packets with a forged source confirm no flow", family);
    row.service(family.service(Proto::TCP).local(family.local));
    let ask = |flags: &str| tcp(family.client, family.node_port, flags);
    let ack = ask("A").seq(1001).ack(5);
    row.outside(&ack).passes(PassReason::NewFlow, &ack.to(family.local));
    let reset = tcp(family.local, family.client, "R").seq(5);
    row.egress(&reset).passes(PassReason::Reply, &reset.from(family.node_port));
    let null = ask("").seq(1001);
    row.outside(&null).passes(PassReason::Forward, &null.to(family.local));
    row.outside(&ack).passes(PassReason::Forward, &ack.to(family.local));
    row
}

/// H37, CVE-2020-8558: nobody but the node itself speaks to its loopback addresses.
fn loopback(family: &Family) -> Row {
    let mut row = named("packets to a loopback address are dropped", family);
    let to = if family.client.starts_with('[') { "[::1]:10250" } else { "127.0.0.1:10250" };
    row.outside(&tcp(family.client, to, "S")).dropped(DropReason::Loopback);
    row.inside(&udp(family.client, to)).dropped(DropReason::Loopback);
    row
}

/// S20: a socket of the host has a node port's number as its own.
fn host_connection(family: &Family) -> Row {
    let mut row = named("replies to the host's own connections are left alone", family);
    row.connected = vec![(at(family.node_port), at(family.client))];
    row.service(family.service(Proto::TCP).local(family.local));
    row.service(family.service(Proto::UDP).local(family.local));
    let reply = tcp(family.client, family.node_port, "A").seq(5).ack(6);
    row.outside(&reply).untouched(PassReason::NoService);
    row.outside(&udp(family.client, family.node_port)).untouched(PassReason::NoService);
    // Not its peer: a client of the node port.
    let stranger = udp(family.stranger, family.node_port);
    row.outside(&stranger).passes(PassReason::NewFlow, &stranger.to(family.local));
    let syn = tcp(family.stranger, family.node_port, "S");
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local));
    row
}
