#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use lb_common::abi::Addr;
use std::net::IpAddr;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(kind: Option<&str>, name: &str) -> Link {
    Link {
        name: name.into(),
        kind: kind.map(Into::into),
        up: true,
        loopback: name == "lo",
        ethernet: true,
        controller: None,
    }
}

/// A node with a network card, a second one, a pod on a host route and a bridge with a pod.
fn tables() -> Tables {
    let mut tables = Tables::default();
    tables.links.insert(1, link(None, "lo"));
    tables.links.insert(2, link(None, "eth0"));
    tables.links.insert(3, Link { up: false, ..link(None, "eth1") });
    tables.links.insert(4, link(Some("veth"), "lxc1"));
    tables.links.insert(5, link(Some("bridge"), "cni0"));
    tables.links.insert(6, Link { controller: Some(5), ..link(Some("veth"), "veth6") });
    tables.links.insert(7, Link { ethernet: false, ..link(Some("wireguard"), "wg0") });
    for (ifindex, prefix, global, deprecated) in [
        (1, "127.0.0.1/8", false, false),
        (1, "::1/128", false, false),
        (2, "192.0.2.10/24", true, false),
        (2, "2001:db8::dead/64", true, true),
        (2, "2001:db8::10/64", true, false),
        (2, "fe80::2/64", false, false),
        (3, "198.51.100.1/24", true, false),
        (5, "10.244.1.1/24", true, false),
        (7, "10.9.0.1/24", true, false),
    ] {
        let prefix: ipnet::IpNet = prefix.parse().unwrap();
        tables.local.insert(prefix.addr());
        tables.addresses.push(Address { ifindex, prefix, global, deprecated });
    }
    for (destination, ifindex, gateway) in [
        ("0.0.0.0/0", 2, true),
        ("192.0.2.0/24", 2, false),
        ("10.244.1.0/24", 5, false),
        ("10.244.9.9/32", 4, false),
        ("10.9.0.0/24", 7, false),
    ] {
        let destination = destination.parse().unwrap();
        tables.routes.push(Route { destination, ifindex, gateway, metric: 0, source: None });
    }
    tables
}

fn options() -> Options {
    Options { devices: Devices::Auto, pod_devices: true, nodeport_addresses: NodePortAddresses::Primary }
}

fn inputs(pods: &[&str]) -> Inputs {
    Inputs { pod_ips: pods.iter().map(|pod| ip(pod)).collect(), ..Inputs::default() }
}

fn classes(state: &NodeState) -> Vec<(&str, LinkClass)> {
    state.links.iter().map(|link| (link.name.as_str(), link.class)).collect()
}

fn nodeport(state: &NodeState) -> Vec<String> {
    let chosen = state.facts.addresses.iter().filter(|(_, address)| address.node_port == 1);
    let mut chosen: Vec<IpAddr> = chosen.map(|(addr, _)| (*addr).into()).collect();
    chosen.sort();
    chosen.iter().map(IpAddr::to_string).collect()
}

#[test]
fn pods_are_found_by_host_route_and_by_bridge() {
    let state = derive(&tables(), &options(), &inputs(&["10.244.9.9", "10.244.1.7"]));
    use LinkClass::{External, Pod};
    assert_eq!(classes(&state), [("eth0", External), ("lxc1", Pod), ("veth6", Pod), ("wg0", External)]);
    // The bridge carries no program, but flows may leave by it.
    assert_eq!(state.facts.devices[&5].v4, Addr::from(ip("10.244.1.1")));
}

#[test]
fn a_bridge_of_the_pod_subnet_is_known_before_its_first_pod() {
    let inputs = Inputs { pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()], ..Inputs::default() };
    let state = derive(&tables(), &options(), &inputs);
    assert!(classes(&state).contains(&("veth6", LinkClass::Pod)));
    assert!(!state.links.iter().any(|link| link.name == "cni0"));
}

#[test]
fn a_card_in_the_pod_bridge_faces_the_network() {
    let mut tables = tables();
    tables.links.insert(8, Link { controller: Some(5), ..link(None, "eth2") });
    let state = derive(&tables, &options(), &inputs(&["10.244.1.7"]));
    assert!(classes(&state).contains(&("eth2", LinkClass::External)));
    assert!(state.links.iter().any(|link| link.name == "eth2" && link.xdp_capable));
}

#[test]
fn pods_on_the_hosts_network_or_behind_a_gateway_name_no_link() {
    let mut tables = tables();
    tables.links.remove(&5);
    let state = derive(&tables, &options(), &inputs(&["192.0.2.10", "203.0.113.9", "192.0.2.77"]));
    assert!(state.links.iter().all(|link| link.class == LinkClass::External));
}

#[test]
fn pod_devices_off_leaves_pod_links_alone() {
    let options = Options { pod_devices: false, ..options() };
    let state = derive(&tables(), &options, &inputs(&["10.244.9.9"]));
    assert!(!state.links.iter().any(|link| link.name == "lxc1"));
}

#[test]
fn the_device_of_ipvs_is_told() {
    let mut tables = tables();
    assert!(derive(&tables, &options(), &inputs(&[])).problems.is_empty());
    tables.links.insert(9, link(Some("dummy"), "kube-ipvs0"));
    let problems = derive(&tables, &options(), &inputs(&[])).problems;
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!(problem.field, "takeover");
    assert!(problem.reason.contains("kube-ipvs0"), "{problem:?}");
}

#[test]
fn named_devices_are_taken_and_missing_ones_told() {
    let options =
        Options { devices: Devices::Named(vec!["eth1".into(), "bond7".into(), "lo".into()]), ..options() };
    let state = derive(&tables(), &options, &inputs(&[]));
    assert_eq!(classes(&state), [("eth1", LinkClass::External)]);
    assert_eq!(state.problems.len(), 2);
    assert!(state.problems.iter().any(|problem| problem.reason.contains("bond7")));
}

#[test]
fn devices_without_ethernet_are_told_apart() {
    let state = derive(&tables(), &options(), &inputs(&[]));
    let wg0 = state.links.iter().find(|link| link.name == "wg0").unwrap();
    assert!(wg0.l3 && !wg0.xdp_capable);
}

#[test]
fn primary_addresses_come_from_the_node_else_from_the_default_route() {
    let state = derive(&tables(), &options(), &inputs(&[]));
    assert_eq!(state.facts.config.v4, Addr::from(ip("192.0.2.10")));
    // No default route: the first device with a global address, and not its deprecated one.
    assert_eq!(state.facts.config.v6, Addr::from(ip("2001:db8::10")));
    assert_eq!(nodeport(&state), ["192.0.2.10", "2001:db8::10"]);

    let inputs = Inputs { internal_ips: vec![ip("203.0.113.1"), ip("198.51.100.1")], ..Inputs::default() };
    let state = derive(&tables(), &options(), &inputs);
    assert_eq!(state.facts.config.v4, Addr::from(ip("198.51.100.1")));
    assert_eq!(nodeport(&state), ["198.51.100.1", "2001:db8::10"]);
}

#[test]
fn node_port_addresses_follow_the_flag() {
    let with = |text: &str| {
        let options = Options { nodeport_addresses: text.parse().unwrap(), ..options() };
        let state = derive(&tables(), &options, &inputs(&[]));
        (nodeport(&state).join(" "), state.problems)
    };
    assert_eq!(
        with("all").0,
        "10.9.0.1 10.244.1.1 192.0.2.10 198.51.100.1 2001:db8::10 2001:db8::dead fe80::2",
    );
    // A family without a prefix means all of that family (S18).
    assert_eq!(with("192.0.2.0/24").0, "192.0.2.10 2001:db8::10 2001:db8::dead fe80::2");
    assert_eq!(with("192.0.2.0/24,2001:db8::10/128").0, "192.0.2.10 2001:db8::10");
    assert_eq!(with("127.0.0.0/8,2001:db8::/64").1.len(), 1);
    assert!(!with("127.0.0.0/8").0.contains("127."));
}
