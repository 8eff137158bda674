//! Taking over from a running kube-proxy with open connections, and going back (S82).
//!
//! Flows that kube-proxy's rules translate are opened from everywhere, TCP and UDP, busy and
//! idle; then Weir comes, kube-proxy goes and its rules are removed, both come back the other
//! way round. No flow is lost and none changes its backend, no new connection fails, and the
//! host's rules are what they were.

use crate::api::{control_plane, create_demo};
use crate::cleanup::{attached, exists, maps_of, names};
use crate::rig::{Rig, observe};
use lab::agent::{Agent, Setup, start_cleanup};
use lab::helper::Helper;
use lab::kube_proxy::{self, KubeProxy, Mode};
use lab::topology::{NODE1, Place, Topology};
use lab::wait;
use lab::wire::{Ask, Flows, Load, Proto};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Length of each stage.
const STAGE: Duration = Duration::from_secs(2);
/// Idle flows speak that seldom.
const IDLE_MS: u64 = 15_000;

/// A running activity, and where it runs.
type Running = (String, Arc<Helper>, u32);

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn node(port: u16, v6: bool) -> SocketAddr {
    if v6 { (NODE1.1, port).into() } else { (NODE1.0, port).into() }
}

/// Who talks to what: a pod (other node, same node, itself), the host, and outside by node
/// port (pod here, pod elsewhere), load balancer and external address.
fn targets() -> Vec<(Place, Vec<SocketAddr>)> {
    let cluster_ips =
        |last: u16| vec![at(&format!("10.96.10.{last}:80")), at(&format!("[fd00:10:96::a0{last}]:80"))];
    let outside = [30081, 30082].into_iter().flat_map(|port| [node(port, false), node(port, true)]);
    let outside = outside.chain([at("203.0.113.10:80"), at("[2001:db8:113::10]:80")]);
    vec![
        (Place::pod("client"), [cluster_ips(4), cluster_ips(5)].concat()),
        (Place::pod("local-app"), cluster_ips(4)),
        (Place::Host, [cluster_ips(4), cluster_ips(5)].concat()),
        (Place::Outside, outside.collect()),
    ]
}

fn open(lab: &Topology, when: &str) -> Vec<Running> {
    let mut running = Vec::new();
    for (place, to) in targets() {
        let helper = lab.at(&place).unwrap();
        let count = u32::try_from(to.len()).unwrap();
        let mut add = |what: &str, activity| {
            running.push((format!("{when} {what} from {place}"), Arc::clone(&helper), activity));
        };
        let flows = |proto, count, interval_ms| Flows {
            proto,
            to: to.clone(),
            count,
            interval_ms,
            deadline_ms: 3_000,
            from_port: 0,
        };
        add("tcp", helper.open_flows(flows(Proto::Tcp, 3 * count, 50)).unwrap());
        add("idle tcp", helper.open_flows(flows(Proto::Tcp, count, IDLE_MS)).unwrap());
        add("udp", helper.open_flows(flows(Proto::Udp, count, 50)).unwrap());
        add("sendto", helper.open_datagrams(flows(Proto::Udp, count, 50)).unwrap());
    }
    running
}

/// Fails with every flow that was lost, changed its backend, or lost a datagram.
fn close(running: Vec<Running>) {
    let mut wrong = Vec::new();
    let mut total = 0;
    for (what, helper, activity) in running {
        let report = helper.stop_flows(activity).unwrap();
        total += report.flows.len();
        wrong.extend(report.lost().into_iter().map(|lost| format!("{what}: {lost}")));
        for flow in report.flows.iter().filter(|flow| flow.lost.is_none()) {
            if flow.strangers > 0 || (!what.contains("tcp") && flow.sent != flow.echoed) {
                wrong.push(format!("{what}: {flow:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {total} flows:\n{}", wrong.len(), wrong.join("\n"));
}

fn start_loads(lab: &Topology) -> Vec<Running> {
    let mut running = Vec::new();
    for (place, proto, to, per_second) in [
        (Place::pod("client"), Proto::Tcp, at("10.96.10.1:80"), 40),
        (Place::pod("client"), Proto::Udp, at("[fd00:10:96::a02]:53"), 20),
        (Place::Host, Proto::Tcp, at("[fd00:10:96::a05]:80"), 20),
        (Place::Outside, Proto::Tcp, node(30082, false), 40),
        (Place::Outside, Proto::Tcp, node(30081, true), 20),
        (Place::Outside, Proto::Udp, node(30082, true), 20),
        (Place::Outside, Proto::Tcp, at("198.51.100.10:80"), 20),
    ] {
        let helper = lab.at(&place).unwrap();
        let load = helper.start_load(Load { ask: Ask::new(proto, to), per_second }).unwrap();
        running.push((format!("{proto} from {place} to {to}"), helper, load));
    }
    running
}

fn stop_loads(running: Vec<Running>) -> u64 {
    let mut answered = 0;
    let mut wrong = Vec::new();
    for (what, helper, load) in running {
        let report = helper.stop_load(load).unwrap();
        answered += report.answered;
        if report.answered != report.started {
            wrong.push(format!("{what}: {report:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    answered
}

/// The host's rules of all three kinds. iptables-legacy's have counters and dates.
fn ruleset(lab: &Topology) -> String {
    let mut all = lab.node1().output("nft", &["--stateless", "list", "ruleset"]).unwrap();
    for save in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let legacy = lab.node1().output(save, &[]).unwrap();
        for line in legacy.lines().filter(|line| !line.starts_with('#')) {
            all.push_str(line.split(" [").next().unwrap_or_default());
            all.push('\n');
        }
    }
    all
}

/// The host's rules, as a set of their parts: kube-proxy writes elements in any order.
fn rules(lab: &Topology) -> BTreeSet<String> {
    let text = ruleset(lab);
    let parts = text.lines().flat_map(|line| line.split(", "));
    parts.map(|part| part.trim_matches(&[' ', '\t', ',', '}'][..]).replace("elements = { ", "")).collect()
}

fn carried(agent: &Agent<'_>) -> (u64, u64) {
    let status = agent.json(&["status"]).unwrap();
    let count =
        |proto: &str| status.pointer(&format!("/takeover/carried/{proto}")).unwrap().as_u64().unwrap();
    (count("tcp"), count("udp"))
}

/// Everything that kube-proxy serves here answers, by both families.
fn served(lab: &Topology) -> anyhow::Result<()> {
    for (place, to) in targets() {
        for to in to {
            for proto in [Proto::Tcp, Proto::Udp] {
                let answer = lab.at(&place)?.ask(Ask::new(proto, to).timeout_ms(700))?;
                anyhow::ensure!(answer.ok(), "{proto} from {place} to {to}: {answer:?}");
            }
        }
    }
    Ok(())
}

fn there_and_back(mode: Mode) {
    let rig = Rig::new();
    let lab = &rig.lab;
    // Nobody but kube-proxy makes the kernel translate.
    lab.node1().output("nft", &["delete", "table", "inet", "cni"]).unwrap();
    let server = control_plane(lab);
    create_demo(&server, lab);
    let mut proxy = KubeProxy::start(lab, &server, mode).unwrap();
    proxy.wait("kube-proxy serves", || served(lab)).unwrap();
    let (rules_before, pins_before) = (rules(lab), names(&lab.scratch().bpffs()));

    let before = open(lab, "of kube-proxy's time");
    let loads = start_loads(lab);
    observe(STAGE);

    let agent = Agent::ready(lab, Setup::kubeconfig(&server.kubeconfig())).unwrap();
    let programs = attached(lab);
    let maps: BTreeSet<u64> = programs.iter().flat_map(|program| maps_of(*program)).collect();
    wait::until("the take-over is told", Duration::from_secs(5), || {
        anyhow::ensure!(ruleset(lab).contains("table inet weir-takeover"), "no table: {}", agent.log());
        let problems = String::from_utf8(agent.verb(&["problems"])?.stdout)?;
        anyhow::ensure!(problems.contains("kube-proxy's rules are on this node"), "{problems}");
        let legacy = mode == Mode::IptablesLegacy;
        anyhow::ensure!(problems.contains("of iptables-legacy") == legacy, "{problems}");
        Ok(())
    })
    .unwrap();
    observe(STAGE);

    proxy.stop().unwrap();
    kube_proxy::cleanup(lab, mode).unwrap();
    assert!(!ruleset(lab).contains(mode.sign()), "{}", ruleset(lab));
    let (tcp, udp) = carried(&agent);
    assert!(tcp >= 64 && udp >= 16, "{tcp} TCP and {udp} UDP flows are carried");
    let during = open(lab, "of Weir's time");
    observe(STAGE);

    let mut proxy = KubeProxy::start(lab, &server, mode).unwrap();
    proxy
        .wait("kube-proxy's rules are back", || {
            let missing: Vec<String> = rules_before.difference(&rules(lab)).cloned().collect();
            anyhow::ensure!(missing.is_empty(), "{missing:?}");
            Ok(())
        })
        .unwrap();
    observe(STAGE);
    agent.terminate(Duration::from_secs(10)).unwrap();
    let drained = start_cleanup(lab, &["--drain", "6s"]).unwrap();
    observe(STAGE);
    close(during);
    let out = drained.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    observe(STAGE);

    let answered = stop_loads(loads);
    close(before);
    assert!(answered > 1_000, "only {answered} new connections");
    assert_eq!(rules(lab), rules_before);
    assert_eq!(attached(lab), BTreeSet::new());
    assert_eq!(names(&lab.scratch().bpffs()), pins_before);
    wait::until("programs and maps are gone", Duration::from_secs(5), || {
        let left: Vec<_> = programs.iter().filter(|id| exists("prog", **id)).collect();
        anyhow::ensure!(left.is_empty(), "programs {left:?}");
        let left: Vec<_> = maps.iter().filter(|id| exists("map", **id)).collect();
        anyhow::ensure!(left.is_empty(), "maps {left:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn kube_proxy_in_nftables_mode_is_replaced_and_comes_back_without_a_lost_flow() {
    there_and_back(Mode::Nftables);
}

#[test]
fn kube_proxy_in_iptables_mode_is_replaced_and_comes_back_without_a_lost_flow() {
    there_and_back(Mode::Iptables);
}

#[test]
fn kube_proxy_with_iptables_legacy_is_replaced_and_comes_back_without_a_lost_flow() {
    there_and_back(Mode::IptablesLegacy);
}
