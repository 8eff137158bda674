//! A stand-in for scheduler and kubelets: every Pod that a controller makes becomes a network
//! namespace of the lab with a server in it.
//!
//! [`Kubelet::step`] looks at all Pods and does what is to be done: it binds those without a
//! node, gives each an address on its node and starts its server, reports it running and
//! ready, and takes it away when it is being deleted. Whatever image a Pod names, the lab's
//! own server runs: it listens on the container ports, and tells what the variables
//! `POD_NAME`, `NAMESPACE`, `INGRESS_NAME` and `SERVICE_NAME` say. Nodes report nothing here:
//! the controllers that would mind do not run ([`crate::apiserver`]).

use crate::apiserver::ApiServer;
use crate::manifests::PodSpec;
use crate::topology::{AddedPod, Topology};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// More Pods than this stay pending, as on nodes that are full.
const MOST: usize = 64;
/// The last part of the first address that is given, and how many there are on each node.
const FIRST: u16 = 100;
const ADDRESSES: u16 = 150;
/// Calls of [`Kubelet::step`] between two looks do nothing: callers wait in tight loops.
const PAUSE: Duration = Duration::from_millis(100);
const NODES: [&str; 2] = ["node1", "node2"];
/// What a server tells, and the variable of the Pod that says it.
const ABOUT: [(&str, &str); 3] =
    [("namespace", "NAMESPACE"), ("ingress", "INGRESS_NAME"), ("service", "SERVICE_NAME")];

/// Runs the Pods of an API server in a lab.
#[derive(Debug)]
pub struct Kubelet<'a> {
    server: &'a ApiServer,
    lab: &'a Topology,
    /// By uid.
    running: BTreeMap<String, Running>,
    /// Pods that were ever run: numbers their namespaces and addresses.
    count: u16,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    node: String,
    number: u16,
    _pod: AddedPod,
}

impl<'a> Kubelet<'a> {
    /// The lab's two nodes must be Nodes of the API server.
    pub fn new(server: &'a ApiServer, lab: &'a Topology) -> Self {
        Self { server, lab, running: BTreeMap::new(), count: 0, looked: None }
    }

    /// How many Pods run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Looks once and does what is to be done.
    ///
    /// # Errors
    /// When the API server refuses, or a Pod cannot be run.
    pub fn step(&mut self) -> Result<()> {
        if self.looked.is_some_and(|looked| looked.elapsed() < PAUSE) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let pods = self.server.list("v1", "Pod", "", "")?;
        let uid = |pod: &Value| text(pod, "/metadata/uid").unwrap_or_default().to_owned();
        let wanted: Vec<&Value> =
            pods.iter().filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none()).collect();
        self.running.retain(|running, _| wanted.iter().any(|pod| uid(pod) == *running));
        for pod in pods.iter().filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_some()) {
            let (namespace, name) = names(pod)?;
            self.server.remove_pod(namespace, name)?;
        }
        for pod in wanted {
            if !self.running.contains_key(&uid(pod)) && self.running.len() < MOST {
                self.run(pod, uid(pod)).with_context(|| format!("running pod {:?}", names(pod)))?;
            }
        }
        Ok(())
    }

    fn run(&mut self, pod: &Value, uid: String) -> Result<()> {
        let (namespace, name) = names(pod)?;
        let node = match text(pod, "/spec/nodeName") {
            Some(node) if NODES.contains(&node) => node.to_owned(),
            // Somebody else's, such as a Pod whose status a test writes.
            Some(_) => return Ok(()),
            None => {
                let node = NODES[usize::from(self.count) % NODES.len()];
                self.server.bind_pod(namespace, name, node)?;
                node.to_owned()
            }
        };
        if pod.pointer("/status/podIP").is_some() {
            return Ok(());
        }
        let number = self.free_number(&node).context("no address is free")?;
        let spec = specification(pod, name, &node, number)?;
        let running = self.lab.add_pod(&spec, &format!("run{}", self.count))?;
        self.count += 1;
        self.server.report_running(namespace, name, &spec.ips)?;
        self.running.insert(uid, Running { node, number, _pod: running });
        Ok(())
    }

    /// Addresses are given in turn, so that one is not given again soon.
    fn free_number(&self, node: &str) -> Option<u16> {
        let taken = |number| self.running.values().any(|pod| pod.node == node && pod.number == number);
        (0..ADDRESSES).map(|next| FIRST + (self.count + next) % ADDRESSES).find(|number| !taken(*number))
    }
}

/// What the lab is to build for a Pod.
fn specification(pod: &Value, name: &str, node: &str, number: u16) -> Result<PodSpec> {
    let mut spec = PodSpec { name: name.into(), node: node.into(), ..PodSpec::default() };
    let subnet = if node == NODES[0] { 1 } else { 2 };
    spec.ips = vec![
        IpAddr::V4(Ipv4Addr::new(10, 244, subnet, u8::try_from(number)?)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, subnet.into(), 0, 0, 1, number)),
    ];
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    for container in containers.into_iter().flatten() {
        for port in container.pointer("/ports").and_then(Value::as_array).into_iter().flatten() {
            let number = port.pointer("/containerPort").and_then(Value::as_u64).context("containerPort")?;
            spec.tcp.push(u16::try_from(number)?);
        }
        for variable in container.pointer("/env").and_then(Value::as_array).into_iter().flatten() {
            let Some(name) = text(variable, "/name") else { continue };
            let field = text(variable, "/valueFrom/fieldRef/fieldPath")
                .and_then(|path| text(pod, &format!("/{}", path.replace('.', "/"))));
            let Some(value) = text(variable, "/value").or(field) else { continue };
            if name == "POD_NAME" {
                spec.name = value.into();
            } else if let Some((what, _)) = ABOUT.iter().find(|(_, variable)| *variable == name) {
                spec.about.insert((*what).into(), value.into());
            }
        }
    }
    Ok(spec)
}

fn names(pod: &Value) -> Result<(&str, &str)> {
    let namespace = text(pod, "/metadata/namespace").context("a pod without a namespace")?;
    Ok((namespace, text(pod, "/metadata/name").context("a pod without a name")?))
}

fn text<'v>(value: &'v Value, at: &str) -> Option<&'v str> {
    value.pointer(at).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pod_is_built_as_its_object_says() -> Result<()> {
        let pod = json!({
            "metadata": { "namespace": "shop", "name": "echo-1", "uid": "u" },
            "spec": { "containers": [{
                "ports": [{ "containerPort": 3000 }],
                "env": [
                    { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                    { "name": "NAMESPACE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } },
                    { "name": "SERVICE_NAME", "value": "echo" },
                    { "name": "OTHER", "value": "is left alone" },
                ],
            }] },
        });
        let spec = specification(&pod, "echo-1", "node2", 101)?;
        assert_eq!((spec.name.as_str(), spec.tcp.as_slice()), ("echo-1", &[3000][..]));
        assert_eq!(spec.ips, ["10.244.2.101".parse::<IpAddr>()?, "fd00:10:244:2::1:65".parse()?]);
        let about: Vec<_> = spec.about.iter().map(|(what, says)| format!("{what}={says}")).collect();
        assert_eq!(about, ["namespace=shop", "service=echo"]);
        Ok(())
    }
}
