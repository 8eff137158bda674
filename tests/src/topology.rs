//! A small network of namespaces: a client outside, two nodes, pods on both.
//!
//! ```text
//!   client ──┐                    172.30.0.100   fd00:30::100
//!            ├─ wire (bridge)
//!   node1 ───┤                    172.30.0.1     fd00:30::1     weir runs here
//!   node2 ───┘                    172.30.0.2     fd00:30::2     a plain router
//!     └── pods by veth, /32 and /128 routes on the node's side, as a ptp CNI makes them
//! ```
//!
//! The client has routes to the nodes and, through node1, to load-balancer and external
//! addresses; none to pods: a reply with a pod's address as its source is lost and shows.
//! Nodes masquerade what pods send out of the cluster, as a CNI does.

use crate::helper::{self, Helper};
use crate::manifests::PodSpec;
use crate::netns::Netns;
use crate::scratch::Scratch;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Addresses of the client outside.
pub const CLIENT: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(172, 30, 0, 100), Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 0x100));
/// Addresses of the node that runs the agent.
pub const NODE1: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(172, 30, 0, 1), Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1));
/// Addresses of the other node.
pub const NODE2: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(172, 30, 0, 2), Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 2));
/// All pods, and those of each node.
pub const POD_CIDRS: (&str, &str) = ("10.244.0.0/16", "fd00:10:244::/48");
const POD_CIDRS_OF: [(&str, (&str, &str)); 2] =
    [("node1", ("10.244.1.0/24", "fd00:10:244:1::/64")), ("node2", ("10.244.2.0/24", "fd00:10:244:2::/64"))];
const GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1))];
/// Addresses that nobody owns and that the network routes to node1.
const ROUTED_TO_NODE1: [&str; 4] =
    ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:100::/64", "2001:db8:113::/64"];

/// Where a client runs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// In the client's namespace: another machine, out of reach of the node's hooks.
    Outside,
    /// A host process of node1, in the node's cgroup.
    Host,
    /// In a pod, in the pod's cgroup: socket hooks see it.
    Pod(String),
    /// In a pod's namespace but outside the node's cgroup: only the packet path sees it, as
    /// with virtual machines and mesh opt-outs.
    PodUnhooked(String),
}

impl Place {
    pub fn pod(name: &str) -> Self {
        Self::Pod(name.into())
    }

    pub fn unhooked(name: &str) -> Self {
        Self::PodUnhooked(name.into())
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Outside => f.write_str("outside"),
            Self::Host => f.write_str("host"),
            Self::Pod(name) => write!(f, "pod {name}"),
            Self::PodUnhooked(name) => write!(f, "pod {name} (packet path)"),
        }
    }
}

/// The running network. Dropping it ends its processes and removes every trace.
#[derive(Debug)]
pub struct Topology {
    helpers: Mutex<BTreeMap<Place, Arc<Helper>>>,
    executable: PathBuf,
    pods: Vec<(PodSpec, Netns)>,
    client: Netns,
    nodes: BTreeMap<&'static str, Netns>,
    _wire: Netns,
    /// Links that were made, also of pods that are gone.
    links: AtomicUsize,
    scratch: Scratch,
}

/// A pod that came after the network was built ([`Topology::add_pod`]). Dropping it ends its
/// server and removes its namespace, and with that its link.
#[derive(Debug)]
pub struct AddedPod {
    _server: Helper,
    _netns: Netns,
}

impl Topology {
    /// Builds the network and starts the pods' servers.
    ///
    /// # Errors
    /// Without root, or when the kernel lacks veth, bridge or nftables.
    pub fn new(pods: &[PodSpec]) -> Result<Self> {
        let scratch = Scratch::new()?;
        let named = |name: &str| Netns::new(format!("{}-{name}", scratch.id()));
        let wire = named("wire")?;
        wire.ip(&["link add br0 type bridge", "link set br0 up"])?;
        let client = named("client")?;
        plug(&wire, &client, "client", CLIENT)?;
        let mut nodes = BTreeMap::new();
        for (name, addresses) in [("node1", NODE1), ("node2", NODE2)] {
            let node = named(name)?;
            plug(&wire, &node, name, addresses)?;
            route_as_node(&node, name)?;
            nodes.insert(name, node);
        }
        client.ip(&ROUTED_TO_NODE1.map(|net| format!("route add {net} via {}", via(net, NODE1))))?;
        let executable = helper::executable()?;
        let mut lab = Self {
            helpers: Mutex::default(),
            executable,
            pods: Vec::new(),
            client,
            nodes,
            _wire: wire,
            links: AtomicUsize::new(0),
            scratch,
        };
        for pod in pods {
            let netns = lab.build_pod(pod, &format!("pod-{}", pod.name))?;
            lab.pods.push((pod.clone(), netns));
        }
        for (pod, _) in &lab.pods {
            lab.at(&Place::pod(&pod.name))?.serve(pod)?;
        }
        Ok(lab)
    }

    fn build_pod(&self, pod: &PodSpec, name: &str) -> Result<Netns> {
        let node = self.nodes.get(pod.node.as_str()).with_context(|| format!("no node {}", pod.node))?;
        let netns = Netns::new(format!("{}-{name}", self.scratch.id()))?;
        link_pod(node, &netns, pod, self.links.fetch_add(1, Ordering::Relaxed))?;
        Ok(netns)
    }

    /// Builds another pod and starts its servers. `unique` tells it from all others that
    /// there are at the same time.
    ///
    /// # Errors
    /// When it cannot be built or served.
    pub fn add_pod(&self, pod: &PodSpec, unique: &str) -> Result<AddedPod> {
        let netns = self.build_pod(pod, unique)?;
        let node = if pod.node == "node1" { "node" } else { "elsewhere" };
        let cgroup = self.scratch.cgroup(&format!("{node}/{unique}"))?;
        let server = Helper::start(&self.executable, &netns, Some(&cgroup))?;
        server.serve(pod)?;
        Ok(AddedPod { _server: server, _netns: netns })
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// What the agent's socket hooks are attached to: host processes and pods of node1.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn node_cgroup(&self) -> Result<PathBuf> {
        self.scratch.cgroup("node")
    }

    pub fn pods(&self) -> impl Iterator<Item = &PodSpec> {
        self.pods.iter().map(|(pod, _)| pod)
    }

    /// Addresses of node1's ends of its pods' links.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        GATEWAYS.into_iter()
    }

    /// A pod's address in one family.
    pub fn pod_ip(&self, name: &str, v6: bool) -> Option<IpAddr> {
        let pod = self.pods().find(|pod| pod.name == name)?;
        pod.ips.iter().copied().find(|ip| ip.is_ipv6() == v6)
    }

    pub fn client(&self) -> &Netns {
        &self.client
    }

    /// The namespace of the node that runs the agent.
    pub fn node1(&self) -> &Netns {
        &self.nodes["node1"]
    }

    pub fn node2(&self) -> &Netns {
        &self.nodes["node2"]
    }

    /// # Errors
    /// When there is no such pod.
    pub fn pod(&self, name: &str) -> Result<&Netns> {
        let found = self.pods.iter().find(|(pod, _)| pod.name == name);
        found.map(|(_, netns)| netns).with_context(|| format!("no pod {name}"))
    }

    /// The process that acts for clients at a place; started when asked for the first time.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn at(&self, place: &Place) -> Result<Arc<Helper>> {
        let mut helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helper) = helpers.get(place) {
            return Ok(Arc::clone(helper));
        }
        let helper = Arc::new(self.start_helper(place)?);
        helpers.insert(place.clone(), Arc::clone(&helper));
        Ok(helper)
    }

    /// A further process at a place, for clients that must not wait for each other.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_helper(&self, place: &Place) -> Result<Helper> {
        let (netns, cgroup) = match place {
            Place::Outside => (&self.client, self.scratch.cgroup("outside")?),
            Place::Host => (self.node1(), self.scratch.cgroup("node/host")?),
            Place::Pod(name) => {
                let (pod, netns) =
                    self.pods.iter().find(|(pod, _)| pod.name == *name).context("no such pod")?;
                let node = if pod.node == "node1" { "node" } else { "elsewhere" };
                (netns, self.scratch.cgroup(&format!("{node}/{name}"))?)
            }
            Place::PodUnhooked(name) => (self.pod(name)?, self.scratch.cgroup("unhooked")?),
        };
        Helper::start(&self.executable, netns, Some(&cgroup))
    }
}

/// Connects a namespace's `eth0` to the bridge.
fn plug(wire: &Netns, netns: &Netns, name: &str, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> Result<()> {
    wire.ip(&[
        format!("link add {name} type veth peer name eth0 netns {}", netns.name()),
        format!("link set {name} master br0 up"),
    ])?;
    netns.ip(&[
        format!("addr add {v4}/24 dev eth0"),
        format!("addr add {v6}/64 dev eth0 nodad"),
        "link set eth0 up".into(),
    ])
}

/// Forwarding, the way to the other node's pods, the way out, and a CNI's masquerade.
fn route_as_node(node: &Netns, name: &str) -> Result<()> {
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        node.sysctl(key, "1")?;
    }
    let Some((_, (v4, v6))) = POD_CIDRS_OF.into_iter().find(|(other, _)| *other != name) else {
        bail!("{name} has no peer");
    };
    let peer = if name == "node1" { NODE2 } else { NODE1 };
    node.ip(&[
        format!("route add {v4} via {}", peer.0),
        format!("route add {v6} via {}", peer.1),
        format!("route add default via {}", CLIENT.0),
        format!("route add default via {}", CLIENT.1),
    ])?;
    let (pods4, pods6) = POD_CIDRS;
    node.nft(&format!(
        "table inet cni {{
           chain postrouting {{
             type nat hook postrouting priority srcnat;
             oifname eth0 ip saddr {pods4} ip daddr != {pods4} masquerade
             oifname eth0 ip6 saddr {pods6} ip6 daddr != {pods6} masquerade
           }}
         }}"
    ))
}

/// A veth as a ptp CNI makes it: the node's end has the gateway's address and a route to
/// the pod alone; the pod sends everything to the gateway.
fn link_pod(node: &Netns, netns: &Netns, pod: &PodSpec, number: usize) -> Result<()> {
    let link = format!("veth{number}");
    let Some((_, cidrs)) = POD_CIDRS_OF.into_iter().find(|(node, _)| *node == pod.node) else {
        bail!("{} is on no node", pod.name);
    };
    let gateways = [cidrs.0.replace("0/24", "1"), cidrs.1.replace("::/64", "::1")];
    let mut at_node = vec![format!("link add {link} type veth peer name eth0 netns {}", netns.name())];
    let mut in_pod = vec!["link set eth0 up".to_owned()];
    at_node.push(format!("link set {link} up"));
    for ip in &pod.ips {
        let (gateway, bits, nodad) =
            if ip.is_ipv4() { (&gateways[0], 32, "") } else { (&gateways[1], 128, "nodad") };
        at_node.push(format!("addr add {gateway}/{bits} dev {link} {nodad}"));
        at_node.push(format!("route add {ip}/{bits} dev {link}"));
        in_pod.push(format!("addr add {ip}/{bits} dev eth0 {nodad}"));
        in_pod.push(format!("route add {gateway}/{bits} dev eth0"));
        in_pod.push(format!("route add default via {gateway} dev eth0"));
    }
    node.ip(&at_node)?;
    netns.ip(&in_pod)
}

fn via(net: &str, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> IpAddr {
    if net.contains(':') { v6.into() } else { v4.into() }
}
