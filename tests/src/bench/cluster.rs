//! Clusters as measurements need them: Services, their endpoints, and both as manifests.

use super::rig::{CLIENT, NODE, servers};
use super::server::{ANSWER_PORT, SINK_PORT};
use anyhow::Result;
use serde_json::{Value, json};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

/// A port of a Service.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) name: String,
    /// `tcp` or `udp`.
    pub(super) proto: &'static str,
    pub(super) port: u16,
    pub(super) target: u16,
    /// 0: none.
    pub(super) node_port: u16,
}

/// A Service and its endpoints.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    pub(super) ports: Vec<Port>,
    pub(super) endpoints: Vec<Ipv4Addr>,
}

/// Number of Services and endpoints of each.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    pub(super) services: u32,
    pub(super) endpoints: u32,
    /// The first Service is the one that the rig's server pod is behind.
    pub(super) served: bool,
}

/// Ports of the served Service.
pub(super) const ANSWER: u16 = 80;
pub(super) const SINK: u16 = 81;
pub(super) const ANSWER_NODE_PORT: u16 = 30_080;

impl Cluster {
    /// All Services, in order.
    pub(super) fn services(self) -> impl Iterator<Item = Service> {
        (0..self.services).map(move |n| if n == 0 && self.served { served() } else { self.service(n) })
    }

    /// One of the many.
    pub(super) fn service(self, n: u32) -> Service {
        let port = Port { name: "http".into(), proto: "tcp", port: 80, target: 8080, node_port: 0 };
        Service {
            name: format!("service-{n:05}"),
            address: Ipv4Addr::from(0x0a60_0000 + 256 + n),
            ports: vec![port],
            endpoints: (0..self.endpoints).map(|m| endpoint(n * self.endpoints + m)).collect(),
        }
    }
}

/// An address of a pod elsewhere: 10.128.0.0/9, which no rig has.
pub(super) fn endpoint(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0000 + 256 + n)
}

/// The Service of the rig's server pod.
pub(super) fn served() -> Service {
    let port = |proto, name: &str, port, target, node_port| Port {
        name: format!("{name}-{proto}"),
        proto,
        port,
        target,
        node_port,
    };
    let both = |name, number, target, node_port| {
        ["tcp", "udp"].map(move |proto| port(proto, name, number, target, node_port))
    };
    let answer = both("answer", ANSWER, ANSWER_PORT, ANSWER_NODE_PORT);
    let sink = both("sink", SINK, SINK_PORT, 0);
    Service {
        name: "served".into(),
        address: Ipv4Addr::new(10, 96, 200, 1),
        ports: answer.into_iter().chain(sink).collect(),
        endpoints: servers(),
    }
}

/// A Service object.
pub(super) fn service_object(service: &Service) -> Value {
    let ports = service.ports.iter().map(|port| {
        let mut object = json!({
            "name": port.name, "protocol": port.proto.to_uppercase(),
            "port": port.port, "targetPort": port.target,
        });
        if port.node_port != 0 {
            object["nodePort"] = port.node_port.into();
        }
        object
    });
    let node_ports = service.ports.iter().any(|port| port.node_port != 0);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": service.name, "namespace": "default" },
        "spec": {
            "type": if node_ports { "NodePort" } else { "ClusterIP" },
            "clusterIP": service.address,
            "ports": ports.collect::<Vec<_>>(),
        },
    })
}

/// Its EndpointSlice.
pub(super) fn slice_object(service: &Service) -> Value {
    let ports = service
        .ports
        .iter()
        .map(|port| json!({ "name": port.name, "protocol": port.proto.to_uppercase(), "port": port.target }));
    let local = servers();
    let endpoints = service.endpoints.iter().map(|address| {
        let node = if local.contains(address) { "node1" } else { "node2" };
        json!({ "addresses": [address], "nodeName": node, "conditions": { "ready": true, "serving": true, "terminating": false } })
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-1", service.name), "namespace": "default",
            "labels": { "kubernetes.io/service-name": service.name },
        },
        "addressType": "IPv4",
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

/// The node and the client pod of a rig.
pub(super) fn node_objects() -> Vec<Value> {
    vec![
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node1" },
            "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] },
            "status": { "addresses": [{ "type": "InternalIP", "address": NODE }] },
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "client", "namespace": "default" },
            "spec": { "nodeName": "node1", "containers": [{ "name": "client", "image": "none" }] },
            "status": { "podIP": CLIENT, "podIPs": [{ "ip": CLIENT }] },
        }),
    ]
}

/// Writes a `List` of objects.
pub(super) fn write_list(file: &Path, items: &[Value]) -> Result<()> {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    fs::write(file, serde_json::to_vec(&list)?)?;
    Ok(())
}

/// Writes the cluster as files of so many Services each, slices in files of their own.
pub(super) fn write(dir: &Path, cluster: Cluster, in_a_file: usize) -> Result<()> {
    fs::create_dir_all(dir)?;
    write_list(&dir.join("node.json"), &node_objects())?;
    let services: Vec<Service> = cluster.services().collect();
    for (n, chunk) in services.chunks(in_a_file).enumerate() {
        let objects: Vec<Value> = chunk.iter().map(service_object).collect();
        write_list(&dir.join(format!("services-{n:03}.json")), &objects)?;
        let objects: Vec<Value> = chunk.iter().map(slice_object).collect();
        write_list(&dir.join(format!("slices-{n:03}.json")), &objects)?;
    }
    Ok(())
}
