#![expect(clippy::unwrap_used, reason = "tests")]

use super::ids::PAUSE;
use super::op::Op;
use super::*;
use crate::datapath::sim::Sim;
use crate::datapath::{Capacity, Datapath};
use crate::model::{BackendState, FrontendKind, FrontendState, PortKey, PortState, ServiceState};
use crate::problem::ObjectKey;
use lb_common::abi::{Addr, Be16, Family, FrontendFlags, FrontendKey, Proto};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

const ROOMY: Capacity = Capacity {
    frontends: 1000,
    backends: 1000,
    table_blocks: 10_000,
    flows: 10,
    transient: 10,
    services: 1000,
    prefixes: 10,
};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn ip(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn frontend(addr: &str, port: u16, kind: FrontendKind) -> FrontendState {
    FrontendState { addr: ip(addr), port, kind }
}

/// A backend `10.0.0.n:8080` and the sets it is in: `c`, `i`, `o`.
fn backend(n: u8, sets: &str) -> BackendState {
    BackendState {
        addr: Ipv4Addr::new(10, 0, 0, n).into(),
        port: 8080,
        local: false,
        serving: true,
        in_cluster_ip: sets.contains('c'),
        in_inside: sets.contains('i'),
        in_outside: sets.contains('o'),
    }
}

fn port(frontends: Vec<FrontendState>, backends: Vec<BackendState>) -> PortState {
    PortState {
        frontends,
        backends,
        affinity_seconds: 0,
        source_ranges: None,
        cluster_ip_drops: false,
        inside_drops: false,
        outside_drops: false,
        masquerades: false,
    }
}

fn state(service: &str, ports: Vec<(&str, PortState)>) -> ServiceState {
    let ports = ports.into_iter().map(|(name, port)| {
        let key =
            PortKey { service: key(service), port_name: name.into(), proto: Proto::TCP, family: Family::V4 };
        (key, port)
    });
    ServiceState { ports: ports.collect(), ..ServiceState::default() }
}

/// A ClusterIP Service with so many backends.
fn plain(service: &str, addr: &str, backends: u8) -> ServiceState {
    let backends = (1..=backends).map(|n| backend(n, "cio")).collect();
    state(service, vec![("", port(vec![frontend(addr, 80, FrontendKind::ClusterIp)], backends))])
}

/// The same with a node port.
fn public(service: &str, addr: &str, node_port: u16, backends: u8) -> ServiceState {
    let mut state = plain(service, addr, backends);
    for port in state.ports.values_mut() {
        port.frontends.insert(0, frontend("0.0.0.0", node_port, FrontendKind::NodePort));
    }
    state
}

/// A planner, its data path and a clock.
struct Rig {
    planner: Planner,
    sim: Sim,
    now: u64,
}

impl Rig {
    fn new(capacity: Capacity) -> Self {
        Self { planner: Planner::new(capacity), sim: Sim::new(capacity), now: 100 }
    }

    /// One round of one Service: what was planned, and whether all of it took effect.
    fn round(&mut self, service: &str, desired: Option<&ServiceState>) -> (Vec<Op>, bool) {
        let plan = self.planner.diff(&key(service), desired, self.now);
        let failed = self.run(&plan.ops);
        (plan.ops, failed && plan.problems.is_empty())
    }

    fn run(&mut self, ops: &[Op]) -> bool {
        self.planner.carry_out(ops, self.now, |ops| self.sim.apply(ops)).is_empty()
    }

    fn put(&mut self, service: &str, desired: &ServiceState) -> Vec<Op> {
        let (ops, complete) = self.round(service, Some(desired));
        assert!(complete);
        ops
    }

    fn remove(&mut self, service: &str) -> Vec<Op> {
        let (ops, complete) = self.round(service, None);
        assert!(complete);
        ops
    }

    fn restart(&mut self) {
        self.planner = Planner::new(self.sim.capacity());
        self.planner.restore(self.sim.read().unwrap(), self.now);
    }

    /// Forgets all retired frontends, as when no flow is left.
    fn forget_all(&mut self) {
        for (key, ..) in self.planner.retired().collect::<Vec<_>>() {
            let ops = self.planner.forget(&key);
            self.run(&ops);
        }
        let ops = self.planner.sweep();
        self.run(&ops);
    }
}

/// Names of the operations, in order, each kind once.
fn shape(ops: &[Op]) -> Vec<&'static str> {
    let mut names: Vec<_> = ops
        .iter()
        .map(|op| match op {
            Op::PutBackend(..) => "backend",
            Op::WriteTable { .. } => "table",
            Op::PutFrontend(_, f) if f.flags.has(FrontendFlags::RETIRED) => "retire",
            Op::PutFrontend(..) => "frontend",
            Op::DeleteFrontend(_) => "-frontend",
            Op::DeleteBackend(_) => "-backend",
            Op::DeleteService(_) => "-service",
            Op::PutPrefix(..) => "range",
            Op::DeletePrefix(_) => "-range",
        })
        .collect();
    names.dedup();
    names
}

#[test]
fn a_new_service_is_made_before_it_is_shown_and_hidden_before_it_is_unmade() {
    let mut rig = Rig::new(ROOMY);
    assert_eq!(shape(&rig.put("a", &public("a", "10.96.0.1", 30000, 3))), ["backend", "table", "frontend"]);
    assert_eq!(
        rig.sim.text(),
        "0.0.0.0:30000/TCP node-port S1\n  all: 10.0.0.1:8080, 10.0.0.2:8080, 10.0.0.3:8080; maglev 509\n\
         10.96.0.1:80/TCP cluster-ip S1\n  all: 10.0.0.1:8080, 10.0.0.2:8080, 10.0.0.3:8080; maglev 509\n\
         S1 10.0.0.1:8080/TCP cluster-ip inside outside serving\n\
         S1 10.0.0.2:8080/TCP cluster-ip inside outside serving\n\
         S1 10.0.0.3:8080/TCP cluster-ip inside outside serving\n"
    );
    assert_eq!(shape(&rig.remove("a")), ["retire", "-backend"]);
    assert_eq!(
        rig.sim.text(),
        "0.0.0.0:30000/TCP node-port retired S1\n  all: none\n10.96.0.1:80/TCP cluster-ip retired S1\n  all: none\n"
    );
    rig.forget_all();
    assert_eq!(rig.sim.text(), "");
    assert_eq!(rig.planner.retired().count(), 0);
}

#[test]
fn a_change_of_endpoints_switches_tables_before_it_deletes() {
    let mut rig = Rig::new(ROOMY);
    rig.put("a", &plain("a", "10.96.0.1", 2));
    let mut next = plain("a", "10.96.0.1", 3);
    next.ports.values_mut().next().unwrap().backends.remove(0);
    assert_eq!(shape(&rig.put("a", &next)), ["backend", "table", "frontend", "-backend"]);
    assert_eq!(rig.put("a", &next), []);
}

#[test]
fn equal_sets_share_a_table_and_cluster_ips_alone_have_no_maglev() {
    let mut rig = Rig::new(ROOMY);
    rig.put("a", &plain("a", "10.96.0.1", 3));
    rig.put("b", &public("b", "10.96.0.2", 30000, 3));
    let tables: BTreeSet<_> =
        rig.sim.frontends.values().flat_map(|f| [f.inside.slots, f.outside.slots]).collect();
    assert_eq!(tables.len(), 2);
    let lens: Vec<_> = rig.sim.frontends.values().map(|f| f.inside.maglev_len).collect();
    assert_eq!(lens, [509, 0, 509]);
}

#[test]
fn a_local_policy_has_tables_and_flags_of_its_own() {
    let mut rig = Rig::new(ROOMY);
    let mut desired = public("a", "10.96.0.1", 30000, 2);
    let port = desired.ports.values_mut().next().unwrap();
    port.outside_drops = true;
    port.backends[1] = backend(2, "ci");
    port.backends[0] = backend(1, "ci");
    rig.put("a", &desired);
    assert!(rig.sim.text().starts_with(
        "0.0.0.0:30000/TCP node-port outside-drops S1\n  inside: 10.0.0.1:8080, 10.0.0.2:8080; maglev 251\n  outside: none\n\
         10.96.0.1:80/TCP cluster-ip S1\n  all:"
    ));
}

/// S51: never open to somebody who may not, never closed to somebody who may.
#[test]
fn ranges_are_there_before_a_frontend_asks_and_go_after_it_asked_last() {
    let mut rig = Rig::new(ROOMY);
    let balanced = |ranges: Option<&[&str]>| {
        let mut state = plain("a", "10.96.0.1", 1);
        for port in state.ports.values_mut() {
            port.frontends.push(frontend("203.0.113.1", 80, FrontendKind::LoadBalancer));
            port.source_ranges = ranges.map(|all| all.iter().map(|net| net.parse().unwrap()).collect());
        }
        state
    };
    let first = balanced(Some(&["10.0.0.0/8"]));
    assert_eq!(shape(&rig.put("a", &first)), ["backend", "range", "table", "frontend"]);
    let text = rig.sim.text();
    assert!(text.contains("203.0.113.1:80/TCP external source-ranges S1\n"), "{text}");
    assert!(text.contains("10.96.0.1:80/TCP cluster-ip S1\n"), "{text}");
    assert!(text.ends_with("\nS1 from 10.0.0.0/8\n"), "{text}");
    let other = balanced(Some(&["10.0.0.0/9", "192.0.2.1/32"]));
    assert_eq!(shape(&rig.put("a", &other)), ["range", "-range"]);
    assert_eq!(rig.put("a", &other), []);
    assert_eq!(shape(&rig.put("a", &balanced(None))), ["frontend", "-range"]);
    rig.put("a", &first);
    // Another agent takes over, and the Service is gone by then.
    let programmed = rig.sim.read().unwrap();
    rig.planner.restore(programmed, rig.now);
    let ops = rig.planner.finish_first_round();
    assert_eq!(shape(&ops), ["retire", "-backend", "-range"]);
    rig.run(&ops);
    rig.forget_all();
    assert_eq!((rig.sim.text(), rig.sim.prefixes.len()), (String::new(), 0));
    // Ranges that find no room leave the frontend out rather than open.
    let many: Vec<String> = (0..11).map(|n| format!("10.{n}.0.0/16")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (_, complete) = rig.round("a", Some(&balanced(Some(&many))));
    assert!(!complete && rig.sim.frontends.is_empty());
}

#[test]
fn a_frontend_that_moves_keeps_nothing_of_its_old_service() {
    for newcomer_first in [true, false] {
        let mut rig = Rig::new(ROOMY);
        rig.put("a", &plain("a", "10.96.0.1", 2));
        let taken = plain("b", "10.96.0.1", 1);
        if newcomer_first {
            rig.put("b", &taken);
            rig.remove("a");
        } else {
            rig.remove("a");
            rig.put("b", &taken);
        }
        assert_eq!(
            rig.sim.text(),
            "10.96.0.1:80/TCP cluster-ip S1\n  all: 10.0.0.1:8080\nS1 10.0.0.1:8080/TCP cluster-ip inside outside serving\n"
        );
        assert_eq!(rig.planner.sweep().len(), 1, "the old id is free again");
        assert_eq!(rig.planner.retired().count(), 0);
    }
}

#[test]
fn a_frontend_moves_between_ports_of_one_service() {
    let mut rig = Rig::new(ROOMY);
    let web = || port(vec![frontend("10.96.0.1", 80, FrontendKind::ClusterIp)], vec![backend(1, "cio")]);
    rig.put("a", &state("a", vec![("http", web())]));
    rig.put("a", &state("a", vec![("web", web())]));
    assert_eq!(rig.planner.retired().count(), 0);
    assert_eq!((rig.sim.frontends.len(), rig.sim.backends.len()), (1, 1));
}

#[test]
fn ids_and_maps_survive_a_restart_without_a_new_frontend() {
    let mut rig = Rig::new(ROOMY);
    rig.put("a", &public("a", "10.96.0.1", 30000, 20));
    rig.put("b", &plain("b", "10.96.0.2", 3));
    let (frontends, backends) = (rig.sim.frontends.clone(), rig.sim.backends.clone());
    rig.restart();
    assert_eq!(shape(&rig.put("b", &plain("b", "10.96.0.2", 3))), ["table"], "rewritten in place");
    assert_eq!(shape(&rig.put("a", &public("a", "10.96.0.1", 30000, 20))), ["table"]);
    assert_eq!(rig.planner.finish_first_round(), []);
    assert_eq!((rig.sim.frontends.clone(), rig.sim.backends.clone()), (frontends, backends));
    assert_eq!(rig.put("a", &public("a", "10.96.0.1", 30000, 20)), []);
}

#[test]
fn what_nobody_claims_after_a_restart_goes() {
    let mut rig = Rig::new(ROOMY);
    rig.put("a", &plain("a", "10.96.0.1", 2));
    rig.put("b", &plain("b", "10.96.0.2", 3));
    rig.put("c", &plain("c", "10.96.0.3", 1));
    rig.remove("c");
    rig.restart();
    rig.put("b", &plain("b", "10.96.0.2", 3));
    let ops = rig.planner.finish_first_round();
    assert_eq!(shape(&ops), ["retire", "-backend"]);
    assert!(rig.run(&ops));
    assert_eq!(rig.planner.finish_first_round(), []);
    rig.forget_all();
    assert_eq!((rig.sim.frontends.len(), rig.sim.backends.len()), (1, 3));
    assert_eq!(rig.planner.sweep(), []);
}

#[test]
fn a_backend_id_is_not_reused_at_once() {
    let mut rig = Rig::new(ROOMY);
    rig.put("a", &plain("a", "10.96.0.1", 1));
    let id = *rig.sim.backends.keys().next().unwrap();
    rig.remove("a");
    rig.put("b", &plain("b", "10.96.0.2", 1));
    assert!(!rig.sim.backends.contains_key(&id));
    rig.now += PAUSE;
    rig.put("c", &plain("c", "10.96.0.3", 1));
    assert!(rig.sim.backends.contains_key(&id));
}

#[test]
fn a_full_map_makes_its_service_wait_and_nobody_else() {
    let tight = Capacity { frontends: 3, backends: 5, table_blocks: 20, services: 5, ..ROOMY };
    let mut rig = Rig::new(tight);
    rig.put("a", &plain("a", "10.96.0.1", 3));
    let wants = plain("b", "10.96.0.2", 3);
    let plan = rig.planner.diff(&key("b"), Some(&wants), rig.now);
    assert_eq!(
        plan.problems[0].to_string(),
        "Service default/b: spec.ports: no room in the backends map (5 entries): 2 of 3 endpoints wait"
    );
    assert!(rig.run(&plan.ops));
    assert!(rig.sim.text().contains("10.96.0.2:80/TCP cluster-ip S2\n  all: 10.0.0.1:8080\n"));
    rig.remove("a");
    rig.now += PAUSE;
    assert!(rig.round("b", Some(&wants)).1);
}

#[test]
fn scarce_blocks_go_to_slots_and_not_to_maglev_tables() {
    // 63 blocks; a table of 251 places and the slots of 2 backends take 17.
    let mut rig = Rig::new(Capacity { table_blocks: 64, ..ROOMY });
    let services: Vec<_> = (0..6u8)
        .map(|n| {
            let name = format!("s{n}");
            let state = public(&name, &format!("10.96.0.{n}"), 30000 + u16::from(n), 2);
            (name, state)
        })
        .collect();
    for (name, state) in &services {
        rig.put(name, state);
    }
    let lens = |rig: &Rig| -> Vec<_> {
        let node_ports = rig.sim.frontends.iter().filter(|(key, _)| key.addr.is_unspecified());
        node_ports.map(|(_, frontend)| frontend.inside.maglev_len).collect()
    };
    assert_eq!(lens(&rig), [251, 251, 251, 0, 0, 0]);
    let frontends = rig.sim.frontends.clone();
    for (name, state) in &services {
        assert_eq!(rig.put(name, state), [], "what has one keeps it, and nobody waits");
    }
    rig.restart();
    for (name, state) in &services {
        assert_eq!(shape(&rig.put(name, state)), ["table"]);
    }
    assert_eq!(rig.sim.frontends, frontends);

    rig.remove("s0");
    rig.now += PAUSE;
    rig.put("s5", &public("s5", "10.96.0.5", 30005, 3));
    rig.now += PAUSE;
    assert_eq!(lens(&rig)[5], 0, "509 places do not fit beside the other two");
    rig.put("s5", &public("s5", "10.96.0.5", 30005, 2));
    assert_eq!(lens(&rig)[5], 251, "made up for at the next change");
}

#[test]
fn a_full_tables_map_leaves_what_is_there() {
    let mut rig = Rig::new(Capacity { table_blocks: 2, ..ROOMY });
    rig.put("a", &plain("a", "10.96.0.1", 2));
    let before = rig.sim.text();
    let (_, complete) = rig.round("a", Some(&plain("a", "10.96.0.1", 1)));
    assert!(!complete);
    assert_eq!(rig.sim.text(), before);
    rig.remove("a");
    rig.now += PAUSE;
    rig.put("a", &plain("a", "10.96.0.1", 1));
}

#[test]
fn after_a_failed_backend_no_frontend_switches_to_it() {
    let mut rig = Rig::new(ROOMY);
    rig.sim.fail_every(Some(1));
    let desired = plain("a", "10.96.0.1", 2);
    assert!(!rig.round("a", Some(&desired)).1);
    assert!(rig.sim.frontends.is_empty());
    rig.sim.fail_every(None);
    rig.put("a", &desired);
}

#[test]
fn the_range_of_node_ports_is_the_smallest() {
    let mut rig = Rig::new(ROOMY);
    assert!(rig.planner.node_ports().is_empty());
    rig.put("a", &public("a", "10.96.0.1", 30500, 1));
    rig.put("b", &public("b", "10.96.0.2", 30100, 1));
    let range = rig.planner.node_ports();
    assert_eq!((range.first, range.last), (30100, 30500));
}

/// Desired states of a few Services that never claim the same frontend.
fn any_state(service: &'static str, number: u8) -> impl Strategy<Value = ServiceState> {
    let backends = prop::collection::btree_map(
        1..9u8,
        prop::sample::select(vec!["", "c", "ci", "cio", "o", "io"]),
        0..6,
    );
    let kinds = prop::collection::btree_set(0..4u16, 0..4);
    let one =
        (kinds, backends, 0..3u32, any::<[bool; 3]>()).prop_map(move |(kinds, backends, affinity, drops)| {
            let kind = |k: u16| match k {
                0 => frontend("0.0.0.0", 30_000 + u16::from(number), FrontendKind::NodePort),
                1 => frontend(&format!("10.96.0.{number}"), 80, FrontendKind::ClusterIp),
                2 => frontend(&format!("203.0.113.{number}"), 80, FrontendKind::LoadBalancer),
                _ => frontend(&format!("198.51.100.{number}"), 80, FrontendKind::ExternalIp),
            };
            let mut state = port(
                kinds.into_iter().map(kind).collect(),
                backends.into_iter().map(|(n, s)| backend(n, s)).collect(),
            );
            state.affinity_seconds = affinity;
            [state.cluster_ip_drops, state.inside_drops, state.outside_drops] = drops;
            state
        });
    // The second port differs by its port number.
    (one.clone(), prop::option::of(one), prop::sample::select(vec!["http", "web"])).prop_map(
        move |(first, second, name)| {
            let second = second.map(|mut second| {
                second.frontends.iter_mut().for_each(|f| f.port += 1000);
                ("second", second)
            });
            state(service, [(name, first)].into_iter().chain(second).collect())
        },
    )
}

#[test]
fn ports_whose_policy_finds_no_endpoint_here_are_counted_once_by_family_and_policy() {
    let mut rig = Rig::new(ROOMY);
    let mut away = public("a", "10.96.0.1", 30080, 1);
    let external = frontend("10.96.0.9", 80, FrontendKind::ExternalIp);
    for port in away.ports.values_mut() {
        port.outside_drops = true;
        port.frontends.push(external);
    }
    rig.put("a", &away);
    assert_eq!(rig.planner.without_local(), [[0, 1], [0, 0]]);
    let mut both = plain("b", "fd00::1", 1);
    both.ports.values_mut().for_each(|port| port.cluster_ip_drops = true);
    rig.put("b", &both);
    assert_eq!(rig.planner.without_local(), [[0, 1], [1, 0]]);
    rig.remove("a");
    rig.put("b", &plain("b", "fd00::1", 1));
    assert_eq!(rig.planner.without_local(), [[0, 0], [0, 0]], "a retired frontend is nobody's");
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn any_change() -> impl Strategy<Value = (&'static str, Option<ServiceState>)> {
    (0..3u8).prop_flat_map(|n| {
        let name = NAMES[usize::from(n)];
        prop::option::weighted(0.8, any_state(name, n)).prop_map(move |state| (name, state))
    })
}

/// What the maps must say, from the desired states alone.
fn expected(desired: &BTreeMap<&str, ServiceState>) -> String {
    let mut rig = Rig::new(ROOMY);
    for (name, state) in desired {
        rig.put(name, state);
    }
    rig.sim.text()
}

type Pick = fn(&BackendState) -> bool;

/// Compares the maps with a desired state, written independently of the planner.
fn agrees(sim: &Sim, desired: &BTreeMap<&str, ServiceState>) -> Result<(), TestCaseError> {
    let mut frontends = 0;
    let mut backends = 0;
    let mut ids = BTreeSet::new();
    for (key, state) in desired.values().flat_map(|s| &s.ports) {
        let mut id = None;
        for f in &state.frontends {
            frontends += 1;
            let found = sim.frontends.get(&FrontendKey::new(f.addr, Be16::new(f.port), key.proto)).unwrap();
            prop_assert_eq!(*id.get_or_insert(found.service), found.service);
            prop_assert_eq!(found.affinity_seconds, state.affinity_seconds);
            let cluster_ip = f.kind == FrontendKind::ClusterIp;
            let sets: [(_, Pick, _, _); 2] = if cluster_ip {
                let drops = state.cluster_ip_drops;
                [
                    (found.inside, |b| b.in_cluster_ip, drops, FrontendFlags::INSIDE_DROPS),
                    (found.outside, |b| b.in_cluster_ip, drops, FrontendFlags::OUTSIDE_DROPS),
                ]
            } else {
                [
                    (found.inside, |b| b.in_inside, state.inside_drops, FrontendFlags::INSIDE_DROPS),
                    (found.outside, |b| b.in_outside, state.outside_drops, FrontendFlags::OUTSIDE_DROPS),
                ]
            };
            for (table, pick, drops, flag) in sets {
                let wanted: Vec<_> =
                    state.backends.iter().filter(|b| pick(b)).map(|b| (b.addr, b.port)).collect();
                let slots = sim.slots(&table);
                let named: Vec<_> = slots.iter().map(|id| &sim.backends[id]).collect();
                prop_assert!(named.iter().all(|b| b.service == found.service));
                prop_assert_eq!(named.iter().map(|b| (b.addr, b.port.get())).collect::<Vec<_>>(), wanted);
                prop_assert_eq!(found.flags.has(flag), drops);
                if !cluster_ip {
                    prop_assert_eq!(table.maglev_len, maglev::size(slots.len()));
                }
                let mut hashed = sim.maglev(&table);
                hashed.sort();
                hashed.dedup();
                let mut slots = slots;
                slots.sort();
                prop_assert!(hashed.is_empty() || hashed == slots);
            }
        }
        if let Some(id) = id {
            prop_assert!(ids.insert(id), "an id is that of one port");
        }
        backends += state.backends.len();
    }
    let live = sim.frontends.values().filter(|f| !f.flags.has(FrontendFlags::RETIRED)).count();
    prop_assert_eq!(live, frontends);
    prop_assert_eq!(sim.backends.len(), backends);
    Ok(())
}

proptest! {
    #[test]
    fn applying_the_difference_gives_the_desired_state(changes in prop::collection::vec(any_change(), 1..12)) {
        let mut rig = Rig::new(ROOMY);
        let mut desired = BTreeMap::new();
        for (name, state) in changes {
            rig.now += 1;
            rig.round(name, state.as_ref());
            match state {
                Some(state) => desired.insert(name, state),
                None => desired.remove(name),
            };
            agrees(&rig.sim, &desired)?;
            for (name, state) in &desired {
                prop_assert_eq!(rig.planner.diff(&key(name), Some(state), rig.now).ops, vec![]);
            }
        }
        rig.forget_all();
        prop_assert_eq!(rig.sim.text(), expected(&desired), "nothing of the way there remains");
        for name in NAMES {
            rig.remove(name);
        }
        rig.forget_all();
        prop_assert_eq!(rig.sim.text(), "");
        // Nothing leaked: every id and block can be had again.
        rig.now += PAUSE;
        prop_assert_eq!(std::iter::from_fn(|| rig.planner.service_ids.take(rig.now)).count(), 999);
        prop_assert_eq!(std::iter::from_fn(|| rig.planner.backend_ids.take(rig.now)).count(), 999);
        prop_assert_eq!(std::iter::from_fn(|| rig.planner.blocks.take(1, rig.now)).count(), 9_999);
    }

    #[test]
    fn failures_and_restarts_end_in_the_same_state(
        changes in prop::collection::vec((any_change(), any::<bool>(), any::<bool>()), 1..12),
        every in 2..11u32,
    ) {
        let mut rig = Rig::new(ROOMY);
        let mut desired = BTreeMap::new();
        let mut dirty = BTreeSet::new();
        rig.sim.fail_every(Some(every));
        for ((name, state), retry, restart) in changes {
            rig.now += 1;
            match state {
                Some(state) => desired.insert(name, state),
                None => desired.remove(name),
            };
            dirty.insert(name);
            if restart && rig.now.is_multiple_of(4) {
                rig.restart();
                dirty.extend(NAMES);
            }
            let names: Vec<_> = if retry { dirty.iter().copied().collect() } else { vec![name] };
            for name in names {
                if rig.round(name, desired.get(name)).1 {
                    dirty.remove(name);
                }
            }
            // At no time does a frontend name a backend that is not there.
            for table in rig.sim.frontends.values().flat_map(|f| [f.inside, f.outside]) {
                for id in rig.sim.slots(&table).into_iter().chain(rig.sim.maglev(&table)) {
                    prop_assert!(rig.sim.backends.contains_key(&id));
                }
            }
        }
        for _ in 0..200 {
            for name in dirty.clone() {
                if rig.round(name, desired.get(name)).1 {
                    dirty.remove(name);
                }
            }
            let ops = rig.planner.finish_first_round();
            if rig.run(&ops) && dirty.is_empty() {
                break;
            }
        }
        prop_assert!(dirty.is_empty(), "converges");
        agrees(&rig.sim, &desired)?;
        rig.sim.fail_every(None);
        rig.forget_all();
        prop_assert_eq!(rig.sim.text(), expected(&desired));
    }
}
