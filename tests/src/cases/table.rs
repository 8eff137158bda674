//! The table itself. Addresses and ports are those of `deploy/demo`.

use super::{Assigned, Case, Expect, Source, case};
use crate::topology::{NODE1, Place};
use crate::wire::{Ask, Proto};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const MY_APP: &[&str] = &["my-app-1", "my-app-2"];
const LOCAL: &[&str] = &["local-app"];
const REMOTE: &[&str] = &["remote-app"];
const WEB: &[&str] = &["web-1", "web-2"];

/// Last part of the ClusterIPs in `services.yaml`.
mod service {
    pub(super) const DUAL: u8 = 1;
    pub(super) const UDP: u8 = 2;
    pub(super) const LOCAL: u8 = 4;
    pub(super) const REMOTE: u8 = 5;
    pub(super) const LOAD_BALANCER: u8 = 6;
    pub(super) const EXTERNAL: u8 = 7;
    pub(super) const TWO_PORTS: u8 = 8;
    pub(super) const STICKY: u8 = 9;
    pub(super) const NO_ENDPOINTS: u8 = 10;
}

mod node_port {
    pub(super) const BOTH: u16 = 30080;
    pub(super) const LOCAL: u16 = 30081;
    pub(super) const REMOTE: u16 = 30082;
    pub(super) const LOAD_BALANCER: u16 = 30083;
    pub(super) const STICKY: u16 = 30084;
    pub(super) const NO_ENDPOINTS: u16 = 30085;
}

fn pod() -> Place {
    Place::pod("client")
}

fn unhooked() -> Place {
    Place::unhooked("client")
}

fn cluster_ip(service: u8, port: u16, v6: bool) -> SocketAddr {
    let ip: IpAddr = if v6 {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa00 + u16::from(service)).into()
    } else {
        Ipv4Addr::new(10, 96, 10, service).into()
    };
    SocketAddr::new(ip, port)
}

fn node(port: u16, v6: bool) -> SocketAddr {
    SocketAddr::new(if v6 { NODE1.1.into() } else { NODE1.0.into() }, port)
}

fn load_balancer(v6: bool) -> SocketAddr {
    let ip: IpAddr = if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10).into()
    } else {
        Ipv4Addr::new(198, 51, 100, 10).into()
    };
    SocketAddr::new(ip, 80)
}

fn external_ip(v6: bool) -> SocketAddr {
    let ip: IpAddr = if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10).into()
    } else {
        Ipv4Addr::new(203, 0, 113, 10).into()
    };
    SocketAddr::new(ip, 80)
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

fn answer(pods: &'static [&'static str], ports: &'static [u16], source: Source) -> Expect {
    Expect::Answer { pods, ports, source }
}

/// Every case, in the order in which a newcomer would ask.
pub fn all(assigned: &Assigned) -> Vec<Case> {
    let mut cases = my_service(assigned);
    for v6 in [false, true] {
        for proto in [Proto::Tcp, Proto::Udp] {
            cluster_ips(&mut cases, proto, v6);
            node_ports(&mut cases, proto, v6);
            refusals(&mut cases, proto, v6);
        }
        outside_addresses(&mut cases, v6);
        ports_and_affinity(&mut cases, v6);
        peer_names(&mut cases, v6);
    }
    cases
}

/// The brief's own manifest.
fn my_service(assigned: &Assigned) -> Vec<Case> {
    let to = SocketAddr::new(assigned.my_service, 80);
    let mut cases: Vec<Case> = [pod(), unhooked(), Place::Host]
        .into_iter()
        .map(|from| {
            let expect = answer(MY_APP, &[8080], Source::Kept);
            case(format!("my-service from {from}"), from, Proto::Tcp, to, expect)
        })
        .collect();
    let spread = Expect::Spread { pods: MY_APP };
    cases.push(case("my-service uses both pods".into(), pod(), Proto::Tcp, to, spread));
    cases
}

fn cluster_ips(cases: &mut Vec<Case>, proto: Proto, v6: bool) {
    let family = family(v6);
    let to = match proto {
        Proto::Tcp => cluster_ip(service::DUAL, 80, v6),
        Proto::Udp => cluster_ip(service::UDP, 53, v6),
    };
    for from in [pod(), unhooked(), Place::Host] {
        let expect = answer(MY_APP, &[8080], Source::Kept);
        cases.push(case(format!("ClusterIP {proto} {family} from {from}"), from, proto, to, expect));
    }
    for from in [pod(), unhooked()] {
        let spread = Expect::Spread { pods: MY_APP };
        cases.push(case(format!("ClusterIP {proto} {family} spreads from {from}"), from, proto, to, spread));
    }
    for (which, service, pods) in [("local", service::LOCAL, LOCAL), ("remote", service::REMOTE, REMOTE)] {
        let to = cluster_ip(service, 80, v6);
        let expect = answer(pods, &[8080], Source::Kept);
        let name = format!("ClusterIP {proto} {family} {which} pod, packet path");
        cases.push(case(name, unhooked(), proto, to, expect));
    }
    // S42: a pod that reaches itself through its own Service.
    for from in [Place::pod("local-app"), Place::unhooked("local-app")] {
        let expect = answer(LOCAL, &[8080], Source::KeptOrNode);
        let to = cluster_ip(service::LOCAL, 80, v6);
        cases.push(case(format!("hairpin {proto} {family} from {from}"), from, proto, to, expect));
    }
}

fn node_ports(cases: &mut Vec<Case>, proto: Proto, v6: bool) {
    let family = family(v6);
    for (which, port, pods, outside) in [
        ("local pod", node_port::LOCAL, LOCAL, Source::Kept),
        ("remote pod", node_port::REMOTE, REMOTE, Source::Node),
    ] {
        for from in [Place::Outside, pod(), unhooked(), Place::Host] {
            let source = if from == Place::Outside { outside } else { Source::KeptOrNode };
            let expect = answer(pods, &[8080], source);
            let name = format!("NodePort {proto} {family} {which} from {from}");
            cases.push(case(name, from, proto, node(port, v6), expect));
        }
    }
    let spread = Expect::Spread { pods: MY_APP };
    let name = format!("NodePort {proto} {family} spreads from outside");
    cases.push(case(name, Place::Outside, proto, node(node_port::BOTH, v6), spread));
}

/// S35, S36: refused at once, from wherever.
fn refusals(cases: &mut Vec<Case>, proto: Proto, v6: bool) {
    let family = family(v6);
    for from in [pod(), unhooked(), Place::Host] {
        let to = cluster_ip(service::NO_ENDPOINTS, 80, v6);
        let name = format!("refused {proto} {family} ClusterIP from {from}");
        cases.push(refused(name, from, proto, to));
    }
    for from in [Place::Outside, pod(), unhooked(), Place::Host] {
        let to = node(node_port::NO_ENDPOINTS, v6);
        let name = format!("refused {proto} {family} NodePort from {from}");
        cases.push(refused(name, from, proto, to));
    }
}

/// UDP learns of a refusal on connected sockets only.
fn refused(name: String, from: Place, proto: Proto, to: SocketAddr) -> Case {
    let ask = Ask::new(proto, to);
    let ask = if proto == Proto::Udp { ask.connected() } else { ask };
    Case { name, from, ask, expect: Expect::Refused }
}

fn outside_addresses(cases: &mut Vec<Case>, v6: bool) {
    let family = family(v6);
    for from in [Place::Outside, pod(), unhooked(), Place::Host] {
        for (what, proto, to) in [
            ("LoadBalancer address TCP", Proto::Tcp, load_balancer(v6)),
            ("externalIP TCP", Proto::Tcp, external_ip(v6)),
            ("externalIP UDP", Proto::Udp, external_ip(v6)),
        ] {
            let expect = answer(MY_APP, &[8080], Source::KeptOrNode);
            cases.push(case(format!("{what} {family} from {from}"), from.clone(), proto, to, expect));
        }
    }
    for (what, to) in [
        ("LoadBalancer's NodePort", node(node_port::LOAD_BALANCER, v6)),
        ("LoadBalancer address spreads", load_balancer(v6)),
    ] {
        let spread = Expect::Spread { pods: MY_APP };
        cases.push(case(format!("{what} {family} from outside"), Place::Outside, Proto::Tcp, to, spread));
    }
    for (what, service) in [("LoadBalancer", service::LOAD_BALANCER), ("externalIP", service::EXTERNAL)] {
        let expect = answer(MY_APP, &[8080], Source::Kept);
        let name = format!("{what}'s ClusterIP {family} from pod");
        cases.push(case(name, pod(), Proto::Tcp, cluster_ip(service, 80, v6), expect));
    }
}

fn ports_and_affinity(cases: &mut Vec<Case>, v6: bool) {
    let family = family(v6);
    for (what, port, ports) in
        [("named targetPort", 80, &[8081, 8082][..]), ("second port of one Service", 9000, &[9090][..])]
    {
        let to = cluster_ip(service::TWO_PORTS, port, v6);
        for from in [pod(), unhooked()] {
            let expect = answer(WEB, ports, Source::Kept);
            cases.push(case(format!("{what} {family} from {from}"), from, Proto::Tcp, to, expect));
        }
        let spread = Expect::Spread { pods: WEB };
        cases.push(case(format!("{what} {family} uses both pods"), pod(), Proto::Tcp, to, spread));
    }
    // S33: both paths count the same client.
    for (from, also_from) in [(pod(), Some(unhooked())), (Place::Host, None)] {
        let to = cluster_ip(service::STICKY, 80, v6);
        let name = format!("affinity {family} from {from}");
        cases.push(case(name, from, Proto::Tcp, to, Expect::Sticky { also_from }));
    }
    let name = format!("affinity {family} NodePort from outside");
    let to = node(node_port::STICKY, v6);
    cases.push(case(name, Place::Outside, Proto::Tcp, to, Expect::Sticky { also_from: None }));
}

/// S50: connected UDP shows the ClusterIP by getpeername(), unconnected by recvfrom().
fn peer_names(cases: &mut Vec<Case>, v6: bool) {
    let family = family(v6);
    for from in [pod(), Place::Host, unhooked()] {
        let name = format!("connected UDP {family} peer name from {from}");
        let expect = answer(MY_APP, &[8080], Source::Kept);
        let ask = Ask::new(Proto::Udp, cluster_ip(service::UDP, 53, v6)).connected();
        cases.push(Case { name, from, ask, expect });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let cases = all(&Assigned { my_service: Ipv4Addr::new(10, 96, 0, 1).into() });
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
        assert!(cases.len() > 100, "{}", cases.len());
    }
}
