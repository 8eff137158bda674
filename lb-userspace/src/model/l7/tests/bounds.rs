//! What one object, one namespace and all together may take, and that nobody else pays for it.

use super::*;
use crate::proxy::channel::{self, ToProxy};

/// A Service of so many ports and so many endpoints behind each, created at a time.
fn wide(objects: &mut Objects, name: &str, created: i64, ports: u16, endpoints: u16) {
    let numbers = || 1..=ports;
    put_service(
        objects,
        Service {
            key: key(name),
            created,
            selector: true,
            ports: numbers().map(|n| port(&format!("p{n}"), n)).collect(),
            ..Service::default()
        },
    );
    let addresses: Vec<String> = (0..endpoints).map(|n| format!("10.0.{}.{}", n >> 8, n & 255)).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let ports = numbers().map(|n| SlicePort { name: format!("p{n}"), proto: Proto::TCP, port: n });
    put_slice(objects, EndpointSlice { ports: ports.collect(), ..slice(name, &addresses) });
}

/// An Ingress that leads to all those ports.
fn leading(name: &str, to: &str, ports: u16) -> Ingress {
    let lines: Vec<String> = (1..=ports).map(|n| format!("{to}.example E /{n} {to}:{n}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    ingress(name, 0, &lines)
}

/// Endpoints of each pool of a Service.
fn endpoints(model: &L7Model, service: &str) -> Vec<usize> {
    let pools = model.routes().pools.iter().filter(|(pool, _)| *pool.service == key(service));
    pools.map(|(_, pool)| pool.endpoints.len()).collect()
}

#[test]
fn the_endpoints_of_one_service_are_bounded_over_all_its_ports() {
    let mut objects = Objects::default();
    wide(&mut objects, "wide", 0, 1_200, 200);
    put_ingress(&mut objects, leading("a", "wide", 1_200));
    let model = built(&objects);
    assert_eq!(endpoints(&model, "wide"), [10; 1_000]);
    let told = told(&model);
    for part in [
        "Service default/wide: spec.ports: more than 10000 endpoints, counted over all ports that Ingresses lead",
        "Ingresses lead to more than 1000 ports of Service default/wide; it answers 503",
    ] {
        assert!(told.contains(part), "{told}");
    }
    // Few of them have them all.
    put_ingress(&mut objects, leading("a", "wide", 50));
    let model = built(&objects);
    assert_eq!((endpoints(&model, "wide"), model.problems().len()), (vec![200; 50], 0));
}

#[test]
fn an_external_name_is_bounded_over_all_ports_too() {
    let mut objects = Objects::default();
    let service = Service {
        key: key("far"),
        kind: ServiceType::ExternalName,
        external_name: Some("far.example".into()),
        ..Service::default()
    };
    put_service(&mut objects, service);
    put_ingress(&mut objects, leading("a", "far", 900));
    let addresses = (0..=255).map(|n| IpAddr::from([203, 0, 113, n])).collect();
    let names = Arc::new(Names::from([("far.example".to_string(), Ok(addresses))]));
    let model = built_with(options(), &objects, &L7Input { now: NOW, names, ..L7Input::default() });
    assert_eq!(endpoints(&model, "far"), [11; 900]);
}

#[test]
fn the_newest_services_go_without_endpoints_when_there_are_too_many() {
    let limit = Limit { of_namespace: 60, in_all: 100 };
    let mut objects = Objects::default();
    let mut model = L7Model::limited(options(), budget::ROUTES, limit);
    let input = L7Input { now: NOW, ..L7Input::default() };
    for (name, created) in [("greedy/a", 1), ("greedy/b", 2), ("greedy/c", 3), ("honest/web", 9)] {
        wide(&mut objects, name, created, 2, 10);
        let to = name.split_once('/').unwrap().1;
        put_ingress(&mut objects, leading(name, to, 2));
    }
    model.update(&objects, &input, &everything(&objects));
    assert!(model.problems().is_empty());
    // One more of a namespace that has its part costs nobody else anything.
    wide(&mut objects, "greedy/0", 4, 2, 10);
    put_ingress(&mut objects, leading("greedy/0", "0", 2));
    model.update(&objects, &input, &everything(&objects));
    assert_eq!((endpoints(&model, "greedy/0"), endpoints(&model, "greedy/a")), (vec![0; 2], vec![10; 2]));
    assert_eq!(endpoints(&model, "honest/web"), [10; 2]);
    assert_told(
        &model,
        &[
            "Service greedy/0: spec.ports: with this Service, endpoints that Ingresses lead to, counted over all \
           ports, are beyond the limit of 60 for one namespace: none of it is used",
        ],
    );
    // It has its turn when an older one leaves.
    objects.services.remove(&key("greedy/b"));
    let touched = Touched { services: [key("greedy/b")].into(), ..Touched::default() };
    let updates = model.update(&objects, &input, &touched);
    assert_eq!(endpoints(&model, "greedy/0"), [10; 2]);
    assert!(updates.iter().all(|update| !format!("{update:?}").contains("honest")), "{updates:?}");
}

/// An Ingress with so many paths of so many bytes on a host.
fn long(name: &str, created: i64, host: &str, paths: usize, bytes: usize) -> Ingress {
    let unique = |n: usize| format!("/{}-{n:05}{}", name.replace('/', "-"), "x".repeat(bytes));
    let lines: Vec<String> = (0..paths).map(|n| format!("{host} P {} web:80", unique(n))).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    ingress(name, created, &lines)
}

/// What one tenant puts on another's host is cut before it, and the host always fits into one
/// message to the proxy.
#[test]
fn long_paths_of_one_tenant_do_not_push_another_off_its_host() {
    let mut objects = Objects::default();
    web(&mut objects, "owner/web", "10.0.0.1");
    web(&mut objects, "greedy/web", "10.0.0.2");
    put_ingress(&mut objects, ingress("owner/a", 1, &["x.example P /mine web:80", "x.example P / web:80"]));
    for n in 0..12 {
        put_ingress(&mut objects, long(&format!("greedy/{n:02}"), 2 + n, "x.example", 350, 3_900));
    }
    put_ingress(&mut objects, ingress("greedy/last", 99, &["x.example P /short web:80"]));
    let model = built(&objects);
    let host = &model.routes().hosts[&HostPattern::Exact("x.example".into())];
    let of_owner = host.rules.iter().filter(|rule| rule.action.ingress.namespace == "owner");
    assert_eq!(of_owner.count(), 2);
    let bytes: usize = host.rules.iter().map(|rule| rule.path.len()).sum();
    assert!(bytes > 8_000_000 && bytes < budget::RULE_BYTES, "{bytes}");
    // The newest are cut, and nothing of them slips through for being short.
    assert!(host.rules.iter().all(|rule| rule.action.ingress.name != "last"));
    let told = told(&model);
    for name in ["06", "11", "last"] {
        let part =
            format!("Ingress greedy/{name}: spec.rules: x.example has more than 8388608 bytes of paths");
        assert!(told.contains(&part), "{told}");
    }
    assert!(!told.contains("owner") && !told.contains("greedy/04"), "{told}");
    let updates = model.routes().updates();
    let carried: usize = channel::frames(&updates, 1, true)
        .map(|frame| {
            let frame = frame.unwrap();
            let (_, mut body) = channel::open::<ToProxy>(&frame[4..]).unwrap();
            let mut count = 0;
            while !body.is_empty() {
                body = channel::open::<Update>(body).unwrap().1;
                count += 1;
            }
            count
        })
        .sum();
    assert_eq!(carried, updates.len(), "none is left out");
}

#[test]
fn a_reason_is_not_repeated_at_any_length() {
    let mut objects = Objects::default();
    let ports = (1..9).map(|n| port(&"p".repeat(200), n)).collect();
    put_service(&mut objects, Service { key: key("web"), ports, ..Service::default() });
    put_ingress(&mut objects, ingress("a", 0, &["x.example P / web:80"]));
    let model = built(&objects);
    let host = &model.routes().hosts[&HostPattern::Exact("x.example".into())];
    let Target::Unavailable(reason) = &host.rules[0].action.target else { panic!("{host:?}") };
    assert_eq!(reason.len(), budget::REASON);
}

#[test]
fn the_newest_ingresses_are_not_served_when_there_are_too_many_routes() {
    let part = budget::weight(&long("greedy/0", 0, "0.example", 10, 50));
    let limit = Limit { of_namespace: 3 * part, in_all: 5 * part };
    let mut objects = Objects::default();
    let mut model = L7Model::limited(options(), limit, budget::ALL_ENDPOINTS);
    let input = L7Input { now: NOW, ..L7Input::default() };
    web(&mut objects, "greedy/web", "10.0.0.1");
    web(&mut objects, "honest/web", "10.0.0.1");
    for n in [0, 1, 2, 3] {
        put_ingress(&mut objects, long(&format!("greedy/{n}"), n, &format!("{n}.example"), 10, 50));
    }
    put_ingress(&mut objects, long("honest/a", 9, "h.example", 10, 50));
    model.update(&objects, &input, &everything(&objects));
    let hosts =
        |model: &L7Model| -> Vec<String> { model.routes().hosts.keys().map(ToString::to_string).collect() };
    assert_eq!(hosts(&model), ["0.example", "1.example", "2.example", "h.example"]);
    let limit = 3 * part;
    assert_told(
        &model,
        &[&format!(
            "Ingress greedy/3: spec: with this Ingress, bytes of routes are beyond the limit of {limit} for one \
             namespace: none of it is served"
        )],
    );
    assert!(model.is_ours(&key("greedy/3")), "it is told of, as one of ours");
    objects.ingresses.remove(&key("greedy/1"));
    let touched = Touched { ingresses: [key("greedy/1")].into(), ..Touched::default() };
    model.update(&objects, &input, &touched);
    assert_eq!(hosts(&model), ["0.example", "2.example", "3.example", "h.example"]);
    assert!(model.problems().is_empty());
}

#[test]
fn what_is_wrong_everywhere_costs_no_other_object_anything() {
    let bad: Vec<String> = (0..8_000).map(|n| format!("h{n}.example E /x* web:80")).collect();
    let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
    let missing: Vec<String> = (0..8_000).map(|n| format!("m{}.example E /{n} none:80", n % 9)).collect();
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    let mut objects = Objects::default();
    web(&mut objects, "web", "10.0.0.1");
    put_ingress(&mut objects, ingress("bad", 0, &bad));
    put_ingress(&mut objects, ingress("missing", 0, &missing));
    put_ingress(&mut objects, ingress("other", 0, &["o.example P / none:81"]));
    let mut model = built(&objects);
    assert_eq!(model.told.kept(), 8 + 9 * 8 + 1, "of each finder the first few");
    let changed = model.take_problems().unwrap();
    let counts: Vec<usize> = changed.values().map(Vec::len).collect();
    assert_eq!(counts, [9, 9, 1]);
    let more = &changed.values().nth(1).unwrap()[8];
    assert_eq!(more.to_string(), "Ingress default/missing: …: and 7992 more");
    // One that is mended is looked at alone.
    put_ingress(&mut objects, ingress("other", 0, &["o.example P / web:80"]));
    let touched = Touched { ingresses: [key("other")].into(), ..Touched::default() };
    model.update(&objects, &L7Input { now: NOW, ..L7Input::default() }, &touched);
    let changed = model.take_problems().unwrap();
    let other = ObjectRef { kind: Kind::Ingress, key: key("other") };
    assert_eq!(changed, [(other, vec![])].into());
    assert_eq!(model.take_problems(), None);
}
