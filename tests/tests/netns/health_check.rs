//! `healthCheckNodePort` on a node (S52 to S54; upstream: Services "should implement NodePort and
//! HealthCheckNodePort correctly when ExternalTrafficPolicy changes" and "should fail health
//! check node port if there are only terminating endpoints").

use crate::rig::Rig;
use lab::manifests::replace;
use lab::topology::{NODE1, Place, Topology};
use lab::wait;
use lab::web::Fetch;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

const PORT: u16 = 32160;

/// The Service, its one pod here as a slice says it.
fn checked(manifests: &Path, policy: &str, port: u16, conditions: &str) {
    let check = if policy == "Local" { format!("healthCheckNodePort: {port}") } else { String::new() };
    let mut text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: checked}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: 10.96.10.61
  clusterIPs: [10.96.10.61, \"fd00:10:96::a61\"]
  externalTrafficPolicy: {policy}
  {check}
  ports:
    - {{name: http, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30161}}
    - {{name: again, protocol: TCP, port: 81, targetPort: 8080, nodePort: 30162}}
"
    );
    for (family, here) in [("IPv4", "10.244.1.10"), ("IPv6", "fd00:10:244:1::10")] {
        text += &format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: checked-{}
  labels: {{kubernetes.io/service-name: checked}}
addressType: {family}
ports: [{{name: http, protocol: TCP, port: 8080}}, {{name: again, protocol: TCP, port: 8080}}]
endpoints:
  - {{addresses: [\"{here}\"], nodeName: node1, conditions: {conditions}}}
",
            family.to_lowercase()
        );
    }
    replace(&manifests.join("checked.yaml"), &text).unwrap();
}

/// Waits for an answer of this status and count at both addresses of the node, from outside.
fn answers(lab: &Topology, port: u16, status: u16, count: usize) {
    for node in [IpAddr::from(NODE1.0), NODE1.1.into()] {
        let at = SocketAddr::new(node, port);
        wait::until("the health check's answer", Duration::from_secs(10), || {
            let fetched = lab.at(&Place::Outside)?.fetch(Fetch::http(at, "node", "/healthz"))?;
            let body = format!(
                "{{\"service\":{{\"namespace\":\"default\",\"name\":\"checked\"}},\"localEndpoints\":{count},\
                 \"serviceProxyHealthy\":true}}"
            );
            anyhow::ensure!(fetched.status == Some(status) && fetched.body == body, "{at}: {fetched:?}");
            Ok(())
        })
        .unwrap();
    }
}

fn is_closed(lab: &Topology, port: u16) {
    let at = SocketAddr::new(NODE1.0.into(), port);
    wait::until("the health check's end", Duration::from_secs(10), || {
        let fetched = lab.at(&Place::Outside)?.fetch(Fetch::http(at, "node", "/"))?;
        anyhow::ensure!(fetched.status.is_none(), "{fetched:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn health_check_follows_local_ready_endpoints_and_the_policy() {
    let rig = Rig::new();
    let manifests = &rig.manifests;
    checked(manifests, "Local", PORT, "{ready: true}");
    let agent = rig.agent();
    answers(&rig.lab, PORT, 200, 1);
    // Serving while it terminates: traffic still comes here, no new traffic is asked for.
    checked(manifests, "Local", PORT, "{ready: false, serving: true, terminating: true}");
    answers(&rig.lab, PORT, 503, 0);
    checked(manifests, "Local", PORT + 1, "{ready: true}");
    answers(&rig.lab, PORT + 1, 200, 1);
    is_closed(&rig.lab, PORT);
    checked(manifests, "Cluster", PORT + 1, "{ready: true}");
    is_closed(&rig.lab, PORT + 1);
    checked(manifests, "Local", PORT, "{ready: true}");
    answers(&rig.lab, PORT, 200, 1);
    let metrics = agent.metrics().unwrap();
    assert!(metrics.contains("lb_service_health_sockets_count{state=\"open\"} 2\n"), "{metrics}");
}
