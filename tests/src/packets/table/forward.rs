//! Frontends: which packets are theirs, where they go, how the replies come back.

use super::super::build::{Link, Packet, at, other, tcp, udp};
use super::super::row::{Hook, Row, Service};
use super::super::world::{ETH0, ETH1, POD0};
use super::{Connection, Family, V4, V6, first, named, reply};
use lb_common::abi::{Backend, BackendFlags, DropReason, PassReason, Prefix, Proto, Reason};
use weir::plan::op::Op;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [V4, V6] {
        for proto in [Proto::TCP, Proto::UDP] {
            rows.extend(translation(&family, proto));
            rows.push(no_endpoint(&family, proto));
        }
        rows.extend([node_port(&family), policy(&family), maglev(&family), second_device(&family)]);
        rows.extend([
            tunnel(&family),
            tunnel_refused(&family),
            retired(&family),
            retired_hides_nothing(&family),
            inside_remote(&family),
        ]);
        rows.extend([both_ports(&family), ranges(&family), narrowed(&family)]);
    }
    rows.extend([wildcard_is_no_address(), other_families(), unroutable(), stale_table()]);
    rows
}

fn translation(family: &Family, proto: Proto) -> Vec<Row> {
    let what = |text: &str| format!("{proto} {text}");
    let mut rows = Vec::new();
    for (kind, frontend) in
        [("cluster IP", family.cluster_ip), ("external IP", family.external), ("node port", family.node_port)]
    {
        let mut row = named(&what(&format!("{kind} to a local backend and back at egress")), family);
        row.service(family.service(proto).local(family.local));
        let ask = first(proto, family.client, frontend);
        row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local));
        let answer = reply(proto, family.local, family.client);
        row.egress(&answer).passes(PassReason::Reply, &answer.from(frontend));
        rows.push(row);

        let mut row = named(&what(&format!("{kind} to another node and back at ingress")), family);
        row.service(family.service(proto).remote(family.remote));
        let ask = first(proto, family.client, frontend);
        row.outside(&ask).redirected(
            PassReason::NewFlow,
            ETH0,
            &ask.from(family.source).to(family.remote).ttl(63),
        );
        let answer = reply(proto, family.remote, family.source);
        row.outside(&answer).redirected(
            PassReason::Reply,
            ETH0,
            &answer.from(frontend).to(family.client).ttl(63),
        );
        rows.push(row);
    }
    let mut row = named(&what("from a pod to a local backend and back"), family);
    row.service(family.service(proto).local(family.local));
    let ask = first(proto, family.pod, family.cluster_ip);
    row.inside(&ask).passes(PassReason::NewFlow, &ask.from(family.pod_source).to(family.local));
    let answer = reply(proto, family.local, family.pod_source);
    row.inside(&answer).untouched(PassReason::NoService);
    row.frame(Hook::Egress, POD0, answer.bytes())
        .passes(PassReason::Reply, &answer.from(family.cluster_ip).to(family.pod));
    rows.push(row);

    let mut row = named(&what("hairpin"), family);
    row.service(family.service(proto).local(family.local_too));
    let ask = first(proto, family.pod, family.cluster_ip);
    row.inside(&ask).redirected(
        PassReason::NewFlow,
        POD0,
        &ask.from(family.source).to(family.local_too).ttl(63),
    );
    let answer = reply(proto, family.local_too, family.source);
    row.inside(&answer).redirected(
        PassReason::Reply,
        POD0,
        &answer.from(family.cluster_ip).to(family.pod).ttl(63),
    );
    rows.push(row);
    rows
}

/// From a pod to another node: its own address stays, the reply is turned on its link.
fn inside_remote(family: &Family) -> Row {
    let mut row = named("from a pod to a backend on another node", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    let ask = |flags| tcp(family.pod, family.cluster_ip, flags).seq(1001).ack(9001);
    let asked = |packet: &Packet| packet.from(family.pod_source).to(family.remote);
    let answer = |flags| tcp(family.remote, family.pod_source, flags).seq(9001).ack(1001);
    let answered = |packet: &Packet| packet.from(family.cluster_ip).to(family.pod);
    let syn = tcp(family.pod, family.cluster_ip, "S");
    row.inside(&syn).passes(PassReason::NewFlow, &asked(&syn));
    let syn_ack = answer("SA").seq(9000);
    row.outside(&syn_ack).untouched(PassReason::NoService);
    row.frame(Hook::Egress, POD0, syn_ack.bytes()).passes(PassReason::Reply, &answered(&syn_ack));
    let ack = ask("A");
    row.inside(&ack).noting(Reason::Confirmed).passes(PassReason::Forward, &asked(&ack));
    let data = answer("PA").payload(b"220 ready");
    row.outside(&data).untouched(PassReason::NoService);
    row.frame(Hook::Egress, POD0, data.bytes()).passes(PassReason::Reply, &answered(&data));
    let fin = ask("FA");
    row.inside(&fin).passes(PassReason::Forward, &asked(&fin));
    let fin = answer("FA").ack(1002);
    row.frame(Hook::Egress, POD0, fin.bytes())
        .noting(Reason::Closed)
        .passes(PassReason::Reply, &answered(&fin));
    row
}

/// S51: of the frontends the external one alone, of the packets the first of a flow alone.
fn ranges(family: &Family) -> Row {
    let mut row = named("source ranges", family);
    let [net, host] = if family.name == "v4" {
        ["198.51.100.0", "198.51.100.7"]
    } else {
        ["2001:db8:ffff::", "2001:db8:ffff::7"]
    };
    let (part, whole) = if family.name == "v4" { (29, 32) } else { (125, 128) };
    // .7 is in .0/29 and .8 is not.
    row.service(family.service(Proto::TCP).range(net, part).range(host, whole).local(family.local));
    let ask = |from, to| tcp(from, to, "S");
    let syn = ask(family.client, family.external);
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local));
    row.outside(&ask(family.stranger, family.external)).dropped(DropReason::SourceRange);
    row.inside(&ask(family.pod, family.external)).dropped(DropReason::SourceRange);
    let syn = ask(family.stranger, family.node_port);
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local));
    row
}

/// A flow outlives the range that let it in; a refusal for want of endpoints is told to nobody
/// outside of the ranges.
fn narrowed(family: &Family) -> Row {
    let mut row = named("source ranges of a flow that is open", family);
    let whole = if family.name == "v4" { 32 } else { 128 };
    let client = at(family.client).ip();
    let service =
        row.service(family.service(Proto::UDP).range(&client.to_string(), whole).local(family.local));
    let ask = udp(family.client, family.external);
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local));
    row.ops(vec![Op::DeletePrefix(Prefix::new(service.id, client.into(), whole))]);
    row.outside(&ask).passes(PassReason::Forward, &ask.to(family.local));
    row.outside(&udp(family.client_too, family.external)).dropped(DropReason::SourceRange);
    let (_, gone) = service.without(&[0]);
    row.ops(gone.into_iter().filter(|op| !matches!(op, Op::PutPrefix(..))).collect());
    row.outside(&udp(family.client_too, family.external)).dropped(DropReason::SourceRange);
    row
}

fn no_endpoint(family: &Family, proto: Proto) -> Row {
    let mut row = named(&format!("{proto} without endpoint is refused"), family);
    row.service(family.service(proto));
    let ask = first(proto, family.client, family.node_port);
    row.outside(&ask).refused();
    // Longer than what is quoted of it, and behind padding.
    let mut long = ask.payload(&[0x5a; 333]);
    long.padding = 7;
    row.outside(&long).refused();
    row.inside(&first(proto, family.pod, family.cluster_ip)).refused();
    if proto == Proto::TCP {
        row.outside(&tcp(family.client, family.node_port, "PA").payload(&[0x5a; 99])).refused();
        let options = [2, 4, 5, 0xb4, 4, 2, 1, 1];
        let syn = tcp(family.client, family.node_port, "S").seq(0xffff_ffff).tcp_options(&options);
        row.outside(&syn).refused();
        // A fragment is no whole SYN; with an extension header there is no answer at all.
        let part = syn.payload(&[7; 40]).first_fragment(48);
        if family.name == "v4" {
            row.outside(&part).refused();
        } else {
            row.outside(&part).dropped(DropReason::NoEndpoint);
        }
    }
    row
}

fn node_port(family: &Family) -> Row {
    let mut row = named("node port answers on node-port addresses alone", family);
    row.service(family.service(Proto::TCP).local(family.local));
    let (secondary, elsewhere) = if family.name == "v4" {
        ("203.0.113.1:30080", "192.0.2.9:30080")
    } else {
        ("[2001:db8:2::1]:30080", "[2001:db8:1::9]:30080")
    };
    row.outside(&tcp(family.client, secondary, "S")).untouched(PassReason::NoService);
    row.outside(&tcp(family.client, elsewhere, "S")).untouched(PassReason::NoService);
    // A port next to it, and one outside of the range of node ports.
    let beside = family.node_port.replace("30080", "30081");
    row.outside(&tcp(family.client, &beside, "S")).untouched(PassReason::NoService);
    let outside = family.node_port.replace("30080", "80");
    row.outside(&tcp(family.client, &outside, "S")).untouched(PassReason::NoService);
    // The same port of another protocol.
    row.outside(&udp(family.client, family.node_port)).untouched(PassReason::NoService);
    row.inside(&tcp(family.pod, family.node_port, "S"))
        .passes(PassReason::NewFlow, &tcp(family.pod_source, family.local, "S"));
    row
}

/// S37: endpoints exist, but none here.
fn policy(family: &Family) -> Row {
    let mut row = named("Local policy drops where there is no local endpoint", family);
    row.service(family.service(Proto::TCP).remote(family.remote).local_policy());
    row.outside(&tcp(family.client, family.node_port, "S")).dropped(DropReason::NoLocalEndpoint);
    row.outside(&tcp(family.client, family.external, "S")).dropped(DropReason::NoLocalEndpoint);
    // S46: a pod of this node gets the Cluster set.
    let syn = tcp(family.pod, family.node_port, "S");
    row.inside(&syn).passes(PassReason::NewFlow, &syn.from(family.pod_source).to(family.remote));
    row
}

fn maglev(family: &Family) -> Row {
    let mut row = named("new flows follow the Maglev table, not the slots", family);
    row.service(family.service(Proto::TCP).local(family.local).local(family.local_too).maglev());
    for client in [family.client, family.client_too, family.stranger] {
        let syn = tcp(client, family.node_port, "S");
        row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local_too));
    }
    row
}

/// The source is the address of the device that the packet leaves by.
fn second_device(family: &Family) -> Row {
    let (backend, source) = if family.name == "v4" {
        ("10.244.3.5:8080", "203.0.113.1:20000")
    } else {
        ("[fd00:3::5]:8080", "[2001:db8:2::1]:20000")
    };
    let mut row = named("source is the address of the device towards the backend", family);
    row.service(family.service(Proto::TCP).remote(backend));
    let flow = Connection { backend, source, ..Connection::new(family) };
    let syn = flow.ask("S");
    row.outside(&syn).redirected(PassReason::NewFlow, ETH1, &flow.asked(&syn));
    let syn_ack = flow.answer("SA").seq(9000).ack(1001);
    row.frame(Hook::Outside, ETH1, syn_ack.bytes()).redirected(
        PassReason::Reply,
        ETH0,
        &flow.answered(&syn_ack),
    );
    row
}

/// Devices without link-layer header.
fn tunnel(family: &Family) -> Row {
    let mut row = named("a device without link-layer header", family);
    row.service(family.service(Proto::UDP).local(family.local));
    row.service(Service::new(Proto::TCP).node_port(30_081).remote(family.remote));
    let ask = udp(family.client, family.node_port).link(Link::None);
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local));
    let answer = udp(family.local, family.client).link(Link::None);
    row.egress(&answer).passes(PassReason::Reply, &answer.from(family.node_port));
    let ask = udp(family.pod, family.cluster_ip).link(Link::None);
    row.inside(&ask).passes(PassReason::NewFlow, &ask.from(family.pod_source).to(family.local));
    let syn = tcp(family.client, &family.node_port.replace("30080", "30081"), "S").link(Link::None);
    row.outside(&syn).redirected(
        PassReason::NewFlow,
        ETH0,
        &syn.from(family.source).to(family.remote).ttl(63),
    );
    row.frame(Hook::OutsideL3, ETH0, vec![0; 20]).untouched(PassReason::NotIp);
    row
}

fn tunnel_refused(family: &Family) -> Row {
    let mut row = named("refused on a device without link-layer header", family);
    row.simulator_only = Some("test-run's socket buffers have a link-layer header that the gap opens behind");
    row.service(family.service(Proto::TCP));
    row.outside(&tcp(family.client, family.node_port, "S").link(Link::None)).refused();
    row
}

/// S65: a Service that is gone keeps its flows and takes no new ones.
fn retired(family: &Family) -> Row {
    let mut row = named("a retired frontend keeps its flows and opens none", family);
    let service = row.service(family.service(Proto::TCP).remote(family.remote));
    let flow = Connection::new(family);
    flow.open(&mut row);
    row.ops(service.retire());
    flow.talk(&mut row);
    row.outside(&tcp(family.client_too, family.node_port, "S")).untouched(PassReason::NoService);
    row.inside(&tcp(family.pod, family.cluster_ip, "S")).untouched(PassReason::NoService);
    row
}

/// H36: who once had a node's address and port as an external one holds up no node port.
fn retired_hides_nothing(family: &Family) -> Row {
    let mut row = named("a retired frontend on a node's address hides no node port", family);
    let squatter = row.service(Service::new(Proto::TCP).external(family.node_port).local(family.local_too));
    row.ops(squatter.retire());
    row.service(family.service(Proto::TCP).local(family.local));
    let syn = tcp(family.client, family.node_port, "S");
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local));
    row
}

/// Packets that carry a frontend's port as their source are none of its business (S20).
fn both_ports(family: &Family) -> Row {
    let mut row = named("a frontend's own packets and replies to it stay untouched", family);
    row.service(family.service(Proto::TCP).local(family.local));
    row.egress(&tcp(family.node_port, family.client, "SA")).untouched(PassReason::NoService);
    row.outside(&tcp(family.client, family.local, "S")).untouched(PassReason::NoService);
    row.egress(&tcp(family.local, family.client, "SA")).untouched(PassReason::NoService);
    // A source port of ours, but no flow.
    row.outside(&tcp(family.remote, family.source, "SA")).untouched(PassReason::NoService);
    row
}

/// The wildcard's own address is never a destination.
fn wildcard_is_no_address() -> Row {
    let mut row = Row::new("the unspecified address is no node port");
    row.service(V4.service(Proto::UDP).local(V4.local));
    row.outside(&udp(V4.client, "255.255.255.255:30080")).untouched(PassReason::NoService);
    row.outside(&udp(V4.client, "224.0.0.1:30080")).untouched(PassReason::NoService);
    row
}

/// S13: one protocol and one family do not speak for the other.
fn other_families() -> Row {
    let mut row = Row::new("other protocols to a frontend's address stay untouched");
    row.service(V4.service(Proto::TCP).local(V4.local));
    for proto in [1, 2, 47, 50, 132] {
        row.outside(&other(proto, V4.client, V4.cluster_ip, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]))
            .untouched(PassReason::OtherProtocol);
    }
    row.outside(&other(58, V6.client, V6.cluster_ip, &[128, 0, 0, 0, 0, 0, 0, 0]))
        .untouched(PassReason::OtherProtocol);
    row
}

fn unroutable() -> Row {
    let mut row = Row::new("no route to the backend");
    row.service(V4.service(Proto::TCP).remote("10.244.9.5:8080"));
    row.service(Service::new(Proto::TCP).cluster_ip(V6.cluster_ip).remote("[fd00:9::5]:8080"));
    row.outside(&tcp(V4.client, V4.node_port, "S")).dropped(DropReason::NoRoute);
    row.outside(&tcp(V6.client, V6.cluster_ip, "S")).dropped(DropReason::NoRoute);
    // From a pod the stack would route it.
    let syn = tcp(V4.pod, V4.cluster_ip, "S");
    row.inside(&syn).passes(PassReason::NewFlow, &syn.from(V4.pod_source).to("10.244.9.5:8080"));
    row
}

fn stale_table() -> Row {
    let mut row = Row::new("a table that names another Service's backend");
    let service = row.service(V4.service(Proto::TCP).local(V4.local));
    let stranger = Backend { service: 999, flags: BackendFlags::SERVING, ..Backend::default() };
    row.ops(vec![weir::plan::op::Op::PutBackend(service.endpoints[0].id, stranger)]);
    row.outside(&tcp(V4.client, V4.node_port, "S")).dropped(DropReason::StaleTable);
    row
}
