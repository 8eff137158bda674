//! The agent is killed and comes back while traffic runs (S80).

use crate::rig::{Rig, observe};
use lab::agent::Agent;
use lab::flows::now_us;
use lab::topology::{NODE1, Place};
use lab::wire::{Ask, Flows, Load, Proto};
use std::net::SocketAddr;
use std::time::Duration;

const OUTAGE: Duration = Duration::from_secs(5);
const AFTERWARDS: Duration = Duration::from_secs(2);

fn flows(proto: Proto, count: u32, to: &[&str]) -> Flows {
    let to = to.iter().map(|to| to.parse().unwrap()).collect();
    Flows { proto, to, count, interval_ms: 50, deadline_ms: 3_000, from_port: 0 }
}

#[test]
fn killed_agent_loses_no_flow_and_refuses_no_connection() {
    let rig = Rig::new();
    let agent = rig.agent();
    let node = |port| SocketAddr::from((NODE1.0, port)).to_string();
    let node6 = |port| SocketAddr::from((NODE1.1, port)).to_string();
    let outside = rig.lab.at(&Place::Outside).unwrap();
    let pod = rig.lab.at(&Place::pod("client")).unwrap();
    let unhooked = rig.lab.at(&Place::unhooked("client")).unwrap();

    // 60 flows by NodePort, masqueraded, to a pod of node2; 20 to a pod of node1; 20 from a pod.
    let remote = outside.open_flows(flows(Proto::Tcp, 60, &[&node(30082), &node6(30082)])).unwrap();
    let local = outside.open_flows(flows(Proto::Tcp, 20, &[&node(30081), &node6(30081)])).unwrap();
    let at_socket =
        pod.open_flows(flows(Proto::Tcp, 10, &["10.96.10.1:80", "[fd00:10:96::a01]:80"])).unwrap();
    let by_packet =
        unhooked.open_flows(flows(Proto::Tcp, 10, &["10.96.10.1:80", "[fd00:10:96::a01]:80"])).unwrap();
    let udp_outside = outside.open_flows(flows(Proto::Udp, 4, &[&node(30082), &node6(30081)])).unwrap();
    let udp_socket =
        pod.open_flows(flows(Proto::Udp, 2, &["10.96.10.2:53", "[fd00:10:96::a02]:53"])).unwrap();
    let udp_packet =
        unhooked.open_flows(flows(Proto::Udp, 2, &["10.96.10.2:53", "[fd00:10:96::a02]:53"])).unwrap();
    let load = |to: &str| Load { ask: Ask::new(Proto::Tcp, to.parse().unwrap()), per_second: 70 };
    let loads = [
        (&outside, outside.start_load(load(&node(30080))).unwrap()),
        (&pod, pod.start_load(load("10.96.10.1:80")).unwrap()),
        (&unhooked, unhooked.start_load(load("10.96.10.3:80")).unwrap()),
    ];
    let tcp = [(&outside, remote), (&outside, local), (&pod, at_socket), (&unhooked, by_packet)];
    let udp = [(&outside, udp_outside), (&pod, udp_socket), (&unhooked, udp_packet)];
    let masqueraded = outside.flows(remote).unwrap();
    for flow in &masqueraded.flows {
        let seen = flow.seen.unwrap().ip();
        assert!(seen == NODE1.0 || seen == NODE1.1, "not masqueraded: {flow:?}");
    }

    agent.kill().unwrap();
    let killed = now_us();
    let at_kill: Vec<_> = tcp.iter().map(|(helper, flows)| helper.flows(*flows).unwrap()).collect();
    observe(OUTAGE);
    for ((helper, flows), before) in tcp.iter().zip(&at_kill) {
        let progress = helper.flows(*flows).unwrap().least_progress_since(before);
        assert!(progress >= 50, "a flow exchanged only {progress} messages during the outage");
    }
    let restarted = now_us();
    let agent = rig.agent();
    let when = format!("killed at {killed}, started again at {restarted}, ready at {}", now_us());
    observe(AFTERWARDS);

    for (helper, flows) in tcp {
        let report = helper.stop_flows(flows).unwrap();
        assert_eq!(report.lost(), Vec::<String>::new());
    }
    for (helper, flows) in udp {
        let report = helper.stop_flows(flows).unwrap();
        assert_eq!(report.lost(), Vec::<String>::new());
        assert_eq!(report.sent(), report.echoed());
        assert!(report.flows.iter().all(|flow| flow.strangers == 0), "{report:?}");
    }
    let mut connections = 0;
    for (number, (helper, load)) in loads.into_iter().enumerate() {
        let report = helper.stop_load(load).unwrap();
        assert_eq!((report.refused, report.failed.len()), (0, 0), "load {number}, {when}: {report:?}");
        assert_eq!(report.started, report.answered);
        connections += report.answered;
    }
    assert!(connections >= 200 * OUTAGE.as_secs(), "{connections} new connections");
    drop(agent);
}

#[test]
fn stopped_agent_leaves_the_data_path_in_place() {
    let rig = Rig::new();
    let agent = rig.agent();
    let status = agent.terminate(Duration::from_secs(10)).unwrap();
    assert!(status.success(), "{status}");
    for (place, to) in [
        (Place::pod("client"), "10.96.10.1:80"),
        (Place::unhooked("client"), "10.96.10.1:80"),
        (Place::Outside, "172.30.0.1:30082"),
    ] {
        let answer = rig.lab.at(&place).unwrap().who(Proto::Tcp, to.parse().unwrap()).unwrap();
        assert!(answer.ok(), "{place} {to}: {answer:?}");
    }
}

#[test]
fn open_flows_keep_their_ports_when_the_range_is_another() {
    let rig = Rig::new();
    let agent = rig.agent();
    let node = |port| SocketAddr::from((NODE1.0, port));
    let (v4, v6) = (node(30082).to_string(), SocketAddr::from((NODE1.1, 30082)).to_string());
    let outside = rig.lab.at(&Place::Outside).unwrap();
    let open =
        [Proto::Tcp, Proto::Udp].map(|proto| outside.open_flows(flows(proto, 10, &[&v4, &v6])).unwrap());
    agent.terminate(Duration::from_secs(10)).unwrap();
    let setup = rig.setup().with(&["--snat-port-range", "40000-41999"]);
    let _agent = Agent::ready(&rig.lab, setup).unwrap();
    observe(AFTERWARDS);
    let new = outside.who(Proto::Tcp, node(30082)).unwrap();
    assert!(new.seen.is_some_and(|seen| (40_000..42_000).contains(&seen.port())), "{new:?}");
    for flows in open {
        let report = outside.stop_flows(flows).unwrap();
        assert_eq!((report.lost(), report.sent() - report.echoed()), (Vec::new(), 0));
        assert!(report.echoed() >= 200, "{} messages", report.echoed());
    }
}
