//! A world: Services with their endpoints, made by chance from a seed, and the objects of the
//! API that they are.
//!
//! Every address and node port belongs to one Service of one world, so that what is remembered
//! of an earlier world is nobody's here. The state of a Service's endpoints is drawn as a
//! [`State`] first, so that each comes up as often.

use super::dice::Dice;
use serde_json::{Map, Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where all objects are.
pub(super) const NAMESPACE: &str = "differential";
/// Services of a world at most: their addresses end in the number.
pub(super) const MOST_SERVICES: usize = 200;
/// The zone of node1; node2 is in another.
pub(super) const ZONES: [&str; 2] = ["here", "there"];
/// Ports that every server listens on, TCP and UDP: two for each slice of a Service.
pub(super) const SERVED: [u16; 4] = [8080, 8081, 8090, 8091];
const NODE_PORTS: std::ops::Range<u16> = 30_000..32_768;

/// Who may be an endpoint: pods, and the nodes themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Host {
    pub(super) name: &'static str,
    /// 1 or 2.
    pub(super) node: u8,
    /// Its address's last part; 0: the node's own address.
    pub(super) last: u8,
}

impl Host {
    pub(super) fn ip(self, v6: bool) -> IpAddr {
        let (node, last) = (self.node, self.last);
        match (v6, last) {
            (false, 0) => Ipv4Addr::new(172, 30, 0, node).into(),
            (true, 0) => Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, node.into()).into(),
            (false, _) => Ipv4Addr::new(10, 244, node, last).into(),
            (true, _) => Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, last.into()).into(),
        }
    }
}

/// The first is the pod that reaches itself.
pub(super) const HOSTS: [Host; 6] = [
    Host { name: "web-a", node: 1, last: 10 },
    Host { name: "web-b", node: 1, last: 11 },
    Host { name: "node1", node: 1, last: 0 },
    Host { name: "web-c", node: 2, last: 10 },
    Host { name: "web-d", node: 2, last: 11 },
    Host { name: "node2", node: 2, last: 0 },
];

/// What the endpoints of a Service are like, together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum State {
    None,
    /// Ready on this node alone.
    Here,
    /// Ready on the other node alone.
    Elsewhere,
    Both,
    /// None ready, some that serve while they terminate.
    Draining,
    /// Ready elsewhere, terminating here.
    DrainingHere,
    /// Some, of which none serves.
    Unready,
    /// Ready, with topology hints.
    Hinted,
}

impl State {
    pub(super) const ALL: [Self; 8] = [
        Self::None,
        Self::Here,
        Self::Elsewhere,
        Self::Both,
        Self::Draining,
        Self::DrainingHere,
        Self::Unready,
        Self::Hinted,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Here => "here",
            Self::Elsewhere => "elsewhere",
            Self::Both => "both",
            Self::Draining => "draining",
            Self::DrainingHere => "drain-here",
            Self::Unready => "unready",
            Self::Hinted => "hinted",
        }
    }
}

/// An endpoint's conditions: ready, serving, terminating; `None`: not said.
type Conditions = [Option<bool>; 3];
const READY: [Conditions; 4] = [
    [Some(true), Some(true), Some(false)],
    [Some(true), None, None],
    [None, None, None],
    // publishNotReadyAddresses.
    [Some(true), Some(true), Some(true)],
];
const DRAINING: Conditions = [Some(false), Some(true), Some(true)];
const DEAD: [Conditions; 2] =
    [[Some(false), Some(false), Some(false)], [Some(false), Some(false), Some(true)]];

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Endpoint {
    /// Index into [`HOSTS`].
    host: usize,
    conditions: Conditions,
    /// The slice says which node it is on.
    node_known: bool,
    zone_hint: Option<&'static str>,
    node_hint: Option<u8>,
    /// 0 or 1: the second slice's target ports are others.
    slice: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// Who may use a load balancer's address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ranges {
    Everybody,
    Client,
    Nodes,
    Pods,
    /// Of IPv4 nobody who is here; of IPv6 everybody.
    NobodyOfV4,
}

impl Ranges {
    fn list(self) -> &'static [&'static str] {
        match self {
            Self::Everybody => &[],
            Self::Client => &["172.30.0.100/32", " fd00:30::100/128"],
            Self::Nodes => &["172.30.0.0/30", "fd00:30::/126"],
            Self::Pods => &["10.244.1.0/24", "fd00:10:244:1::/64"],
            Self::NobodyOfV4 => &["192.0.2.0/24"],
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Port {
    /// What clients use.
    pub(super) number: u16,
    /// 0 or 1: which of a server's two ports.
    target: usize,
    pub(super) tcp: bool,
    pub(super) udp: bool,
    /// 0: none.
    pub(super) node_port: u16,
}

#[derive(Clone, Debug)]
pub(super) struct Service {
    /// Its place in the world; part of its name and addresses.
    pub(super) index: usize,
    /// The world's part of the addresses.
    series: u8,
    pub(super) state: State,
    pub(super) kind: Kind,
    /// IPv4, IPv6.
    pub(super) families: [bool; 2],
    pub(super) internal_local: bool,
    pub(super) external_local: bool,
    /// Its clients stay with their endpoint. The Service before it is the same without.
    pub(super) sticky: bool,
    pub(super) external_ip: bool,
    /// The status address is left to the network (`ipMode: Proxy`).
    pub(super) proxy_mode: bool,
    ranges: Ranges,
    /// Another proxy serves it.
    pub(super) foreign: bool,
    health_port: u16,
    pub(super) ports: Vec<Port>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// All Services of one seed.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) services: Vec<Service>,
}

impl World {
    pub(super) fn new(seed: u64, size: usize) -> Self {
        let mut dice = Dice::new(seed);
        let series = u8::try_from(1 + seed % 200).unwrap_or(1);
        // Worlds that follow each other take node ports from other parts of the range.
        let span = NODE_PORTS.len();
        let mut next = (usize::from(series) * 997) % span;
        let mut node_port = move || {
            next = (next + 1) % span;
            NODE_PORTS.start + u16::try_from(next).unwrap_or(0)
        };
        let mut services: Vec<Service> = Vec::new();
        while services.len() < size.min(MOST_SERVICES - 1) {
            let service = draw(&mut dice, services.len(), series, &mut node_port);
            services.push(service);
            if dice.often(12) {
                let mut sticky = services[services.len() - 1].clone();
                sticky.index += 1;
                sticky.sticky = true;
                for port in sticky.ports.iter_mut().filter(|port| port.node_port != 0) {
                    port.node_port = node_port();
                }
                if sticky.health_port != 0 {
                    sticky.health_port = node_port();
                }
                services.push(sticky);
            }
        }
        Self { services }
    }

    /// Services, then slices: in this order they are made.
    pub(super) fn objects(&self) -> Vec<Value> {
        let services = self.services.iter().map(Service::object);
        services.chain(self.services.iter().flat_map(Service::slices)).collect()
    }
}

fn draw(dice: &mut Dice, index: usize, series: u8, node_port: &mut impl FnMut() -> u16) -> Service {
    let state = dice.one_of(&State::ALL);
    let kind = dice.one_of(&[Kind::ClusterIp, Kind::NodePort, Kind::LoadBalancer, Kind::LoadBalancer]);
    let families = dice.one_of(&[[true, true], [true, true], [true, true], [true, false], [false, true]]);
    let allocated = kind == Kind::NodePort || (kind == Kind::LoadBalancer && dice.often(85));
    let external_ip = dice.often(75);
    let external_local = (kind != Kind::ClusterIp || external_ip) && dice.often(50);
    let mut ports = Vec::new();
    for n in 0..=u16::from(dice.often(20)) {
        let both = dice.often(60);
        let tcp = both || dice.often(50);
        let node_port = if allocated { node_port() } else { 0 };
        ports.push(Port { number: 80 + n, target: dice.roll(2), tcp, udp: both || !tcp, node_port });
    }
    let local_balancer = kind == Kind::LoadBalancer && external_local;
    Service {
        index,
        series,
        state,
        kind,
        families,
        internal_local: dice.often(50),
        external_local,
        sticky: false,
        external_ip,
        proxy_mode: dice.often(8),
        ranges: dice.one_of(&[
            Ranges::Everybody,
            Ranges::Everybody,
            Ranges::Everybody,
            Ranges::Client,
            Ranges::Nodes,
            Ranges::Pods,
            Ranges::NobodyOfV4,
        ]),
        foreign: dice.often(3),
        health_port: if local_balancer { node_port() } else { 0 },
        ports,
        endpoints: endpoints(dice, state),
    }
}

fn endpoints(dice: &mut Dice, state: State) -> Vec<Endpoint> {
    let ready = |dice: &mut Dice| dice.one_of(&READY);
    let dead = |dice: &mut Dice| dice.one_of(&DEAD);
    let (here, there): (&[usize], &[usize]) = (&[0, 0, 0, 1, 2], &[3, 4, 5]);
    let mut all = Vec::new();
    let mut add = |dice: &mut Dice, hosts: &[usize], conditions: Conditions| {
        let host = dice.one_of(hosts);
        // A node's own address is on that node whether the slice says so or not; a pod's is not.
        let node_known = state != State::Elsewhere && state != State::DrainingHere || !dice.often(10);
        let endpoint =
            Endpoint { host, conditions, node_known, zone_hint: None, node_hint: None, slice: dice.roll(2) };
        if !all.iter().any(|other: &Endpoint| other.host == host) {
            all.push(endpoint);
        }
    };
    let count = 1 + dice.roll(2);
    match state {
        State::None => {}
        State::Here => {
            for _ in 0..count {
                let conditions = ready(dice);
                add(dice, here, conditions);
            }
        }
        State::Elsewhere => {
            for _ in 0..count {
                let conditions = ready(dice);
                add(dice, there, conditions);
            }
        }
        State::Both | State::Hinted => {
            for hosts in [here, there] {
                let conditions = ready(dice);
                add(dice, hosts, conditions);
            }
        }
        State::Draining => {
            let hosts = dice.one_of(&[here, here, here, there, &[0, 0, 3, 4]]);
            for _ in 0..count {
                add(dice, hosts, DRAINING);
            }
        }
        State::DrainingHere => {
            add(dice, here, DRAINING);
            let conditions = ready(dice);
            add(dice, there, conditions);
        }
        State::Unready => {
            for _ in 0..count {
                let conditions = dead(dice);
                add(dice, &[0, 0, 0, 1, 2, 3, 5], conditions);
            }
        }
    }
    if !matches!(state, State::None | State::Unready) && dice.often(30) {
        let conditions = dead(dice);
        add(dice, &[0, 1, 3, 4], conditions);
    }
    if state == State::Hinted {
        hint(dice, &mut all);
    }
    again(dice, &mut all);
    all
}

/// Hints of a kind for all, or for all but one, which switches them off.
fn hint(dice: &mut Dice, endpoints: &mut [Endpoint]) {
    let (zones, nodes) = dice.one_of(&[(true, false), (false, true), (true, true)]);
    let crossed = dice.often(20);
    for endpoint in endpoints.iter_mut() {
        let node = HOSTS[endpoint.host].node;
        let named = if crossed { 3 - node } else { node };
        endpoint.zone_hint = (zones && !dice.often(15)).then_some(ZONES[usize::from(named != 1)]);
        endpoint.node_hint = (nodes && !dice.often(15)).then_some(named);
    }
}

/// A pod's address may be in the slices twice: of its former owner, which terminates (S4).
fn again(dice: &mut Dice, endpoints: &mut Vec<Endpoint>) {
    if let Some(first) = endpoints.first().cloned()
        && first.conditions == READY[0]
        && dice.often(25)
    {
        let conditions = dice.one_of(&[DRAINING, DEAD[1]]);
        // The same port, or it would be another endpoint: so in the same slice's numbering.
        endpoints.push(Endpoint { conditions, ..first });
    }
}

impl Service {
    pub(super) fn name(&self) -> String {
        format!("s{}-{}", self.series, self.index)
    }

    fn last(&self) -> u8 {
        u8::try_from(self.index + 1).unwrap_or(u8::MAX)
    }

    pub(super) fn cluster_ip(&self, v6: bool) -> IpAddr {
        if v6 {
            let last = u16::from(self.series) << 8 | u16::from(self.last());
            Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, last).into()
        } else {
            Ipv4Addr::new(10, 96, self.series, self.last()).into()
        }
    }

    /// An address of the load balancer; routed to node1 from outside.
    pub(super) fn balanced(&self, v6: bool) -> IpAddr {
        if v6 {
            let last = u16::from(self.last());
            Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, self.series.into(), last).into()
        } else {
            Ipv4Addr::new(198, 18, self.series, self.last()).into()
        }
    }

    pub(super) fn external(&self, v6: bool) -> IpAddr {
        if v6 {
            let last = u16::from(self.last());
            Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, self.series.into(), last).into()
        } else {
            Ipv4Addr::new(198, 19, self.series, self.last()).into()
        }
    }

    /// Whether this pod is among its endpoints, in whatever condition.
    pub(super) fn has_endpoint(&self, name: &str) -> bool {
        self.endpoints.iter().any(|endpoint| HOSTS[endpoint.host].name == name)
    }

    fn families(&self) -> impl Iterator<Item = bool> {
        [false, true].into_iter().filter(|v6| self.families[usize::from(*v6)])
    }

    fn object(&self) -> Value {
        let mut ports = Vec::new();
        for (n, port) in self.ports.iter().enumerate() {
            for (protocol, asked) in [("TCP", port.tcp), ("UDP", port.udp)] {
                if asked {
                    let mut object = json!({
                        "name": port_name(n, protocol), "port": port.number, "protocol": protocol,
                        "targetPort": 1,
                    });
                    if port.node_port != 0 {
                        object["nodePort"] = port.node_port.into();
                    }
                    ports.push(object);
                }
            }
        }
        let cluster_ips: Vec<IpAddr> = self.families().map(|v6| self.cluster_ip(v6)).collect();
        let names: Vec<&str> = self.families().map(|v6| if v6 { "IPv6" } else { "IPv4" }).collect();
        let local = |local: bool| if local { "Local" } else { "Cluster" };
        let mut spec = json!({
            "type": match self.kind {
                Kind::ClusterIp => "ClusterIP",
                Kind::NodePort => "NodePort",
                Kind::LoadBalancer => "LoadBalancer",
            },
            "clusterIP": cluster_ips[0],
            "clusterIPs": cluster_ips,
            "ipFamilies": names,
            "ipFamilyPolicy": if names.len() == 2 { "RequireDualStack" } else { "SingleStack" },
            "internalTrafficPolicy": local(self.internal_local),
            "ports": ports,
        });
        if self.external_ip {
            // Of both families, whatever the Service's are.
            spec["externalIPs"] = json!([self.external(false), self.external(true)]);
        }
        if self.kind != Kind::ClusterIp || self.external_ip {
            spec["externalTrafficPolicy"] = local(self.external_local).into();
        }
        if self.sticky {
            spec["sessionAffinity"] = "ClientIP".into();
        }
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": self.name(), "namespace": NAMESPACE, "labels": self.labels() },
        });
        if self.kind == Kind::LoadBalancer {
            spec["allocateLoadBalancerNodePorts"] = self.ports.iter().any(|port| port.node_port != 0).into();
            if self.ranges != Ranges::Everybody {
                spec["loadBalancerSourceRanges"] = json!(self.ranges.list());
            }
            if self.health_port != 0 {
                spec["healthCheckNodePort"] = self.health_port.into();
            }
            let mode = if self.proxy_mode { "Proxy" } else { "VIP" };
            let ingress: Vec<Value> =
                self.families().map(|v6| json!({ "ip": self.balanced(v6), "ipMode": mode })).collect();
            object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        object["spec"] = spec;
        object
    }

    fn labels(&self) -> Value {
        if self.foreign {
            json!({ "service.kubernetes.io/service-proxy-name": "another" })
        } else {
            json!({})
        }
    }

    fn slices(&self) -> Vec<Value> {
        let mut slices = Vec::new();
        for v6 in self.families() {
            for number in [0, 1] {
                let members = self.endpoints.iter().filter(|endpoint| endpoint.slice == number);
                // One that is there twice is in a slice of its own.
                let mut rounds: Vec<Vec<&Endpoint>> = Vec::new();
                for endpoint in members {
                    match rounds.iter_mut().find(|r| r.iter().all(|other| other.host != endpoint.host)) {
                        Some(round) => round.push(endpoint),
                        None => rounds.push(vec![endpoint]),
                    }
                }
                for (n, members) in rounds.iter().enumerate() {
                    let name = format!("{}-{}-{number}{n}", self.name(), if v6 { "v6" } else { "v4" });
                    slices.push(self.slice(&name, v6, number, members));
                }
            }
        }
        slices
    }

    fn slice(&self, name: &str, v6: bool, number: usize, members: &[&Endpoint]) -> Value {
        let mut ports = Vec::new();
        for (n, port) in self.ports.iter().enumerate() {
            for (protocol, asked) in [("TCP", port.tcp), ("UDP", port.udp)] {
                if asked {
                    let target = SERVED[number * 2 + port.target];
                    ports.push(
                        json!({ "name": port_name(n, protocol), "port": target, "protocol": protocol }),
                    );
                }
            }
        }
        let endpoints: Vec<Value> = members.iter().map(|endpoint| endpoint.object(v6)).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "labels": { "kubernetes.io/service-name": self.name() },
            },
            "addressType": if v6 { "IPv6" } else { "IPv4" },
            "ports": ports,
            "endpoints": endpoints,
        })
    }

    /// Simpler Services, each a step from this one.
    pub(super) fn simpler(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut changed = self.clone();
            change(&mut changed);
            if format!("{changed:?}") != format!("{self:?}") {
                all.push(changed);
            }
        };
        for n in 0..self.endpoints.len() {
            add(&|s| {
                s.endpoints.remove(n);
            });
        }
        for n in 0..self.ports.len() {
            if self.ports.len() > 1 {
                add(&|s| {
                    s.ports.remove(n);
                });
            }
            if self.ports[n].tcp && self.ports[n].udp {
                add(&|s| s.ports[n].tcp = false);
                add(&|s| s.ports[n].udp = false);
            }
        }
        if self.families == [true, true] {
            add(&|s| s.families[0] = false);
            add(&|s| s.families[1] = false);
        }
        add(&|s| s.ranges = Ranges::Everybody);
        add(&|s| s.internal_local = false);
        add(&|s| s.proxy_mode = false);
        if self.kind != Kind::ClusterIp || !self.external_local {
            add(&|s| s.external_ip = false);
        }
        if self.health_port == 0 {
            add(&|s| s.external_local = false);
        }
        for n in 0..self.endpoints.len() {
            add(&|s| {
                s.endpoints[n].zone_hint = None;
                s.endpoints[n].node_hint = None;
            });
            add(&|s| s.endpoints[n].slice = 0);
            if READY.contains(&self.endpoints[n].conditions) {
                add(&|s| s.endpoints[n].conditions = READY[0]);
            }
        }
        all
    }
}

impl Endpoint {
    fn object(&self, v6: bool) -> Value {
        let host = HOSTS[self.host];
        let mut conditions = Map::new();
        for (name, value) in ["ready", "serving", "terminating"].into_iter().zip(self.conditions) {
            if let Some(value) = value {
                conditions.insert(name.into(), value.into());
            }
        }
        let mut object = json!({ "addresses": [host.ip(v6)], "conditions": conditions });
        if self.node_known {
            object["nodeName"] = format!("node{}", host.node).into();
        }
        let mut hints = Map::new();
        if let Some(zone) = self.zone_hint {
            hints.insert("forZones".into(), json!([{ "name": zone }]));
        }
        if let Some(node) = self.node_hint {
            hints.insert("forNodes".into(), json!([{ "name": format!("node{node}") }]));
        }
        if !hints.is_empty() {
            object["hints"] = hints.into();
        }
        object
    }
}

fn port_name(n: usize, protocol: &str) -> String {
    format!("p{n}-{}", protocol.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_world_again() {
        assert_eq!(World::new(7, 50).objects(), World::new(7, 50).objects());
        assert_ne!(World::new(7, 50).objects(), World::new(8, 50).objects());
    }

    #[test]
    fn every_simpler_service_is_another_one() {
        for service in World::new(3, 60).services {
            for simpler in service.simpler() {
                assert_ne!(format!("{simpler:?}"), format!("{service:?}"));
            }
        }
    }

    #[test]
    fn a_sticky_service_follows_its_like() {
        let services = World::new(5, 100).services;
        assert!(services.iter().any(|service| service.sticky));
        for service in services.iter().filter(|service| service.sticky) {
            let plain = &services[service.index - 1];
            assert!(!plain.sticky && plain.endpoints == service.endpoints);
        }
    }
}
