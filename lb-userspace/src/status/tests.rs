use super::*;
use crate::problem::{Kind, ObjectRef};
use serde_json::{Value, json};

fn ip(text: &str) -> StatusAddress {
    StatusAddress::Ip(text.parse().expect("an IP"))
}

fn name(text: &str) -> StatusAddress {
    StatusAddress::Hostname(text.into())
}

#[test]
fn only_what_is_ours_is_written_and_only_what_we_wrote_is_taken_away() {
    let wanted = [ip("192.0.2.1"), ip("192.0.2.2")];
    let (same, other) = (&wanted[..], &[ip("198.51.100.9")][..]);
    let (us, them) = (Some("weir:a"), Some("weir:b"));
    for (case, ours, status, manager, addresses, expected) in [
        ("new", true, &[][..], None, Some(same), Edit::Write(same)),
        ("as it should be", true, same, us, Some(same), Edit::Keep),
        ("as it should be, by another", true, same, None, Some(same), Edit::Keep),
        ("changed addresses", true, other, us, Some(same), Edit::Write(same)),
        ("taken over from another controller", true, other, None, Some(same), Edit::Write(same)),
        ("addresses not known yet", true, other, us, None, Edit::Keep),
        ("no address any more", true, same, us, Some(&[][..]), Edit::Clear),
        ("no address, another's entries", true, other, None, Some(&[][..]), Edit::Keep),
        ("class changed away", false, same, us, Some(same), Edit::Clear),
        ("class changed away, addresses not known", false, same, us, None, Edit::Clear),
        ("class changed away, another wrote the same", false, same, None, Some(same), Edit::Keep),
        ("another's", false, other, None, Some(same), Edit::Keep),
        ("another installation's", false, same, them, Some(same), Edit::Keep),
        ("another's, empty", false, &[][..], None, Some(same), Edit::Keep),
    ] {
        let status_manager = manager.map(str::to_owned);
        let ingress = Ingress { status: status.to_vec(), status_manager, ..Ingress::default() };
        assert_eq!(edit(&ingress, ours, "weir:a", addresses), expected, "{case}");
    }
}

#[test]
fn addresses_are_those_given_else_the_services_else_the_nodes() {
    let given = Publish::Given(vec![name("lb.example"), ip("192.0.2.2"), ip("192.0.2.1"), ip("192.0.2.2")]);
    let sorted = vec![ip("192.0.2.1"), ip("192.0.2.2"), name("lb.example")];
    assert_eq!(addresses(&given, &Seen::default()), Some(sorted));

    let service = Publish::Service(ObjectKey::new("a", "b"));
    let seen = |service: Option<Vec<StatusAddress>>| Seen { service, nodes: None };
    assert_eq!(addresses(&service, &seen(None)), None, "not there: nothing changes");
    assert_eq!(addresses(&service, &seen(Some(Vec::new()))), Some(Vec::new()), "there, without an address");
    assert_eq!(addresses(&service, &seen(Some(vec![ip("192.0.2.9")]))), Some(vec![ip("192.0.2.9")]));

    let seen = |nodes: &[(&str, &[&str])]| Seen {
        service: None,
        nodes: Some(
            nodes
                .iter()
                .map(|(name, ips)| {
                    let ips = ips.iter().map(|ip| ip.parse().expect("an IP")).collect();
                    ((*name).to_owned(), ips)
                })
                .collect(),
        ),
    };
    assert_eq!(addresses(&Publish::Nodes(String::new()), &Seen::default()), None, "not listed");
    assert_eq!(addresses(&Publish::Nodes(String::new()), &seen(&[("a", &[])])), None, "none is ready");
    let two = seen(&[("b", &["192.0.2.2", "2001:db8::2"]), ("a", &["192.0.2.3"])]);
    let expected = vec![ip("192.0.2.2"), ip("192.0.2.3"), ip("2001:db8::2")];
    assert_eq!(addresses(&Publish::Nodes(String::new()), &two), Some(expected));
    let many: Vec<String> = (0..200).map(|n| format!("192.0.2.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(
        addresses(&Publish::Nodes(String::new()), &seen(&[("a", &many)])).map(|list| list.len()),
        Some(ADDRESSES)
    );
}

#[test]
fn a_node_counts_while_it_is_ready_with_its_external_addresses_first() {
    let node = |meta: Value, ready: &str, addresses: &[(&str, &str)]| {
        let addresses: Vec<Value> =
            addresses.iter().map(|(kind, ip)| json!({"type": kind, "address": ip})).collect();
        let conditions =
            json!([{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]);
        let node = json!({"metadata": meta, "status": {"addresses": addresses, "conditions": conditions}});
        let found = node_addresses(&serde_json::from_value(node).expect("a Node"));
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let both = [
        ("InternalIP", "10.0.0.1"),
        ("ExternalIP", "192.0.2.1"),
        ("ExternalIP", "2001:db8::1"),
        ("Hostname", "n"),
    ];
    let named = json!({"name": "n"});
    assert_eq!(node(named.clone(), "True", &both), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(node(named.clone(), "True", &both[..1]), ["10.0.0.1"]);
    for (case, meta, ready) in [
        ("not ready", named.clone(), "False"),
        ("not heard of", named, "Unknown"),
        ("leaving", json!({"name": "n", "deletionTimestamp": "2026-01-02T03:04:05Z"}), "True"),
        ("excluded", json!({"name": "n", "labels": {EXCLUDED: ""}}), "True"),
    ] {
        assert_eq!(node(meta, ready, &both), Vec::<String>::new(), "{case}");
    }
}

#[test]
fn a_service_counts_with_what_outside_reaches() {
    for (case, service, expected) in [
        (
            "load balancer",
            json!({"spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"]},
                "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb.example"}]}}}),
            vec![ip("192.0.2.1"), name("lb.example")],
        ),
        (
            "load balancer, awaited",
            json!({"spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"]}}),
            vec![],
        ),
        (
            "external addresses",
            json!({"spec": {"type": "NodePort", "externalIPs": ["192.0.2.7"], "clusterIPs": ["10.96.0.1"]}}),
            vec![ip("192.0.2.7")],
        ),
        (
            "inside",
            json!({"spec": {"clusterIPs": ["10.96.0.1", "fd00::1"]}}),
            vec![ip("10.96.0.1"), ip("fd00::1")],
        ),
        ("headless", json!({"spec": {"clusterIPs": ["None"]}}), vec![]),
        (
            "a name",
            json!({"spec": {"type": "ExternalName", "externalName": "web.example"}}),
            vec![name("web.example")],
        ),
    ] {
        let found = service_addresses(&serde_json::from_value(service).expect("a Service"));
        assert_eq!(found, expected, "{case}");
    }
}

#[test]
fn installations_write_under_names_of_their_own() {
    let of = |names: &[&str]| manager(&names.iter().map(ToString::to_string).collect());
    assert_eq!(of(&["weir.dev/ingress"]), "weir:weir.dev/ingress");
    assert_eq!(of(&["k8s.io/ingress-nginx", "weir.dev/ingress"]), "weir:weir.dev/ingress");
    assert_eq!(of(&["example.com/b", "example.com/a"]), "weir:example.com/a");
    assert!(of(&[&"ü x".repeat(500)]).len() <= 128);
}

#[test]
fn what_the_last_agent_takes_away_includes_what_it_wrote_a_moment_ago() {
    for (case, ours, manager, expected) in [
        ("ours, and told back", true, Some("weir:a"), true),
        ("ours, written and not told back yet", true, None, true),
        ("not ours any more", false, Some("weir:a"), true),
        ("another's", false, None, false),
        ("another installation's", false, Some("weir:b"), false),
    ] {
        let ingress = Ingress { status_manager: manager.map(str::to_owned), ..Ingress::default() };
        let report = Report { ingress: Arc::new(ingress), ours, in_force: true, problems: Vec::new() };
        assert_eq!(may_be_written(&report, "weir:a"), expected, "{case}");
    }
}

#[test]
fn reports_are_taken_once_and_all_on_demand() {
    let report = |name: &str, ours| Report {
        ingress: Arc::new(Ingress { key: ObjectKey::new("default", name), ..Ingress::default() }),
        ours,
        in_force: true,
        problems: vec![Problem {
            object: ObjectRef { kind: Kind::Ingress, key: ObjectKey::new("default", name) },
            field: "spec".into(),
            reason: "odd".into(),
        }],
    };
    let names = |reports: Vec<Report>| -> Vec<String> {
        reports.iter().map(|report| report.ingress.key.name.clone()).collect()
    };
    let (reports, key) = (Reports::default(), |name: &str| ObjectKey::new("default", name));
    reports.put(&key("b"), Some(report("b", true)));
    reports.put(&key("a"), Some(report("a", true)));
    assert_eq!(names(reports.take()), ["a", "b"]);
    reports.put(&key("a"), Some(report("a", true)));
    assert_eq!(names(reports.take()), Vec::<String>::new(), "nothing new");
    reports.put(&key("a"), Some(report("a", false)));
    reports.put(&key("b"), None);
    assert_eq!(names(reports.take_all()), ["a"]);
    assert_eq!(names(reports.take()), Vec::<String>::new());
}
