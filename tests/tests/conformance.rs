//! The upstream suite for Ingress controllers, whole: `cargo xtask test conformance`, with
//! `WEIR_INGRESS_CONFORMANCE` set (see `lab::conformance`). Some twelve minutes.

#![expect(clippy::unwrap_used, reason = "tests")]

use lab::agent::{Agent, Setup};
use lab::apiserver::{ApiServer, Place};
use lab::conformance::{self, EXECUTIONS};
use lab::kubelet::Kubelet;
use lab::manifests::{demo_dir, kind, read_dir};
use lab::topology::{NODE2, Topology};
use serde_json::json;

#[test]
fn upstream_suite_holds_whole() {
    let lab = Topology::new(&[]).unwrap();
    let place = Place { netns: Some(lab.node2().path().to_owned()), address: NODE2.0.into() };
    let server = ApiServer::start_in(&place).unwrap();
    for node in read_dir(&demo_dir()).unwrap().iter().filter(|object| kind(object) == "Node") {
        server.apply(node).unwrap();
    }
    server
        .apply(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": { "name": "weir" }, "spec": { "controller": "weir.dev/ingress" },
        }))
        .unwrap();
    let agent = Agent::ready(&lab, Setup::kubeconfig(&server.kubeconfig())).unwrap();
    let mut kubelet = Kubelet::new(&server, &lab);
    let out = lab.scratch().dir().join("conformance");
    let executions = conformance::run(&lab, &server, &mut kubelet, "weir", &out).unwrap();
    let failed: Vec<String> = executions
        .iter()
        .filter_map(|execution| {
            execution.failed.as_ref().map(|why| format!("FAILED {}: {why}", execution.name))
        })
        .collect();
    println!("{} executions, {} passed", executions.len(), executions.len() - failed.len());
    assert!(
        failed.is_empty() && executions.len() == EXECUTIONS,
        "{} executions, {EXECUTIONS} wanted, failed:\n{}\nthe agent said last:\n{}",
        executions.len(),
        failed.join("\n"),
        agent.log().lines().rev().take(30).collect::<Vec<_>>().join("\n")
    );
}
