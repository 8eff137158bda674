#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::problem::{Kind, ObjectRef};
use crate::source::{
    Endpoint, EndpointSlice, FieldProblem, Service, ServicePort, ServiceType, SlicePort, TrafficPolicy,
};
use proptest::prelude::*;
use std::sync::Arc;

mod bounds;
mod masquerade;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn node() -> NodeView {
    NodeView {
        name: "here".into(),
        zone: Some("a".into()),
        addresses: ["192.0.2.1", "192.0.2.100", "192.0.2.101"].map(|ip| ip.parse().unwrap()).into(),
        internal_ips: vec!["192.0.2.1".parse().unwrap()],
        external_ips: vec!["198.51.100.1".parse().unwrap()],
    }
}

fn tcp(name: &str, port: u16, node_port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        proto: Proto::TCP,
        port,
        node_port,
        target_port: None,
        app_protocol: None,
    }
}

fn service(name: &str, ip: &str) -> Service {
    Service {
        key: key(name),
        cluster_ips: vec![ip.parse().unwrap()],
        ports: vec![tcp("", 80, 0)],
        ..Service::default()
    }
}

/// An endpoint from its address and words: `ready`, `serving`, `term`, `here`, `there`,
/// `zone:a` and `node:here` (hints). A ready one serves.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split_whitespace();
    let mut e = Endpoint {
        addr: words.next().unwrap().parse().unwrap(),
        ready: false,
        serving: false,
        terminating: false,
        node: None,
        zone: None,
        hint_zones: vec![],
        hint_nodes: vec![],
    };
    for word in words {
        match word.split_once(':') {
            Some(("zone", zone)) => e.hint_zones.push(zone.into()),
            Some(("node", node)) => e.hint_nodes.push(node.into()),
            _ => match word {
                "ready" => (e.ready, e.serving) = (true, true),
                "serving" => e.serving = true,
                "term" => e.terminating = true,
                name => e.node = Some(name.into()),
            },
        }
    }
    e
}

fn slice(name: &str, service: &str, endpoints: &[&str]) -> EndpointSlice {
    EndpointSlice {
        key: key(name),
        service: key(service),
        managed: true,
        headless: false,
        ports: vec![SlicePort { name: String::new(), proto: Proto::TCP, port: 8080 }],
        endpoints: endpoints.iter().map(|e| endpoint(e)).collect(),
        trigger_time: None,
        problems: vec![],
    }
}

fn put_service(objects: &mut Objects, service: Service) {
    objects.services.insert(service.key.clone(), Arc::new(service));
}

fn put_slice(objects: &mut Objects, slice: EndpointSlice) {
    objects.slices_of.entry(slice.service.clone()).or_default().insert(slice.key.clone());
    objects.slices.insert(slice.key.clone(), Arc::new(slice));
}

fn drop_slice(objects: &mut Objects, key: &ObjectKey) {
    let Some(slice) = objects.slices.remove(key) else { return };
    let of = objects.slices_of.get_mut(&slice.service).unwrap();
    of.remove(key);
    if of.is_empty() {
        objects.slices_of.remove(&slice.service);
    }
}

fn everything(objects: &Objects) -> BTreeSet<ObjectKey> {
    objects.services.keys().chain(objects.slices_of.keys()).cloned().collect()
}

fn from_scratch(options: ModelOptions, objects: &Objects) -> Model {
    let mut model = Model::new(options);
    model.update(objects, &node(), &everything(objects));
    model
}

/// The state of one Service with one slice.
fn alone(service: Service, endpoints: &[&str]) -> ServiceState {
    let mut objects = Objects::default();
    let key = service.key.clone();
    put_slice(&mut objects, slice("s1", &key.name, endpoints));
    put_service(&mut objects, service);
    from_scratch(ModelOptions::default(), &objects).state(&key).unwrap().clone()
}

fn only_port(state: &ServiceState) -> &PortState {
    assert_eq!(state.ports.len(), 1, "{state:?}");
    state.ports.values().next().unwrap()
}

/// Last parts of the addresses in a set, and `!` if its emptiness drops.
fn set(port: &PortState, drops: bool, pick: fn(&BackendState) -> bool) -> String {
    let last = |b: &BackendState| b.addr.to_string().rsplit('.').next().unwrap().to_owned();
    let list: Vec<_> = port.backends.iter().filter(|b| pick(b)).map(last).collect();
    list.join(",") + if drops { "!" } else { "" }
}

/// Name, internal and external policy, endpoints; then the sets `cluster_ip`, `inside`, `outside`
/// and what is kept.
type Row = (&'static str, TrafficPolicy, TrafficPolicy, &'static [&'static str], [&'static str; 4]);

#[test]
fn policies_choose_the_sets_of_the_specification() {
    use TrafficPolicy::{Cluster, Local};
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("ready ones win over those that terminate (S22)", Cluster, Cluster,
            &["10.0.0.1 ready here", "10.0.0.2 serving term there", "10.0.0.3 there"], ["1", "1", "1", "1,2"]),
        ("without a ready one, those that serve while they terminate (S22)", Cluster, Cluster,
            &["10.0.0.2 serving term there", "10.0.0.3 term there"], ["2", "2", "2", "2"]),
        ("nobody refuses (S35)", Local, Local, &["10.0.0.3 term there", "10.0.0.4 here"], ["", "", "", ""]),
        ("serving without ready or terminating is kept but not chosen", Cluster, Cluster,
            &["10.0.0.1 serving here"], ["", "", "", "1"]),
        ("local ready (S23), Cluster set for clients inside (S46)", Cluster, Local,
            &["10.0.0.1 ready here", "10.0.0.2 ready there"], ["1,2", "1,2", "1", "1,2"]),
        ("the Local fall-back is decided on its own (S23)", Cluster, Local,
            &["10.0.0.1 serving term here", "10.0.0.2 ready there"], ["2", "2", "1", "1,2"]),
        ("nobody here drops (S37)", Local, Local, &["10.0.0.2 ready there"], ["!", "2", "!", "2"]),
        ("only one that drains elsewhere drops as well (S37)", Local, Local,
            &["10.0.0.2 serving term there"], ["!", "2", "!", "2"]),
        ("an endpoint without a node is not local (S7)", Local, Cluster, &["10.0.0.2 ready"], ["!", "2", "2", "2"]),
        ("ready while terminating counts as ready (S25)", Cluster, Cluster,
            &["10.0.0.1 ready term here", "10.0.0.2 ready there"], ["1,2", "1,2", "1,2", "1,2"]),
        ("zone hints (S26)", Cluster, Cluster,
            &["10.0.0.1 ready here zone:a", "10.0.0.2 ready there zone:b"], ["1", "1", "1", "1,2"]),
        ("node hints come before zone hints (S26)", Cluster, Cluster,
            &["10.0.0.1 ready x zone:a node:x", "10.0.0.2 ready y zone:b node:here"], ["2", "2", "2", "1,2"]),
        ("node hints of others leave the zone (S26)", Cluster, Cluster,
            &["10.0.0.1 ready x zone:a node:x", "10.0.0.2 ready y zone:b node:y"], ["1", "1", "1", "1,2"]),
        ("one ready endpoint without a hint ends the mode (S26)", Cluster, Cluster,
            &["10.0.0.1 ready here zone:a", "10.0.0.2 ready there"], ["1,2", "1,2", "1,2", "1,2"]),
        ("no hint for our zone ends the mode (S26)", Cluster, Cluster,
            &["10.0.0.1 ready x zone:c", "10.0.0.2 ready y zone:b"], ["1,2", "1,2", "1,2", "1,2"]),
        ("a terminating endpoint without a hint changes nothing (S27)", Cluster, Cluster,
            &["10.0.0.1 ready here zone:a", "10.0.0.2 ready y zone:b", "10.0.0.3 serving term here"],
            ["1", "1", "1", "1,2,3"]),
        ("hints never filter the Local set (S27)", Local, Cluster,
            &["10.0.0.1 ready here zone:b", "10.0.0.2 ready y zone:a"], ["1", "2", "2", "1,2"]),
        ("hints never filter the fall-back (S27)", Cluster, Cluster,
            &["10.0.0.1 serving term x zone:a", "10.0.0.2 serving term y zone:b"], ["1,2", "1,2", "1,2", "1,2"]),
    ];
    for (name, internal, external, endpoints, expected) in rows {
        let mut service = service("a", "10.96.0.1");
        service.kind = ServiceType::NodePort;
        service.ports = vec![tcp("", 80, 30080)];
        service.internal_policy = *internal;
        service.external_policy = *external;
        let state = alone(service, endpoints);
        let port = only_port(&state);
        let found = [
            set(port, port.cluster_ip_drops, |b| b.in_cluster_ip),
            set(port, port.inside_drops, |b| b.in_inside),
            set(port, port.outside_drops, |b| b.in_outside),
            set(port, false, |_| true),
        ];
        assert_eq!(found, *expected, "{name}");
    }
}

#[test]
fn a_node_without_a_zone_has_no_zone_mode() {
    let mut objects = Objects::default();
    put_service(&mut objects, service("a", "10.96.0.1"));
    put_slice(&mut objects, slice("s", "a", &["10.0.0.1 ready x zone:a", "10.0.0.2 ready y zone:b"]));
    let mut model = Model::default();
    let mut view = node();
    model.update(&objects, &view, &everything(&objects));
    let chosen = |m: &Model| set(only_port(m.state(&key("a")).unwrap()), false, |b| b.in_cluster_ip);
    assert_eq!(chosen(&model), "1");
    view.zone = None;
    assert_eq!(model.update(&objects, &view, &BTreeSet::new()), [key("a")].into(), "S28");
    assert_eq!(chosen(&model), "1,2");
}

#[test]
fn an_address_in_two_slices_is_one_backend_and_the_living_entry_wins() {
    for order in [["s1", "s2"], ["s2", "s1"]] {
        let mut objects = Objects::default();
        put_service(&mut objects, service("a", "10.96.0.1"));
        put_slice(&mut objects, slice(order[0], "a", &["10.0.0.1 ready serving term there"]));
        put_slice(&mut objects, slice(order[1], "a", &["10.0.0.1 here"]));
        let model = from_scratch(ModelOptions::default(), &objects);
        assert_eq!(only_port(model.state(&key("a")).unwrap()).backends, [], "S4, even when it is not ready");
        put_slice(&mut objects, slice(order[1], "a", &["10.0.0.1 ready here"]));
        let model = from_scratch(ModelOptions::default(), &objects);
        let backends = &only_port(model.state(&key("a")).unwrap()).backends;
        assert_eq!((backends.len(), backends[0].local), (1, true));
    }
}

#[test]
fn every_kind_of_frontend_is_listed_for_its_families() {
    let mut s = service("a", "10.96.0.1");
    s.cluster_ips.push("fd00::1".parse().unwrap());
    s.kind = ServiceType::LoadBalancer;
    s.ports = vec![tcp("web", 80, 30080)];
    s.load_balancer_ips = vec!["203.0.113.1".parse().unwrap(), "203.0.113.2".parse().unwrap()];
    s.external_ips = vec!["2001:db8::5".parse().unwrap(), "203.0.113.1".parse().unwrap()];
    let state = alone(s, &[]);
    let list: BTreeSet<String> = state
        .ports
        .values()
        .flat_map(|p| &p.frontends)
        .map(|f| format!("{} {} {:?}", f.addr, f.port, f.kind))
        .collect();
    let expected = [
        "0.0.0.0 30080 NodePort",
        "10.96.0.1 80 ClusterIp",
        "203.0.113.1 80 LoadBalancer",
        "203.0.113.2 80 LoadBalancer",
        ":: 30080 NodePort",
        "2001:db8::5 80 ExternalIp",
        "fd00::1 80 ClusterIp",
    ];
    assert_eq!(list, expected.map(String::from).into());
    assert_eq!(state.problems, []);
}

#[test]
fn services_that_program_nothing() {
    let mut headless = service("a", "10.96.0.1");
    headless.headless = true;
    let mut name = service("a", "10.96.0.1");
    name.kind = ServiceType::ExternalName;
    let mut no_ip = service("a", "10.96.0.1");
    no_ip.cluster_ips.clear();
    for s in [headless, name, no_ip] {
        let state = alone(s, &["10.0.0.1 ready"]);
        assert_eq!(state, ServiceState::default());
    }
    let mut objects = Objects::default();
    let mut foreign = service("a", "10.96.0.1");
    foreign.foreign = true;
    put_service(&mut objects, foreign);
    assert_eq!(from_scratch(ModelOptions::default(), &objects).state(&key("a")), None, "S1");
}

#[test]
fn the_older_claimant_wins_and_the_next_takes_over() {
    let mut objects = Objects::default();
    for (name, created) in [("c", 1), ("b", 5), ("a", 9)] {
        let mut s = service(name, "10.96.0.1");
        s.created = created;
        put_service(&mut objects, s);
    }
    let mut model = from_scratch(ModelOptions::default(), &objects);
    let holders = |m: &Model| -> Vec<String> {
        m.states().iter().filter(|(_, s)| !s.ports.is_empty()).map(|(k, _)| k.name.clone()).collect()
    };
    assert_eq!(holders(&model), ["c"]);
    let problem = &model.state(&key("a")).unwrap().problems[0];
    assert_eq!(problem.field, "spec.clusterIPs[0]");
    assert!(problem.reason.contains("10.96.0.1:80/TCP") && problem.reason.contains("default/c"), "{problem}");

    objects.services.remove(&key("c"));
    let changed = model.update(&objects, &node(), &[key("c")].into());
    assert_eq!(changed, [key("a"), key("b"), key("c")].into(), "the loser's problem names the new holder");
    assert_eq!(holders(&model), ["b"]);
    assert!(model.state(&key("a")).unwrap().problems[0].reason.contains("default/b"));

    let mut moved = service("b", "10.96.0.2");
    moved.created = 5;
    put_service(&mut objects, moved);
    assert_eq!(model.update(&objects, &node(), &[key("b")].into()), [key("a"), key("b")].into());
    assert_eq!(holders(&model), ["a", "b"]);
    assert_eq!(model.problems().count(), 0);
}

#[test]
fn external_ips_never_squat_an_address_that_the_cluster_gives_out() {
    let mut squatter = service("a", "10.96.0.9");
    (squatter.created, squatter.external_ips) = (1, vec!["10.96.0.1".parse().unwrap()]);
    let mut objects = Objects::default();
    put_service(&mut objects, squatter);
    let mut model = from_scratch(ModelOptions::default(), &objects);
    let kinds = |m: &Model, name: &str| -> Vec<FrontendKind> {
        m.state(&key(name)).unwrap().ports.values().flat_map(|p| &p.frontends).map(|f| f.kind).collect()
    };
    assert_eq!(kinds(&model, "a"), [FrontendKind::ExternalIp, FrontendKind::ClusterIp], "nobody else's yet");

    let mut young = service("b", "10.96.0.1");
    young.created = 9;
    put_service(&mut objects, young);
    assert_eq!(model.update(&objects, &node(), &[key("b")].into()), [key("a"), key("b")].into());
    assert_eq!(kinds(&model, "b"), [FrontendKind::ClusterIp]);
    assert_eq!(kinds(&model, "a"), [FrontendKind::ClusterIp]);
    assert_eq!(
        model.state(&key("a")).unwrap().problems[0].to_string(),
        "Service default/a: spec.externalIPs: 10.96.0.1:80/TCP is held by Service default/b, which has it as \
         its ClusterIP: not programmed until that one lets go"
    );
}

#[test]
fn an_external_address_of_the_node_never_hides_a_node_port() {
    for kind in [FrontendKind::ExternalIp, FrontendKind::LoadBalancer] {
        let mut objects = Objects::default();
        let mut squatter = service("a", "10.96.0.9");
        (squatter.created, squatter.ports) = (1, vec![tcp("", 30080, 0)]);
        let ips = ["192.0.2.1", "203.0.113.1"].map(|ip| ip.parse().unwrap()).into();
        if kind == FrontendKind::ExternalIp {
            squatter.external_ips = ips;
        } else {
            (squatter.kind, squatter.load_balancer_ips) = (ServiceType::LoadBalancer, ips);
        }
        put_service(&mut objects, squatter);
        let mut model = from_scratch(ModelOptions::default(), &objects);
        let held = |m: &Model| only_port(m.state(&key("a")).unwrap()).frontends.len();
        assert_eq!(held(&model), 3, "the port is nobody's");

        let mut web = service("b", "10.96.0.1");
        (web.created, web.kind, web.ports) = (9, ServiceType::NodePort, vec![tcp("", 80, 30080)]);
        put_service(&mut objects, web);
        assert_eq!(model.update(&objects, &node(), &[key("b")].into()), [key("a"), key("b")].into());
        assert_eq!(held(&model), 2, "an address elsewhere hides nothing");
        let problem = model.state(&key("a")).unwrap().problems[0].reason.clone();
        assert_eq!(
            problem,
            "192.0.2.1:30080/TCP is an address of this node and would hide node port 30080/TCP (IPv4) of Service \
             default/b: not programmed until that one lets go"
        );

        objects.services.remove(&key("b"));
        assert_eq!(model.update(&objects, &node(), &[key("b")].into()), [key("a"), key("b")].into());
        assert_eq!(held(&model), 3);
    }
}

#[test]
fn a_service_may_have_its_own_node_port_at_an_address_of_the_node() {
    let mut s = service("a", "10.96.0.1");
    (s.kind, s.ports) = (ServiceType::NodePort, vec![tcp("", 30080, 30080)]);
    s.external_ips = vec!["192.0.2.1".parse().unwrap()];
    let state = alone(s, &[]);
    assert_eq!((only_port(&state).frontends.len(), state.problems.len()), (3, 0));
}

#[test]
fn special_endpoints_are_refused_unless_allowed() {
    let bad = [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.1.1",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "::ffff:127.0.0.1",
    ];
    let lines: Vec<_> = bad.iter().map(|ip| format!("{ip} ready here")).collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).chain(["10.0.0.1 ready here"]).collect();
    let state = alone(service("a", "10.96.0.1"), &lines);
    assert_eq!(only_port(&state).backends.len(), 1);
    assert_eq!(state.problems.len(), bad.len());
    let text = state.problems[0].to_string();
    assert_eq!(
        text,
        "EndpointSlice default/s1: endpoints[0].addresses[0]: 127.0.0.1 is loopback: this endpoint is not used"
    );

    let mut objects = Objects::default();
    put_service(&mut objects, service("a", "10.96.0.1"));
    put_slice(&mut objects, slice("s", "a", &["127.0.0.9 ready here", "127.1.0.9 ready here"]));
    let options = ModelOptions {
        allow_endpoint_cidrs: vec!["127.0.0.0/16".parse().unwrap()],
        ..ModelOptions::default()
    };
    let model = from_scratch(options, &objects);
    let state = model.state(&key("a")).unwrap();
    assert_eq!((only_port(state).backends.len(), state.problems.len()), (1, 1));
}

#[test]
fn protected_ports_of_the_node_are_never_taken() {
    let mut s = service("a", "10.96.0.1");
    s.kind = ServiceType::LoadBalancer;
    s.ports = vec![tcp("ssh", 22, 10250), tcp("web", 80, 30080)];
    // The Node's own, inside and outside; one that is only announced from here; one of elsewhere.
    s.load_balancer_ips =
        ["192.0.2.1", "198.51.100.1", "192.0.2.100", "203.0.113.1"].map(|ip| ip.parse().unwrap()).into();
    // Whoever may write a Service may write this.
    s.external_ips = ["192.0.2.100", "192.0.2.101"].map(|ip| ip.parse().unwrap()).into();
    let mut objects = Objects::default();
    put_service(&mut objects, s);
    let options = ModelOptions { protected_ports: [22, 10250].into(), ..ModelOptions::default() };
    let model = from_scratch(options, &objects);
    let state = model.state(&key("a")).unwrap();
    let reasons: Vec<_> = state.problems.iter().map(|p| format!("{}: {}", p.field, p.reason)).collect();
    assert_eq!(
        reasons,
        [
            "spec.externalIPs: 192.0.2.101:22/TCP is a protected port of this node: not programmed",
            "spec.ports[0].nodePort: node port 10250/TCP (IPv4) is a protected port of this node: not programmed",
            "status.loadBalancer.ingress: 192.0.2.1:22/TCP is a protected port of this node: not programmed",
            "status.loadBalancer.ingress: 198.51.100.1:22/TCP is a protected port of this node: not programmed",
        ]
    );
    let frontends: usize = state.ports.values().map(|p| p.frontends.len()).sum();
    assert_eq!(frontends, 3 + 7);
}

#[test]
fn external_ips_can_be_switched_off_or_fenced() {
    let mut s = service("a", "10.96.0.1");
    s.external_ips =
        ["203.0.113.1", "198.51.100.1", "127.0.0.1", "2001:db8::1"].map(|i| i.parse().unwrap()).into();
    let mut objects = Objects::default();
    put_service(&mut objects, s);
    for (setting, frontends, problems) in [
        (ExternalIps::On, 3, 2),
        (ExternalIps::Off, 1, 4),
        (ExternalIps::Within(vec!["203.0.113.0/24".parse().unwrap()]), 2, 3),
    ] {
        let model =
            from_scratch(ModelOptions { external_ips: setting.clone(), ..Default::default() }, &objects);
        let state = model.state(&key("a")).unwrap();
        assert_eq!(only_port(state).frontends.len(), frontends, "{setting:?}");
        assert_eq!(state.problems.len(), problems, "{setting:?}");
    }
}

#[test]
fn faults_of_a_port_cost_only_the_port() {
    let mut s = service("a", "10.96.0.1");
    let mut sctp = tcp("s", 81, 0);
    sctp.proto = Proto::SCTP;
    s.ports = vec![tcp("ok", 80, 0), tcp("zero", 0, 0), sctp, tcp("ok", 82, 0), tcp("same", 80, 0)];
    s.problems.push(FieldProblem { field: "spec.x".into(), reason: "told by the source".into() });
    let state = alone(s, &[]);
    assert_eq!(only_port(&state).frontends.len(), 1);
    let fields: Vec<_> = state.problems.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(
        fields,
        ["spec.ports[1].port", "spec.ports[2].protocol", "spec.ports[3].name", "spec.ports[4]", "spec.x"]
    );
}

#[test]
fn a_slice_without_its_service_still_tells_its_faults() {
    let mut objects = Objects::default();
    put_slice(&mut objects, slice("s", "gone", &["127.0.0.1 ready"]));
    let model = from_scratch(ModelOptions::default(), &objects);
    let object = ObjectRef { kind: Kind::EndpointSlice, key: key("s") };
    assert_eq!(model.problems().map(|p| &p.object).collect::<Vec<_>>(), [&object]);
}

#[derive(Clone, Debug)]
enum Step {
    Service(Box<Service>),
    NoService(ObjectKey),
    Slice(EndpointSlice),
    NoSlice(ObjectKey),
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    let text = [
        "10.96.0.1",
        "10.96.0.2",
        "fd00::1",
        "192.0.2.1",
        "203.0.113.1",
        "0.0.0.0",
        "::",
        "127.0.0.1",
        "::ffff:10.0.0.1",
        "255.255.255.255",
    ];
    prop::sample::select(text.to_vec()).prop_map(|t| t.parse().unwrap())
}

fn any_key() -> impl Strategy<Value = ObjectKey> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(key)
}

fn any_policy() -> impl Strategy<Value = TrafficPolicy> {
    prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn any_port() -> impl Strategy<Value = ServicePort> {
    let proto = prop::sample::select(vec![Proto::TCP, Proto::UDP, Proto::SCTP, Proto(0)]);
    (prop::sample::select(vec!["", "x"]), proto, 0..3u16, 0..3u16).prop_map(
        |(name, proto, port, node_port)| ServicePort {
            name: name.into(),
            proto,
            port,
            node_port,
            target_port: None,
            app_protocol: None,
        },
    )
}

fn any_service() -> impl Strategy<Value = Service> {
    let kinds = vec![
        ServiceType::ClusterIp,
        ServiceType::NodePort,
        ServiceType::LoadBalancer,
        ServiceType::ExternalName,
    ];
    let ips = || prop::collection::vec(any_ip(), 0..3);
    let flags = prop::collection::vec(prop::bool::weighted(0.1), 3);
    (
        (any_key(), 0..3i64, prop::sample::select(kinds), flags),
        (ips(), ips(), ips(), prop::collection::vec(any_port(), 0..3)),
        (any_policy(), any_policy(), prop::option::of(0..9u32)),
    )
        .prop_map(
            |((key, created, kind, flags), (cluster, external, balanced, ports), (i, e, affinity))| Service {
                key,
                created,
                kind,
                foreign: flags[0],
                headless: flags[1],
                cluster_ips: cluster,
                external_ips: external,
                load_balancer_ips: balanced,
                source_ranges: if flags[2] { vec!["10.0.0.0/8".into()] } else { vec![] },
                ports,
                internal_policy: i,
                external_policy: e,
                affinity_seconds: affinity,
                ..Service::default()
            },
        )
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let name = || prop::sample::select(vec!["here", "there", "a"]);
    let names = move || prop::collection::vec(name().prop_map(Arc::from), 0..2);
    (
        any_ip(),
        prop::collection::vec(any::<bool>(), 3),
        prop::option::of(name().prop_map(Arc::from)),
        names(),
        names(),
    )
        .prop_map(|(addr, flags, node, hint_zones, hint_nodes)| Endpoint {
            addr,
            ready: flags[0],
            serving: flags[1],
            terminating: flags[2],
            node,
            zone: None,
            hint_zones,
            hint_nodes,
        })
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (prop::sample::select(vec!["", "x"]), 0..3u16).prop_map(|(name, port)| SlicePort {
        name: name.into(),
        proto: Proto::TCP,
        port,
    });
    (any_key(), any_key(), prop::collection::vec(port, 0..3), prop::collection::vec(any_endpoint(), 0..4))
        .prop_map(|(key, service, ports, endpoints)| EndpointSlice {
            key,
            service,
            managed: true,
            headless: false,
            ports,
            endpoints,
            trigger_time: None,
            problems: vec![],
        })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_service().prop_map(|s| Step::Service(Box::new(s))),
        1 => any_key().prop_map(Step::NoService),
        4 => any_slice().prop_map(Step::Slice),
        1 => any_key().prop_map(Step::NoSlice),
    ]
}

fn take(objects: &mut Objects, step: Step) -> BTreeSet<ObjectKey> {
    match step {
        Step::Service(service) => {
            let key = service.key.clone();
            put_service(objects, *service);
            [key].into()
        }
        Step::NoService(key) => {
            objects.services.remove(&key);
            [key].into()
        }
        Step::Slice(slice) => {
            let mut touched = BTreeSet::from([slice.service.clone()]);
            touched.extend(objects.slices.get(&slice.key).map(|old| old.service.clone()));
            drop_slice(objects, &slice.key);
            put_slice(objects, slice);
            touched
        }
        Step::NoSlice(key) => {
            let touched = objects.slices.get(&key).map(|old| old.service.clone()).into_iter().collect();
            drop_slice(objects, &key);
            touched
        }
    }
}

proptest! {
    #[test]
    fn step_by_step_equals_from_scratch(steps in prop::collection::vec(any_step(), 1..20)) {
        let options = ModelOptions { protected_ports: [1].into(), ..ModelOptions::default() };
        let mut objects = Objects::default();
        let mut model = Model::new(options.clone());
        for step in steps {
            let before = model.states().clone();
            let dirty = take(&mut objects, step);
            let changed = model.update(&objects, &node(), &dirty);
            let fresh = from_scratch(options.clone(), &objects);
            prop_assert_eq!(model.states(), fresh.states());
            let differs = |key: &&ObjectKey| before.get(*key) != model.states().get(*key);
            let expected: BTreeSet<_> = before.keys().chain(model.states().keys()).filter(differs).cloned().collect();
            prop_assert_eq!(changed, expected);
        }
    }

    #[test]
    fn no_frontend_is_programmed_twice(steps in prop::collection::vec(any_step(), 1..20)) {
        let mut objects = Objects::default();
        for step in steps {
            take(&mut objects, step);
        }
        let model = from_scratch(ModelOptions::default(), &objects);
        let mut seen = BTreeSet::new();
        for (key, port) in model.states().values().flat_map(|s| &s.ports) {
            for f in &port.frontends {
                prop_assert!(seen.insert((f.addr, f.port, key.proto)));
                prop_assert_eq!(f.addr.family(), key.family);
            }
            prop_assert!(port.backends.windows(2).all(|w| (w[0].addr, w[0].port) < (w[1].addr, w[1].port)));
        }
    }
}
