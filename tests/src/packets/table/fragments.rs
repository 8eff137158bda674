//! Packets in pieces (S71, H46): where the first one goes, the others follow.

use super::super::build::{Packet, Sum, other, tcp, udp};
use super::super::row::{Row, Snat};
use super::super::world::{ETH0, POD0};
use super::{Family, V4, V6, named};
use lb_common::abi::{Addr, DropReason, ForeignFlags, Held, PassReason, Prefix, Proto, prefix_set};
use std::net::SocketAddr;
use weir::plan::op::Op;

/// Bytes of the transport header and payload in the first piece.
const FIRST: usize = 64;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [V4, V6] {
        rows.extend([kept(&family), routed(&family), of_a_pod(&family), hairpin(&family)]);
        rows.extend([too_early(&family), refused(&family), name_used_again(&family), too_late(&family)]);
        rows.extend([lost(&family), of_netfilter(&family), no_sum(&family), other_protocols(&family)]);
        rows.extend([too_big(&family), expires(&family)]);
    }
    rows.push(identification());
    rows
}

/// A datagram in two pieces.
fn pieces(from: &str, to: &str) -> [Packet; 2] {
    let whole = udp(from, to).payload(&[7; 100]);
    [whole.first_fragment(FIRST), whole.later_fragment(FIRST)]
}

/// A backend on this node: the client keeps its address, and answers are turned as they leave.
fn kept(family: &Family) -> Row {
    let mut row = named("fragments keep their client's address, both ways", family);
    row.service(family.service(Proto::UDP).local(family.local));
    let [first, later] = pieces(family.client, family.node_port);
    row.outside(&first).passes(PassReason::NewFlow, &first.to(family.local));
    // The last one twice: the network may double it.
    for _ in 0..2 {
        row.outside(&later).passes(PassReason::Forward, &later.to(family.local));
    }
    // As they leave towards the pod they are nobody's reply.
    let [first, later] = [first, later].map(|piece| piece.to(family.local));
    row.egress(&first).untouched(PassReason::NoService);
    row.egress(&later).untouched(PassReason::Fragment);
    let [first, later] = pieces(family.local, family.client);
    row.egress(&later).untouched(PassReason::Fragment);
    row.egress(&first).passes(PassReason::Reply, &first.from(family.node_port));
    row.egress(&later).passes(PassReason::Reply, &later.from(family.node_port));
    // A name on the way out is none on the way in.
    row.outside(&later).untouched(PassReason::Fragment);
    row
}

/// A backend on another node: routed past the stack, both ways.
fn routed(family: &Family) -> Row {
    let mut row = named("fragments to another node are routed, and so are their answers", family);
    row.service(family.service(Proto::UDP).remote(family.remote));
    for reason in [PassReason::NewFlow, PassReason::Forward] {
        let pieces = pieces(family.client, family.node_port);
        for (piece, reason) in pieces.iter().zip([reason, PassReason::Forward]) {
            let asked = piece.from(family.source).to(family.remote).ttl(63);
            row.outside(piece).redirected(reason, ETH0, &asked);
        }
        row.outside(&pieces[1].ttl(1)).dropped(DropReason::TtlExceeded);
    }
    for piece in pieces(family.remote, family.source) {
        let answered = piece.from(family.node_port).to(family.client).ttl(63);
        row.outside(&piece).redirected(PassReason::Reply, ETH0, &answered);
    }
    row
}

/// A pod whose packets are translated on its link, and its answer.
fn of_a_pod(family: &Family) -> Row {
    let mut row = named("fragments of a pod to a ClusterIP", family);
    row.service(family.service(Proto::UDP).local(family.local));
    let [first, later] = pieces(family.pod, family.cluster_ip);
    let port = family.pod_source;
    row.inside(&first).passes(PassReason::NewFlow, &first.from(port).to(family.local));
    row.inside(&later).passes(PassReason::Forward, &later.to(family.local));
    let [first, later] = pieces(family.local, port);
    row.egress(&first).passes(PassReason::Reply, &first.from(family.cluster_ip).to(family.pod));
    row.egress(&later).passes(PassReason::Reply, &later.from(family.cluster_ip));
    row
}

/// A pod that reaches itself: a source of ours both ways.
fn hairpin(family: &Family) -> Row {
    let mut row = named("fragments of a pod to itself", family);
    row.service(family.service(Proto::UDP).local(family.local_too));
    for (piece, reason) in
        pieces(family.pod, family.cluster_ip).iter().zip([PassReason::NewFlow, PassReason::Forward])
    {
        let asked = piece.from(family.source).to(family.local_too).ttl(63);
        row.inside(piece).redirected(reason, POD0, &asked);
    }
    for piece in pieces(family.local_too, family.source) {
        let answered = piece.from(family.cluster_ip).to(family.pod).ttl(63);
        row.inside(&piece).redirected(PassReason::Reply, POD0, &answered);
    }
    row
}

/// An address of the node has sockets of the host too: what cannot be told apart is theirs.
fn too_early(family: &Family) -> Row {
    let mut row = named("a fragment before the first one is left alone at a node port", family);
    row.service(family.service(Proto::UDP).local(family.local));
    let [first, later] = pieces(family.client, family.node_port);
    row.outside(&later).untouched(PassReason::Fragment);
    row.outside(&first).passes(PassReason::NewFlow, &first.to(family.local));
    row.outside(&later).passes(PassReason::Forward, &later.to(family.local));
    // Another client's packet may have the same identification.
    let [_, other] = pieces(family.stranger, family.node_port);
    row.outside(&other).untouched(PassReason::Fragment);
    row
}

/// What follows a refused one goes nowhere either, least of all back to the network (S78).
fn refused(family: &Family) -> Row {
    let mut row = named("fragments follow a refused one nowhere", family);
    row.service(family.service(Proto::UDP));
    let [first, later] = pieces(family.client, family.external);
    row.outside(&later).untouched(PassReason::Fragment);
    // With an extension header there is no answer.
    if family.name == "v4" {
        row.outside(&first).refused();
    } else {
        row.outside(&first).dropped(DropReason::NoEndpoint);
    }
    row.outside(&later).dropped(DropReason::RefusedFragment);
    row
}

/// Identifications come round: a first fragment for the host itself clears what was remembered.
fn name_used_again(family: &Family) -> Row {
    let mut row = named("a packet of the host that has an earlier one's identification", family);
    row.service(family.service(Proto::UDP).local(family.local));
    let [first, later] = pieces(family.client, family.node_port);
    row.outside(&first).passes(PassReason::NewFlow, &first.to(family.local));
    row.outside(&later).passes(PassReason::Forward, &later.to(family.local));
    let [others, later] = pieces(family.client, &family.node_port.replace("30080", "9999"));
    row.outside(&others).untouched(PassReason::NoService);
    row.outside(&later).untouched(PassReason::Fragment);
    let [first, later] = pieces(family.local, family.client);
    row.egress(&first).passes(PassReason::Reply, &first.from(family.node_port));
    row.egress(&later).passes(PassReason::Reply, &later.from(family.node_port));
    let [others, later] = pieces(&family.local.replace("8080", "9999"), family.client);
    row.egress(&others).untouched(PassReason::NoService);
    row.egress(&later).untouched(PassReason::Fragment);
    row
}

/// Linux gives up after so long as well.
fn too_late(family: &Family) -> Row {
    let mut row = named("fragments half a minute after the first one", family);
    row.service(family.service(Proto::UDP).local(family.local));
    let [first, later] = pieces(family.client, family.node_port);
    row.outside(&first).passes(PassReason::NewFlow, &first.to(family.local));
    row.wait(20);
    row.outside(&later).passes(PassReason::Forward, &later.to(family.local));
    row.wait(15);
    row.outside(&later).untouched(PassReason::Fragment);
    row
}

/// One address of a Service, in the set of ClusterIPs.
fn taken(at: &str) -> Op {
    let at: SocketAddr = at.parse().unwrap_or_else(|error| panic!("{at}: {error}"));
    let addr = Addr::from(at.ip());
    let bits = if addr.is_v4() { 32 } else { 128 };
    Op::PutPrefix(Prefix::new(prefix_set::services(&addr), addr, bits), Held::TAKEN)
}

/// A ClusterIP has no sockets but a Service's.
fn lost(family: &Family) -> Row {
    let mut row = named("a fragment without its first one ends at a ClusterIP", family);
    row.service(family.service(Proto::UDP).local(family.local));
    row.ops(vec![taken(family.cluster_ip)]);
    let [first, later] = pieces(family.pod, family.cluster_ip);
    row.inside(&later).dropped(DropReason::LostFragment);
    row.inside(&first).passes(PassReason::NewFlow, &first.from(family.pod_source).to(family.local));
    row.inside(&later).passes(PassReason::Forward, &later.to(family.local));
    // Ping is the stack's affair, in pieces as well.
    let icmp = if family.name == "v4" { 1 } else { 58 };
    let ping = other(icmp, family.stranger, family.cluster_ip, &[8; 100]).later_fragment(FIRST);
    row.outside(&ping).untouched(PassReason::Fragment);
    row
}

/// What netfilter translates it puts together first, so it wants all pieces (S82).
fn of_netfilter(family: &Family) -> Row {
    let mut row = named("fragments of netfilter's flows are left to it", family);
    row.service(family.service(Proto::UDP).local(family.local));
    row.ops(vec![taken(family.cluster_ip)]);
    row.leave(Proto::UDP, family.pod, family.cluster_ip, ForeignFlags::POD, true);
    let [first, later] = pieces(family.pod, family.cluster_ip);
    row.inside(&later).untouched(PassReason::Fragment);
    row.inside(&first).untouched(PassReason::Foreign);
    row.inside(&later).untouched(PassReason::Fragment);
    row
}

/// The sum is in the first piece alone, over what all of them carry.
fn no_sum(family: &Family) -> Row {
    let mut row = named("the sum of a datagram in pieces is corrected, or stays absent", family);
    row.service(family.service(Proto::UDP).local(family.local));
    for (sum, reason) in [(Sum::Zero, PassReason::NewFlow), (Sum::Off(3), PassReason::Forward)] {
        let whole = udp(family.client, family.node_port).payload(&[7; 100]).sum(sum);
        let [first, later] = [whole.first_fragment(FIRST), whole.later_fragment(FIRST)];
        row.outside(&first).passes(reason, &first.to(family.local));
        row.outside(&later).passes(PassReason::Forward, &later.to(family.local));
    }
    row
}

/// TCP in pieces is rare, and the same; pieces of a protocol that Services do not carry are not.
fn other_protocols(family: &Family) -> Row {
    let mut row = named("segments in pieces, and what is no Service's", family);
    row.snat = Snat::Low;
    row.service(family.service(Proto::TCP).local(family.local));
    let syn = tcp(family.client, family.node_port, "S").payload(&[1; 100]);
    let [first, later] = [syn.first_fragment(FIRST), syn.later_fragment(FIRST)];
    row.outside(&first).passes(PassReason::NewFlow, &first.to(family.local));
    row.outside(&later).passes(PassReason::Forward, &later.to(family.local));
    let gre = other(47, family.client_too, family.node_port, &[0; 100]);
    row.outside(&gre.first_fragment(FIRST)).untouched(PassReason::OtherProtocol);
    if family.name == "v4" {
        row.outside(&gre.later_fragment(FIRST)).untouched(PassReason::Fragment);
    }
    row
}

/// Pieces that do not fit through the way to another node are dropped, each of them.
fn too_big(family: &Family) -> Row {
    let mut row = named("fragments too big for the way to another node", family);
    row.service(family.service(Proto::UDP).remote(family.remote));
    let whole = udp(family.client, family.node_port).payload(&[7; 3200]);
    row.outside(&whole.first_fragment(1600)).dropped(DropReason::FragmentationNeeded);
    row.outside(&whole.later_fragment(1600)).dropped(DropReason::RefusedFragment);
    let [first, _] = pieces(family.client, family.node_port);
    let asked = first.from(family.source).to(family.remote).ttl(63);
    row.outside(&first).redirected(PassReason::NewFlow, ETH0, &asked);
    row.outside(&whole.later_fragment(1600)).dropped(DropReason::FragmentationNeeded);
    row
}

/// The hop limit of the first one alone decides nothing about the flow.
fn expires(family: &Family) -> Row {
    let mut row = named("fragments whose hop limit is used up", family);
    row.service(family.service(Proto::UDP).remote(family.remote));
    let [first, later] = pieces(family.client, family.node_port);
    row.outside(&first.ttl(1)).dropped(DropReason::TtlExceeded);
    row.outside(&later.ttl(1)).dropped(DropReason::RefusedFragment);
    row
}

/// Two datagrams at once, in IPv4: the identification tells their pieces apart.
fn identification() -> Row {
    let family = V4;
    let mut row = named("fragments of two packets between the same hosts", &family);
    row.service(family.service(Proto::UDP).local(family.local));
    let mut pieces_of = [1, 2].map(|id| {
        let mut whole = udp(family.client, family.node_port).payload(&[7; 100]);
        whole.id = id;
        [whole.first_fragment(FIRST), whole.later_fragment(FIRST)]
    });
    pieces_of[1][0] = pieces_of[1][0].to("192.0.2.1:9999");
    row.outside(&pieces_of[0][0]).passes(PassReason::NewFlow, &pieces_of[0][0].to(family.local));
    row.outside(&pieces_of[1][0]).untouched(PassReason::NoService);
    row.outside(&pieces_of[1][1]).untouched(PassReason::Fragment);
    row.outside(&pieces_of[0][1]).passes(PassReason::Forward, &pieces_of[0][1].to(family.local));
    row
}
