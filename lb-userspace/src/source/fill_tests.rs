use super::*;
use crate::source::project::{MissingReady, pod};
use crate::source::{Endpoint, Objects, ServiceType};
use lb_common::abi::Proto;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::IpAddr;

struct Bench {
    fill: Fill,
    objects: Objects,
}

impl Bench {
    fn new() -> Self {
        Self { fill: Fill::new(FillConfig::default()), objects: Objects::new("node-1") }
    }

    fn with(cidrs: &[&str], node_ports: (u16, u16)) -> Self {
        let service_cidrs = cidrs.iter().map(|cidr| cidr.parse().expect("a range")).collect();
        Self { fill: Fill::new(FillConfig { service_cidrs, node_ports }), ..Self::new() }
    }

    fn draft(&self, name: &str, spec: Value) -> (ObjectRef, Option<Draft>) {
        let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        let service = serde_json::from_value(object).expect("a Service");
        let draft = ServiceDraft::read(service, self.fill.config());
        (reference(Kind::Service, name), Some(Draft::Service(Box::new(draft))))
    }

    fn apply(&mut self, drafts: Vec<(ObjectRef, Option<Draft>)>) {
        let changes = self.fill.apply(drafts);
        self.objects.apply_all(changes);
    }

    fn service(&mut self, name: &str, spec: Value) -> Service {
        let draft = self.draft(name, spec);
        self.apply(vec![draft]);
        self.get(name)
    }

    fn get(&self, name: &str) -> Service {
        (*self.objects.services[&key(name)]).clone()
    }

    fn pod(&mut self, name: &str, object: Value) {
        let mut object = object;
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!("default");
        let from = serde_json::from_value(object).expect("a Pod");
        self.apply(vec![(reference(Kind::Pod, name), Some(Draft::Pod(pod(&from, MissingReady::Ready))))]);
    }

    /// Endpoints of a Service as `ip:port,… [rst]`, the letters for ready, serving, terminating.
    fn endpoints(&self, service: &str) -> Vec<String> {
        let of = |slice: &EndpointSlice| {
            let ports: Vec<String> = slice.ports.iter().map(|p| format!("{}={}", p.name, p.port)).collect();
            let flags = |e: &Endpoint| {
                let flag = |set, letter| if set { letter } else { '-' };
                [flag(e.ready, 'r'), flag(e.serving, 's'), flag(e.terminating, 't')]
                    .iter()
                    .collect::<String>()
            };
            let line = |e: &Endpoint| format!("{} {} {}", e.addr, ports.join(","), flags(e));
            slice.endpoints.iter().map(line).collect::<Vec<_>>()
        };
        let slices = self.objects.slices_of.get(&key(service)).into_iter().flatten();
        slices.flat_map(|key| of(&self.objects.slices[key])).collect()
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn reference(kind: Kind, name: &str) -> ObjectRef {
    ObjectRef { kind, key: key(name) }
}

fn ports() -> Value {
    json!([{"port": 80}])
}

fn families(service: &Service) -> Vec<bool> {
    service.cluster_ips.iter().map(IpAddr::is_ipv4).collect()
}

#[test]
fn families_follow_policy_and_addresses() {
    for (name, spec, v4, problems) in [
        ("plain", json!({"ports": ports()}), &[true][..], 0),
        ("prefer", json!({"ports": ports(), "ipFamilyPolicy": "PreferDualStack"}), &[true, false], 0),
        ("require", json!({"ports": ports(), "ipFamilyPolicy": "RequireDualStack"}), &[true, false], 0),
        ("v6", json!({"ports": ports(), "ipFamilies": ["IPv6"]}), &[false], 0),
        (
            "v6 first",
            json!({"ports": ports(), "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}),
            &[false, true],
            0,
        ),
        ("both named", json!({"ports": ports(), "ipFamilies": ["IPv6", "IPv4"]}), &[false, true], 0),
        ("by address", json!({"ports": ports(), "clusterIP": "fd00:10:96::7"}), &[false], 0),
        (
            "second one filled",
            json!({"ports": ports(), "clusterIP": "10.96.0.7", "ipFamilyPolicy": "PreferDualStack"}),
            &[true, false],
            0,
        ),
        ("bad address gets none", json!({"ports": ports(), "clusterIP": "10.96.0.777"}), &[], 1),
        ("headless", json!({"ports": ports(), "clusterIP": "None"}), &[], 0),
        ("name", json!({"type": "ExternalName", "externalName": "a.b"}), &[], 0),
    ] {
        let service = Bench::new().service("web", spec);
        assert_eq!(families(&service), v4, "{name}");
        assert_eq!(service.problems.len(), problems, "{name}: {:?}", service.problems);
    }
    let mut single = Bench::with(&["10.96.0.0/16"], (30000, 32767));
    let preferred = single.service("a", json!({"ports": ports(), "ipFamilyPolicy": "PreferDualStack"}));
    assert_eq!((families(&preferred), preferred.problems.len()), (vec![true], 0));
    let required = single.service("b", json!({"ports": ports(), "ipFamilyPolicy": "RequireDualStack"}));
    assert_eq!(
        (families(&required), required.problems[0].field.as_str()),
        (vec![true], "spec.ipFamilyPolicy")
    );
    let v6 = single.service("c", json!({"ports": ports(), "ipFamilies": ["IPv6"]}));
    assert_eq!((families(&v6), v6.problems[0].field.as_str()), (vec![], "spec.ipFamilies[0]"));
}

#[test]
fn addresses_are_stable_unique_and_out_of_the_hand_picked_band() {
    let specs = |n: usize| format!("svc-{n}");
    let mut bench = Bench::new();
    let drafts = (0..3000)
        .map(|n| bench.draft(&specs(n), json!({"ports": ports(), "ipFamilyPolicy": "PreferDualStack"})))
        .collect();
    bench.apply(drafts);
    let mut seen: HashMap<IpAddr, String> = HashMap::new();
    for n in 0..3000 {
        for ip in bench.get(&specs(n)).cluster_ips {
            let offset = match ip {
                IpAddr::V4(ip) => ip.to_bits() - 0x0a60_0000,
                IpAddr::V6(ip) => u32::try_from(ip.to_bits() & 0xffff).expect("16 bits"),
            };
            assert!((256..65536).contains(&offset), "{ip}");
            assert_eq!(seen.insert(ip, specs(n)), None, "{ip} is given twice");
        }
    }
    // The same files again give the same addresses, whatever order they come in.
    let mut again = Bench::new();
    let drafts = (0..3000)
        .rev()
        .map(|n| again.draft(&specs(n), json!({"ports": ports(), "ipFamilyPolicy": "PreferDualStack"})))
        .collect();
    again.apply(drafts);
    assert_eq!(bench.objects.services, again.objects.services);

    // Nobody moves when others come.
    let before = bench.objects.services.clone();
    for n in 3000..3500 {
        bench.service(&specs(n), json!({"ports": ports()}));
    }
    assert!(before.iter().all(|(key, service)| bench.objects.services[key] == *service));
}

#[test]
fn an_address_or_port_that_a_manifest_names_wins() {
    let mut bench = Bench::new();
    let first = bench.service("a", json!({"type": "NodePort", "ports": ports()}));
    let (ip, node_port) = (first.cluster_ips[0], first.ports[0].node_port);
    let other = json!({"type": "NodePort", "clusterIP": ip.to_string(), "ports": [{"port": 80, "nodePort": node_port}]});
    let named = bench.service("z", other.clone());
    assert_eq!((named.cluster_ips[0], named.ports[0].node_port), (ip, node_port));
    let moved = bench.get("a");
    assert!(moved.cluster_ips[0] != ip && moved.ports[0].node_port != node_port);
    assert_eq!((moved.cluster_ips.len(), moved.problems.len()), (1, 0));

    // A restart with the same files ends the same.
    let mut again = Bench::new();
    let drafts =
        vec![again.draft("a", json!({"type": "NodePort", "ports": ports()})), again.draft("z", other)];
    again.apply(drafts);
    assert_eq!(again.objects.services, bench.objects.services);
}

#[test]
fn node_ports_are_given_where_the_type_has_them() {
    let mut bench = Bench::new();
    let range = 30_086..=32_767;
    for (name, kind, extra, given) in [
        ("cluster", "ClusterIP", json!({}), false),
        ("node", "NodePort", json!({}), true),
        ("balancer", "LoadBalancer", json!({}), true),
        ("off", "LoadBalancer", json!({"allocateLoadBalancerNodePorts": false}), false),
        ("name", "ExternalName", json!({}), false),
    ] {
        let mut spec = json!({"type": kind, "ports": [{"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"}, {"name": "c", "port": 80}]});
        spec.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let service = bench.service(name, spec);
        let numbers: Vec<u16> = service.ports.iter().map(|port| port.node_port).collect();
        assert_eq!(numbers.iter().all(|number| range.contains(number)), given, "{name}: {numbers:?}");
        assert!(given || numbers == [0, 0, 0], "{name}");
        if given {
            assert_eq!(numbers[0], numbers[1], "{name}: protocols of one port share the number");
            assert_ne!(numbers[0], numbers[2], "{name}");
        }
    }
    let before = bench.get("node");
    let fewer = bench.service("node", json!({"type": "NodePort", "ports": [{"name": "c", "port": 80}]}));
    assert_eq!(fewer.ports[0].node_port, before.ports[2].node_port, "a port that stays keeps its number");
    assert_eq!(
        bench.service("node", json!({"type": "ClusterIP", "ports": ports()})).kind,
        ServiceType::ClusterIp
    );
    assert_eq!(bench.get("node").ports[0].node_port, 0);
}

#[test]
fn a_full_range_is_told_and_what_is_freed_is_given_again() {
    let mut bench = Bench::with(&["10.96.0.0/29"], (30_000, 30_001));
    let spec = || json!({"type": "NodePort", "ports": ports()});
    for name in ["a", "b"] {
        assert_eq!(bench.service(name, spec()).problems, [], "{name}");
    }
    let third = bench.service("c", spec());
    assert_eq!((third.ports[0].node_port, third.problems[0].field.as_str()), (0, "spec.ports[0].nodePort"));
    for name in ["d", "e"] {
        assert_eq!(bench.service(name, json!({"ports": ports()})).cluster_ips.len(), 1, "{name}");
    }
    let sixth = bench.service("f", json!({"ports": ports()}));
    assert_eq!((sixth.cluster_ips.len(), sixth.problems[0].field.as_str()), (0, "spec.clusterIPs"));
    bench.apply(vec![(reference(Kind::Service, "a"), None)]);
    assert_eq!(bench.service("g", spec()).problems, []);
}

#[test]
fn service_cidrs_are_read_and_bad_ones_refused() {
    for (text, shown) in
        [("10.96.5.7/16", "10.96.0.0/16"), ("fd00::1/64", "fd00::/64"), (" 0.0.0.0/0 ", "0.0.0.0/0")]
    {
        assert_eq!(text.parse::<ServiceCidr>().expect(text).to_string(), shown);
    }
    for text in
        ["10.96.0.0", "10.96.0.0/33", "10.96.0.0/x", "10.96.0.1/32", "x/16", "::/129", "::ffff:1.2.3.4/112"]
    {
        assert!(text.parse::<ServiceCidr>().is_err(), "{text}");
    }
}

fn app(ips: &[&str]) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"metadata": {"labels": {"app": "web", "tier": "front"}}, "spec": {"nodeName": "node-1", "containers": [
        {"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]}, "status": {"podIPs": ips}})
}

fn selecting(extra: Value) -> Value {
    let mut spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
    spec.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    spec
}

#[test]
fn pods_become_endpoints_as_the_controller_would_make_them() {
    let mut bench = Bench::new();
    bench.service("web", selecting(json!({"ipFamilyPolicy": "PreferDualStack"})));
    assert_eq!(bench.endpoints("web"), Vec::<String>::new());
    bench.pod("a", app(&["10.1.0.1", "fd00::1"]));
    bench.pod("b", app(&["10.1.0.2"]));
    bench.pod("no-ip", app(&[]));
    let mut done = app(&["10.1.0.3"]);
    done["status"]["phase"] = json!("Succeeded");
    bench.pod("done", done);
    let mut unlike = app(&["10.1.0.4"]);
    unlike["metadata"]["labels"]["app"] = json!("other");
    bench.pod("unlike", unlike);
    assert_eq!(bench.endpoints("web"), ["10.1.0.1 =8080 rs-", "10.1.0.2 =8080 rs-", "fd00::1 =8080 rs-"]);
    let slice = &bench.objects.slices[&key("web:ipv4")];
    assert_eq!(slice.endpoints[0].node.as_deref(), Some("node-1"));

    let mut unready = app(&["10.1.0.1"]);
    unready["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    bench.pod("a", unready);
    let mut leaving = app(&["10.1.0.2"]);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
    bench.pod("b", leaving);
    assert_eq!(bench.endpoints("web"), ["10.1.0.1 =8080 ---", "10.1.0.2 =8080 -st"]);
    bench.service("web", selecting(json!({"publishNotReadyAddresses": true})));
    assert_eq!(bench.endpoints("web"), ["10.1.0.1 =8080 r--", "10.1.0.2 =8080 rst"]);

    bench.apply(vec![(reference(Kind::Pod, "a"), None)]);
    assert_eq!(bench.endpoints("web"), ["10.1.0.2 =8080 rst"]);
    bench.apply(vec![(reference(Kind::Service, "web"), None)]);
    assert!(bench.objects.slices.is_empty() && bench.objects.slices_of.is_empty());
}

#[test]
fn a_target_port_is_found_in_each_pod() {
    let mut bench = Bench::new();
    bench.service(
        "web",
        selecting(
            json!({"ports": [{"name": "h", "port": 80, "targetPort": "http"}, {"name": "n", "port": 81}]}),
        ),
    );
    bench.pod("a", app(&["10.1.0.1"]));
    let mut other = app(&["10.1.0.2"]);
    other["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
    bench.pod("b", other);
    let mut wrong_protocol = app(&["10.1.0.3"]);
    wrong_protocol["spec"]["containers"][0]["ports"][0]["protocol"] = json!("UDP");
    bench.pod("c", wrong_protocol);
    assert_eq!(
        bench.endpoints("web"),
        ["10.1.0.1 h=8080,n=81 rs-", "10.1.0.2 h=9090,n=81 rs-", "10.1.0.3 n=81 rs-"]
    );
}

#[test]
fn written_slices_take_over_and_give_back() {
    let mut bench = Bench::new();
    bench.pod("a", app(&["10.1.0.1"]));
    bench.service("web", selecting(json!({})));
    assert_eq!(bench.endpoints("web"), ["10.1.0.1 =8080 rs-"]);
    let slice = EndpointSlice {
        key: key("by-hand"),
        service: key("web"),
        managed: false,
        headless: false,
        ports: vec![crate::source::SlicePort { name: String::new(), proto: Proto::TCP, port: 7 }],
        endpoints: Vec::new(),
        trigger_time: None,
        problems: Vec::new(),
    };
    bench.apply(vec![(reference(Kind::EndpointSlice, "by-hand"), Some(Draft::EndpointSlice(slice)))]);
    assert_eq!(bench.objects.slices_of[&key("web")], BTreeSet::from([key("by-hand")]));
    bench.apply(vec![(reference(Kind::EndpointSlice, "by-hand"), None)]);
    assert_eq!(bench.endpoints("web"), ["10.1.0.1 =8080 rs-"]);
}

#[test]
fn services_without_a_selector_or_an_address_get_no_endpoints() {
    let mut bench = Bench::new();
    bench.pod("a", app(&["10.1.0.1"]));
    for (name, spec) in [
        ("none", json!({"ports": ports()})),
        ("empty", json!({"selector": {}, "ports": ports()})),
        ("name", selecting(json!({"type": "ExternalName"}))),
        ("elsewhere", json!({"selector": {"app": "web", "tier": "back"}, "ports": ports()})),
    ] {
        bench.service(name, spec);
        assert_eq!(bench.endpoints(name), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_headless_service_gets_endpoints_that_l4_does_not_see() {
    let mut bench = Bench::new();
    bench.pod("a", app(&["10.1.0.1"]));
    bench.service("headless", selecting(json!({"clusterIP": "None"})));
    assert_eq!(bench.endpoints("headless").len(), 1);
    assert!(bench.objects.slices.values().all(|slice| slice.headless));
    bench.service("headless", selecting(json!({})));
    assert_eq!(bench.endpoints("headless").len(), 1);
    assert!(bench.objects.slices.values().all(|slice| !slice.headless));
}
