//! Headers: options, extensions, checksums, and fields that lie (H44, H45).

use super::super::build::{Body, Extension, Link, Packet, Sum, tcp, udp};
use super::super::row::{Hook, Row, Service};
use super::super::world::ETH0;
use super::{Connection, Family, V4, V6, named};
use lb_common::abi::{DropReason, PassReason, Proto};

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [V4, V6] {
        rows.extend([wrong_sums(&family), padding(&family), hop_limit_of_one(&family), too_big(&family)]);
        rows.extend([service_fields(&family), tcp_options(&family), lengths(&family)]);
        rows.extend([truncated(&family), nearly_empty(&family)]);
    }
    rows.extend(extensions());
    rows.extend(malformed());
    rows.extend([ip_options(), header_sum(), refused_with_options(), not_ip(), mapped()]);
    rows
}

/// A wrong checksum is not ours to mend, and must not pass for right.
fn wrong_sums(family: &Family) -> Row {
    let mut row = named("wrong transport checksums stay wrong by as much", family);
    row.service(family.service(Proto::TCP).local(family.local));
    row.service(family.service(Proto::UDP).remote(family.remote));
    for by in [1, 0x5a5a, 0xfffe] {
        let syn = tcp(family.client, family.node_port, "S").sum(Sum::Off(by));
        row.outside(&syn)
            .passes(if by == 1 { PassReason::NewFlow } else { PassReason::Forward }, &syn.to(family.local));
        let ask = udp(family.client, family.node_port).sum(Sum::Off(by));
        row.outside(&ask).redirected(
            if by == 1 { PassReason::NewFlow } else { PassReason::Forward },
            ETH0,
            &ask.from(family.source).to(family.remote).ttl(63),
        );
    }
    row
}

fn padding(family: &Family) -> Row {
    let mut row = named("bytes behind the IP packet stay as they are", family);
    row.service(family.service(Proto::UDP).local(family.local));
    let mut ask = udp(family.client, family.node_port).payload(b"x");
    ask.padding = 17;
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to(family.local));
    row
}

fn hop_limit_of_one(family: &Family) -> Row {
    let mut row = named("hop limit 1 ends where we route and not where the stack does", family);
    row.service(family.service(Proto::UDP).remote(family.remote));
    row.service(Service::new(Proto::UDP).node_port(30_081).local(family.local));
    for hops in [0, 1] {
        row.outside(&udp(family.client, family.node_port).ttl(hops)).dropped(DropReason::TtlExceeded);
    }
    let two = udp(family.client, family.node_port).ttl(2);
    row.outside(&two).redirected(
        PassReason::Forward,
        ETH0,
        &two.from(family.source).to(family.remote).ttl(1),
    );
    let one = udp(family.client, &family.node_port.replace("30080", "30081")).ttl(1);
    row.outside(&one).passes(PassReason::NewFlow, &one.to(family.local));
    row
}

fn too_big(family: &Family) -> Row {
    let mut row = named("big packets go as far as they fit", family);
    row.service(family.service(Proto::UDP).remote(family.remote));
    row.service(Service::new(Proto::UDP).node_port(30_081).local(family.local));
    let header = if family.name == "v4" { 28 } else { 48 };
    let full = udp(family.client, family.node_port).payload(&vec![0xa5; 1500 - header]);
    row.outside(&full).redirected(
        PassReason::NewFlow,
        ETH0,
        &full.from(family.source).to(family.remote).ttl(63),
    );
    let big = full.payload(&vec![0xa5; 1600]);
    row.outside(&big).dropped(DropReason::FragmentationNeeded);
    // Towards a local backend the stack decides.
    let big = big.to(&family.node_port.replace("30080", "30081"));
    row.outside(&big).passes(PassReason::NewFlow, &big.to(family.local));
    row
}

/// DSCP, ECN, identification and flags are the sender's.
fn service_fields(family: &Family) -> Row {
    let mut row = named("traffic class, identification and flags stay", family);
    row.service(family.service(Proto::TCP).remote(family.remote));
    let flow = Connection::new(family);
    let mut syn = flow.ask("S");
    (syn.tos, syn.id, syn.fragment) = (0xb9, 0xbeef, 0);
    row.outside(&syn).redirected(PassReason::NewFlow, ETH0, &flow.asked(&syn));
    row
}

fn tcp_options(family: &Family) -> Row {
    let mut row = named("TCP options and odd payloads", family);
    row.service(family.service(Proto::TCP).local(family.local));
    let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    let syn = tcp(family.client, family.node_port, "S").tcp_options(&options).payload(b"fast open");
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(family.local));
    let full = tcp(family.client, family.node_port, "S").tcp_options(&[1; 40]).payload(b"x");
    row.outside(&full).passes(PassReason::Forward, &full.to(family.local));
    row
}

/// Transport lengths that contradict the packet's.
fn lengths(family: &Family) -> Row {
    let mut row = named("transport headers that lie about their length", family);
    row.service(family.service(Proto::TCP).local(family.local));
    row.service(family.service(Proto::UDP).local(family.local));
    for wrong in [0, 4, 6, 15] {
        let mut syn = tcp(family.client, family.node_port, "S");
        if let Body::Tcp { doff, .. } = &mut syn.body {
            *doff = Some(wrong);
        }
        row.outside(&syn).untouched(PassReason::Malformed);
    }
    let with_length = |wrong| {
        let mut ask = udp(family.client, family.node_port);
        ask.body = Body::Udp { len: Some(wrong) };
        ask
    };
    for wrong in [0, 7, 17, 0xffff] {
        row.outside(&with_length(wrong)).untouched(PassReason::Malformed);
    }
    // Shorter than the IP packet is legal: the rest belongs to nobody.
    let short = with_length(10);
    row.outside(&short).passes(PassReason::NewFlow, &short.to(family.local));
    row
}

/// Frames that end early, at every place where a field would be.
fn truncated(family: &Family) -> Row {
    let mut row = named("frames that end early", family);
    row.service(family.service(Proto::TCP).local(family.local));
    row.service(family.service(Proto::UDP).local(family.local));
    let whole = tcp(family.client, family.node_port, "S").bytes().len();
    for cut in [if family.name == "v4" { 34 } else { 54 }, whole - 8, whole - 1] {
        let mut syn = tcp(family.client, family.node_port, "S");
        syn.cut = Some(cut);
        row.outside(&syn).untouched(PassReason::Malformed);
        row.egress(&syn).untouched(PassReason::Malformed);
    }
    // The same with an IP length that is true, so that the transport header is what is short.
    let header = if family.name == "v4" { 20 } else { 0 };
    for (packet, most) in
        [(tcp(family.client, family.node_port, "S"), 19), (udp(family.client, family.node_port), 7)]
    {
        for there in [0, 1, 3, most] {
            let mut short = packet.clone();
            short.length = Some(header + there);
            short.cut = Some(14 + if family.name == "v4" { 20 } else { 40 } + usize::from(there));
            row.outside(&short).untouched(PassReason::Malformed);
        }
    }
    row
}

fn nearly_empty(family: &Family) -> Row {
    let mut row = named("frames that end in the IP header", family);
    row.simulator_only = Some("test-run refuses frames shorter than an IP header");
    row.service(family.service(Proto::TCP).local(family.local));
    for cut in [0, 1, 13, 14, 15, 24, 33] {
        let mut syn = tcp(family.client, family.node_port, "S");
        syn.cut = Some(cut);
        let reason = if cut < 14 { PassReason::NotIp } else { PassReason::Malformed };
        row.outside(&syn).untouched(reason);
        row.egress(&syn).untouched(reason);
    }
    row
}

fn extensions() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, chain) in [
        ("hop-by-hop options", vec![Extension::HopByHop(0)]),
        ("destination options", vec![Extension::Destination(2)]),
        ("routing header", vec![Extension::Routing(1)]),
        ("atomic fragment", vec![Extension::Fragment(0, false)]),
        (
            "four extension headers",
            vec![
                Extension::HopByHop(1),
                Extension::Destination(0),
                Extension::Routing(2),
                Extension::Destination(3),
            ],
        ),
        ("extension headers of 256 bytes", vec![Extension::HopByHop(15), Extension::Destination(15)]),
    ] {
        let mut row = Row::new(String::leak(format!("{name} are walked over")));
        row.service(V6.service(Proto::TCP).remote(V6.remote));
        row.service(V6.service(Proto::UDP).local(V6.local));
        let with =
            |packet: Packet| chain.iter().fold(packet, |packet, extension| packet.extension(*extension));
        let flow = Connection::new(&V6);
        let syn = with(flow.ask("S"));
        row.outside(&syn).redirected(PassReason::NewFlow, ETH0, &flow.asked(&syn));
        let ask = with(udp(V6.client, V6.node_port));
        row.outside(&ask).passes(PassReason::NewFlow, &ask.to(V6.local));
        let answer = with(udp(V6.local, V6.client));
        row.egress(&answer).passes(PassReason::Reply, &answer.from(V6.node_port));
        rows.push(row);
    }
    let mut row = Row::new("extension headers that are too long, too many or cut off");
    row.service(V6.service(Proto::UDP).local(V6.local));
    let ask = udp(V6.client, V6.node_port);
    row.outside(&ask.extension(Extension::HopByHop(31)).extension(Extension::Destination(0)))
        .untouched(PassReason::Malformed);
    let seven = (0..7).fold(ask.clone(), |packet, _| packet.extension(Extension::Destination(0)));
    row.outside(&seven).untouched(PassReason::OtherProtocol);
    let mut lies = ask.extension(Extension::Destination(0));
    lies.length = Some(4);
    row.outside(&lies).untouched(PassReason::Malformed);
    rows.push(row);

    // RFC 8200 4.4, 8.1: the destination is a stop on the way, and not what the checksum covers.
    let mut row = Row::new("a routing header with segments left is not ours");
    row.service(V6.service(Proto::UDP).local(V6.local));
    let mut frame = ask.extension(Extension::Routing(2)).bytes();
    frame[14 + 40 + 3] = 1;
    row.frame(Hook::Outside, ETH0, frame).untouched(PassReason::OtherProtocol);
    rows.push(row);
    rows
}

/// Network headers that lie.
fn malformed() -> Vec<Row> {
    let change = |name: &'static str, changes: &[fn(&mut Packet)], packet: Packet| {
        let mut row = Row::new(name);
        row.service(V4.service(Proto::TCP).local(V4.local));
        row.service(V6.service(Proto::TCP).local(V6.local));
        for change in changes {
            let mut wrong = packet.clone();
            change(&mut wrong);
            row.outside(&wrong).untouched(PassReason::Malformed);
            row.inside(&wrong).untouched(PassReason::Malformed);
            row.egress(&wrong).untouched(PassReason::Malformed);
        }
        row
    };
    let (v4, v6) = (tcp(V4.client, V4.cluster_ip, "S"), tcp(V6.client, V6.cluster_ip, "S"));
    vec![
        change(
            "an IPv4 header shorter than 20 bytes",
            &[|p| p.version_ihl = Some(0x40), |p| p.version_ihl = Some(0x44)],
            v4.clone(),
        ),
        change("an IPv4 header longer than the packet", &[|p| p.version_ihl = Some(0x4f)], v4.clone()),
        change(
            "an IPv4 total length that lies",
            &[
                |p| p.length = Some(0),
                |p| p.length = Some(19),
                |p| p.length = Some(20),
                |p| p.length = Some(39),
                |p| p.length = Some(41),
                |p| p.length = Some(0xffff),
            ],
            v4.clone(),
        ),
        change(
            "an IPv4 header of another version",
            &[|p| p.version_ihl = Some(0x65), |p| p.version_ihl = Some(0x05)],
            v4,
        ),
        change(
            "an IPv6 payload length that lies",
            &[
                |p| p.length = Some(0),
                |p| p.length = Some(19),
                |p| p.length = Some(21),
                |p| p.length = Some(0xffff),
            ],
            v6,
        ),
    ]
}

fn ip_options() -> Row {
    let mut row = Row::new("IPv4 options are stepped over");
    row.service(V4.service(Proto::TCP).remote(V4.remote));
    row.service(V4.service(Proto::UDP).local(V4.local));
    let flow = Connection::new(&V4);
    // Router alert; then as many no-operations as fit.
    for options in [&[0x94, 4, 0, 0][..], &[1; 40]] {
        let syn = flow.ask("S").options(options);
        let reason = if options.len() == 4 { PassReason::NewFlow } else { PassReason::Forward };
        row.outside(&syn).redirected(reason, ETH0, &flow.asked(&syn));
        let ask = udp(V4.client, V4.node_port).options(options);
        row.outside(&ask).passes(reason, &ask.to(V4.local));
    }
    row
}

fn header_sum() -> Row {
    let mut row = Row::new("a wrong IPv4 header checksum stays wrong by as much");
    row.service(V4.service(Proto::UDP).remote(V4.remote));
    let ask = udp(V4.client, V4.node_port).ip_sum(Sum::Off(0x1001));
    row.outside(&ask).redirected(PassReason::NewFlow, ETH0, &ask.from(V4.source).to(V4.remote).ttl(63));
    row
}

/// An error would have to repeat the options; the sender waits instead. A RST need not.
fn refused_with_options() -> Row {
    let mut row = Row::new("without endpoint, packets with options are answered only by RST");
    for family in [V4, V6] {
        row.service(family.service(Proto::TCP));
        row.service(family.service(Proto::UDP));
        let with = |packet: Packet| match family.name {
            "v4" => packet.options(&[1; 4]),
            _ => packet.extension(Extension::Destination(0)),
        };
        row.outside(&with(udp(family.client, family.node_port))).dropped(DropReason::NoEndpoint);
        row.outside(&with(tcp(family.client, family.node_port, "A"))).dropped(DropReason::NoEndpoint);
        row.outside(&with(tcp(family.client, family.node_port, "S").ttl(3).tcp_options(&[1; 12]))).refused();
    }
    row
}

fn not_ip() -> Row {
    let mut row = Row::new("frames that are not IP");
    row.service(V4.service(Proto::TCP).local(V4.local));
    row.outside(&tcp(V4.client, V4.node_port, "S").link(Link::Vlan(5))).untouched(PassReason::NotIp);
    let mut arp = tcp(V4.client, V4.node_port, "S").bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    for hook in [Hook::Outside, Hook::Inside, Hook::Egress] {
        row.frame(hook, ETH0, arp.clone()).untouched(PassReason::NotIp);
    }
    // 802.3 length instead of a type.
    arp[12..14].copy_from_slice(&[0x00, 0x28]);
    row.frame(Hook::Outside, ETH0, arp).untouched(PassReason::NotIp);
    row
}

/// The mapped form stands for IPv4 in our maps; on the wire it stands for nothing (RFC 4291
/// 2.5.5.2), and must not find an IPv4 frontend or flow.
fn mapped() -> Row {
    let mut row = Row::new("IPv4-mapped addresses in IPv6 packets are left to the stack");
    row.service(V4.service(Proto::TCP).local(V4.local));
    let (client, frontend) = ("[::ffff:198.51.100.7]:4000", "[::ffff:10.96.0.1]:80");
    row.outside(&tcp(client, frontend, "S")).untouched(PassReason::Malformed);
    row.outside(&tcp(V6.client, frontend, "S")).untouched(PassReason::Malformed);
    row.inside(&tcp(V6.pod, frontend, "S")).untouched(PassReason::Malformed);
    row.inside(&tcp("[::ffff:10.244.1.6]:4000", V6.cluster_ip, "S")).untouched(PassReason::Malformed);
    let syn = tcp(V4.client, V4.cluster_ip, "S");
    row.outside(&syn).passes(PassReason::NewFlow, &syn.to(V4.local));
    row.egress(&tcp("[::ffff:10.244.1.5]:8080", "[::ffff:198.51.100.7]:4000", "SA"))
        .untouched(PassReason::Malformed);
    row
}
