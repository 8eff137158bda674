//! Node facts against a real kernel, in a network namespace of the test's own.
//!
//! Needs root: run with `sudo -E cargo test -p lb-userspace --test node`.
#![expect(clippy::unwrap_used, reason = "tests")]

use lb_common::abi::Addr;
use std::future::Future;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weir::args::value::{Devices, NodePortAddresses};
use weir::node::{Inputs, LinkClass, NodeState, Options, Tables, derive, follow};

/// Runs `body` on a thread that is alone in a new network namespace.
fn in_namespace<F: Future<Output = ()>>(body: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("a network namespace needs root: sudo -E cargo test -p lb-userspace --test node");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body());
    });
    thread.join().unwrap();
}

fn ip(command: &str) {
    let output = Command::new("ip").args(command.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Node {
    tables: watch::Receiver<Arc<Tables>>,
    inputs: Inputs,
}

impl Node {
    fn new(pods: &[&str]) -> Self {
        let (sender, tables) = watch::channel(Arc::default());
        tokio::spawn(follow(sender));
        let pod_ips = pods.iter().map(|pod| pod.parse().unwrap()).collect();
        Self { tables, inputs: Inputs { pod_ips, ..Inputs::default() } }
    }

    /// Waits until the facts satisfy `condition`.
    async fn until(&mut self, what: &str, condition: impl Fn(&NodeState) -> bool) {
        let options =
            Options { devices: Devices::Auto, pod_devices: true, nodeport_addresses: NodePortAddresses::All };
        let mut last = None;
        let wait = async {
            loop {
                let state = derive(&self.tables.borrow_and_update().clone(), &options, &self.inputs);
                if condition(&state) {
                    return;
                }
                last = Some(state);
                self.tables.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), wait).await.is_err() {
            panic!("{what}: {last:#?}");
        }
    }
}

fn has(state: &NodeState, ip: &str) -> bool {
    state.facts.addresses.contains_key(&Addr::from(ip.parse::<IpAddr>().unwrap()))
}

fn class(state: &NodeState, name: &str) -> Option<LinkClass> {
    state.links.iter().find(|link| link.name == name).map(|link| link.class)
}

#[test]
fn addresses_come_and_go_live() {
    in_namespace(|| async {
        let mut node = Node::new(&[]);
        ip("link add eth0 type veth peer name peer0");
        ip("link set eth0 up");
        ip("address add 192.0.2.1/24 dev eth0");
        node.until("first", |state| {
            has(state, "192.0.2.1") && class(state, "eth0") == Some(LinkClass::External)
        })
        .await;
        ip("address add 192.0.2.50/32 dev eth0");
        ip("address add 2001:db8::1/64 dev eth0 nodad");
        node.until("added", |state| has(state, "192.0.2.50") && has(state, "2001:db8::1")).await;
        ip("address del 192.0.2.50/32 dev eth0");
        node.until("gone", |state| !has(state, "192.0.2.50") && has(state, "192.0.2.1")).await;
        // An address that only the local table knows, as some balancers set up.
        ip("link set lo up");
        ip("route add local 203.0.113.9/32 dev lo");
        node.until("local route", |state| has(state, "203.0.113.9")).await;
        ip("link set eth0 down");
        node.until("down", |state| class(state, "eth0").is_none()).await;
    });
}

#[test]
fn a_host_route_makes_a_pod_link() {
    in_namespace(|| async {
        let mut node = Node::new(&["10.244.0.5", "fd00:244::5"]);
        ip("link add pod5 type veth peer name peer5");
        ip("link set pod5 up");
        ip("route add 10.244.0.5/32 dev pod5");
        node.until("v4", |state| class(state, "pod5") == Some(LinkClass::Pod)).await;
        assert!(node.tables.borrow().links.values().any(|link| link.kind.as_deref() == Some("veth")));
        ip("route del 10.244.0.5/32 dev pod5");
        node.until("route gone", |state| class(state, "pod5").is_none()).await;
        ip("-6 route add fd00:244::5/128 dev pod5");
        node.until("v6", |state| class(state, "pod5") == Some(LinkClass::Pod)).await;
        ip("link del pod5");
        node.until("link gone", |state| state.links.is_empty()).await;
    });
}

#[test]
fn ports_of_a_pod_bridge_are_pod_links() {
    in_namespace(|| async {
        let mut node = Node::new(&["10.244.0.9"]);
        ip("link add cni0 type bridge");
        ip("link set cni0 up");
        ip("address add 10.244.0.1/24 dev cni0");
        ip("link add veth9 type veth peer name peer9");
        ip("link set veth9 up master cni0");
        node.until("port", |state| {
            class(state, "veth9") == Some(LinkClass::Pod) && class(state, "cni0").is_none()
        })
        .await;
        ip("link set veth9 nomaster");
        node.until("unplugged", |state| class(state, "veth9").is_none()).await;
    });
}

#[test]
fn a_tunnel_has_no_ethernet_header() {
    in_namespace(|| async {
        let mut node = Node::new(&[]);
        ip("tuntap add dev tun0 mode tun");
        ip("link set tun0 up");
        ip("address add 10.9.0.1/24 dev tun0");
        node.until("tun", |state| {
            state.links.iter().any(|link| link.name == "tun0" && link.l3 && !link.xdp_capable)
        })
        .await;
    });
}
