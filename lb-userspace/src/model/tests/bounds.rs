//! What one Service may ask of a node, and how much of what is wrong is told.

use super::*;

/// A Service of so many ports, and slices of so many endpoints each behind all of them.
fn wide(ports: u16, slices: u8, endpoints: u16) -> Objects {
    let mut objects = Objects::default();
    let mut s = service("a", "10.96.0.1");
    s.ports = (1..=ports).map(|n| tcp(&format!("p{n}"), n, 0)).collect();
    put_service(&mut objects, s);
    for n in 0..slices {
        let mut slice = slice(&format!("s{n}"), "a", &[]);
        slice.ports =
            (1..=ports).map(|n| SlicePort { name: format!("p{n}"), proto: Proto::TCP, port: n }).collect();
        slice.endpoints =
            (0..endpoints).map(|e| endpoint(&format!("10.{n}.{}.{} ready there", e >> 8, e & 255))).collect();
        put_slice(&mut objects, slice);
    }
    objects
}

fn backends_by_port(objects: &Objects) -> Vec<usize> {
    let model = from_scratch(ModelOptions::default(), objects);
    let state = model.state(&key("a")).unwrap();
    let problems: Vec<_> = state.problems.iter().map(ToString::to_string).collect();
    let backends: Vec<_> = state.ports.values().map(|port| port.backends.len()).collect();
    let told = "Service default/a: spec.ports: more than 10000 endpoints, counted over all ports: only some of \
                each port are used";
    assert_eq!(problems, if backends.iter().sum::<usize>() >= 9_000 { vec![told] } else { vec![] });
    backends
}

#[test]
fn the_endpoints_of_one_service_are_bounded_over_all_its_ports() {
    assert_eq!(backends_by_port(&wide(3_000, 2, 1_000)), [3; 3_000]);
    assert_eq!(backends_by_port(&wide(3, 5, 1_000)), [3_333; 3]);
    assert_eq!(backends_by_port(&wide(2, 4, 1_000)), [4_000; 2]);
}

#[test]
fn of_too_many_endpoints_those_that_are_chosen_from_stay() {
    let mut objects = wide(1, 12, 1_000);
    // The last ones: serving without being ready, and one of this node.
    let mut last = EndpointSlice::clone(&objects.slices[&key("s9")]);
    last.endpoints.push(endpoint("10.200.0.1 ready here"));
    put_slice(&mut objects, last);
    let mut first = EndpointSlice::clone(&objects.slices[&key("s0")]);
    first.endpoints.iter_mut().for_each(|e| e.ready = false);
    put_slice(&mut objects, first);
    let mut local = Service::clone(&objects.services[&key("a")]);
    local.internal_policy = TrafficPolicy::Local;
    put_service(&mut objects, local);
    let model = from_scratch(ModelOptions::default(), &objects);
    let port = only_port(model.state(&key("a")).unwrap());
    assert_eq!(port.backends.len(), 10_000);
    assert!(port.backends.iter().all(|b| b.in_inside));
    let local: Vec<_> = port.backends.iter().filter(|b| b.local).collect();
    assert_eq!(local.len(), 1);
    assert!(local[0].in_cluster_ip && !port.cluster_ip_drops);
}

#[test]
fn the_frontends_of_one_service_are_bounded() {
    let mut s = service("a", "10.96.0.1");
    s.ports = (1..=3_000).map(|n| tcp(&format!("p{n}"), n, 0)).collect();
    s.external_ips = (1..=9).map(|n| IpAddr::from([203, 0, 113, n])).collect();
    let state = alone(s, &[]);
    let frontends: usize = state.ports.values().map(|port| port.frontends.len()).sum();
    assert_eq!((frontends, state.problems.len()), (10_000, 1));
    assert_eq!(
        state.problems[0].to_string(),
        "Service default/a: spec.ports[1000]: more than 10000 frontends, counted over all ports and addresses: \
         from here on they are not programmed"
    );
}

#[test]
fn a_slice_that_is_wrong_everywhere_is_told_in_a_few_lines() {
    let endpoints: Vec<_> = (0..1_000).map(|n| format!("127.0.{}.{} ready", n >> 8, n & 255)).collect();
    let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
    let state = alone(service("a", "10.96.0.1"), &endpoints);
    assert_eq!(state.problems.len(), 9);
    assert_eq!(state.problems[8].to_string(), "EndpointSlice default/s1: …: and 992 more");
}
