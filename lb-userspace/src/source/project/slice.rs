//! An EndpointSlice (S1, S3, S5, S6, S25, S26, S59).

use super::{Faults, HEADLESS_LABEL, Names, SERVICE_NAME_LABEL};
use crate::problem::ObjectKey;
use crate::source::{Endpoint, EndpointSlice, SlicePort};
use k8s_openapi::api::discovery::v1 as api;
use lb_common::abi::Family;
use std::sync::Arc;

/// Label that says who writes a slice, and what the endpoint slice controller says there.
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Projects an EndpointSlice to its compact form.
///
/// `None` when it is none of ours: of no Service, or of names instead of addresses (S3). Whoever knew it before must then forget it.
pub fn slice(from: &api::EndpointSlice, names: &mut Names) -> Option<EndpointSlice> {
    let meta = &from.metadata;
    let labels = meta.labels.as_ref()?;
    let service = labels.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty())?;
    let mut faults = Faults::default();
    let expected = match from.address_type.as_str() {
        "FQDN" => return None,
        other => {
            let family = other.parse().ok();
            if family.is_none() {
                let reason = format!("{other:?} is not IPv4, IPv6 or FQDN; the slice is ignored");
                faults.tell("addressType", reason);
            }
            family
        }
    };
    let mut endpoints = Vec::with_capacity(from.endpoints.as_ref().map_or(0, Vec::len));
    for (i, from) in from.endpoints.iter().flatten().enumerate() {
        if let Some(expected) = expected {
            endpoints.extend(endpoint(i, from, expected, names, &mut faults));
        }
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let trigger = meta.annotations.as_ref().and_then(|annotations| annotations.get(TRIGGER_TIME));
    Some(EndpointSlice {
        key: ObjectKey::new(namespace, meta.name.as_deref().unwrap_or_default()),
        service: ObjectKey::new(namespace, service),
        managed: labels.get(MANAGED_BY_LABEL).is_some_and(|by| by == SLICE_CONTROLLER),
        headless: labels.contains_key(HEADLESS_LABEL),
        ports: ports(from, &mut faults),
        endpoints,
        trigger_time: trigger
            .and_then(|text| text.parse::<k8s_openapi::jiff::Timestamp>().ok())
            .and_then(|time| i64::try_from(time.as_nanosecond()).ok()),
        problems: faults.0,
    })
}

fn endpoint(
    i: usize,
    from: &api::Endpoint,
    expected: Family,
    names: &mut Names,
    faults: &mut Faults,
) -> Option<Endpoint> {
    let Some(text) = from.addresses.first() else {
        faults.tell(format!("endpoints[{i}].addresses"), "it is empty; the endpoint is ignored");
        return None;
    };
    let field = || format!("endpoints[{i}].addresses[0]");
    let addr = faults.ip(field, text)?;
    if Family::from(addr) != expected {
        faults.tell(field(), format!("{text} is not of the slice's addressType; the endpoint is ignored"));
        return None;
    }
    let conditions = from.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
    let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
    let hints = from.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
    Some(Endpoint {
        addr,
        ready,
        serving,
        terminating,
        node: from.node_name.as_deref().map(|name| names.share(name)),
        zone: from.zone.as_deref().map(|name| names.share(name)),
        hint_zones: zones.iter().map(|zone| names.share(&zone.name)).collect::<Vec<Arc<str>>>(),
        hint_nodes: nodes.iter().map(|node| names.share(&node.name)).collect::<Vec<Arc<str>>>(),
    })
}

/// A port without a number means every port, which only headless Services use: skipped, no fault
/// (S5). The API server fills an absent name with "", so that is what it is in a manifest.
fn ports(from: &api::EndpointSlice, faults: &mut Faults) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (i, from) in from.ports.iter().flatten().enumerate() {
        let Some(number) = from.port.filter(|number| *number != 0) else { continue };
        let proto = faults.proto(|| format!("ports[{i}].protocol"), from.protocol.as_deref());
        let port = faults.port(|| format!("ports[{i}].port"), number);
        if let (Some(proto), Some(port)) = (proto, port) {
            ports.push(SlicePort { name: from.name.clone().unwrap_or_default(), proto, port });
        }
    }
    ports
}
