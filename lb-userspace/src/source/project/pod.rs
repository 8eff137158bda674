//! A Pod: its addresses, and what the endpoint controller would read from it.

use super::Faults;
use crate::problem::ObjectKey;
use crate::source::Pod;
use k8s_openapi::api::core::v1 as api;
use lb_common::abi::Proto;

/// What a Pod without the condition Ready is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MissingReady {
    /// In a manifest nobody wrote one down: ready.
    Ready,
    /// On the API server the kubelet has not reported yet: not ready.
    NotReady,
}

/// Projects a Pod to its compact form.
///
/// A finished Pod (Succeeded, Failed) has no address any more: the CNI may have given it to
/// another one.
pub fn pod(from: &api::Pod, missing: MissingReady) -> Pod {
    let mut faults = Faults::default();
    let meta = &from.metadata;
    let empty = (api::PodSpec::default(), api::PodStatus::default());
    let spec = from.spec.as_ref().unwrap_or(&empty.0);
    let status = from.status.as_ref().unwrap_or(&empty.1);
    let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let mut ips = Vec::new();
    if !finished {
        for (i, ip) in status.pod_ips.iter().flatten().enumerate() {
            ips.extend(faults.ip(|| format!("status.podIPs[{i}].ip"), &ip.ip));
        }
        if status.pod_ips.as_ref().is_none_or(Vec::is_empty)
            && let Some(ip) = status.pod_ip.as_deref().filter(|ip| !ip.is_empty())
        {
            ips.extend(faults.ip(|| "status.podIP".to_owned(), ip));
        }
    }
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    Pod {
        key: ObjectKey::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        ),
        node: spec.node_name.clone().filter(|name| !name.is_empty()),
        ips,
        host_network: spec.host_network.unwrap_or(false),
        ready: match ready {
            Some(condition) => condition.status == "True",
            None => missing == MissingReady::Ready,
        },
        terminating: meta.deletion_timestamp.is_some(),
        labels: meta.labels.clone().unwrap_or_default(),
        named_ports: named_ports(spec, &mut faults),
        problems: faults.0,
    }
}

/// Ports that a named targetPort can mean: of containers, then of init containers that keep
/// running beside them (`restartPolicy: Always`).
fn named_ports(spec: &api::PodSpec, faults: &mut Faults) -> Vec<(String, Proto, u16)> {
    let sidecars = spec.init_containers.iter().flatten().enumerate();
    let sidecars = sidecars
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|(i, container)| ("initContainers", i, container));
    let containers = spec.containers.iter().enumerate().map(|(i, container)| ("containers", i, container));
    let mut ports = Vec::new();
    for (list, i, container) in containers.chain(sidecars) {
        for (j, port) in container.ports.iter().flatten().enumerate() {
            let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) else { continue };
            let field = |name: &str| format!("spec.{list}[{i}].ports[{j}].{name}");
            let proto = faults.proto(|| field("protocol"), port.protocol.as_deref());
            let number = faults.port(|| field("containerPort"), port.container_port);
            if let (Some(proto), Some(number)) = (proto, number) {
                ports.push((name.to_owned(), proto, number));
            }
        }
    }
    ports
}
