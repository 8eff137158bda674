//! One client port, several addresses of one pod (S34).

use crate::rig::Rig;
use lab::topology::{NODE1, Place};
use lab::wire::{Ask, Proto};
use std::net::SocketAddr;
use std::thread;

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
