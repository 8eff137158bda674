//! The whole case table again, with a real API server as the source: the same pods as API
//! objects, EndpointSlices by the real controllers.

use crate::rig::{Rig, assert_outcomes};
use lab::agent::{Agent, Setup};
use lab::apiserver::{self, ApiServer};
use lab::authority::Authority;
use lab::cases::{self, Assigned, certificates, ingress};
use lab::flows::now_us;
use lab::manifests::{demo_dir, kind, read_dir};
use lab::topology::{NODE2, Place, Topology};
use lab::wire::{Ask, Load, Proto};
use lab::{wait, wire};
use serde_json::{Value, json};
use std::time::Duration;

/// The control plane lives on node2, out of reach of node1's hooks.
pub(crate) fn control_plane(lab: &Topology) -> ApiServer {
    let place = apiserver::Place { netns: Some(lab.node2().path().to_owned()), address: NODE2.0.into() };
    ApiServer::start_in(&place).unwrap()
}

/// Creates the demo's objects, and waits for what the controllers make of them.
pub(crate) fn create_demo(server: &ApiServer, lab: &Topology) {
    let objects = read_dir(&demo_dir()).unwrap();
    for wanted in ["Node", "Pod", "Service", "Ingress"] {
        for object in objects.iter().filter(|object| kind(object) == wanted) {
            server.apply(object).unwrap();
        }
    }
    for (service, pods) in [
        ("my-service", &["my-app-1", "my-app-2"]),
        ("two-ports", &["web-1", "web-2"]),
        ("api-service", &["api-1", "api-2"]),
        ("web-service", &["web-1", "web-2"]),
    ] {
        let both = service == "two-ports";
        let ips: Vec<_> = pods
            .iter()
            .flat_map(|pod| [false, true].map(|v6| (v6, lab.pod_ip(pod, v6).unwrap())))
            .filter(|(v6, _)| both || !v6)
            .map(|(_, ip)| ip)
            .collect();
        server.wait_ready_endpoints("default", service, &ips).unwrap();
    }
}

fn my_service(server: &ApiServer) -> Assigned {
    let service = server.get("v1", "Service", "default", "my-service").unwrap().unwrap();
    let ip = service.pointer("/spec/clusterIP").and_then(Value::as_str).unwrap();
    Assigned { my_service: ip.parse().unwrap() }
}

#[test]
fn every_case_holds_with_an_api_server_as_the_source() {
    let rig = Rig::new();
    let server = control_plane(&rig.lab);
    create_demo(&server, &rig.lab);
    let agent = Agent::ready(&rig.lab, Setup::kubeconfig(&server.kubeconfig())).unwrap();
    let assigned = my_service(&server);
    wait::until("every case holds", Duration::from_secs(10), || {
        // The agent may be ready before the last slice is made.
        let ask = Ask::new(Proto::Tcp, (assigned.my_service, 80).into());
        let answer: wire::Answer = rig.lab.at(&Place::pod("client"))?.ask(ask)?;
        anyhow::ensure!(answer.ok(), "{answer:?}");
        Ok(())
    })
    .unwrap();
    assert_outcomes(&cases::run(&rig.lab, &assigned, |_| {}));
    drop(agent);
}

/// I76 with the API server as the source. There a class must be the default one, or
/// `my-ingress`, which names none, would be nobody's (I2).
#[test]
fn every_ingress_case_holds_with_an_api_server_as_the_source() {
    let rig = Rig::new();
    let server = control_plane(&rig.lab);
    let authority = Authority::new().unwrap();
    server
        .apply(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": {
                "name": "weir", "annotations": { "ingressclass.kubernetes.io/is-default-class": "true" },
            },
            "spec": { "controller": "weir.dev/ingress" },
        }))
        .unwrap();
    server.apply(&certificates::first(&authority).unwrap()).unwrap();
    create_demo(&server, &rig.lab);
    let name_server = ingress::serve_outside(&rig.lab).unwrap();
    let setup = Setup::kubeconfig(&server.kubeconfig()).name_server(name_server);
    let agent = Agent::ready(&rig.lab, setup).unwrap();
    assert_outcomes(&ingress::run(&rig.lab, &authority, |_| {}));
    assert_outcomes(&ingress::told(&agent));
    let change = |object: Option<&Value>| match object {
        Some(object) => server.apply(object).map(drop),
        None => server.delete("v1", "Secret", "default", ingress::SECRET),
    };
    assert_outcomes(&certificates::run(&rig.lab, &authority, &change, |_| {}));
}

#[test]
fn objects_changed_while_the_agent_was_away_are_there_when_it_returns() {
    let rig = Rig::new();
    let mut server = control_plane(&rig.lab);
    create_demo(&server, &rig.lab);
    let setup = Setup::kubeconfig(&server.kubeconfig());
    let agent = Agent::ready(&rig.lab, setup.clone()).unwrap();
    let pod = rig.lab.at(&Place::pod("client")).unwrap();
    let ask = Ask::new(Proto::Tcp, "10.96.10.1:80".parse().unwrap());
    let load = pod.start_load(Load { ask: ask.clone(), per_second: 100 }).unwrap();

    // The API server goes and comes back: nothing is lost (S81).
    server.kill_api();
    assert!(pod.ask(ask.clone()).unwrap().ok());
    server.restart_api().unwrap();

    agent.kill().unwrap();
    server.remove_pod("default", "my-app-2").unwrap();
    server
        .wait_ready_endpoints("default", "my-service", &[rig.lab.pod_ip("my-app-1", false).unwrap()])
        .unwrap();
    let agent = Agent::ready(&rig.lab, setup).unwrap();
    let ready = now_us();
    crate::rig::observe(Duration::from_millis(500));
    let report = pod.stop_load(load).unwrap();
    assert_eq!((report.refused, report.failed.len()), (0, 0), "{report:?}");
    let (_, last) = report.pods["my-app-2"];
    assert!(last <= ready, "sent to the removed pod {} µs after the agent was ready", last - ready);
    drop(agent);
}
