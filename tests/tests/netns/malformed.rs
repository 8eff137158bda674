//! Bad input costs only itself, and is told by name, field and reason.

use crate::rig::Rig;
use lab::manifests::replace;
use lab::topology::Place;
use lab::wait;
use lab::wire::{Ask, Flows, Load, Proto};
use std::fs;
use std::time::Duration;

/// File, its text, and what a line of `weir problems` must say of it: object, field, reason.
const BAD: [(&str, &str, [&str; 3]); 4] = [
    (
        "half.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: cut\nspec:\n  ports: [{port: 80, targ",
        ["half.yaml", "", ""],
    ),
    (
        "bad-ip.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad-ip}\nspec:\n  clusterIP: 10.96.300.1\n  \
         clusterIPs: [10.96.300.1]\n  selector: {app: my-app}\n  ports: [{port: 80, targetPort: 8080}]\n",
        ["default/bad-ip", "spec.clusterIP", "10.96.300.1"],
    ),
    (
        "thief.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: thief}\nspec:\n  clusterIP: 10.96.10.1\n  \
         clusterIPs: [10.96.10.1]\n  selector: {app: local-app}\n  ports: [{port: 80, targetPort: 8080}]\n",
        ["default/thief", "", "10.96.10.1"],
    ),
    (
        "loopback.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: inward}\nspec:\n  clusterIP: 10.96.20.1\n  \
         clusterIPs: [10.96.20.1]\n  ports: [{port: 80, targetPort: 8080}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: inward-1\n  \
         labels: {kubernetes.io/service-name: inward}\naddressType: IPv4\n\
         ports: [{port: 8080, protocol: TCP}]\nendpoints: [{addresses: [127.0.0.1]}]\n",
        ["default/inward", "endpoints[0]", "127.0.0.1"],
    ),
];

#[test]
fn bad_objects_are_told_and_disturb_nothing_else() {
    let rig = Rig::new();
    let agent = rig.agent();
    let pod = rig.lab.at(&Place::pod("client")).unwrap();
    let to = "10.96.10.1:80".parse().unwrap();
    let flows = Flows {
        proto: Proto::Tcp,
        to: vec![to],
        count: 20,
        interval_ms: 20,
        deadline_ms: 3_000,
        from_port: 0,
    };
    let flows = pod.open_flows(flows).unwrap();
    let load = pod.start_load(Load { ask: Ask::new(Proto::Tcp, to), per_second: 50 }).unwrap();

    for (name, text, _) in BAD {
        replace(&rig.manifests.join(name), text).unwrap();
    }
    wait::until("every problem is told", Duration::from_secs(10), || {
        let out = agent.verb(&["problems"])?;
        let told = String::from_utf8_lossy(&out.stdout).into_owned();
        let log = agent.log();
        for (name, _, [object, field, reason]) in BAD {
            for (where_, text) in [("weir problems", &told), ("the log", &log)] {
                let found = text
                    .lines()
                    .any(|line| line.contains(object) && line.contains(field) && line.contains(reason));
                anyhow::ensure!(
                    found,
                    "{name}: {where_} has no line with {object} {field} {reason}:\n{text}"
                );
            }
        }
        Ok(())
    })
    .unwrap();

    // The Service that was there first keeps its address and its pods.
    for answer in pod.ask_many(Ask::new(Proto::Tcp, to), 20).unwrap() {
        assert!(matches!(answer.pod.as_deref(), Some("my-app-1" | "my-app-2")), "{answer:?}");
    }
    // The slice's Service has no endpoint left that may be used.
    let inward = pod.who(Proto::Tcp, "10.96.20.1:80".parse().unwrap()).unwrap();
    assert!(inward.refused(), "{inward:?}");
    let load = pod.stop_load(load).unwrap();
    assert_eq!((load.refused, load.failed.len()), (0, 0), "{load:?}");
    assert_eq!(pod.stop_flows(flows).unwrap().lost(), Vec::<String>::new());

    for (name, ..) in BAD {
        fs::remove_file(rig.manifests.join(name)).unwrap();
    }
    wait::until("no problem is left", Duration::from_secs(10), || {
        let told = agent.verb(&["problems"])?.stdout;
        let told = String::from_utf8_lossy(&told);
        for (name, _, [object, ..]) in BAD {
            anyhow::ensure!(!told.contains(object), "{name} is still told:\n{told}");
        }
        Ok(())
    })
    .unwrap();
}
