//! From a backend to the endpoints of its pool.

use super::*;

/// One Ingress to `web`, the Service, its slices.
fn served(service: Service, slices: Vec<EndpointSlice>, to: &str) -> L7Model {
    served_with(options(), L7Input { now: NOW, ..L7Input::default() }, service, slices, to)
}

fn served_with(
    options: L7Options,
    input: L7Input,
    service: Service,
    slices: Vec<EndpointSlice>,
    to: &str,
) -> L7Model {
    let mut objects = Objects::default();
    put_service(&mut objects, service);
    for slice in slices {
        put_slice(&mut objects, slice);
    }
    let mut api = slice("kubernetes", &["198.51.100.1"]);
    api.managed = false;
    put_slice(&mut objects, api);
    let api = Service {
        key: key("kubernetes"),
        cluster_ips: vec!["10.96.0.1".parse().unwrap()],
        ..Service::default()
    };
    put_service(&mut objects, api);
    put_ingress(&mut objects, ingress("a", 0, &[&format!("x.example P / {to}")]));
    built_with(options, &objects, &input)
}

fn service(ports: Vec<ServicePort>) -> Service {
    Service { key: key("web"), selector: true, ports, ..Service::default() }
}

#[test]
fn a_port_is_found_by_number_or_name_and_must_be_there() {
    let dns = ServicePort { proto: Proto::UDP, ..port("dns", 53) };
    for (to, expected, reason) in [
        ("web:80", "x.example P  default/web:80 (default/a)", None),
        ("web:http", "x.example P  default/web:80 (default/a)", None),
        (
            "web:81",
            "x.example P  503 (default/a)",
            Some("Service default/web has no port 81; it has 80 (http), 53 (dns)"),
        ),
        ("web:nope", "x.example P  503 (default/a)", Some("has no port \"nope\"")),
        ("web:53", "x.example P  503 (default/a)", Some("port 53 of Service default/web is UDP, not TCP")),
        ("gone:80", "x.example P  503 (default/a)", Some("there is no Service default/gone; it answers 503")),
    ] {
        let model =
            served(service(vec![port("http", 80), dns.clone()]), vec![slice("web", &["10.0.0.1"])], to);
        assert_eq!(rules(&model), [expected], "{to}");
        assert_told(&model, reason.as_slice());
        assert_eq!(model.routes().pools.len(), usize::from(reason.is_none()), "{to}");
    }
}

#[test]
fn what_is_not_supported_answers_503_on_its_path_alone() {
    let mut objects = Objects::default();
    web(&mut objects, "web", "10.0.0.1");
    put_ingress(&mut objects, ingress("a", 0, &["x.example P /a resource", "x.example P /b web:80"]));
    let found = rules(&built(&objects));
    assert_eq!(found, ["x.example P /a 503 (default/a)", "x.example P /b default/web:80 (default/a)"], "I16");
}

#[test]
fn a_service_of_another_namespace_is_not_to_be_had() {
    let mut objects = Objects::default();
    web(&mut objects, "b/web", "10.0.0.1");
    put_ingress(&mut objects, ingress("a/x", 0, &["x.example P / web:80"]));
    assert_eq!(rules(&built(&objects)), ["x.example P  503 (a/x)"], "I23");
}

/// Name, slices, endpoints.
type Row<'a> = (&'a str, Vec<EndpointSlice>, &'a [&'a str]);

#[test]
fn endpoints_are_those_that_are_ready_else_those_that_still_serve() {
    let v6 = EndpointSlice { key: key("web-2"), ..slice("web", &["2001:db8::1", "2001:db8::2-"]) };
    let other = SlicePort { name: "metrics".into(), proto: Proto::TCP, port: 9 };
    let twice = EndpointSlice {
        key: key("web-3"),
        ports: vec![SlicePort { name: "http".into(), proto: Proto::TCP, port: 9090 }, other],
        ..slice("web", &["10.0.0.1", "10.0.0.9"])
    };
    #[rustfmt::skip]
    let rows: &[Row<'_>] = &[
        ("ready (I20)", vec![slice("web", &["10.0.0.1", "10.0.0.2-", "10.0.0.3~"])], &["10.0.0.1:8080"]),
        ("draining alone (I20)", vec![slice("web", &["10.0.0.2-", "10.0.0.3~"])], &["10.0.0.3:8080"]),
        ("none (I15)", vec![slice("web", &["10.0.0.2-"])], &[]),
        ("no slice", vec![], &[]),
        ("both families", vec![slice("web", &["10.0.0.1"]), v6], &["10.0.0.1:8080", "[2001:db8::1]:8080"]),
        ("each address once", vec![slice("web", &["10.0.0.1", "10.0.0.1"])], &["10.0.0.1:8080"]),
        ("an address that is used again (S4)", vec![slice("web", &["10.0.0.1~", "10.0.0.1"])], &["10.0.0.1:8080"]),
        ("the port is the slice's (I19)", vec![slice("web", &["10.0.0.1"]), twice],
            &["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.9:9090"]),
    ];
    for (name, slices, expected) in rows {
        let model = served(service(vec![port("http", 80)]), slices.clone(), "web:80");
        assert_eq!(pool(&model, "web", 80).unwrap().1, *expected, "{name}");
        assert_eq!(told(&model), "", "{name}");
    }
    let headless = Service { headless: true, ..service(vec![port("http", 80)]) };
    let model = served(headless, vec![slice("web", &["10.0.0.1"])], "web:80");
    assert_eq!(pool(&model, "web", 80).unwrap().1, ["10.0.0.1:8080"], "headless (I19)");
    let mut unnamed = slice("web", &["10.0.0.1"]);
    unnamed.ports[0].name.clear();
    let model = served(service(vec![port("", 80)]), vec![unnamed], "web:80");
    assert_eq!(pool(&model, "web", 80).unwrap().1, ["10.0.0.1:8080"], "no name on either side (I19)");
}

#[test]
fn app_protocol_chooses_what_is_spoken_or_is_refused() {
    for (text, expected) in [
        (None, Some(Protocol::Http1)),
        (Some("http"), Some(Protocol::Http1)),
        (Some("kubernetes.io/ws"), Some(Protocol::Http1)),
        (Some("example.com/own"), Some(Protocol::Http1)),
        (Some("kubernetes.io/h2c"), Some(Protocol::H2c)),
        (Some("grpc"), Some(Protocol::H2c)),
        (Some("GRPC"), Some(Protocol::H2c)),
        (Some("https"), None),
        (Some("kubernetes.io/wss"), None),
    ] {
        let port = ServicePort { app_protocol: text.map(Into::into), ..port("http", 80) };
        let model = served(service(vec![port]), vec![slice("web", &["10.0.0.1"])], "web:80");
        assert_eq!(pool(&model, "web", 80).map(|(protocol, _)| protocol), expected, "{text:?}");
        assert_eq!(
            told(&model).contains("TLS towards endpoints is not spoken"),
            expected.is_none(),
            "{text:?}"
        );
    }
}

/// Name, flags, Service, slice, endpoints, how many are told.
type Written<'a> = (&'a str, L7Options, &'a Service, &'a EndpointSlice, &'a [&'a str], usize);

#[test]
fn a_slice_by_hand_may_not_lead_to_the_node_or_the_api_server() {
    let hostile = ["10.0.0.1", "192.0.2.9", "198.51.100.1", "10.96.0.1", "127.0.0.1", "169.254.169.254"];
    let nodes = BTreeSet::from(["192.0.2.9".parse().unwrap()]);
    let input = L7Input { now: NOW, node_addresses: nodes, ..L7Input::default() };
    let all = slice("web", &hostile);
    let by_hand = EndpointSlice { managed: false, ..all.clone() };
    let without_selector = Service { selector: false, ..service(vec![port("http", 80)]) };
    let with_selector = service(vec![port("http", 80)]);
    let allowed = L7Options { allow_endpoint_cidrs: vec!["0.0.0.0/0".parse().unwrap()], ..options() };
    #[rustfmt::skip]
    let rows: [Written<'_>; 4] = [
        ("by hand (H38)", options(), &with_selector, &by_hand, &["10.0.0.1"], 3),
        ("a label without a selector says nothing (H38)", options(), &without_selector, &all, &["10.0.0.1"], 3),
        ("pods on the host's network stay", options(), &with_selector, &all,
            &["10.0.0.1", "10.96.0.1", "192.0.2.9", "198.51.100.1"], 0),
        ("lifted by --allow-endpoint-cidr", allowed, &without_selector, &by_hand,
            &["10.0.0.1", "10.96.0.1", "127.0.0.1", "169.254.169.254", "192.0.2.9", "198.51.100.1"], 0),
    ];
    for (name, options, service, slice, expected, problems) in rows {
        let model = served_with(options, input.clone(), service.clone(), vec![slice.clone()], "web:80");
        let expected: Vec<String> = expected.iter().map(|ip| format!("{ip}:8080")).collect();
        assert_eq!(pool(&model, "web", 80).unwrap().1, expected, "{name}");
        assert_eq!(
            told(&model).matches("EndpointSlice default/web-1: endpoints[").count(),
            problems,
            "{name}"
        );
    }
}

/// Name, flags, Service, endpoints (`None`: 503), what is told.
type External<'a> = (&'a str, &'a L7Options, Service, Option<&'a [&'a str]>, &'a [&'a str]);

#[test]
fn an_external_name_gives_the_addresses_that_it_may() {
    let external = |name: &str, ports: Vec<ServicePort>| Service {
        kind: ServiceType::ExternalName,
        external_name: Some(name.into()),
        selector: false,
        ..service(ports)
    };
    let names: Names = [
        ("good.example", Ok(vec!["203.0.113.7", "2001:db8::7", "203.0.113.7"])),
        (
            "partly.example",
            Ok(vec!["203.0.113.8", "127.0.0.1", "::ffff:127.0.0.1", "192.0.2.9", "10.96.0.1"]),
        ),
        ("bad.example", Ok(vec!["::1", "fe80::1", "0.0.0.0", "224.0.0.1", "198.51.100.1"])),
        ("gone.example", Err("no such name".to_string())),
    ]
    .into_iter()
    .map(|(name, found)| {
        (name.to_string(), found.map(|ips| ips.iter().map(|ip| ip.parse().unwrap()).collect()))
    })
    .collect();
    let input = L7Input {
        now: NOW,
        names: Arc::new(names),
        node_addresses: BTreeSet::from(["192.0.2.9".parse().unwrap()]),
        ..L7Input::default()
    };
    let target = ServicePort { target_port: Some(8443), ..port("http", 80) };
    let on = options();
    let off = L7Options { external_names: false, ..options() };
    #[rustfmt::skip]
    let rows: [External<'_>; 10] = [
        ("both families", &on, external("good.example", vec![]), Some(&["203.0.113.7:80", "[2001:db8::7]:80"]), &[]),
        ("case and last dot", &on, external("Good.Example.", vec![]), Some(&["203.0.113.7:80", "[2001:db8::7]:80"]), &[]),
        ("target port", &on, external("good.example", vec![target]), Some(&["203.0.113.7:8443", "[2001:db8::7]:8443"]), &[]),
        ("a port that it lacks", &on, external("good.example", vec![port("x", 81)]), None, &["has no port 80; it has 81 (x)"]),
        ("refused ones left out", &on, external("partly.example", vec![]), Some(&["203.0.113.8:80"]),
            &["leads to 127.0.0.1, loopback", "leads to ::ffff:127.0.0.1, loopback", "leads to 192.0.2.9, an address of the node", "leads to 10.96.0.1, an address of the API server"]),
        ("all refused", &on, external("bad.example", vec![]), None,
            &["leads to no address that may be used", "::1, loopback", "fe80::1, link-local", "0.0.0.0, unspecified", "224.0.0.1, multicast", "198.51.100.1, an address of the API server"]),
        ("not there", &on, external("gone.example", vec![]), None, &["cannot be looked up: no such name"]),
        ("not looked up yet", &on, external("new.example", vec![]), None, &["is being looked up"]),
        ("no name", &on, external("192.0.2.1", vec![]), None, &["is an address, not a DNS name"]),
        ("switched off (I22)", &off, external("good.example", vec![]), None, &["--external-names is off"]),
    ];
    for (name, options, service, expected, parts) in rows {
        let model = served_with(options.clone(), input.clone(), service, vec![], "web:80");
        let found = pool(&model, "web", 80).map(|(_, endpoints)| endpoints);
        assert_eq!(
            found.as_deref(),
            expected.map(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>()).as_deref(),
            "{name}"
        );
        assert_told(&model, parts);
    }
}

#[test]
fn looked_up_names_change_their_pools_alone() {
    let service = Service {
        kind: ServiceType::ExternalName,
        external_name: Some("a.example".into()),
        ..service(vec![])
    };
    let mut objects = Objects::default();
    put_service(&mut objects, service);
    put_ingress(&mut objects, ingress("a", 0, &["x.example P / web:80"]));
    let mut model = built(&objects);
    assert!(model.awaits());
    assert_eq!(model.wanted_names(), [("a.example".to_string(), ["default".to_string()].into())].into());
    let input = |ip: &str| L7Input {
        now: NOW,
        names: Arc::new(Names::from([("a.example".to_string(), Ok(vec![ip.parse().unwrap()]))])),
        ..L7Input::default()
    };
    let updates = model.update(&objects, &input("203.0.113.1"), &Touched::default());
    assert!(matches!(updates[..], [Update::Pool(..), Update::Host(..)]), "{updates:?}");
    assert!(!model.awaits());
    let updates = model.update(&objects, &input("203.0.113.2"), &Touched::default());
    assert!(matches!(updates[..], [Update::Pool(..)]), "{updates:?}");
    assert!(model.update(&objects, &input("203.0.113.2"), &Touched::default()).is_empty());
}

#[test]
fn an_endpoint_that_changes_touches_no_host() {
    let mut objects = Objects::default();
    web(&mut objects, "web", "10.0.0.1");
    put_ingress(&mut objects, ingress("a", 0, &["x.example P / web:80"]));
    let mut model = built(&objects);
    put_slice(&mut objects, slice("web", &["10.0.0.2"]));
    let touched = Touched { services: [key("web")].into(), ..Touched::default() };
    let updates = model.update(&objects, &L7Input { now: NOW, ..L7Input::default() }, &touched);
    assert!(matches!(updates[..], [Update::Pool(..)]), "{updates:?}");
}

#[test]
fn an_ingress_that_leads_nowhere_is_an_orphan_of_one_sort_or_both() {
    let mut objects = Objects::default();
    web(&mut objects, "web", "10.0.0.1");
    web(&mut objects, "empty", "10.0.0.2-");
    for (name, lines) in [
        ("good", ["a.example P / web:80"]),
        ("no-service", ["b.example P / gone:80"]),
        ("no-endpoint", ["c.example P / empty:80"]),
        ("no-port", ["d.example P / web:81"]),
        ("default", ["default gone:80"]),
    ] {
        put_ingress(&mut objects, ingress(name, 0, &lines));
    }
    put_ingress(&mut objects, ingress("both", 0, &["e.example P / gone:80", "e.example P /x empty:80"]));
    let model = built(&objects);
    let told = model.orphans().into_iter().map(|(orphan, key)| format!("{} {}", orphan.label(), key.name));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            "no-service both",
            "no-service default",
            "no-service no-service",
            "no-endpoint both",
            "no-endpoint no-endpoint",
            "no-endpoint no-port",
        ]
    );
}
