//! h2spec over TLS, through the route to a pod (H13).

use lab::agent::{Agent, Setup};
use lab::h2spec::{self, TESTS};
use lab::manifests::{self, demo_dir, read_dir};
use lab::topology::{NODE1, Topology};
use serde_json::json;

/// h2spec puts the address into `:authority` and sends no server name: the Ingress is one
/// without a host, its certificate the default one.
#[test]
fn h2spec_has_nothing_to_say() {
    let lab = Topology::new(&manifests::pods(&read_dir(&demo_dir()).unwrap()).unwrap()).unwrap();
    let folder = lab.scratch().dir().join("manifests");
    manifests::copy(&demo_dir(), &folder).unwrap();
    let ingress = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": { "name": "any-host" },
        "spec": { "rules": [{ "http": { "paths": [{
            "path": "/", "pathType": "Prefix",
            "backend": { "service": { "name": "api-service", "port": { "number": 80 } } },
        }] } }] },
    });
    manifests::write(&folder.join("any-host.yaml"), &ingress).unwrap();
    let _agent = Agent::ready(&lab, Setup::manifests(&folder)).unwrap();
    let verdict = h2spec::judge(&lab, (NODE1.0, 443).into(), "/api").unwrap();
    println!("h2spec: {} tests, {} passed", verdict.tests, verdict.passed);
    assert_eq!(
        (verdict.tests, verdict.passed, verdict.skipped, verdict.failed),
        (TESTS, TESTS, 0, 0),
        "{}",
        verdict.said
    );
}
