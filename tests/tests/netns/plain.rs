//! The lab itself, without an agent: if plain routing did not work here, no other test of
//! the packet path would mean anything.

use crate::rig::demo_lab;
use lab::manifests::PodSpec;
use lab::netns::Netns;
use lab::topology::{CLIENT, NODE1, Place};
use lab::wait;
use lab::web::{Fetch, Traffic, Version};
use lab::wire::{Ask, Flows, Load, Proto};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

#[test]
fn calling_thread_keeps_its_namespace() {
    let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let netns = Netns::new(format!("weir-{}-unit", std::process::id())).unwrap();
    let inside = netns.enter(|| std::fs::read_link("/proc/thread-self/ns/net")).unwrap().unwrap();
    assert_ne!(before, inside);
    assert_eq!(before, std::fs::read_link("/proc/thread-self/ns/net").unwrap());
    netns.enter(|| UdpSocket::bind("127.0.0.1:0")).unwrap().unwrap();
    let path = netns.path().to_owned();
    drop(netns);
    assert!(!path.exists());
}

#[test]
fn pods_answer_by_their_own_addresses() {
    let lab = demo_lab();
    for v6 in [false, true] {
        for (from, to) in [
            ("client", "my-app-1"),
            ("client", "my-app-2"),
            ("my-app-2", "my-app-1"),
            ("my-app-1", "my-app-1"),
        ] {
            for proto in [Proto::Tcp, Proto::Udp] {
                let to_ip = lab.pod_ip(to, v6).unwrap();
                let at = SocketAddr::new(to_ip, 8080);
                for place in [Place::pod(from), Place::unhooked(from)] {
                    let answer = lab.at(&place).unwrap().who(proto, at).unwrap();
                    let case = format!("{place} {proto} {at}: {answer:?}");
                    assert_eq!(answer.pod.as_deref(), Some(to), "{case}");
                    assert_eq!(answer.seen.unwrap().ip(), lab.pod_ip(from, v6).unwrap(), "{case}");
                    assert_eq!(answer.peer, Some(at), "{case}");
                }
            }
        }
    }
}

#[test]
fn client_outside_reaches_nodes_but_not_pods() {
    let lab = demo_lab();
    let outside = lab.at(&Place::Outside).unwrap();
    for (node, pod) in [
        (IpAddr::from(NODE1.0), lab.pod_ip("my-app-1", false).unwrap()),
        (IpAddr::from(NODE1.1), lab.pod_ip("my-app-1", true).unwrap()),
    ] {
        let refused = outside.who(Proto::Tcp, SocketAddr::new(node, 8080)).unwrap();
        assert!(refused.refused(), "{refused:?}");
        assert!(refused.elapsed_us < 100_000, "{refused:?}");
        let refused = outside.ask(Ask::new(Proto::Udp, SocketAddr::new(node, 8080)).connected()).unwrap();
        assert!(refused.refused(), "{refused:?}");
        let unreachable = outside.who(Proto::Tcp, SocketAddr::new(pod, 8080)).unwrap();
        assert_eq!(unreachable.errno, Some(libc::ENETUNREACH), "{unreachable:?}");
    }
}

#[test]
fn nodes_masquerade_what_pods_send_out_of_the_cluster() {
    let lab = demo_lab();
    let outside = PodSpec { name: "outside".into(), tcp: vec![8080], udp: vec![8080], ..PodSpec::default() };
    lab.at(&Place::Outside).unwrap().serve(&outside).unwrap();
    for (to, node) in [(IpAddr::from(CLIENT.0), IpAddr::from(NODE1.0)), (CLIENT.1.into(), NODE1.1.into())] {
        let answer =
            lab.at(&Place::pod("client")).unwrap().who(Proto::Tcp, SocketAddr::new(to, 8080)).unwrap();
        assert_eq!(answer.seen.unwrap().ip(), node, "{answer:?}");
    }
}

#[test]
fn flows_and_loads_lose_nothing_on_a_quiet_network() {
    let lab = demo_lab();
    let to: Vec<SocketAddr> = ["my-app-1", "my-app-2"]
        .iter()
        .flat_map(|pod| [false, true].map(|v6| SocketAddr::new(lab.pod_ip(pod, v6).unwrap(), 8080)))
        .collect();
    let client = lab.at(&Place::pod("client")).unwrap();
    let flows = |proto, count| Flows {
        proto,
        to: to.clone(),
        count,
        interval_ms: 20,
        deadline_ms: 2_000,
        from_port: 0,
    };
    let tcp = client.open_flows(flows(Proto::Tcp, 100)).unwrap();
    let udp = client.open_flows(flows(Proto::Udp, 4)).unwrap();
    let load = client.start_load(Load { ask: Ask::new(Proto::Tcp, to[0]), per_second: 200 }).unwrap();
    let before = client.flows(tcp).unwrap();
    lab::wait::until("progress of every flow", std::time::Duration::from_secs(10), || {
        let progress = client.flows(tcp)?.least_progress_since(&before);
        anyhow::ensure!(progress >= 20, "{progress} messages");
        Ok(())
    })
    .unwrap();
    let tcp = client.stop_flows(tcp).unwrap();
    assert_eq!(tcp.lost(), Vec::<String>::new());
    assert_eq!(tcp.flows.len(), 100);
    let udp = client.stop_flows(udp).unwrap();
    assert_eq!((udp.sent(), udp.lost()), (udp.echoed(), vec![]));
    let load = client.stop_load(load).unwrap();
    assert_eq!((load.started, load.refused, load.failed.len()), (load.answered, 0, 0), "{load:?}");
    assert!(load.pods.contains_key("my-app-1"), "{load:?}");
}

#[test]
fn nothing_is_left_of_a_lab_that_was_dropped() {
    let lab = demo_lab();
    let (id, dir) = (lab.scratch().id().to_owned(), lab.scratch().dir().to_owned());
    let cgroup = lab.node_cgroup().unwrap();
    assert!(cgroup.exists() && dir.exists());
    drop(lab);
    assert!(!cgroup.exists() && !dir.exists());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&id), "{mounts}");
}

/// HTTP without a proxy: what clients tell and servers see, before anything in between is
/// judged by it.
#[test]
fn web_clients_tell_what_pods_saw() {
    let lab = demo_lab();
    let helper = lab.at(&Place::pod("client")).unwrap();
    let to = SocketAddr::new(lab.pod_ip("api-2", true).unwrap(), 8080);
    let fetch = Fetch::http(to, "example.com", "/a%20b?c").header("x-id", "7").method("POST").body("four");
    for version in [Version::One, Version::Two] {
        let fetched = helper.fetch(fetch.clone().over(version)).unwrap();
        let seen = fetched.seen().unwrap_or_else(|| panic!("{fetched:?}"));
        assert_eq!((seen.pod.as_str(), seen.path.as_str(), seen.length), ("api-2", "/a%20b?c", 4));
        assert_eq!((seen.host.as_str(), seen.method.as_str()), ("example.com", "POST"));
        assert_eq!(seen.headers["X-Id"], ["7"]);
        assert_eq!(seen.proto == "HTTP/2.0", version == Version::Two, "{seen:?}");
    }
    let socket = helper.fetch(fetch.clone().method("GET").over(Version::WebSocket)).unwrap();
    assert_eq!(socket.status, Some(101), "{socket:?}");
    let nobody = helper.fetch(Fetch::http((to.ip(), 1).into(), "example.com", "/")).unwrap();
    assert!(nobody.status.is_none() && nobody.error.is_some(), "{nobody:?}");

    for version in [Version::One, Version::Two, Version::WebSocket] {
        let fetch = Fetch::http(to, "example.com", "/").over(version);
        let traffic = helper.start_traffic(Traffic { fetch, lasting: 3, interval_ms: 5 }).unwrap();
        wait::until("requests", Duration::from_secs(5), || {
            anyhow::ensure!(helper.traffic(traffic)?.answered >= 20, "not yet");
            Ok(())
        })
        .unwrap();
        let report = helper.stop_traffic(traffic).unwrap();
        assert!(report.failed.is_empty() && report.answered == report.started, "{report:?}");
    }
}
