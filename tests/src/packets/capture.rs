//! Asks the kernel's own netfilter what becomes of a packet, and writes it down.
//!
//! The node of [`super::world`] with nftables rules in place of Weir: frames are put on its
//! devices' other ends, and what it sends is taken there. The hex rows of `tests/cases/netfilter`
//! are what this wrote; Weir must make the same of the same frames.

use super::build::{Extension, Packet, Sum, tcp, udp};
use super::netfilter::{Exchange, Recorded, Way};
use super::show::Read;
use super::world::{self, ETH0, POD0};
use crate::netns::Netns;
use crate::netns::sys::PacketSocket;
use crate::scratch::Scratch;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Duration;

/// How long a forwarded frame may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is to be recorded: a Service, the rules that do the same, and packets both ways.
struct Case {
    name: String,
    service: String,
    rules: String,
    packets: Vec<(Way, Packet)>,
}

/// The names of one family.
struct Family {
    name: &'static str,
    /// The keyword of rules.
    ip: &'static str,
    client: &'static str,
    pod: &'static str,
    pod_source: &'static str,
    node: &'static str,
    node_port: &'static str,
    cluster: &'static str,
    cluster_ip: &'static str,
    local: &'static str,
    remote: &'static str,
    source: &'static str,
}

const V4: Family = Family {
    name: "v4",
    ip: "ip",
    client: "198.51.100.7:4000",
    pod: "10.244.1.6:4000",
    pod_source: "10.244.1.6:20000",
    node: "192.0.2.1",
    node_port: "192.0.2.1:30080",
    cluster: "10.96.0.1",
    cluster_ip: "10.96.0.1:80",
    local: "10.244.1.5:8080",
    remote: "10.244.2.5:8080",
    source: "192.0.2.1:20000",
};

const V6: Family = Family {
    name: "v6",
    ip: "ip6",
    client: "[2001:db8:ffff::7]:4000",
    pod: "[fd00:1::6]:4000",
    pod_source: "[fd00:1::6]:20000",
    node: "2001:db8:1::1",
    node_port: "[2001:db8:1::1]:30080",
    cluster: "fd00:96::1",
    cluster_ip: "[fd00:96::1]:80",
    local: "[fd00:1::5]:8080",
    remote: "[fd00:2::5]:8080",
    source: "[2001:db8:1::1]:20000",
};

impl Family {
    fn rules(&self, proto: &str, address: &str, port: u16, backend: &str, source: &str) -> String {
        let ip = self.ip;
        format!(
            "table {ip} nat {{ \
             chain pre {{ type nat hook prerouting priority dstnat; {ip} daddr {address} {proto} dport {port} dnat to {backend}; }}; \
             chain post {{ type nat hook postrouting priority srcnat; {source} }}; }}"
        )
    }

    fn remote(&self, name: &str, proto: &str, packets: Vec<(Way, Packet)>) -> Case {
        let ip = self.ip;
        let masquerade =
            format!("{ip} daddr {} meta l4proto {proto} masquerade to :20000;", host(self.remote));
        Case {
            name: format!("{name}-{}", self.name),
            service: format!("{proto} node-port 30080 remote {}", self.remote),
            rules: self.rules(proto, self.node, 30080, self.remote, &masquerade),
            packets,
        }
    }

    fn local(&self, name: &str, proto: &str, packets: Vec<(Way, Packet)>) -> Case {
        Case {
            name: format!("{name}-{}", self.name),
            service: format!("{proto} node-port 30080 local {}", self.local),
            rules: self.rules(proto, self.node, 30080, self.local, ""),
            packets,
        }
    }

    fn inside(&self, name: &str, proto: &str, packets: Vec<(Way, Packet)>) -> Case {
        let (ip, pod) = (self.ip, host(self.pod));
        let port = format!("{ip} saddr {pod} meta l4proto {proto} snat to {};", self.pod_source);
        Case {
            name: format!("{name}-{}", self.name),
            service: format!("{proto} cluster-ip {} remote {}", self.cluster_ip, self.remote),
            rules: self.rules(proto, self.cluster, 80, self.remote, &port),
            packets,
        }
    }

    fn hairpin(&self, proto: &str, packets: Vec<(Way, Packet)>) -> Case {
        let (ip, own) = (self.ip, host(self.pod));
        let source =
            format!("{ip} saddr {own} {ip} daddr {own} meta l4proto {proto} snat to {};", self.source);
        let backend = self.pod.replace("4000", "8080");
        Case {
            name: format!("hairpin-{proto}-{}", self.name),
            service: format!("{proto} cluster-ip {} local {backend}", self.cluster_ip),
            rules: self.rules(proto, self.cluster, 80, &backend, &source),
            packets,
        }
    }
}

fn host(text: &str) -> String {
    super::build::at(text).ip().to_string()
}

/// A TCP connection's packets: SYN, SYN-ACK, ACK, data both ways, FIN both ways.
fn connection(
    there: Way,
    client: &str,
    frontend: &str,
    back: Way,
    backend: &str,
    to: &str,
) -> Vec<(Way, Packet)> {
    let ask = |flags: &str, seq, ack| (there, tcp(client, frontend, flags).seq(seq).ack(ack));
    let answer = |flags: &str, seq, ack| (back, tcp(backend, to, flags).seq(seq).ack(ack));
    let with = |(way, packet): (Way, Packet), bytes: &[u8]| (way, packet.payload(bytes));
    vec![
        ask("S", 1000, 0),
        answer("SA", 9000, 1001),
        ask("A", 1001, 9001),
        with(ask("PA", 1001, 9001), b"GET /"),
        with(answer("PA", 9001, 1006), b"204 nothing"),
        ask("FA", 1006, 9012),
        answer("FA", 9012, 1007),
        ask("A", 1007, 9013),
    ]
}

fn cases() -> Vec<Case> {
    use Way::{Inside, LeavingEth0, LeavingPod0, Outside};
    let mut cases = Vec::new();
    for f in [V4, V6] {
        let conversation = |change: &dyn Fn(Packet) -> Packet| {
            vec![
                (Outside, change(udp(f.client, f.node_port))),
                (Outside, change(udp(f.remote, f.source).payload(b"answer!"))),
            ]
        };
        let here = |change: &dyn Fn(Packet) -> Packet| {
            vec![
                (Outside, change(udp(f.client, f.node_port))),
                (LeavingEth0, change(udp(f.local, f.client).payload(b"answer!"))),
            ]
        };
        let remote = connection(Outside, f.client, f.node_port, Outside, f.remote, f.source);
        cases.push(f.remote("tcp-remote", "tcp", remote));
        let local = connection(Outside, f.client, f.node_port, LeavingEth0, f.local, f.client);
        cases.push(f.local("tcp-local", "tcp", local));
        let inside = connection(Inside, f.pod, f.cluster_ip, LeavingPod0, f.remote, f.pod_source);
        cases.push(f.inside("tcp-inside", "tcp", inside));
        let own = f.pod.replace("4000", "8080");
        cases.push(f.hairpin("tcp", connection(Inside, f.pod, f.cluster_ip, Inside, &own, f.source)));
        cases.push(f.remote("udp-remote", "udp", conversation(&|p| p)));
        cases.push(f.local("udp-local", "udp", here(&|p| p)));
        cases.push(f.inside(
            "udp-inside",
            "udp",
            vec![
                (Inside, udp(f.pod, f.cluster_ip)),
                (LeavingPod0, udp(f.remote, f.pod_source).payload(b"a")),
            ],
        ));
        let none = |p: Packet| p.sum(Sum::Zero);
        cases.push(f.remote("udp-without-checksum", "udp", conversation(&none)));
        let wrong = |p: Packet| p.sum(Sum::Off(0x1357));
        cases.push(f.remote("udp-wrong-checksum", "udp", conversation(&wrong)));
        cases.push(f.local("udp-wrong-checksum-local", "udp", here(&wrong)));
        let fields = |mut p: Packet| {
            (p.tos, p.id, p.fragment) = (0x2e, 0xfeed, 0);
            p
        };
        cases.push(f.remote("traffic-class", "udp", conversation(&fields)));
        cases.push(f.remote("hop-limit", "udp", conversation(&|p| p.ttl(2))));
        cases.push(f.remote("full-size", "udp", conversation(&|p| p.payload(&[0xa5; 1452]))));
        cases.push(f.local("odd-payload", "udp", here(&|p| p.payload(&[0xff; 333]))));
        let padded = |mut p: Packet| {
            p.padding = 9;
            p
        };
        cases.push(f.remote("padding", "udp", conversation(&padded)));
        cases.push(f.remote("checksum-becomes-zero", "udp", vec![(Outside, becomes_zero(&f))]));
        if f.name == "v4" {
            cases.push(f.remote("ip-options", "udp", conversation(&|p| p.options(&[1, 1, 1, 0]))));
        } else {
            let options = |p: Packet| p.extension(Extension::Destination(1));
            cases.push(f.remote("destination-options", "udp", conversation(&options)));
            let hops = |p: Packet| p.extension(Extension::HopByHop(0));
            cases.push(f.local("hop-by-hop-options", "udp", here(&hops)));
        }
    }
    cases
}

/// A datagram whose sum comes out as zero once it is translated.
fn becomes_zero(family: &Family) -> Packet {
    let translated = udp(family.source, family.remote).payload(&[0, 0]);
    let bytes = translated.bytes();
    let at = bytes.len() - 4;
    udp(family.client, family.node_port).payload(&bytes[at..at + 2])
}

/// Records every case into a folder; answers how many.
///
/// # Errors
/// Without root or nft, and when netfilter sends nothing.
pub fn record(folder: &Path) -> Result<usize> {
    let cases = cases();
    std::fs::create_dir_all(folder)?;
    for case in &cases {
        let recorded = capture(case).with_context(|| format!("case {}", case.name))?;
        std::fs::write(folder.join(format!("{}.txt", case.name)), recorded.to_string())?;
    }
    Ok(cases.len())
}

fn capture(case: &Case) -> Result<Recorded> {
    let scratch = Scratch::new()?;
    // A namespace of its own: no conntrack entry of another case is there.
    let netns = world::namespace(format!("{}-nft", scratch.id()))?;
    netns.nft(&case.rules)?;
    for (key, value) in [
        // Wrong checksums are passed on here, as routers do.
        ("net/netfilter/nf_conntrack_checksum", "0"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/pod0/send_redirects", "0"),
    ] {
        netns.sysctl(key, value)?;
    }
    let exchanges = exchange(&netns, case)?;
    Ok(Recorded { service: case.service.clone(), rules: case.rules.clone(), exchanges })
}

fn exchange(netns: &Netns, case: &Case) -> Result<Vec<Exchange>> {
    netns.enter(|| {
        let eth0 = PacketSocket::hearing(ETH0 + 1, PATIENCE)?;
        let pod0 = PacketSocket::hearing(POD0 + 1, PATIENCE)?;
        let mut exchanges = Vec::new();
        for (way, packet) in &case.packets {
            let input = packet.bytes();
            let sender = match way {
                Way::Outside | Way::LeavingPod0 => &eth0,
                Way::Inside | Way::LeavingEth0 => &pod0,
            };
            sender.send(std::slice::from_ref(&input))?;
            let listener = match way {
                Way::LeavingPod0 => &pod0,
                Way::LeavingEth0 | Way::Outside => {
                    if case.service.contains(" local ") && *way == Way::Outside { &pod0 } else { &eth0 }
                }
                Way::Inside if case.service.contains(" local ") => &pod0,
                Way::Inside => &eth0,
            };
            let output = hear(listener, &input).with_context(|| format!("{way:?} {packet:?}"))?;
            exchanges.push(Exchange { way: *way, input, output });
        }
        Ok(exchanges)
    })?
}

/// The next TCP or UDP frame.
fn hear(socket: &PacketSocket, input: &[u8]) -> Result<Vec<u8>> {
    for _ in 0..100 {
        let frame = socket.hear().context("netfilter sent nothing")?;
        if Read::new(&frame, 14).is_some_and(|read| matches!(read.proto, 6 | 17)) {
            return Ok(frame);
        }
    }
    bail!("no answer among 100 frames to {}", super::show::hex(input))
}
