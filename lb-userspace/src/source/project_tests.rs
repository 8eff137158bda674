use super::*;
use crate::source::{Endpoint, ServiceType, SlicePort, TrafficPolicy};
use serde_json::{Value, json};

fn service_of(spec: Value) -> crate::source::Service {
    let object = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
    service(&serde_json::from_value(object).expect("a Service"))
}

fn told(problems: &[FieldProblem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.field.as_str()).collect()
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().expect("an IP")).collect()
}

#[test]
fn cluster_ips_follow_ip_families() {
    for (name, spec, expected, faults) in [
        ("plain", json!({"clusterIP": "10.96.0.1"}), &["10.96.0.1"][..], &[][..]),
        (
            "dual",
            json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]}),
            &["10.96.0.1", "fd00::1"],
            &[],
        ),
        (
            "v6 first",
            json!({"clusterIPs": ["fd00::1", "10.96.0.1"], "ipFamilies": ["IPv6", "IPv4"]}),
            &["fd00::1", "10.96.0.1"],
            &[],
        ),
        (
            "without families only the first counts",
            json!({"clusterIPs": ["10.96.0.1", "fd00::1"]}),
            &["10.96.0.1"],
            &["spec.clusterIPs[1]"],
        ),
        (
            "families swapped",
            json!({"clusterIPs": ["fd00::1", "10.96.0.1"], "ipFamilies": ["IPv4", "IPv6"]}),
            &[],
            &["spec.clusterIPs[0]", "spec.clusterIPs[1]"],
        ),
        (
            "one bad, one good",
            json!({"clusterIPs": ["10.96.0.300", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]}),
            &["fd00::1"],
            &["spec.clusterIPs[0]"],
        ),
        ("leading zeros", json!({"clusterIP": "10.096.0.1"}), &[], &["spec.clusterIP"]),
        ("mapped", json!({"clusterIP": "::ffff:10.96.0.1"}), &[], &["spec.clusterIP"]),
        ("with a zone", json!({"clusterIP": "fe80::1%eth0"}), &[], &["spec.clusterIP"]),
        ("unspecified", json!({"clusterIP": "0.0.0.0"}), &[], &["spec.clusterIP"]),
        ("loopback", json!({"clusterIP": "127.0.0.1"}), &[], &["spec.clusterIP"]),
        ("headless", json!({"clusterIP": "None"}), &[], &[]),
        ("empty", json!({"clusterIP": ""}), &[], &[]),
        (
            "stale address of an ExternalName",
            json!({"type": "ExternalName", "clusterIP": "10.96.0.1"}),
            &[],
            &[],
        ),
    ] {
        let service = service_of(spec);
        assert_eq!(service.cluster_ips, ips(expected), "{name}");
        assert_eq!(told(&service.problems), faults, "{name}: {:?}", service.problems);
        assert_eq!(service.headless, name == "headless", "{name}");
    }
}

#[test]
fn other_addresses_need_a_family_that_the_service_has() {
    let service = service_of(json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"],
        "externalIPs": ["192.0.2.1", "fd00::9", "192.0.2.x", "127.0.0.1"],
    }));
    assert_eq!(service.external_ips, ips(&["192.0.2.1"]));
    assert_eq!(
        told(&service.problems),
        ["spec.externalIPs[1]", "spec.externalIPs[2]", "spec.externalIPs[3]"]
    );
}

#[test]
fn only_addresses_of_mode_vip_are_load_balancer_addresses() {
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": "Proxy"},
        {"hostname": "lb.example.com"}, {"ip": "203.0.113"}, {"ip": "203.0.113.4", "ipMode": "Odd"},
    ]}});
    let object = |kind: &str| {
        let object = json!({"metadata": {"name": "a"}, "spec": {"type": kind, "clusterIP": "10.96.0.1"}, "status": status});
        service(&serde_json::from_value(object).expect("a Service"))
    };
    let service = object("LoadBalancer");
    assert_eq!(service.load_balancer_ips, ips(&["203.0.113.1", "203.0.113.2"]));
    assert_eq!(
        told(&service.problems),
        ["status.loadBalancer.ingress[4].ip", "status.loadBalancer.ingress[5].ipMode"]
    );
    let service = object("ClusterIP");
    assert_eq!(service.load_balancer_ips, ips(&[]));
    assert_eq!(told(&service.problems), ["status.loadBalancer.ingress"]);
}

#[test]
fn a_bad_port_costs_only_itself() {
    let service = service_of(json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [
        {"name": "a", "port": 80, "nodePort": 30080},
        {"name": "b", "port": 0}, {"name": "c", "port": 70000}, {"name": "d", "port": 1, "protocol": "tcp"},
        {"name": "e", "port": 80, "protocol": "UDP"}, {"name": "f", "port": 80}, {"name": "a", "port": 81},
        {"name": "g", "port": 82, "nodePort": -1, "appProtocol": "h2c"},
    ]}));
    let kept: Vec<_> =
        service.ports.iter().map(|p| (p.name.as_str(), p.port, p.proto, p.node_port)).collect();
    assert_eq!(kept, [("a", 80, Proto::TCP, 30080), ("e", 80, Proto::UDP, 0), ("g", 82, Proto::TCP, 0)]);
    assert_eq!(service.ports[2].app_protocol.as_deref(), Some("h2c"));
    assert_eq!(
        told(&service.problems),
        [
            "spec.ports[1].port",
            "spec.ports[2].port",
            "spec.ports[3].protocol",
            "spec.ports[5].port",
            "spec.ports[6].name",
            "spec.ports[7].nodePort",
        ]
    );
    let service = service_of(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]}));
    assert_eq!((service.ports[0].node_port, told(&service.problems)), (0, vec!["spec.ports[0].nodePort"]));
}

#[test]
fn affinity_has_the_api_servers_default_and_bounds() {
    let of = |seconds: Value| {
        let service = service_of(json!({"clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}));
        (service.affinity_seconds, service.problems.len())
    };
    assert_eq!(of(Value::Null), (Some(10_800), 0));
    assert_eq!(of(json!(1)), (Some(1), 0));
    assert_eq!(of(json!(86_400)), (Some(86_400), 0));
    assert_eq!(of(json!(86_401)), (Some(10_800), 1));
    assert_eq!(of(json!(0)), (Some(10_800), 1));
    assert_eq!(service_of(json!({"clusterIP": "10.96.0.1"})).affinity_seconds, None);
    let odd = service_of(json!({"clusterIP": "10.96.0.1", "sessionAffinity": "Cookie"}));
    assert_eq!((odd.affinity_seconds, told(&odd.problems)), (None, vec!["spec.sessionAffinity"]));
}

#[test]
fn kinds_policies_ranges_and_labels_are_read() {
    let object = json!({
        "metadata": {"name": "a", "namespace": "n", "creationTimestamp": "2026-01-02T03:04:05Z",
                     "labels": {"service.kubernetes.io/service-proxy-name": ""}},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "internalTrafficPolicy": "Local",
                 "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000, "publishNotReadyAddresses": true,
                 "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "", "nonsense"]}});
    let read = service(&serde_json::from_value(object).expect("a Service"));
    assert!(read.foreign && read.publish_not_ready);
    assert_eq!(read.created, 1_767_323_045);
    assert_eq!(read.kind, ServiceType::LoadBalancer);
    assert_eq!((read.internal_policy, read.external_policy), (TrafficPolicy::Local, TrafficPolicy::Local));
    assert_eq!(read.health_check_node_port, 31000);
    assert_eq!(read.source_ranges, ["10.0.0.0/8", "nonsense"]);

    let odd = service_of(json!({"type": "Odd", "clusterIP": "10.96.0.1", "internalTrafficPolicy": "x",
        "externalTrafficPolicy": "Cluster", "healthCheckNodePort": 31000, "ipFamilies": ["IPv5", "IPv4"]}));
    assert_eq!((odd.kind, odd.health_check_node_port), (ServiceType::ClusterIp, 0));
    assert!(told(&odd.problems).starts_with(&["spec.type", "spec.internalTrafficPolicy"]));

    let named = service_of(json!({"type": "ExternalName", "externalName": "db.example.com"}));
    assert_eq!(named.external_name.as_deref(), Some("db.example.com"));
}

fn slice_of(object: Value) -> Option<crate::source::EndpointSlice> {
    slice(&serde_json::from_value(object).expect("an EndpointSlice"), &mut Names::default())
}

fn labels() -> Value {
    json!({"kubernetes.io/service-name": "web"})
}

#[test]
fn slices_that_are_not_ours_are_none() {
    for (name, labels, address_type) in [
        ("no label", json!({}), "IPv4"),
        ("empty label", json!({"kubernetes.io/service-name": ""}), "IPv4"),
        ("names", labels(), "FQDN"),
    ] {
        let object = json!({"metadata": {"name": "s", "labels": labels}, "addressType": address_type});
        assert_eq!(slice_of(object), None, "{name}");
    }
}

#[test]
fn endpoints_take_defaults_and_bad_ones_are_told() {
    let slice = slice_of(json!({
    "metadata": {"name": "s", "namespace": "shop", "labels": labels(), "annotations":
        {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05.5Z"}},
    "addressType": "IPv4",
    "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"},
              {"name": "all"}, {"name": "zero", "port": 0}, {"port": 9000}, {"name": "x", "port": 99999}],
    "endpoints": [
        {"addresses": ["10.1.0.1", "10.1.0.9"], "nodeName": "n1", "zone": "z1",
         "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]}},
        {"addresses": ["10.1.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["fd00::1"]}, {"addresses": []}, {"addresses": ["10.1.0.256"]},
    ]}))
    .expect("ours");
    assert_eq!(slice.service, crate::problem::ObjectKey::new("shop", "web"));
    assert_eq!(slice.trigger_time, Some(1_767_323_045_500_000_000));
    assert_eq!(
        slice.ports,
        [("http", Proto::TCP, 8080), ("dns", Proto::UDP, 53), ("", Proto::TCP, 9000)]
            .map(|(name, proto, port)| SlicePort { name: name.into(), proto, port })
    );
    let first = Endpoint {
        addr: "10.1.0.1".parse().expect("an IP"),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("n1".into()),
        zone: Some("z1".into()),
        hint_zones: vec!["z1".into()],
        hint_nodes: vec!["n1".into()],
    };
    assert_eq!(slice.endpoints[0], first);
    let second = &slice.endpoints[1];
    assert_eq!((second.ready, second.serving, second.terminating), (false, true, true));
    assert_eq!(slice.endpoints.len(), 2);
    assert_eq!(
        told(&slice.problems),
        ["endpoints[2].addresses[0]", "endpoints[3].addresses", "endpoints[4].addresses[0]", "ports[5].port"]
    );
}

#[test]
fn repeated_names_are_kept_once() {
    let mut names = Names::default();
    let (a, b) = (names.share("node-1"), names.share("node-1"));
    assert!(Arc::ptr_eq(&a, &b));
    for n in 0..5000 {
        names.share(&format!("gone-{n}"));
    }
    assert!(names.known.len() <= 1025, "unused names are swept: {}", names.known.len());
    assert!(Arc::ptr_eq(&a, &names.share("node-1")));
}

#[test]
fn a_node_gives_addresses_ranges_zone_and_whether_it_leaves() {
    let of = |object: Value| node(&serde_json::from_value(object).expect("a Node"));
    let read = of(json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
        "status": {"addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.1"},
                                  {"type": "InternalIP", "address": "2001:db8::1"}, {"type": "ExternalIP", "address": "203.0.113.1"}]}}));
    assert_eq!(read.internal_ips, ips(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(read.external_ips, ips(&["203.0.113.1"]));
    assert_eq!(read.pod_cidrs, ["10.244.1.0/24", "fd00:1::/64"]);
    assert_eq!((read.zone.as_deref(), read.leaving), (Some("z1"), false));
    let taint = json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.244.1.0/24",
        "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
    let read = of(taint);
    assert_eq!((read.pod_cidrs, read.leaving), (vec!["10.244.1.0/24".to_owned()], true));
    assert!(of(json!({"metadata": {"name": "n1", "deletionTimestamp": "2026-01-02T03:04:05Z"}})).leaving);
}

#[test]
fn a_pod_gives_addresses_readiness_and_named_ports() {
    let of = |object: Value, missing| pod(&serde_json::from_value(object).expect("a Pod"), missing);
    let full = json!({
        "metadata": {"name": "p", "namespace": "n", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "hostNetwork": true,
            "initContainers": [{"name": "i", "ports": [{"name": "no", "containerPort": 1}]},
                {"name": "s", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9}]}],
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 1},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"name": "bad", "containerPort": 0}]}]},
        "status": {"phase": "Running", "podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}, {"ip": "x"}],
                   "conditions": [{"type": "Ready", "status": "False"}]}});
    let read = of(full.clone(), MissingReady::Ready);
    assert_eq!(read.ips, ips(&["10.1.0.1", "fd00::1"]));
    assert!(read.host_network && !read.ready && !read.terminating);
    assert_eq!(read.node.as_deref(), Some("n1"));
    assert_eq!(
        read.named_ports,
        [("http", Proto::TCP, 8080), ("dns", Proto::UDP, 53), ("side", Proto::TCP, 9)]
            .map(|(name, proto, port)| (name.to_owned(), proto, port))
    );
    assert_eq!(told(&read.problems), ["status.podIPs[2].ip", "spec.containers[0].ports[3].containerPort"]);

    let plain = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-02T03:04:05Z"}, "status": {"podIP": "10.1.0.1"}});
    let read = of(plain.clone(), MissingReady::Ready);
    assert_eq!((read.ips, read.ready, read.terminating), (ips(&["10.1.0.1"]), true, true));
    assert!(!of(plain, MissingReady::NotReady).ready);
    for phase in ["Succeeded", "Failed"] {
        let mut finished = full.clone();
        finished["status"]["phase"] = json!(phase);
        assert_eq!(of(finished, MissingReady::Ready).ips, ips(&[]), "{phase}");
    }
}

#[test]
fn who_made_a_slice_and_what_a_service_selects_are_known() {
    let slice = |labels: Value| {
        let mut labels = labels;
        labels["kubernetes.io/service-name"] = "web".into();
        let metadata = json!({"name": "web-1", "namespace": "shop", "labels": labels});
        slice_of(json!({"metadata": metadata, "addressType": "IPv4", "endpoints": []}))
            .expect("a slice")
            .managed
    };
    let by = "endpointslice.kubernetes.io/managed-by";
    assert!(slice(json!({by: "endpointslice-controller.k8s.io"})));
    assert!(!slice(json!({by: "endpointslicemirroring-controller.k8s.io"})));
    assert!(!slice(json!({})));
    let ports = json!([
        {"name": "a", "port": 80, "targetPort": 8080},
        {"name": "b", "port": 81, "targetPort": "http"},
        {"name": "c", "port": 82},
    ]);
    let service = service_of(json!({"selector": {"app": "web"}, "ports": ports}));
    assert_eq!(
        service.ports.iter().map(|port| port.target_port).collect::<Vec<_>>(),
        [Some(8080), None, None]
    );
    assert!(service.selector);
    assert!(!service_of(json!({"selector": {}})).selector && !service_of(json!({})).selector);
}

#[test]
fn a_class_is_its_controller_and_whether_it_is_the_default() {
    let of = |object: Value| ingress_class(&serde_json::from_value(object).expect("an IngressClass"));
    let annotated = |value: &str| {
        of(
            json!({"metadata": {"name": "weir", "annotations": {"ingressclass.kubernetes.io/is-default-class": value}},
            "spec": {"controller": "weir.dev/ingress", "parameters": {"kind": "X", "name": "y"}}}),
        )
    };
    let class = annotated("true");
    assert_eq!(
        (class.name.as_str(), class.controller.as_str(), class.default),
        ("weir", "weir.dev/ingress", true)
    );
    assert!(!annotated("false").default && !annotated("True").default);
    assert!(!of(json!({"metadata": {"name": "a"}})).default);
}

#[test]
fn of_a_secret_only_the_certificate_is_kept_and_nothing_is_shown() {
    let of = |object: Value| secret(serde_json::from_value(object).expect("a Secret"));
    let read = of(json!({"metadata": {"name": "tls-secret", "namespace": "n"}, "type": "kubernetes.io/tls",
        "data": {"tls.crt": "Q0VSVA==", "tls.key": "S0VZ", "password": "aHVudGVyMg=="}}));
    assert_eq!(read.key, crate::problem::ObjectKey::new("n", "tls-secret"));
    assert_eq!((read.kind.as_str(), read.certificate.as_deref()), ("kubernetes.io/tls", Some(&b"CERT"[..])));
    assert_eq!(read.private_key.as_ref().map(|key| key.as_slice()), Some(&b"KEY"[..]));
    let shown = format!("{read:?}");
    assert!(!shown.contains("75, 69, 89") && !shown.contains("KEY") && !shown.contains("CERT"), "{shown}");

    let other = of(json!({"metadata": {"name": "a"}, "data": {"tls.crt": "Q0VSVA=="},
        "stringData": {"tls.crt": "newer", "tls.key": "text"}}));
    assert_eq!((other.kind.as_str(), other.certificate.as_deref()), ("Opaque", Some(&b"newer"[..])));
    assert_eq!(other.private_key.as_ref().map(|key| key.as_slice()), Some(&b"text"[..]));
    let empty = of(json!({"metadata": {"name": "a"}}));
    assert_eq!((empty.certificate, empty.private_key), (None, None));
}
