//! One small network for each variant: a client pod, a server pod and a client outside, all
//! behind one node.
//!
//! ```text
//!   outside 172.30.0.100 ── eth0 172.30.0.1 node 10.244.1.1 ── veth0 ── client 10.244.1.2
//!                                                           └─ veth1 ── server 10.244.1.10 … .19
//! ```
//!
//! Pods hang on veths with host routes, as a ptp CNI makes them. The node has no netfilter
//! rule unless the variant brings some. The server answers on ten addresses: ten endpoints.

use super::worker::Worker;
use crate::netns::Netns;
use crate::scratch::Scratch;
use anyhow::Result;
use std::net::Ipv4Addr;

pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
/// Endpoints of a Service.
pub(super) const ENDPOINTS: u8 = 10;

/// Where clients and servers run.
const CLIENT_CPU: usize = 0;
const SERVER_CPU: usize = 1;

/// Addresses of the server pod.
pub(super) fn servers() -> Vec<Ipv4Addr> {
    (0..ENDPOINTS).map(|n| Ipv4Addr::new(10, 244, 1, 10 + n)).collect()
}

/// The network and its processes. Dropping it removes every trace.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) client: Worker,
    pub(super) outside: Worker,
    pub(super) server: Worker,
    _pods: [Netns; 2],
    _outside: Netns,
    pub(super) node: Netns,
    pub(super) scratch: Scratch,
}

impl Rig {
    /// Builds the network; `hooked` puts the client pod into the node's cgroup, where socket
    /// hooks see it; `realtime` is for its workers.
    pub(super) fn new(hooked: bool, realtime: bool) -> Result<Self> {
        let scratch = Scratch::new()?;
        let named = |name: &str| Netns::new(format!("{}-{name}", scratch.id()));
        let (node, outside, client, server) =
            (named("node")?, named("outside")?, named("client")?, named("server")?);
        node.sysctl("net/ipv4/ip_forward", "1")?;
        node.ip(&[
            format!("link add eth0 type veth peer name eth0 netns {}", outside.name()),
            format!("addr add {NODE}/24 dev eth0"),
            "link set eth0 up".to_owned(),
        ])?;
        outside.ip(&[
            format!("addr add {OUTSIDE}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add 10.0.0.0/8 via {NODE}"),
        ])?;
        node.ip(&[format!("route add default via {OUTSIDE}")])?;
        plug(&node, "veth0", &client, &[CLIENT])?;
        plug(&node, "veth1", &server, &servers())?;
        for netns in [&client, &outside] {
            // Ten thousand connections a second come back to the same ports soon.
            netns.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        }
        let client_cgroup = scratch.cgroup(if hooked { "node/client" } else { "elsewhere/client" })?;
        let mut serving = Worker::start(&server, &scratch.cgroup("node/server")?, SERVER_CPU, realtime)?;
        serving.serve(&servers())?;
        Ok(Self {
            client: Worker::start(&client, &client_cgroup, CLIENT_CPU, realtime)?,
            outside: Worker::start(&outside, &scratch.cgroup("elsewhere/outside")?, CLIENT_CPU, realtime)?,
            server: serving,
            _pods: [client, server],
            _outside: outside,
            node,
            scratch,
        })
    }
}

fn plug(node: &Netns, link: &str, pod: &Netns, addresses: &[Ipv4Addr]) -> Result<()> {
    let mut at_node = vec![
        format!("link add {link} type veth peer name eth0 netns {}", pod.name()),
        format!("link set {link} up"),
        format!("addr add {GATEWAY}/32 dev {link}"),
    ];
    let mut in_pod = vec!["link set eth0 up".to_owned()];
    for address in addresses {
        at_node.push(format!("route add {address}/32 dev {link}"));
        in_pod.push(format!("addr add {address}/32 dev eth0"));
    }
    in_pod.push(format!("route add {GATEWAY}/32 dev eth0"));
    in_pod.push(format!("route add default via {GATEWAY} dev eth0"));
    node.ip(&at_node)?;
    pod.ip(&in_pod)
}
