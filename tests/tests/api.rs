//! Against a real API server: the control plane itself, then what Weir makes of it.

#[path = "api/deploy.rs"]
mod deploy;
#[path = "api/ingress.rs"]
mod ingress;
#[path = "api/rights.rs"]
mod rights;

use anyhow::Result;
use lab::apiserver::{ApiServer, Place, Pod};
use lab::netns::Netns;
use serde_json::json;
use std::net::IpAddr;

fn pod(name: &str, address: &str) -> Result<Pod> {
    Ok(Pod {
        namespace: "default".into(),
        name: name.into(),
        labels: [("app".to_owned(), "my-app".to_owned())].into(),
        node: "node-a".into(),
        addresses: vec![address.parse()?],
        ports: Vec::new(),
    })
}

#[test]
fn controllers_make_slices_from_pods_that_tests_write() -> Result<()> {
    let mut server = ApiServer::start()?;
    server.create_node("node-a", &["192.0.2.1".parse()?])?;
    let service = server.apply(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "my-service" },
        "spec": { "selector": { "app": "my-app" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    }))?;
    let address: IpAddr = service["spec"]["clusterIP"].as_str().unwrap_or_default().parse()?;
    assert!(address.to_string().starts_with("10.96."), "{address} is given from the Service range");

    server.run_pod(&pod("one", "10.244.1.2")?)?;
    server.run_pod(&pod("two", "10.244.1.3")?)?;
    server.wait_ready_endpoints("default", "my-service", &["10.244.1.2".parse()?, "10.244.1.3".parse()?])?;

    server.set_ready("default", "one", false)?;
    server.wait_ready_endpoints("default", "my-service", &["10.244.1.3".parse()?])?;
    server.set_ready("default", "one", true)?;
    server.terminate_pod("default", "two")?;
    server.wait_ready_endpoints("default", "my-service", &["10.244.1.2".parse()?])?;
    assert!(
        server.get("v1", "Pod", "default", "two")?.is_some(),
        "a terminating Pod stays until it is removed"
    );
    server.remove_pod("default", "two")?;
    assert!(server.get("v1", "Pod", "default", "two")?.is_none());

    server.kill_api();
    server.restart_api()?;
    server.run_pod(&pod("three", "10.244.1.4")?)?;
    server.wait_ready_endpoints("default", "my-service", &["10.244.1.2".parse()?, "10.244.1.4".parse()?])
}

#[test]
fn yaml_of_many_documents_is_applied() -> Result<()> {
    let server = ApiServer::start()?;
    server.apply_yaml(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: Service\n\
         metadata: {name: web, namespace: shop}\nspec:\n  ipFamilyPolicy: PreferDualStack\n  ports: [{port: 80}]\n",
    )?;
    let service = server.get("v1", "Service", "shop", "web")?.unwrap_or_default();
    assert_eq!(service["spec"]["clusterIPs"].as_array().map(Vec::len), Some(2), "dual-stack: {service}");
    Ok(())
}

#[test]
fn control_plane_lives_in_a_namespace_of_its_own() -> Result<()> {
    let netns = Netns::new(format!("weir-{}-api", std::process::id()))?;
    netns.ip(&["link add cp type bridge", "link set cp up", "addr add 198.18.0.1/24 dev cp"])?;
    let server =
        ApiServer::start_in(&Place { netns: Some(netns.path().to_owned()), address: "198.18.0.1".parse()? })?;
    // With an address that clients can reach, the API server makes its own endpoint known.
    server.wait_ready_endpoints("default", "kubernetes", &["198.18.0.1".parse()?])
}
