//! A Service as its manifest has it, with the defaults that need no other object.

use super::{FillConfig, addressed};
use crate::source::project::{cluster_ip_texts, parse_ip, service};
use crate::source::{FieldProblem, Service, ServiceType};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use lb_common::abi::{Family, Proto};
use std::collections::BTreeMap;

/// `targetPort` of one port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    Number(u16),
    /// A container port's name, found anew in each Pod.
    Name(String),
}

/// A Service and what its manifest says about things that are filled in later.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceDraft {
    pub service: Service,
    /// Empty means none, as for the endpoint controller.
    pub selector: Option<BTreeMap<String, String>>,
    /// Beside each of `service.ports`.
    pub targets: Vec<Target>,
    /// The families that the Service is served in, in order.
    pub families: Vec<Family>,
    /// Those of them for which the manifest names no cluster IP. One that is named and bad gets
    /// none: the API server would have refused the object.
    pub unassigned: Vec<Family>,
    /// Whether ports without a node port get one (S16).
    pub wants_node_ports: bool,
}

impl ServiceDraft {
    /// Reads a Service, its namespace already filled in.
    pub fn read(mut from: api::Service, config: &FillConfig) -> Self {
        let mut problems = Vec::new();
        let spec = from.spec.get_or_insert_default();
        let families = fill_families(spec, config, &mut problems);
        let named = cluster_ip_texts(spec).len();
        let mut to = service(&from);
        let has_address = addressed(&to);
        // A headless Service has none of its own, and endpoints all the same (I19).
        let has_endpoints = has_address || to.headless;
        let mut unassigned: Vec<Family> = Vec::new();
        if has_address {
            to.problems.extend(problems);
            unassigned.extend(families.iter().skip(named));
        }
        let spec = from.spec.unwrap_or_default();
        let node_ports = match to.kind {
            ServiceType::NodePort => true,
            ServiceType::LoadBalancer => spec.allocate_load_balancer_node_ports.unwrap_or(true),
            ServiceType::ClusterIp | ServiceType::ExternalName => false,
        };
        Self {
            targets: targets(&spec, &to),
            selector: spec.selector.filter(|selector| !selector.is_empty() && has_endpoints),
            families: if has_endpoints { families } else { Vec::new() },
            unassigned,
            wants_node_ports: node_ports && has_address,
            service: to,
        }
    }
}

/// Fills in `spec.ipFamilies` from the addresses that are named, the policy and the families
/// that `--service-cidr` has, and answers them.
fn fill_families(
    spec: &mut api::ServiceSpec,
    config: &FillConfig,
    problems: &mut Vec<FieldProblem>,
) -> Vec<Family> {
    let has = |family: Family| config.service_cidrs.iter().any(|cidr| cidr.family() == family);
    let texts = cluster_ip_texts(spec);
    let named = texts.len();
    let mut families: Vec<Family> =
        spec.ip_families.iter().flatten().filter_map(|text| text.parse().ok()).collect();
    if families.is_empty() {
        families.extend(texts.iter().filter_map(|text| parse_ip(text).ok()).map(Family::from));
    }
    if families.is_empty() {
        families.extend(config.service_cidrs.first().map(|cidr| cidr.family()));
    }
    let required = spec.ip_family_policy.as_deref() == Some("RequireDualStack");
    if families.len() == 1 && (required || spec.ip_family_policy.as_deref() == Some("PreferDualStack")) {
        let other = if families[0] == Family::V4 { Family::V6 } else { Family::V4 };
        if has(other) {
            families.push(other);
        } else if required {
            problems.push(FieldProblem {
                field: "spec.ipFamilyPolicy".into(),
                reason: "--service-cidr has one family alone; the Service is served in that".into(),
            });
        }
    }
    let mut i = 0;
    families.retain(|family| {
        let kept = i < named || has(*family);
        if !kept {
            problems.push(FieldProblem {
                field: format!("spec.ipFamilies[{i}]"),
                reason: format!("--service-cidr has no {}; the family is not served", family),
            });
        }
        i += 1;
        kept
    });
    // Texts that are no family stay, so that projecting tells them; nothing else is lost.
    if spec.ip_families.iter().flatten().all(|text| text.parse::<Family>().is_ok()) {
        spec.ip_families = Some(families.iter().map(|family| family.to_string()).collect());
    }
    families
}

/// The target of each port that projecting kept: by protocol and number, the first that fits.
fn targets(spec: &api::ServiceSpec, service: &Service) -> Vec<Target> {
    let of = |port: u16, proto: Proto| {
        let from = spec.ports.iter().flatten().find(|from| {
            let text = from.protocol.as_deref().filter(|text| !text.is_empty()).unwrap_or("TCP");
            from.port == i32::from(port) && text == proto.to_string()
        });
        match from.and_then(|from| from.target_port.as_ref()) {
            Some(IntOrString::Int(number)) => Target::Number(u16::try_from(*number).unwrap_or(0)),
            Some(IntOrString::String(name)) if !name.is_empty() => Target::Name(name.clone()),
            Some(IntOrString::String(_)) | None => Target::Number(0),
        }
    };
    let filled = |port: u16, target| if target == Target::Number(0) { Target::Number(port) } else { target };
    service.ports.iter().map(|port| filled(port.port, of(port.port, port.proto))).collect()
}
