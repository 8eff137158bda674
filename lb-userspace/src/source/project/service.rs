//! A Service (S1, S2, S9, S12, S14-S16, S31, S51, S52).

use super::{Faults, PROXY_NAME_LABEL};
use crate::address::special;
use crate::problem::ObjectKey;
use crate::source::{Service, ServicePort, ServiceType, TrafficPolicy};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use lb_common::abi::Family;
use std::net::IpAddr;

/// Affinity without a timeout lasts three hours (S31).
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// Projects a Service to its compact form.
pub fn service(from: &api::Service) -> Service {
    let mut faults = Faults::default();
    let empty = api::ServiceSpec::default();
    let spec = from.spec.as_ref().unwrap_or(&empty);
    let meta = &from.metadata;
    let kind = kind(spec, &mut faults);
    let texts = cluster_ip_texts(spec);
    let headless = texts.first().is_some_and(|ip| *ip == "None");
    // Neither has an address of its own (S2); what is left over from another type is no fault.
    let addressed = !headless && kind != ServiceType::ExternalName;

    let mut to = Service {
        key: ObjectKey::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        ),
        created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        kind,
        foreign: meta.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL)),
        headless,
        selector: spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()),
        external_name: spec.external_name.clone().filter(|_| kind == ServiceType::ExternalName),
        internal_policy: policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            &mut faults,
        ),
        external_policy: policy(
            "spec.externalTrafficPolicy",
            spec.external_traffic_policy.as_deref(),
            &mut faults,
        ),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        ports: ports(spec, kind, &mut faults),
        ..Service::default()
    };
    if addressed {
        let families = families(spec, &texts, &mut faults);
        to.cluster_ips = cluster_ips(spec, &texts, &mut faults);
        to.external_ips = external_ips(spec, &families, &mut faults);
        to.load_balancer_ips = load_balancer_ips(from, kind, &families, &mut faults);
        to.affinity_seconds = affinity(spec, &mut faults);
    }
    if kind == ServiceType::LoadBalancer {
        // Kept as text and judged by the model: a range of a family that has no frontend is
        // no fault (S51).
        let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
        to.source_ranges =
            ranges.iter().map(|range| range.trim().to_owned()).filter(|range| !range.is_empty()).collect();
        to.health_check_node_port = health_check(spec, to.external_policy, &mut faults);
        if to.health_check_node_port != 0 {
            to.uid = meta.uid.clone().unwrap_or_default();
        }
    }
    to.problems = faults.0;
    to
}

/// `spec.clusterIPs`, or `spec.clusterIP` alone where an old object has only that one.
pub fn cluster_ip_texts(spec: &api::ServiceSpec) -> Vec<&str> {
    match spec.cluster_ips.as_deref() {
        Some(ips) if !ips.is_empty() => ips.iter().map(String::as_str).collect(),
        _ => spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty()).into_iter().collect(),
    }
}

fn kind(spec: &api::ServiceSpec, faults: &mut Faults) -> ServiceType {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            faults.tell("spec.type", format!("{other:?} is not a type of Service; it is taken as ClusterIP"));
            ServiceType::ClusterIp
        }
    }
}

fn policy(field: &str, text: Option<&str>, faults: &mut Faults) -> TrafficPolicy {
    match text {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            faults.tell(field, format!("{other:?} is not Cluster or Local; it is taken as Cluster"));
            TrafficPolicy::Cluster
        }
    }
}

fn ports(spec: &api::ServiceSpec, kind: ServiceType, faults: &mut Faults) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (i, from) in spec.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let proto = faults.proto(|| field("protocol"), from.protocol.as_deref());
        let port = faults.port(|| field("port"), from.port);
        let (Some(proto), Some(port)) = (proto, port) else { continue };
        let name = from.name.clone().unwrap_or_default();
        if ports.iter().any(|other| other.proto == proto && other.port == port) {
            faults.tell(field("port"), format!("{port}/{proto} is there already; the second one is ignored"));
            continue;
        }
        if ports.iter().any(|other| other.name == name) {
            faults.tell(field("name"), format!("{name:?} is there already; the second port is ignored"));
            continue;
        }
        let node_port = match (from.node_port, kind) {
            (None | Some(0), _) | (Some(_), ServiceType::ExternalName) => 0,
            (Some(number), ServiceType::ClusterIp) => {
                faults
                    .tell(field("nodePort"), format!("{number} is ignored: type ClusterIP has no node port"));
                0
            }
            (Some(number), ServiceType::NodePort | ServiceType::LoadBalancer) => {
                match u16::try_from(number) {
                    Ok(port) => port,
                    Err(_) => {
                        faults.tell(
                            field("nodePort"),
                            format!("{number} is not a port (1-65535); the node port is ignored"),
                        );
                        0
                    }
                }
            }
        };
        let target_port = match &from.target_port {
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok().filter(|number| *number != 0),
            Some(IntOrString::String(_)) | None => None,
        };
        let app_protocol = from.app_protocol.clone();
        ports.push(ServicePort { name, proto, port, node_port, target_port, app_protocol });
    }
    ports
}

/// The families that the Service is served in: `ipFamilies`, else that of the first cluster IP
/// (S12).
fn families(spec: &api::ServiceSpec, texts: &[&str], faults: &mut Faults) -> Vec<Family> {
    let mut families = Vec::new();
    for (i, text) in spec.ip_families.iter().flatten().enumerate() {
        match text.parse() {
            Ok(family) => families.push(family),
            Err(()) => {
                faults.tell(
                    format!("spec.ipFamilies[{i}]"),
                    format!("{text:?} is not IPv4 or IPv6; it is ignored"),
                );
            }
        }
    }
    if families.is_empty()
        && let Some(Ok(ip)) = texts.first().map(|text| super::parse_ip(text))
    {
        families.push(Family::from(ip));
    }
    families
}

/// `clusterIPs[i]` where `ipFamilies[i]` is its family; without `ipFamilies` the first alone.
fn cluster_ips(spec: &api::ServiceSpec, texts: &[&str], faults: &mut Faults) -> Vec<IpAddr> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let mut ips = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let field = || match spec.cluster_ips.as_deref() {
            Some([_, ..]) => format!("spec.clusterIPs[{i}]"),
            _ => "spec.clusterIP".to_owned(),
        };
        let Some(ip) = faults.ip(field, text) else { continue };
        if let Some(what) = special(ip) {
            faults.tell(field(), format!("{text} is {what}; it is ignored"));
            continue;
        }
        let expected = match families {
            [] if i == 0 => Some(Family::from(ip)),
            [] => None,
            _ => families.get(i).and_then(|text| text.parse().ok()),
        };
        if expected == Some(Family::from(ip)) {
            ips.push(ip);
        } else {
            faults.tell(
                field(),
                format!("{text} is {}, which spec.ipFamilies does not say; it is ignored", Family::from(ip)),
            );
        }
    }
    ips
}

fn external_ips(spec: &api::ServiceSpec, families: &[Family], faults: &mut Faults) -> Vec<IpAddr> {
    let texts = spec.external_ips.as_deref().unwrap_or_default();
    let mut ips = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        ips.extend(frontend_ip(|| format!("spec.externalIPs[{i}]"), text, families, faults));
    }
    ips
}

/// Only addresses that arrive here as they are: `ipMode: Proxy` and host names are the
/// network's business (S15). The API allows them on type LoadBalancer alone.
fn load_balancer_ips(
    from: &api::Service,
    kind: ServiceType,
    families: &[Family],
    faults: &mut Faults,
) -> Vec<IpAddr> {
    let status = from.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    if kind != ServiceType::LoadBalancer {
        if !ingress.is_empty() {
            faults.tell(
                "status.loadBalancer.ingress",
                "the type is not LoadBalancer; the addresses are ignored",
            );
        }
        return Vec::new();
    }
    let mut ips = Vec::new();
    for (i, from) in ingress.iter().enumerate() {
        let Some(text) = from.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        match from.ip_mode.as_deref() {
            None | Some("" | "VIP") => {
                let field = || format!("status.loadBalancer.ingress[{i}].ip");
                ips.extend(frontend_ip(field, text, families, faults));
            }
            Some("Proxy") => {}
            Some(other) => faults.tell(
                format!("status.loadBalancer.ingress[{i}].ipMode"),
                format!("{other:?} is not VIP or Proxy; the address is ignored"),
            ),
        }
    }
    ips
}

/// An address that clients may use beside the cluster IP, in a family that the Service has.
fn frontend_ip(
    field: impl Fn() -> String,
    text: &str,
    families: &[Family],
    faults: &mut Faults,
) -> Option<IpAddr> {
    let ip = faults.ip(&field, text)?;
    if let Some(what) = special(ip) {
        faults.tell(field(), format!("{text} is {what}; it is ignored"));
        return None;
    }
    if !families.contains(&Family::from(ip)) {
        faults.tell(
            field(),
            format!("{text} is {}, a family that the Service does not have; it is ignored", Family::from(ip)),
        );
        return None;
    }
    Some(ip)
}

fn affinity(spec: &api::ServiceSpec, faults: &mut Faults) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            faults.tell(
                "spec.sessionAffinity",
                format!("{other:?} is not None or ClientIP; there is no affinity"),
            );
            return None;
        }
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    match client_ip.and_then(|config| config.timeout_seconds) {
        None => Some(DEFAULT_AFFINITY_SECONDS),
        Some(seconds @ 1..=MAX_AFFINITY_SECONDS) => Some(seconds.unsigned_abs()),
        Some(other) => {
            faults.tell(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                format!("{other} is not within 1-86400; {DEFAULT_AFFINITY_SECONDS} is used"),
            );
            Some(DEFAULT_AFFINITY_SECONDS)
        }
    }
}

/// Served for type LoadBalancer with the Local policy alone (S52).
fn health_check(spec: &api::ServiceSpec, policy: TrafficPolicy, faults: &mut Faults) -> u16 {
    match (spec.health_check_node_port, policy) {
        (None | Some(0), _) | (_, TrafficPolicy::Cluster) => 0,
        (Some(number), TrafficPolicy::Local) => {
            faults.port(|| "spec.healthCheckNodePort".to_owned(), number).unwrap_or(0)
        }
    }
}
