#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::args::value::{Devices, NodePortAddresses};
use crate::node::{Address, Options, Tables, derive};
use lb_common::abi::{Family, Held, prefix_set};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addr(text: &str) -> Addr {
    ip(text).into()
}

fn frontend(service: u32, flags: FrontendFlags, inside: u32, outside: u32) -> Frontend {
    let table = |count| Table { count, ..Table::default() };
    Frontend { service, flags, affinity_seconds: 0, pad: 0, inside: table(inside), outside: table(outside) }
}

/// A node 192.0.2.1 with a second address that node ports leave out, one Service with a
/// local and a remote endpoint, one without, one whose Local policy leaves nothing here.
struct World {
    programmed: Programmed,
    services: BTreeMap<ObjectKey, ServiceState>,
    node: NodeState,
    inputs: Inputs,
    affinity: BTreeMap<AffinityKey, (BackendId, u64)>,
}

fn world() -> World {
    let mut tables = Tables::default();
    for own in ["192.0.2.1", "198.51.100.7"] {
        tables.local.insert(ip(own));
        let prefix = format!("{own}/24").parse().unwrap();
        tables.addresses.push(Address { ifindex: 2, prefix, global: true, deprecated: false });
    }
    let options =
        Options { devices: Devices::Auto, pod_devices: true, nodeport_addresses: NodePortAddresses::Primary };
    let mut inputs = Inputs { internal_ips: vec![ip("192.0.2.1")], ..Inputs::default() };
    inputs.pod_ips.insert(ip("10.244.0.5"));
    let mut world = World {
        programmed: Programmed::default(),
        services: BTreeMap::new(),
        node: derive(&tables, &options, &inputs),
        inputs,
        affinity: BTreeMap::new(),
    };
    let all = BackendFlags::CLUSTER.with(BackendFlags::INSIDE).with(BackendFlags::OUTSIDE);
    world.service(
        1,
        "web",
        "10.96.0.1",
        80,
        30080,
        &[("10.244.0.5", all.with(BackendFlags::LOCAL)), ("10.244.1.6", all)],
    );
    world.service(2, "empty", "10.96.0.2", 80, 0, &[]);
    world.service(
        3,
        "elsewhere",
        "10.96.0.3",
        80,
        30081,
        &[("10.244.1.9", BackendFlags::CLUSTER.with(BackendFlags::INSIDE))],
    );
    for (text, bits, held) in
        [("10.96.0.0", 16, Held::MEMBER), ("10.96.0.1", 32, Held::TAKEN), ("10.96.9.8", 32, Held::FOREIGN)]
    {
        let at = addr(text);
        world.programmed.reach.insert(Prefix::new(prefix_set::services(&at), at, bits), held);
    }
    world
}

impl World {
    fn service(
        &mut self,
        id: u32,
        name: &str,
        at: &str,
        port: u16,
        node_port: u16,
        backends: &[(&str, BackendFlags)],
    ) {
        let count = |flag| backends.iter().filter(|(_, flags)| flags.has(flag)).count() as u32;
        let (cluster, inside, outside) =
            (count(BackendFlags::CLUSTER), count(BackendFlags::INSIDE), count(BackendFlags::OUTSIDE));
        let mut frontends = vec![FrontendState { addr: addr(at), port, kind: FrontendKind::ClusterIp }];
        let key = FrontendKey::new(addr(at), Be16::new(port), Proto::TCP);
        self.programmed.frontends.insert(key, frontend(id, FrontendFlags::CLUSTER_IP, cluster, cluster));
        if node_port != 0 {
            let mut flags = FrontendFlags::NODE_PORT;
            if outside == 0 && inside > 0 {
                flags = flags.with(FrontendFlags::OUTSIDE_DROPS);
            }
            let key = FrontendKey::new(Addr::ANY_V4, Be16::new(node_port), Proto::TCP);
            self.programmed.frontends.insert(key, frontend(id, flags, inside, outside));
            frontends.push(FrontendState {
                addr: Addr::ANY_V4,
                port: node_port,
                kind: FrontendKind::NodePort,
            });
        }
        let states = backends.iter().map(|(at, flags)| BackendState {
            addr: addr(at),
            port: 8080,
            local: flags.has(BackendFlags::LOCAL),
            serving: true,
            in_cluster_ip: flags.has(BackendFlags::CLUSTER),
            in_inside: flags.has(BackendFlags::INSIDE),
            in_outside: flags.has(BackendFlags::OUTSIDE),
        });
        let state = PortState {
            frontends,
            backends: states.collect(),
            affinity_seconds: 0,
            source_ranges: None,
            cluster_ip_drops: false,
            inside_drops: false,
            outside_drops: false,
            masquerades: false,
        };
        for (n, (at, flags)) in (1..).zip(backends) {
            let backend = Backend {
                addr: addr(at),
                service: id,
                port: Be16::new(8080),
                proto: Proto::TCP,
                flags: *flags,
            };
            self.programmed.backends.insert(id * 10 + n, backend);
        }
        let service = ObjectKey::new("default", name);
        let key = PortKey {
            service: service.clone(),
            port_name: "http".into(),
            proto: Proto::TCP,
            family: Family::V4,
        };
        let state = ServiceState { ports: BTreeMap::from([(key, state)]), ..ServiceState::default() };
        self.services.insert(service, state);
    }

    fn explain(&self, target: &str, from: Option<&str>) -> Explanation {
        let mut view = View {
            programmed: self.programmed.clone(),
            services: &self.services,
            node: &self.node,
            inputs: &self.inputs,
            slots: &mut |_| Vec::new(),
            affinity: &mut |key| self.affinity.get(key).copied(),
        };
        explain(&mut view, &parse(target).unwrap(), from.map(ip))
    }
}

#[test]
fn outcomes_and_their_reasons() {
    let world = world();
    for (target, from, outcome, words) in [
        (
            "10.96.0.1:80",
            None,
            Outcome::Served,
            &["default/web", "ClusterIP", "any of 2", "10.244.1.6:8080"][..],
        ),
        ("svc/default/web:80", None, Outcome::Served, &["default/web", "10.244.0.5:8080"]),
        ("svc/default/web:http", None, Outcome::Served, &["default/web"]),
        (
            "192.0.2.1:30080",
            None,
            Outcome::Served,
            &["node port", "outside", "elsewhere it becomes this node's (192.0.2.1"],
        ),
        ("192.0.2.1:30080", Some("10.244.0.9"), Outcome::Served, &["outside"]),
        (
            "192.0.2.1:30080",
            Some("10.244.0.5"),
            Outcome::Served,
            &["inside", "if the client itself is chosen"],
        ),
        ("10.96.0.2:80", None, Outcome::Refused, &["no_endpoint", "ECONNREFUSED"]),
        ("svc/default/empty:80", None, Outcome::Refused, &["default/empty"]),
        ("192.0.2.1:30081", None, Outcome::Dropped, &["no_local_endpoint", "default/elsewhere"]),
        ("192.0.2.1:30081", Some("192.0.2.1"), Outcome::Served, &["this node itself", "the only one"]),
        (
            "198.51.100.7:30080",
            None,
            Outcome::NotBalanced,
            &["--nodeport-addresses leaves 198.51.100.7 out", "192.0.2.1:30080/TCP would answer"],
        ),
        (
            "10.96.0.1:81",
            None,
            Outcome::Refused,
            &["undefined_port", "10.96.0.1:80/TCP of default/web is another port"],
        ),
        ("10.96.0.1:80/udp", None, Outcome::Refused, &["same port in another protocol"]),
        ("10.96.9.9:80", None, Outcome::Dropped, &["unallocated", "no Service has it"]),
        ("10.96.9.8:80", None, Outcome::NotBalanced, &["another proxy"]),
        ("10.244.1.6:8080", None, Outcome::NotBalanced, &["endpoint of default/web"]),
        ("203.0.113.1:30080", None, Outcome::NotBalanced, &["not an address of this node"]),
        ("127.0.0.1:30080", None, Outcome::NotBalanced, &["loopback"]),
        ("svc/default/nobody:80", None, Outcome::NotBalanced, &["There is no Service default/nobody"]),
        (
            "svc/default/web:81",
            None,
            Outcome::NotBalanced,
            &["has no port 81; it has 30080/TCP (http), 80/TCP (http)"],
        ),
        ("https://example.com/", None, Outcome::NotBalanced, &["L7 is off"]),
    ] {
        let told = world.explain(target, from);
        let text = told.text();
        assert_eq!(told.outcome, outcome, "{text}");
        assert_eq!(told.served, outcome == Outcome::Served);
        for word in words {
            assert!(text.contains(word), "{word} is missing:\n{text}");
        }
    }
}

#[test]
fn affinity_names_the_backend_that_the_client_used() {
    let mut world = world();
    let frontend = world.programmed.frontends.values_mut().find(|frontend| frontend.service == 1).unwrap();
    frontend.affinity_seconds = 100;
    let key = FrontendKey::new(addr("10.96.0.1"), Be16::new(80), Proto::TCP);
    world.programmed.frontends.get_mut(&key).unwrap().affinity_seconds = 100;
    let client = AffinityKey { client: addr("10.244.0.5"), service: 1 };
    world.affinity.insert(client, (12, 7));
    let told = world.explain("10.96.0.1:80", Some("10.244.0.5"));
    assert!(told.choice.clone().unwrap().contains("used 7 s ago, 10.244.1.6:8080"), "{told:?}");
    assert_eq!(told.translation.unwrap().destination, "10.244.1.6:8080");
    // Too old: chosen anew.
    world.affinity.insert(client, (12, 101));
    assert!(world.explain("10.96.0.1:80", Some("10.244.0.5")).choice.unwrap().contains("any of 2"));
}

#[test]
fn a_retired_frontend_takes_no_new_flows() {
    let mut world = world();
    let key = FrontendKey::new(addr("10.96.0.1"), Be16::new(80), Proto::TCP);
    world
        .programmed
        .frontends
        .insert(key, frontend(1, FrontendFlags::CLUSTER_IP.with(FrontendFlags::RETIRED), 0, 0));
    let told = world.explain("10.96.0.1:80", None);
    assert_eq!(told.outcome, Outcome::NotBalanced);
    assert!(told.text().contains("is gone"), "{}", told.text());
}
