//! The case table with netfilter in the agent's place: what the table asks for is what the
//! kernel's own NAT does, and the lab can tell.

use crate::rig::{assert_outcomes, demo_lab};
use lab::cases::{self, Assigned};
use std::fmt::Write;

const MY_APP: &[(&str, u16)] = &[("1.10", 8080), ("2.10", 8080)];
const FIRST: &[(&str, u16)] = &[("1.10", 8080)];
const LOCAL: &[(&str, u16)] = &[("1.20", 8080)];
const REMOTE: &[(&str, u16)] = &[("2.20", 8080)];

/// Last part of the ClusterIP, port, node port, further addresses, backends.
type Row = (u8, u16, u16, &'static [&'static str], &'static [(&'static str, u16)]);

const SERVICES: [Row; 10] = [
    (1, 80, 0, &[], MY_APP),
    (2, 53, 0, &[], MY_APP),
    (3, 80, 30080, &[], MY_APP),
    (4, 80, 30081, &[], LOCAL),
    (5, 80, 30082, &[], REMOTE),
    (6, 80, 30083, &["198.51.100.10", "2001:db8:100::10"], MY_APP),
    (7, 80, 0, &["203.0.113.10", "2001:db8:113::10"], MY_APP),
    (8, 80, 0, &[], &[("1.40", 8081), ("2.40", 8082)]),
    (8, 9000, 0, &[], &[("1.40", 9090), ("2.40", 9090)]),
    // One backend is affinity enough here.
    (9, 80, 30084, &[], FIRST),
];

/// A pod's address of one family from the part that both have in common, such as "1.10".
fn pod(v6: bool, part: &str) -> String {
    match part.split_once('.') {
        Some((node, host)) if v6 => format!("fd00:10:244:{node}::{host}"),
        _ => format!("10.244.{part}"),
    }
}

fn rules() -> String {
    let mut nat = String::new();
    let mut refuse = String::new();
    let mut masquerade = String::new();
    for v6 in [false, true] {
        let ip = if v6 { "ip6" } else { "ip" };
        let cluster_ip =
            |last: u8| if v6 { format!("fd00:10:96::a{last:02x}") } else { format!("10.96.10.{last}") };
        let node = if v6 { "fd00:30::1" } else { "172.30.0.1" };
        let client = if v6 { "fd00:30::100" } else { "172.30.0.100" };
        for (last, port, node_port, more, backends) in SERVICES {
            let to: Vec<String> = (0..)
                .zip(backends)
                .map(|(number, (part, port))| format!("{number} : {} . {port}", pod(v6, part)))
                .collect();
            let dnat = format!(
                "dnat {ip} addr . port to numgen random mod {} map {{ {} }}",
                backends.len(),
                to.join(", ")
            );
            let mut fronts = vec![(cluster_ip(last), port), (node.to_owned(), node_port)];
            fronts.extend(more.iter().filter(|ip| ip.contains(':') == v6).map(|ip| ((*ip).to_owned(), port)));
            for (addr, port) in fronts.iter().filter(|(_, port)| *port != 0) {
                writeln!(nat, "{ip} daddr {addr} meta l4proto {{ tcp, udp }} th dport {port} {dnat}")
                    .unwrap();
            }
        }
        for (addr, port) in [(cluster_ip(10), 80), (node.to_owned(), 30085)] {
            let to = format!("{ip} daddr {addr}");
            writeln!(refuse, "{to} tcp dport {port} reject with tcp reset\n{to} udp dport {port} reject")
                .unwrap();
        }
        let own = pod(v6, "1.20");
        writeln!(masquerade, "{ip} saddr {own} {ip} daddr {own} masquerade").unwrap();
        writeln!(masquerade, "oifname eth0 {ip} saddr {client} ct status dnat masquerade").unwrap();
    }
    let mut all = String::from("table inet standin {\n");
    for (name, kind, hook, priority, text) in [
        ("refuse_in", "filter", "prerouting", "-150", &refuse),
        ("refuse_out", "filter", "output", "-150", &refuse),
        ("in", "nat", "prerouting", "dstnat", &nat),
        ("out", "nat", "output", "-100", &nat),
        ("post", "nat", "postrouting", "50", &masquerade),
    ] {
        writeln!(all, "chain {name} {{ type {kind} hook {hook} priority {priority};\n{text} }}").unwrap();
    }
    all + "}\n"
}

#[test]
fn table_holds_with_netfilter_in_the_agents_place() {
    let lab = demo_lab();
    lab.node1().nft(&rules()).unwrap();
    // The kernel answers one connect a second; the table asks faster.
    lab.node1().sysctl("net/ipv4/icmp_ratelimit", "0").unwrap();
    lab.node1().sysctl("net/ipv6/icmp/ratelimit", "0").unwrap();
    let assigned = Assigned { my_service: "10.96.10.1".parse().unwrap() };
    let mut outcomes = cases::run(&lab, &assigned, |_| {});
    // Netfilter cannot refuse a datagram of the host itself: send() then fails with EPERM.
    outcomes
        .retain(|outcome| !(outcome.name.starts_with("refused UDP") && outcome.name.ends_with("from host")));
    assert_outcomes(&outcomes);
}
