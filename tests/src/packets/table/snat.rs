//! Source ports that we give to flows: which, when they are free again, who else has them.

use super::super::build::{tcp, udp};
use super::super::row::{Hook, Row, Service, Snat};
use super::super::world::{ETH0, POD0};
use super::{Connection, Family, V4, V6, first, named, reply};
use lb_common::abi::{DropReason, PassReason, Proto, Reason};

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [V4, V6] {
        rows.extend([high_range(&family), collision(&family), exhausted(&family), host_socket(&family)]);
        rows.extend([freed_by_reset(&family), freed_by_silence(&family), per_backend(&family)]);
        rows.push(unknown_neighbour(&family));
        for proto in [Proto::TCP, Proto::UDP] {
            rows.extend([true, false].map(|first| beside_a_direct_flow(&family, proto, first)));
            rows.push(own_port_is_the_only_one(&family, proto));
        }
    }
    rows
}

fn high_range(family: &Family) -> Row {
    let mut row = named("source port out of the second range", family);
    row.snat = Snat::High;
    row.service(family.service(Proto::TCP).remote(family.remote));
    let source = String::leak(family.source.replace("20000", "61000"));
    let flow = Connection { source, ..Connection::new(family) };
    flow.open(&mut row);
    flow.talk(&mut row);
    row
}

/// S34: one client port, two frontends, one backend. The replies must not mix.
fn collision(family: &Family) -> Row {
    let mut row = named("two frontends, one backend, one client port: another source port", family);
    row.service(family.service(Proto::TCP).local(family.local));
    row.service(Service::new(Proto::TCP).node_port(30_081).local(family.local));
    let one = tcp(family.client, family.node_port, "S");
    row.outside(&one).passes(PassReason::NewFlow, &one.to(family.local));
    let other_frontend = family.node_port.replace("30080", "30081");
    let other_port = family.client.replace("4000", "20000");
    let two = tcp(family.client, &other_frontend, "S");
    row.outside(&two).passes(PassReason::NewFlow, &two.from(&other_port).to(family.local));
    // The frontend's other address is a third flow, for which no port is left.
    row.outside(&tcp(family.client, family.external, "S")).dropped(DropReason::SnatExhausted);
    let answer = tcp(family.local, family.client, "SA").ack(1001);
    row.egress(&answer).passes(PassReason::Reply, &answer.from(family.node_port));
    let answer = tcp(family.local, &other_port, "SA").ack(1001);
    row.egress(&answer).passes(PassReason::Reply, &answer.from(&other_frontend).to(family.client));
    row
}

/// S34: a pod's port towards a Service is also its port straight to the backend.
fn beside_a_direct_flow(family: &Family, proto: Proto, direct_first: bool) -> Row {
    let order = if direct_first { "after" } else { "before" };
    let what = format!("{proto} from a pod to a Service, {order} its own port is used without it");
    let mut row = named(&what, family);
    row.service(family.service(proto).local(family.local));
    let ask = first(proto, family.pod, family.cluster_ip);
    let direct = first(proto, family.pod, family.local);
    if direct_first {
        row.inside(&direct).untouched(PassReason::NoService);
    }
    row.inside(&ask).passes(PassReason::NewFlow, &ask.from(family.pod_source).to(family.local));
    if !direct_first {
        row.inside(&direct).untouched(PassReason::NoService);
    }
    let answer = reply(proto, family.local, family.pod_source);
    row.frame(Hook::Egress, POD0, answer.bytes())
        .passes(PassReason::Reply, &answer.from(family.cluster_ip).to(family.pod));
    row.frame(Hook::Egress, POD0, reply(proto, family.local, family.pod).bytes())
        .untouched(PassReason::NoService);
    // Neither is forgotten for the other's packets.
    row.inside(&direct).untouched(PassReason::NoService);
    row.inside(&ask)
        .noting_if(proto == Proto::UDP, Reason::Confirmed)
        .passes(PassReason::Forward, &ask.from(family.pod_source).to(family.local));
    row
}

/// A pod's port out of the range that flows are given.
fn own_port_is_the_only_one(family: &Family, proto: Proto) -> Row {
    let mut row = named(&format!("{proto} from a pod to a Service, never from the same port"), family);
    row.service(family.service(proto).local(family.local));
    row.inside(&first(proto, family.pod_source, family.cluster_ip)).dropped(DropReason::SnatExhausted);
    let ask = first(proto, family.pod, family.cluster_ip);
    row.inside(&ask).passes(PassReason::NewFlow, &ask.from(family.pod_source).to(family.local));
    row.inside(&first(proto, &family.pod.replace("4000", "4001"), family.cluster_ip))
        .dropped(DropReason::SnatExhausted);
    row
}

/// S48: no port is left towards this backend.
fn exhausted(family: &Family) -> Row {
    let mut row = named("no source port left", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    let flow = Connection::new(family);
    flow.open(&mut row);
    row.outside(&tcp(family.stranger, family.node_port, "S")).dropped(DropReason::SnatExhausted);
    row.outside(&tcp(family.client_too, family.node_port, "S")).dropped(DropReason::SnatExhausted);
    flow.talk(&mut row);
    row
}

fn host_socket(family: &Family) -> Row {
    let mut row = named("a source port that a socket of the host has is not taken", family);
    row.sockets = vec![super::super::build::at(family.source)];
    row.service(family.service(Proto::TCP).remote(family.remote));
    row.service(family.service(Proto::UDP).remote(family.remote));
    row.outside(&tcp(family.client, family.node_port, "S")).dropped(DropReason::SnatExhausted);
    row.outside(&udp(family.client, family.node_port)).dropped(DropReason::SnatExhausted);
    row
}

fn freed_by_reset(family: &Family) -> Row {
    let mut row = named("the source port of a reset connection is taken over", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    let flow = Connection::new(family);
    flow.open(&mut row);
    let reset = flow.answer("R").seq(9001);
    row.outside(&reset).by_xdp().noting(Reason::Closed).redirected(
        PassReason::Reply,
        ETH0,
        &flow.answered(&reset),
    );
    let next = Connection { client: family.stranger, ..flow };
    let syn = next.ask("S");
    row.outside(&syn).noting(Reason::PortTakenOver).redirected(PassReason::NewFlow, ETH0, &next.asked(&syn));
    let syn_ack = next.answer("SA").seq(70).ack(1001);
    row.outside(&syn_ack).redirected(PassReason::Reply, ETH0, &next.answered(&syn_ack));
    row
}

fn freed_by_silence(family: &Family) -> Row {
    let mut row = named("the source port of a flow that stayed silent is taken over", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    let flow = Connection::new(family);
    let syn = flow.ask("S");
    row.outside(&syn).redirected(PassReason::NewFlow, ETH0, &flow.asked(&syn));
    let next = Connection { client: family.stranger, ..flow };
    let syn = next.ask("S");
    row.wait(20);
    row.outside(&syn).dropped(DropReason::SnatExhausted);
    row.wait(20);
    row.outside(&syn).noting(Reason::PortTakenOver).redirected(PassReason::NewFlow, ETH0, &next.asked(&syn));
    row
}

/// One port serves any number of backends.
fn per_backend(family: &Family) -> Row {
    let mut row = named("one source port towards two backends", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    row.service(Service::new(Proto::TCP).node_port(30_081).remote(family.remote_too));
    row.service(family.service(Proto::UDP).remote(family.remote));
    let flow = Connection::new(family);
    let other = Connection {
        frontend: String::leak(family.node_port.replace("30080", "30081")),
        backend: family.remote_too,
        ..flow
    };
    flow.open(&mut row);
    other.open(&mut row);
    flow.talk(&mut row);
    other.talk(&mut row);
    let ask = udp(family.client, family.node_port);
    row.outside(&ask).redirected(
        PassReason::NewFlow,
        ETH0,
        &ask.from(family.source).to(family.remote).ttl(63),
    );
    row
}

/// XDP cannot ask for a neighbour's hardware address: tc finishes every packet.
fn unknown_neighbour(family: &Family) -> Row {
    let mut row = named("a gateway whose hardware address is not known", family);
    let backend = if family.name == "v4" { "10.244.4.5:8080" } else { "[fd00:4::5]:8080" };
    row.service(family.service(Proto::TCP).remote(backend));
    let flow = Connection { backend, ..Connection::new(family) };
    flow.open(&mut row);
    let data = flow.ask("PA").seq(1001).ack(9001).payload(b"hello");
    row.outside(&data).redirected(PassReason::Forward, ETH0, &flow.asked(&data));
    let reply = flow.answer("PA").seq(9001).ack(1006).payload(b"hello yourself");
    row.outside(&reply).by_xdp().redirected(PassReason::Reply, ETH0, &flow.answered(&reply));
    row
}
