//! Addresses of Services that no frontend names (S38), and whose source becomes the node's (S43).

use crate::rig::Rig;
use lab::topology::{NODE1, Place};
use lab::wire::{Ask, Proto};
use std::net::{IpAddr, SocketAddr};

fn places() -> [Place; 3] {
    [Place::pod("client"), Place::unhooked("client"), Place::Host]
}

/// A port that nobody named is refused at once, an address that nobody has stays silent.
#[test]
fn undefined_ports_are_refused_and_unallocated_addresses_are_silent() {
    let rig = Rig::new();
    let agent = rig.agent();
    for at in ["10.96.10.1:81", "[fd00:10:96::a01]:81"] {
        let at: SocketAddr = at.parse().unwrap();
        for place in places() {
            for proto in [Proto::Tcp, Proto::Udp] {
                let ask = Ask::new(proto, at);
                let ask = if proto == Proto::Udp { ask.connected() } else { ask };
                let answer = rig.lab.at(&place).unwrap().ask(ask).unwrap();
                assert!(answer.refused() && answer.elapsed_us < 500_000, "{place} {proto} {at}: {answer:?}");
            }
        }
    }
    for at in ["10.96.77.77:80", "[fd00:10:96::7777]:80"] {
        let at: SocketAddr = at.parse().unwrap();
        for place in places() {
            let answer = rig.lab.at(&place).unwrap().ask(Ask::new(Proto::Tcp, at).timeout_ms(500)).unwrap();
            let errno = if place == Place::Host { Some(libc::EPERM) } else { answer.errno };
            assert!(!answer.ok() && !answer.refused() && answer.errno == errno, "{place} {at}: {answer:?}");
        }
    }
    let metrics = agent.metrics().unwrap();
    for reason in ["undefined_port", "unallocated"] {
        let line = metrics.lines().find(|line| line.contains(&format!("reason=\"{reason}\"")));
        assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{line:?}");
    }
}

#[test]
fn masquerade_all_hides_pods_behind_the_node() {
    let rig = Rig::new();
    let _agent = lab::agent::Agent::ready(&rig.lab, rig.setup().with(&["--masquerade-all"])).unwrap();
    for (at, node) in [
        ("10.96.10.1:80", IpAddr::from(NODE1.0)),
        ("[fd00:10:96::a01]:80", NODE1.1.into()),
        ("10.96.10.4:80", NODE1.0.into()),
    ] {
        let gateways: Vec<IpAddr> = rig.lab.gateways().collect();
        for place in places() {
            let answer = rig.lab.at(&place).unwrap().who(Proto::Tcp, at.parse().unwrap()).unwrap();
            let seen = answer.seen.map(|seen| seen.ip());
            let ours = seen == Some(node) || seen.is_some_and(|seen| gateways.contains(&seen));
            assert!(answer.ok() && ours, "{place} {at}: {answer:?}");
        }
    }
}
