//! The rows, by what they are about.

mod errors;
mod foreign;
mod forward;
mod fragments;
mod headers;
mod reach;
mod snat;
mod tcp;
mod udp;

use super::build::{Packet, tcp, udp};
use super::row::{Row, Service};
use super::world::ETH0;
use lb_common::abi::{PassReason, Proto, Reason};

/// Every row.
pub fn rows() -> Vec<Row> {
    [
        errors::rows(),
        foreign::rows(),
        forward::rows(),
        fragments::rows(),
        headers::rows(),
        reach::rows(),
        snat::rows(),
        tcp::rows(),
        udp::rows(),
    ]
    .concat()
}

/// The names that rows of one family use.
#[derive(Clone, Copy)]
struct Family {
    name: &'static str,
    client: &'static str,
    /// The client's second port.
    client_too: &'static str,
    stranger: &'static str,
    pod: &'static str,
    /// The pod's address and the one port of [`super::row::Snat::Low`].
    pod_source: &'static str,
    cluster_ip: &'static str,
    external: &'static str,
    node_port: &'static str,
    local: &'static str,
    local_too: &'static str,
    remote: &'static str,
    remote_too: &'static str,
    /// Node address and the one port of [`super::row::Snat::Low`].
    source: &'static str,
}

const V4: Family = Family {
    name: "v4",
    client: "198.51.100.7:4000",
    client_too: "198.51.100.7:4001",
    stranger: "198.51.100.8:4000",
    pod: "10.244.1.6:4000",
    pod_source: "10.244.1.6:20000",
    cluster_ip: "10.96.0.1:80",
    external: "203.0.113.80:80",
    node_port: "192.0.2.1:30080",
    local: "10.244.1.5:8080",
    local_too: "10.244.1.6:8080",
    remote: "10.244.2.5:8080",
    remote_too: "10.244.2.6:8080",
    source: "192.0.2.1:20000",
};

const V6: Family = Family {
    name: "v6",
    client: "[2001:db8:ffff::7]:4000",
    client_too: "[2001:db8:ffff::7]:4001",
    stranger: "[2001:db8:ffff::8]:4000",
    pod: "[fd00:1::6]:4000",
    pod_source: "[fd00:1::6]:20000",
    cluster_ip: "[fd00:96::1]:80",
    external: "[2001:db8:100::80]:80",
    node_port: "[2001:db8:1::1]:30080",
    local: "[fd00:1::5]:8080",
    local_too: "[fd00:1::6]:8080",
    remote: "[fd00:2::5]:8080",
    remote_too: "[fd00:2::6]:8080",
    source: "[2001:db8:1::1]:20000",
};

impl Family {
    /// A Service with every kind of frontend and no endpoint yet.
    fn service(&self, proto: Proto) -> Service {
        Service::new(proto).cluster_ip(self.cluster_ip).external(self.external).node_port(30_080)
    }
}

/// A row's name with its family.
fn named(what: &str, family: &Family) -> Row {
    // Rows live as long as the test.
    Row::new(String::leak(format!("{what}, {}", family.name)))
}

/// A first packet of the protocol.
fn first(proto: Proto, from: &str, to: &str) -> Packet {
    if proto == Proto::TCP { tcp(from, to, "S") } else { udp(from, to) }
}

/// The answer to it.
fn reply(proto: Proto, from: &str, to: &str) -> Packet {
    if proto == Proto::TCP {
        tcp(from, to, "SA").seq(9000).ack(1001)
    } else {
        udp(from, to).payload(b"answer")
    }
}

/// A TCP connection from a client outside to a backend on another node, packet by packet.
#[derive(Clone, Copy)]
struct Connection {
    client: &'static str,
    frontend: &'static str,
    backend: &'static str,
    source: &'static str,
}

impl Connection {
    const fn new(family: &Family) -> Self {
        Self {
            client: family.client,
            frontend: family.node_port,
            backend: family.remote,
            source: family.source,
        }
    }

    /// A packet as the client sends it.
    fn ask(&self, flags: &str) -> Packet {
        tcp(self.client, self.frontend, flags)
    }

    /// What becomes of it.
    fn asked(&self, packet: &Packet) -> Packet {
        packet.from(self.source).to(self.backend).ttl(63)
    }

    /// A packet as the backend sends it.
    fn answer(&self, flags: &str) -> Packet {
        tcp(self.backend, self.source, flags)
    }

    /// What becomes of it.
    fn answered(&self, packet: &Packet) -> Packet {
        packet.from(self.frontend).to(self.client).ttl(63)
    }

    /// SYN, SYN-ACK and the ACK that confirms.
    fn open(&self, row: &mut Row) {
        let syn = self.ask("S").seq(1000);
        row.outside(&syn).redirected(PassReason::NewFlow, ETH0, &self.asked(&syn));
        let syn_ack = self.answer("SA").seq(9000).ack(1001);
        row.outside(&syn_ack).redirected(PassReason::Reply, ETH0, &self.answered(&syn_ack));
        let ack = self.ask("A").seq(1001).ack(9001);
        row.outside(&ack).noting(Reason::Confirmed).redirected(PassReason::Forward, ETH0, &self.asked(&ack));
    }

    /// Data both ways, which XDP finishes.
    fn talk(&self, row: &mut Row) {
        let data = self.ask("PA").seq(1001).ack(9001).payload(b"GET / HTTP/1.1\r\n\r\n");
        row.outside(&data).by_xdp().redirected(PassReason::Forward, ETH0, &self.asked(&data));
        let reply = self.answer("PA").seq(9001).ack(1019).payload(b"HTTP/1.1 204 No Content\r\n\r\n");
        row.outside(&reply).by_xdp().redirected(PassReason::Reply, ETH0, &self.answered(&reply));
    }
}
