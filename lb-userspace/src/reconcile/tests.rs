#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::args::value::{Devices, NodePortAddresses};
use crate::datapath::sim::Sim;
use crate::datapath::{Capacity, LinkPlan, Sweep};
use crate::node::Link;
use crate::source::{Endpoint, EndpointSlice, Service, ServicePort, ServiceType, SlicePort};
use lb_common::abi::{Addr, Be16, FrontendFlags, FrontendKey, Proto, Reason, ServiceCounters, ServiceId};
use lb_common::path::Tables as _;
use std::sync::Mutex;

const ROOM: Capacity = Capacity {
    frontends: 64,
    backends: 64,
    table_blocks: 64,
    flows: 64,
    transient: 64,
    services: 64,
    prefixes: 64,
};

/// What is in the "kernel", and what it was told.
pub(super) struct Kernel {
    sim: Sim,
    hooks: Vec<Hook>,
    attached: Vec<Vec<LinkPlan>>,
    /// Whether the last call kept links of unknown devices.
    kept: bool,
    flows: BTreeMap<ServiceId, u32>,
}

/// The data path's side of a [`Kernel`] that outlives it, as the real one does.
struct Shared(Arc<Mutex<Kernel>>);

impl Datapath for Shared {
    fn capacity(&self) -> Capacity {
        self.0.lock().unwrap().sim.capacity()
    }
    fn read(&mut self) -> anyhow::Result<Programmed> {
        self.0.lock().unwrap().sim.read()
    }
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        self.0.lock().unwrap().sim.apply(ops)
    }
    fn set_node(&mut self, facts: &NodeFacts) -> anyhow::Result<()> {
        self.0.lock().unwrap().sim.set_node(facts)
    }
    fn counters(&mut self) -> Vec<u64> {
        self.0.lock().unwrap().sim.counters()
    }
    fn service_counters(&mut self, service: ServiceId) -> ServiceCounters {
        self.0.lock().unwrap().sim.service_counters(service)
    }
    fn attach(&mut self, links: &[LinkPlan], keep_unknown: bool) -> Vec<Hook> {
        let mut kernel = self.0.lock().unwrap();
        kernel.kept = keep_unknown;
        kernel.attached.push(links.to_vec());
        kernel.hooks.clone()
    }
}

pub(super) struct Rig {
    kernel: Arc<Mutex<Kernel>>,
    pub(super) board: Arc<Board>,
    pub(super) reconciler: Reconciler,
}

fn start(kernel: &Arc<Mutex<Kernel>>) -> Rig {
    rig_with(kernel, None)
}

pub(super) fn rig_with(kernel: &Arc<Mutex<Kernel>>, l7: Option<L7Parts>) -> Rig {
    let board = Arc::<Board>::default();
    let reconciler = Reconciler::new(Parts {
        node_name: "n".into(),
        node_required: true,
        model: ModelOptions::default(),
        node: Options {
            devices: Devices::Auto,
            pod_devices: true,
            nodeport_addresses: NodePortAddresses::All,
        },
        datapath: Box::new(Shared(Arc::clone(kernel))),
        board: Arc::clone(&board),
        l7,
        metrics: Arc::default(),
        service_cidrs: Vec::new(),
        cluster_cidrs: None,
        health: tokio::sync::watch::Sender::default(),
        problems: Vec::new(),
    });
    let mut rig = Rig { kernel: Arc::clone(kernel), board, reconciler: reconciler.unwrap() };
    rig.reconciler.set_tables(Arc::default());
    rig
}

pub(super) fn kernel() -> Arc<Mutex<Kernel>> {
    let sim = Sim::new(ROOM);
    Arc::new(Mutex::new(Kernel {
        sim,
        hooks: Vec::new(),
        attached: Vec::new(),
        kept: false,
        flows: BTreeMap::new(),
    }))
}

impl Rig {
    pub(super) fn take(&mut self, batch: Batch) {
        self.reconciler.take(Instant::now(), batch);
        self.reconciler.round();
    }

    /// Runs rounds until nothing waits to be tried again.
    fn settle(&mut self) {
        for _ in 0..200 {
            if self.reconciler.retries.len() == 0 && !self.reconciler.leftovers {
                return;
            }
            let soon = self.reconciler.retries.next();
            let wait = soon.map(|due| due.saturating_duration_since(Instant::now())).unwrap_or_default();
            std::thread::park_timeout(wait);
            self.reconciler.round();
        }
        panic!("never settled: {:?}", self.board.problems());
    }

    /// A round after a sweep that began so many seconds after the start.
    fn sweep(&mut self, seconds: u64) {
        let flows = self.kernel.lock().unwrap().flows.clone();
        let began = self.reconciler.started + Duration::from_secs(seconds);
        self.reconciler.set_swept(Swept {
            began,
            took: Duration::ZERO,
            sweep: Sweep { flows, ..Sweep::default() },
        });
        self.reconciler.round();
    }

    fn frontends(&self) -> Vec<String> {
        let kernel = self.kernel.lock().unwrap();
        let live =
            kernel.sim.frontends.iter().filter(|(_, frontend)| !frontend.flags.has(FrontendFlags::RETIRED));
        live.map(|(key, _)| format!("{}:{}", key.addr, key.port)).collect()
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn service(name: &str, ip: &str) -> Object {
    Object::Service(Service {
        key: key(name),
        kind: ServiceType::NodePort,
        cluster_ips: vec![ip.parse().unwrap()],
        ports: vec![ServicePort {
            name: String::new(),
            proto: Proto::TCP,
            port: 80,
            node_port: 30080,
            target_port: None,
            app_protocol: None,
        }],
        ..Service::default()
    })
}

fn slice(name: &str, ips: &[&str]) -> Object {
    Object::EndpointSlice(EndpointSlice {
        key: key(&format!("{name}-1")),
        service: key(name),
        managed: true,
        headless: false,
        ports: vec![SlicePort { name: String::new(), proto: Proto::TCP, port: 8080 }],
        endpoints: ips
            .iter()
            .map(|ip| Endpoint {
                addr: ip.parse().unwrap(),
                ready: true,
                serving: true,
                terminating: false,
                node: Some("n".into()),
                zone: None,
                hint_zones: Vec::new(),
                hint_nodes: Vec::new(),
            })
            .collect(),
        trigger_time: None,
        problems: Vec::new(),
    })
}

fn node() -> Object {
    Object::Node(crate::source::Node { name: "n".into(), ..crate::source::Node::default() })
}

fn lists(services: Vec<Object>, slices: Vec<Object>) -> Batch {
    vec![
        Change::Replace(Kind::Node, vec![node()]),
        Change::Replace(Kind::Service, services),
        Change::Replace(Kind::EndpointSlice, slices),
    ]
}

fn web() -> Batch {
    lists(vec![service("web", "10.96.0.1")], vec![slice("web", &["10.244.0.5"])])
}

#[test]
fn nothing_is_planned_before_every_kind_is_listed() {
    let mut rig = start(&kernel());
    rig.take(vec![Change::Replace(Kind::Service, vec![service("web", "10.96.0.1")])]);
    rig.take(vec![Change::Replace(Kind::Node, vec![node()])]);
    assert!(rig.frontends().is_empty());
    assert_eq!(rig.board.snapshot().phase, Phase::Listing);
    rig.take(vec![Change::Replace(Kind::EndpointSlice, vec![slice("web", &["10.244.0.5"])])]);
    assert_eq!(rig.frontends().len(), 2);
    assert_eq!(rig.board.snapshot().phase, Phase::Synced);
    assert!(rig.board.snapshot().ready());
}

#[test]
fn a_restart_waits_for_lists_keeps_ids_and_removes_what_is_gone() {
    let kernel = kernel();
    let mut both = web();
    both.push(Change::Upsert(service("old", "10.96.0.2")));
    start(&kernel).take(both);
    let before = kernel.lock().unwrap().sim.frontends.clone();

    let mut rig = start(&kernel);
    rig.reconciler.round();
    assert_eq!(rig.kernel.lock().unwrap().sim.frontends, before);
    rig.take(web());
    rig.settle();
    assert!(!rig.frontends().contains(&"10.96.0.2:80".to_string()), "{:?}", rig.frontends());
    let web = FrontendKey::new(Addr::from("10.96.0.1".parse::<IpAddr>().unwrap()), Be16::new(80), Proto::TCP);
    assert_eq!(rig.kernel.lock().unwrap().sim.frontends[&web].service, before[&web].service);
}

#[test]
fn retired_frontends_are_forgotten_once_no_flow_is_left() {
    let mut rig = start(&kernel());
    rig.take(web());
    let id = *rig.kernel.lock().unwrap().sim.frontends.values().map(|f| &f.service).next().unwrap();
    rig.kernel.lock().unwrap().flows.insert(id, 1);
    rig.take(vec![Change::Replace(Kind::Service, vec![])]);
    rig.sweep(60);
    assert!(rig.frontends().is_empty());
    assert_eq!(rig.kernel.lock().unwrap().sim.frontends.len(), 2);
    rig.kernel.lock().unwrap().flows.clear();
    // It began before they were retired, and may have missed a flow that was opened then.
    rig.sweep(0);
    assert_eq!(rig.kernel.lock().unwrap().sim.frontends.len(), 2);
    rig.sweep(60);
    assert!(rig.kernel.lock().unwrap().sim.frontends.is_empty());
}

/// H52: whoever runs the node is told, for as long as it goes on.
#[test]
fn refused_flows_are_a_problem_while_they_are_refused() {
    let kernel = kernel();
    let refuse = || kernel.lock().unwrap().sim.count(Reason::FlowsFull.slot());
    refuse();
    let mut rig = start(&kernel);
    let told = |rig: &Rig| rig.board.problems().iter().filter(|p| p.field == "--conntrack-max").count();
    rig.take(web());
    rig.sweep(1);
    assert_eq!(told(&rig), 0, "that was an earlier agent's");
    refuse();
    rig.sweep(2);
    assert_eq!(told(&rig), 1, "{:?}", rig.board.problems());
    rig.sweep(3);
    assert_eq!(told(&rig), 0);
}

#[test]
fn a_failing_map_is_told_and_tried_again_until_it_is_right() {
    let calm = {
        let mut rig = start(&kernel());
        rig.take(web());
        let kernel = rig.kernel.lock().unwrap();
        kernel.sim.text()
    };
    let mut rig = start(&kernel());
    rig.kernel.lock().unwrap().sim.fail_every(Some(2));
    rig.take(web());
    assert!(
        rig.board
            .problems()
            .iter()
            .any(|problem| problem.object.key == key("web") && problem.field == "datapath")
    );
    assert!(rig.board.snapshot().pending_ops > 0);
    rig.kernel.lock().unwrap().sim.fail_every(None);
    rig.settle();
    assert_eq!(rig.board.problems(), Vec::new());
    assert_eq!(rig.kernel.lock().unwrap().sim.text(), calm);
}

#[test]
fn the_slow_check_repairs_what_somebody_else_changed() {
    let mut rig = start(&kernel());
    rig.take(web());
    let before = rig.frontends();
    let calls = rig.kernel.lock().unwrap().attached.len();
    rig.kernel.lock().unwrap().sim.frontends.clear();
    rig.reconciler.next_check = Instant::now();
    rig.reconciler.round();
    rig.settle();
    assert_eq!(rig.frontends(), before);
    // Hooks are said again as well: what was detached comes back.
    assert_eq!(rig.kernel.lock().unwrap().attached.len(), calls + 1);
}

#[test]
fn a_missing_hook_is_told_and_tried_again() {
    let kernel = kernel();
    let hook = Hook { place: "eth0".into(), hook: "tcx ingress".into(), error: Some("busy".into()) };
    kernel.lock().unwrap().hooks = vec![hook.clone()];
    let mut rig = start(&kernel);
    rig.take(web());
    assert!(!rig.board.snapshot().ready());
    assert!(rig.board.problems().iter().any(|problem| problem.reason.contains("eth0")));
    rig.kernel.lock().unwrap().hooks = vec![Hook { error: None, ..hook }];
    assert!(rig.reconciler.next_wake() < Instant::now() + CHECK / 2);
    rig.reconciler.node_retry = Some(Instant::now());
    rig.reconciler.round();
    assert!(rig.board.snapshot().ready());
    assert_eq!(rig.board.problems(), Vec::new());
}

/// A device that leads to the pod at 10.244.0.5.
fn pod_device() -> Arc<Tables> {
    let mut tables = Tables::default();
    let veth = Link {
        name: "veth5".into(),
        kind: Some("veth".into()),
        up: true,
        loopback: false,
        ethernet: true,
        controller: None,
    };
    tables.links.insert(5, veth);
    let destination = "10.244.0.5/32".parse().unwrap();
    tables.routes.push(crate::node::Route {
        destination,
        ifindex: 5,
        gateway: false,
        metric: 0,
        source: None,
    });
    Arc::new(tables)
}

#[test]
fn a_restart_touches_no_hook_before_pods_are_listed_or_waited_for_in_vain() {
    let kernel = kernel();
    start(&kernel).take(web());
    let calls = || kernel.lock().unwrap().attached.len();
    let before = calls();
    let mut rig = start(&kernel);
    rig.take(web());
    assert_eq!(calls(), before);
    assert_eq!((rig.board.snapshot().phase, rig.board.snapshot().ready()), (Phase::Synced, false));
    rig.reconciler.pods = PodWait::Waiting(Instant::now());
    rig.reconciler.round();
    assert_eq!((calls(), kernel.lock().unwrap().kept), (before + 1, true));
    assert!(rig.board.snapshot().ready());
    rig.take(vec![Change::Replace(Kind::Pod, Vec::new())]);
    assert_eq!((calls(), kernel.lock().unwrap().kept), (before + 2, false));

    let mut rig = start(&kernel);
    rig.take(web());
    rig.take(vec![Change::Replace(Kind::Pod, Vec::new())]);
    assert_eq!((calls(), kernel.lock().unwrap().kept), (before + 3, false));
    assert!(rig.board.snapshot().ready());
}

#[test]
fn a_pod_that_is_not_ready_keeps_its_link() {
    let mut rig = start(&kernel());
    rig.reconciler.set_tables(pod_device());
    rig.take(web());
    let Object::EndpointSlice(mut unready) = slice("web", &["10.244.0.5"]) else { unreachable!() };
    unready.endpoints[0].ready = false;
    unready.endpoints[0].serving = false;
    rig.take(vec![Change::Upsert(Object::EndpointSlice(unready))]);
    assert!(rig.kernel.lock().unwrap().sim.backends.is_empty());
    assert_eq!(rig.kernel.lock().unwrap().attached.last().unwrap().len(), 1);
}

#[test]
fn links_of_local_endpoints_are_found_without_pod_objects() {
    let mut rig = start(&kernel());
    rig.reconciler.set_tables(pod_device());
    rig.take(web());
    let attached = rig.kernel.lock().unwrap().attached.last().unwrap().clone();
    assert_eq!(attached.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["veth5"]);
    rig.take(vec![Change::Replace(Kind::EndpointSlice, vec![])]);
    assert_eq!(rig.kernel.lock().unwrap().attached.last().unwrap(), &Vec::new());
}

#[test]
fn the_node_port_range_follows_what_is_programmed() {
    let mut rig = start(&kernel());
    rig.take(web());
    let range = |rig: &Rig| rig.kernel.lock().unwrap().sim.node.clone().unwrap().config.node_ports;
    assert_eq!((range(&rig).first, range(&rig).last), (30080, 30080));
    rig.take(vec![Change::Replace(Kind::Service, vec![])]);
    rig.sweep(60);
    assert!(range(&rig).is_empty());
}

#[test]
fn an_unknown_or_leaving_node_is_not_eligible() {
    let mut rig = start(&kernel());
    rig.take(web());
    assert!(rig.board.snapshot().node_eligible);
    let leaving = crate::source::Node { name: "n".into(), leaving: true, ..crate::source::Node::default() };
    rig.take(vec![Change::Upsert(Object::Node(leaving))]);
    assert!(!rig.board.snapshot().node_eligible);
    rig.take(vec![Change::Delete(ObjectRef { kind: Kind::Node, key: ObjectKey::new("", "n") })]);
    assert!(!rig.board.snapshot().node_eligible);
}

#[test]
fn nothing_is_detached_before_the_kernels_tables_are_read() {
    let kernel = kernel();
    let mut rig = start(&kernel);
    rig.reconciler.tables_known = false;
    let listed = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::Pod];
    rig.take(listed.into_iter().map(|kind| Change::Replace(kind, Vec::new())).collect());
    assert!(kernel.lock().unwrap().attached.is_empty(), "programs of an earlier agent would be taken off");
    rig.reconciler.set_tables(Arc::default());
    rig.reconciler.round();
    assert_eq!(kernel.lock().unwrap().attached.len(), 1);
}

#[test]
fn objects_that_find_no_room_make_nobody_unhealthy() {
    let mut rig = start(&kernel());
    let ips: Vec<String> = (1..100).map(|n| format!("10.244.0.{n}")).collect();
    let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
    rig.reconciler.board.heard();
    rig.take(lists(vec![service("web", "10.96.0.1")], vec![slice("web", &ips)]));
    assert!(!rig.board.problems().is_empty());
    assert!(rig.board.snapshot().pending_ops > 0);
    assert!(rig.board.pending_for().is_zero());
    rig.kernel.lock().unwrap().sim.fail_every(Some(1));
    rig.take(vec![Change::Upsert(service("other", "10.96.0.2"))]);
    rig.board.age(Duration::from_secs(60));
    assert!(!rig.board.pending_for().is_zero(), "the kernel refuses");
    assert!(rig.board.owed_for().is_zero());
}

#[test]
fn a_restart_without_the_api_server_stays_healthy() {
    let kernel = kernel();
    start(&kernel).take(web());
    let mut rig = start(&kernel);
    rig.board.heard();
    rig.take(vec![Change::Problems(Vec::new())]);
    let snapshot = rig.board.snapshot();
    assert_eq!((snapshot.phase, snapshot.serving(), snapshot.node_eligible), (Phase::Listing, true, true));
    assert!(rig.board.pending_for().is_zero());
    rig.take(vec![Change::Replace(Kind::Node, Vec::new())]);
    assert!(!rig.board.snapshot().node_eligible);
}

#[test]
fn leftovers_stay_while_a_file_is_at_fault() {
    let kernel = kernel();
    start(&kernel).take(web());
    let mut rig = start(&kernel);
    let file = Problem {
        object: ObjectRef { kind: Kind::File, key: ObjectKey::new("", "a.yaml") },
        field: String::new(),
        reason: "ends too early".into(),
    };
    let mut half = lists(Vec::new(), Vec::new());
    half.push(Change::Problems(vec![file]));
    rig.take(half);
    assert_eq!(rig.frontends().len(), 2);
    assert!(rig.board.pending_for().is_zero());
    rig.take(vec![Change::Problems(Vec::new())]);
    rig.settle();
    assert!(rig.frontends().is_empty());
}
