//! Addresses of Services that no frontend names (S38), and who is a pod (S43).

use super::super::build::{tcp, udp};
use super::super::row::{Row, Snat};
use super::super::world::{ETH0, POD0};
use super::{Family, V4, V6, named};
use lb_common::abi::{Addr, DropReason, Held, PassReason, Prefix, Proto, prefix_set};
use std::net::{IpAddr, SocketAddr};
use weir::plan::op::Op;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [V4, V6] {
        rows.extend([undefined_port(&family), unallocated(&family), cache_on_the_node(&family)]);
        rows.extend([masquerade_all(&family), cluster_cidr(&family), masquerade_external(&family)]);
        rows.extend([masquerade_external_of_a_pod(&family), endpoint_on_the_node(&family)]);
    }
    rows
}

fn addr(text: &str) -> Addr {
    let ip: IpAddr = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    ip.into()
}

/// The range that the family's ClusterIPs are from.
fn range(family: &Family) -> Op {
    let (net, bits) = if family.name == "v4" { ("10.96.0.0", 16) } else { ("fd00:96::", 112) };
    let addr = addr(net);
    Op::PutPrefix(Prefix::new(prefix_set::services(&addr), addr, bits), Held::MEMBER)
}

/// One address out of it.
fn address(text: &str, held: Held) -> Op {
    let addr = addr(text);
    let bits = if addr.is_v4() { 32 } else { 128 };
    Op::PutPrefix(Prefix::new(prefix_set::services(&addr), addr, bits), held)
}

fn ip_of(at: &str) -> String {
    at.parse::<SocketAddr>().map_or_else(|error| panic!("{at}: {error}"), |at| at.ip().to_string())
}

fn at(family: &Family, v4: &str, v6: &str, port: u16) -> String {
    if family.name == "v4" { format!("{v4}:{port}") } else { format!("[{v6}]:{port}") }
}

fn undefined_port(family: &Family) -> Row {
    let mut row = named("a port that a ClusterIP's Service does not name", family);
    row.service(family.service(Proto::TCP).local(family.local));
    row.ops(vec![address(&ip_of(family.cluster_ip), Held::TAKEN), range(family)]);
    let other = at(family, "10.96.0.1", "fd00:96::1", 81);
    row.inside(&tcp(family.pod, &other, "S")).refused_as(DropReason::UndefinedPort);
    row.outside(&tcp(family.client, &other, "S")).refused_as(DropReason::UndefinedPort);
    // The same number in another protocol is another port.
    row.inside(&udp(family.pod, family.cluster_ip)).refused_as(DropReason::UndefinedPort);
    // Nobody answers a RST.
    row.outside(&tcp(family.client, &other, "R")).dropped(DropReason::UndefinedPort);
    let syn = tcp(family.client, family.cluster_ip, "S");
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local));
    row
}

fn unallocated(family: &Family) -> Row {
    let mut row = named("ClusterIPs that nobody has, and those of another proxy", family);
    let (free, foreign) =
        (at(family, "10.96.0.7", "fd00:96::7", 80), at(family, "10.96.0.8", "fd00:96::8", 80));
    row.ops(vec![address(&ip_of(&foreign), Held::FOREIGN), range(family)]);
    row.inside(&tcp(family.pod, &free, "S")).dropped(DropReason::Unallocated);
    row.outside(&udp(family.client, &free)).dropped(DropReason::Unallocated);
    row.inside(&tcp(family.pod, &foreign, "S")).untouched(PassReason::NoService);
    let beyond = at(family, "10.97.0.7", "fd00:97::7", 80);
    row.inside(&tcp(family.pod, &beyond, "S")).untouched(PassReason::NoService);
    row
}

/// A name server's cache that has a ClusterIP as an address of the node: the node's socket answers.
fn cache_on_the_node(family: &Family) -> Row {
    let mut row = named("an address of the node out of the range of ClusterIPs", family);
    let node = ip_of(family.node_port);
    row.ops(vec![address(&node, Held::TAKEN)]);
    let dns = at(family, "192.0.2.1", "2001:db8:1::1", 53);
    row.inside(&udp(family.pod, &dns)).untouched(PassReason::NoService);
    row
}

fn masquerade_all(family: &Family) -> Row {
    let mut row = named("--masquerade-all, ClusterIPs alone", family);
    row.snat = Snat::MasqueradeAll;
    row.service(family.service(Proto::TCP).local(family.local));
    let syn = tcp(family.pod, family.cluster_ip, "S");
    let asked = syn.from(family.source).to(family.local).ttl(63);
    row.inside(&syn).redirected(PassReason::NewFlow, POD0, &asked);
    let answer = tcp(family.local, family.source, "SA").seq(9000).ack(1001);
    let answered = answer.from(family.cluster_ip).to(family.pod).ttl(63);
    row.inside(&answer).redirected(PassReason::Reply, POD0, &answered);
    let syn = tcp(family.client, family.node_port, "S");
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local));
    row
}

fn cluster_cidr(family: &Family) -> Row {
    let mut row = named("--cluster-cidr", family);
    row.snat = Snat::ClusterCidr;
    row.service(family.service(Proto::TCP).local(family.local));
    let (pods, bits) = if family.name == "v4" { ("10.244.0.0", 16) } else { ("fd00:1::", 64) };
    let pods = addr(pods);
    row.ops(vec![Op::PutPrefix(Prefix::new(prefix_set::pods(&pods), pods, bits), Held::MEMBER)]);
    let syn = tcp(family.pod, family.cluster_ip, "S");
    row.inside(&syn).passes(PassReason::NewFlow, &syn.from(family.pod_source).to(family.local));
    // No pod: its reply comes back here only with a source of ours, whoever routed it here.
    let syn = tcp(family.client, family.cluster_ip, "S");
    let asked = syn.from(family.source).to(family.local).ttl(63);
    row.outside(&syn).redirected(PassReason::NewFlow, POD0, &asked);
    let answer = tcp(family.local, family.source, "SA").seq(9000).ack(1001);
    let answered = answer.from(family.cluster_ip).to(family.client).ttl(63);
    row.inside(&answer).redirected(PassReason::Reply, ETH0, &answered);
    row
}

/// As kube-proxy has it under `externalTrafficPolicy: Cluster` (S44): pods too, and endpoints of
/// this node too.
fn masquerade_external(family: &Family) -> Row {
    let mut row = named("--masquerade-external, all but ClusterIPs", family);
    row.snat = Snat::Low;
    row.service(family.service(Proto::TCP).local(family.local).masquerading());
    let syn = tcp(family.client, family.node_port, "S");
    let asked = syn.from(family.source).to(family.local).ttl(63);
    row.outside(&syn).redirected(PassReason::NewFlow, POD0, &asked);
    let answer = tcp(family.local, family.source, "SA").seq(9000).ack(1001);
    let answered = answer.from(family.node_port).to(family.client).ttl(63);
    row.inside(&answer).redirected(PassReason::Reply, ETH0, &answered);
    row
}

fn masquerade_external_of_a_pod(family: &Family) -> Row {
    let mut row = named("--masquerade-external, a pod", family);
    row.service(family.service(Proto::TCP).local(family.local).masquerading());
    let syn = tcp(family.pod, family.external, "S");
    let asked = syn.from(family.source).to(family.local).ttl(63);
    row.inside(&syn).redirected(PassReason::NewFlow, POD0, &asked);
    let syn = tcp(family.pod, family.cluster_ip, "S");
    row.inside(&syn).passes(PassReason::NewFlow, &syn.from(family.pod_source).to(family.local));
    row
}

/// What goes to the node itself leaves by no device: nothing is masqueraded there, asked for or
/// not, also where the slice does not say on which node the endpoint is (S49).
fn endpoint_on_the_node(family: &Family) -> Row {
    let mut row = named("an endpoint that is the node itself", family);
    let node = at(family, "192.0.2.1", "2001:db8:1::1", 8080);
    row.service(family.service(Proto::TCP).remote(&node).masquerading());
    let syn = tcp(family.client, family.external, "S");
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(&node));
    let answer = tcp(&node, family.client, "SA").seq(9000).ack(1001);
    row.egress(&answer).passes(PassReason::Reply, &answer.from(family.external));
    row
}
