//! Flows that netfilter translates since before Weir came are left to it (S82).

use super::super::build::{tcp, udp};
use super::super::row::Row;
use super::super::world::ETH0;
use super::{Family, V4, V6, first, named};
use lb_common::abi::{DropReason, ForeignFlags, PassReason, Proto};

const POD: ForeignFlags = ForeignFlags::POD;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [V4, V6] {
        rows.extend([mid_flow(&family), opening(&family), hold(&family), retired(&family)]);
        for proto in [Proto::TCP, Proto::UDP] {
            rows.extend([reply_to_a_node_port(&family, proto), taken_port(&family, proto)]);
        }
        rows.push(datagrams(&family));
    }
    rows
}

/// Each packet of such a flow passes; a SYN opens a new one, which is ours from then on.
fn mid_flow(family: &Family) -> Row {
    let mut row = named("a connection of netfilter's goes on, others are ours", family);
    row.service(family.service(Proto::TCP).local(family.local));
    row.leave(Proto::TCP, family.client, family.node_port, POD, true);
    row.leave(Proto::TCP, family.stranger, family.node_port, POD, false);
    for flags in ["A", "PA", "FA"] {
        row.outside(&tcp(family.client, family.node_port, flags)).untouched(PassReason::Foreign);
    }
    for client in [family.client_too, family.stranger] {
        let other = tcp(client, family.node_port, "PA");
        row.outside(&other).passes(PassReason::NewFlow, &other.to(family.local));
    }
    let again = tcp(family.client, family.node_port, "S");
    row.outside(&again).passes(PassReason::NewFlow, &again.to(family.local));
    let next = tcp(family.client, family.node_port, "A");
    row.outside(&next).passes(PassReason::Forward, &next.to(family.local));
    row
}

/// The SYN that netfilter awaits the answer to is sent again.
fn opening(family: &Family) -> Row {
    let mut row = named("a SYN that netfilter has seen before is netfilter's", family);
    row.service(family.service(Proto::TCP).local(family.local));
    row.leave(Proto::TCP, family.client, family.node_port, POD.with(ForeignFlags::OPENING), true);
    row.outside(&tcp(family.client, family.node_port, "S")).untouched(PassReason::Foreign);
    row
}

fn hold(family: &Family) -> Row {
    let mut row =
        named("until all of netfilter's flows are known, unknown ones pass and new ones do not", family);
    row.hold = true;
    row.service(family.service(Proto::TCP).local(family.local));
    row.service(family.service(Proto::UDP).local(family.local));
    row.outside(&tcp(family.client, family.node_port, "PA")).untouched(PassReason::Foreign);
    for proto in [Proto::TCP, Proto::UDP] {
        let new = first(proto, family.client, family.node_port);
        row.outside(&new).passes(PassReason::NewFlow, &new.to(family.local));
    }
    row
}

/// Also when the Service is gone meanwhile.
fn retired(family: &Family) -> Row {
    let mut row = named("a retired frontend leaves netfilter's flows alone", family);
    let service = row.service(family.service(Proto::TCP).local(family.local));
    row.leave(Proto::TCP, family.client, family.node_port, POD, true);
    row.ops(service.retire());
    row.outside(&tcp(family.client, family.node_port, "PA")).untouched(PassReason::NoService);
    row
}

/// netfilter gives out ports of the node port range as sources.
fn reply_to_a_node_port(family: &Family, proto: Proto) -> Row {
    let what = format!("{proto} answers to netfilter's source port are no node port's, whatever its number");
    let mut row = named(&what, family);
    row.service(family.service(proto).remote(family.remote_too));
    row.leave(proto, family.remote, family.node_port, POD, true);
    let answer = if proto == Proto::TCP {
        tcp(family.remote, family.node_port, "PA")
    } else {
        udp(family.remote, family.node_port)
    };
    row.outside(&answer).untouched(PassReason::Foreign);
    row
}

/// The one port that there is has a flow of netfilter's to the same backend.
fn taken_port(family: &Family, proto: Proto) -> Row {
    let mut row = named(&format!("{proto} to a backend where netfilter has the only source port"), family);
    row.service(family.service(proto).remote(family.remote));
    row.leave(proto, family.remote, family.source, POD, true);
    row.outside(&first(proto, family.client, family.node_port)).dropped(DropReason::SnatExhausted);
    row
}

fn datagrams(family: &Family) -> Row {
    let mut row = named("datagrams of netfilter's flows keep their backend, others are ours", family);
    row.service(family.service(Proto::UDP).remote(family.remote));
    row.leave(Proto::UDP, family.client, family.node_port, POD, true);
    row.outside(&udp(family.client, family.node_port)).untouched(PassReason::Foreign);
    let other = udp(family.client_too, family.node_port);
    row.outside(&other).redirected(
        PassReason::NewFlow,
        ETH0,
        &other.from(family.source).to(family.remote).ttl(63),
    );
    row
}
