//! One client port, several addresses of one pod (S34).

use crate::rig::{Rig, observe};
use lab::topology::{NODE1, Place};
use lab::wire::{Ask, Flows, Proto};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

#[test]
fn two_addresses_of_one_pod_do_not_mix() {
    let rig = Rig::new();
    let _agent = rig.agent();
    let by_cluster_ip = "10.96.10.5:80".parse().unwrap();
    let by_node_port = SocketAddr::from((NODE1.0, 30082));
    let by_external = ["203.0.113.10:80", "198.51.100.10:80"].map(|to| to.parse().unwrap());
    for (place, to, pods) in [
        (Place::unhooked("client"), [by_cluster_ip, by_node_port], &["remote-app"][..]),
        (Place::Outside, by_external, &["my-app-1", "my-app-2"]),
    ] {
        let helpers = [rig.lab.start_helper(&place).unwrap(), rig.lab.start_helper(&place).unwrap()];
        // A port of its own for each round: the client remembers closed connections.
        for port in 9_000..9_020 {
            let ask = |to| Ask::new(Proto::Tcp, to).from_port(port);
            let answers = thread::scope(|scope| {
                let both = [0, 1].map(|n: usize| {
                    let (helper, ask) = (&helpers[n], ask(to[n]));
                    scope.spawn(move || helper.ask(ask).unwrap())
                });
                both.map(|thread| thread.join().unwrap())
            });
            for (answer, to) in answers.iter().zip(to) {
                assert!(answer.pod.as_deref().is_some_and(|pod| pods.contains(&pod)), "{place}: {answer:?}");
                assert_eq!(answer.peer, Some(to), "{place}: {answer:?}");
                assert_eq!(answer.local.map(|local| local.port()), Some(port), "{place}: {answer:?}");
            }
        }
    }
}

/// A pod's process that no socket hook sees asks for a Service; another one talks to the same
/// backend without any packet being translated: straight to it, or because its socket was. Both
/// from one port at a time, in either order.
#[test]
fn a_service_and_its_backend_are_used_from_one_port() {
    let rig = Rig::new();
    let _agent = rig.agent();
    let helper = |place| rig.lab.start_helper(&place).unwrap();
    let (by_packet, straight) = (helper(Place::unhooked("client")), helper(Place::unhooked("client")));
    let by_socket = helper(Place::pod("client"));
    // One below the ports that translated flows are given, one among them.
    let mut ports = (9_100..).zip(15_000..);
    let mut running = Vec::new();
    for (frontend, pod) in [
        ("10.96.10.4:80", "local-app"),
        ("10.96.10.5:80", "remote-app"),
        ("[fd00:10:96::a04]:80", "local-app"),
        ("[fd00:10:96::a05]:80", "remote-app"),
    ] {
        let frontend: SocketAddr = frontend.parse().unwrap();
        let backend = SocketAddr::new(rig.lab.pod_ip(pod, frontend.is_ipv6()).unwrap(), 8080);
        for proto in [Proto::Tcp, Proto::Udp] {
            let service = (&by_packet, frontend, "by packet");
            for other in [(&straight, backend, "straight"), (&by_socket, frontend, "at the socket")] {
                for order in [[other, service], [service, other]] {
                    let (low, high) = ports.next().unwrap();
                    running.extend([low, high].into_iter().flat_map(|from_port| {
                        order.map(|(helper, to, how)| {
                            let flow = Flows {
                                proto,
                                to: vec![to],
                                count: 1,
                                interval_ms: 50,
                                deadline_ms: 1_000,
                                from_port,
                            };
                            let name = format!("{proto} {to} {how} from {from_port}, first {}", order[0].2);
                            (name, helper, helper.open_flows(flow))
                        })
                    }));
                }
            }
        }
    }
    observe(Duration::from_secs(1));
    let mut failed = Vec::new();
    for (name, helper, flow) in running {
        match flow.and_then(|flow| helper.stop_flows(flow)) {
            Err(error) => failed.push(format!("{name}: {error:#}")),
            Ok(report) => {
                let said =
                    (report.lost(), report.sent().abs_diff(report.echoed()), report.flows[0].strangers);
                if said != (Vec::new(), 0, 0) || report.echoed() < 5 {
                    failed.push(format!("{name}: {report:?}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}
