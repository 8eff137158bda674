//! A Node (S17, S28, S43, S55).

use super::parse_ip;
use crate::source::Node;
use k8s_openapi::api::core::v1 as api;
use std::net::IpAddr;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Projects a Node to its compact form. What cannot be read is left out: the kubelet wrote it,
/// and no user could mend it.
pub fn node(from: &api::Node) -> Node {
    let meta = &from.metadata;
    let spec = from.spec.as_ref();
    let addresses = from.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut pod_cidrs = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
    if pod_cidrs.is_empty() {
        pod_cidrs.extend(spec.and_then(|spec| spec.pod_cidr.clone()).filter(|cidr| !cidr.is_empty()));
    }
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let of = |kind: &str| -> Vec<IpAddr> {
        let addresses = addresses.iter().filter(|address| address.type_ == kind);
        addresses.filter_map(|address| parse_ip(&address.address).ok()).collect()
    };
    Node {
        name: meta.name.clone().unwrap_or_default(),
        internal_ips: of("InternalIP"),
        external_ips: of("ExternalIP"),
        pod_cidrs,
        zone: meta.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL)).cloned(),
        leaving: meta.deletion_timestamp.is_some() || taints.iter().any(|taint| taint.key == LEAVING_TAINT),
    }
}
