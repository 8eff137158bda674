//! An Ingress (I1, I3, I8, I16, I19, I29, I69).

use super::syntax::{self, quoted};
use super::{Faults, parse_ip};
use crate::problem::ObjectKey;
use crate::source::{
    BackendPort, Ingress, IngressBackend, IngressPath, IngressRule, IngressTls, PathType, StatusAddress,
};
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Annotation that named the class before `spec.ingressClassName` did (I3).
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// What the names of the field managers begin with under which Weir writes.
pub const MANAGER_PREFIX: &str = "weir:";

/// What one Ingress may hold, at most; the rest is told and ignored. The API server bounds the
/// whole object (1.5 MiB) and no list in it.
const RULES: usize = 4096;
const PATHS: usize = 8192;
const TLS: usize = 4096;
const TLS_HOSTS: usize = 8192;
const STATUS: usize = 256;

/// Projects an Ingress to its compact form.
///
/// A rule, path or TLS host that the API server would refuse is left out. A backend that it
/// would refuse, or that Weir cannot serve, stays as [`IngressBackend::Unsupported`]: its path
/// answers 503, and no other rule takes over what was meant for it.
pub fn ingress(from: &api::Ingress) -> Ingress {
    let mut faults = Faults::default();
    let meta = &from.metadata;
    let empty = api::IngressSpec::default();
    let spec = from.spec.as_ref().unwrap_or(&empty);
    let annotation = meta.annotations.as_ref().and_then(|annotations| annotations.get(CLASS_ANNOTATION));
    let default_backend = spec
        .default_backend
        .as_ref()
        .map(|from| backend("spec.defaultBackend", from, "what goes to it answers 503", &mut faults));
    Ingress {
        key: ObjectKey::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        ),
        uid: meta.uid.clone().unwrap_or_default(),
        generation: meta.generation.unwrap_or_default(),
        created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        ending: meta.deletion_timestamp.is_some(),
        class: class(spec, &mut faults),
        class_annotation: annotation.filter(|class| !class.is_empty()).cloned(),
        default_backend,
        rules: rules(spec, &mut faults),
        tls: tls(spec, &mut faults),
        status: status(from),
        status_manager: status_manager(meta),
        problems: faults.0,
    }
}

/// A class that cannot exist stays as it is: the Ingress then is nobody's (I4), never one
/// without a class.
fn class(spec: &api::IngressSpec, faults: &mut Faults) -> Option<String> {
    let name = spec.ingress_class_name.as_deref()?;
    if let Err(reason) = syntax::subdomain(name) {
        faults.tell("spec.ingressClassName", format!("{reason}; the Ingress is nobody's"));
    }
    Some(name.to_owned())
}

fn rules(spec: &api::IngressSpec, faults: &mut Faults) -> Vec<IngressRule> {
    let from = spec.rules.as_deref().unwrap_or_default();
    let from = faults.first("spec.rules", from, RULES);
    let mut room = PATHS;
    let mut rules = Vec::with_capacity(from.len());
    for (i, from) in from.iter().enumerate() {
        let host = from.host.as_deref().unwrap_or_default();
        if !host.is_empty()
            && let Err(reason) = syntax::host(host)
        {
            faults.tell(format!("spec.rules[{i}].host"), format!("{reason}; the rule is ignored"));
            continue;
        }
        let paths = from.http.as_ref().map(|http| paths(i, http, &mut room, faults));
        rules.push(IngressRule { index: i, host: host.to_owned(), paths });
    }
    rules
}

fn paths(
    rule: usize,
    from: &api::HTTPIngressRuleValue,
    room: &mut usize,
    faults: &mut Faults,
) -> Vec<IngressPath> {
    let list = format!("spec.rules[{rule}].http.paths");
    if from.paths.is_empty() {
        faults.tell(list.clone(), "it is empty; the host has no path");
    }
    let from = faults.first(&list, &from.paths, *room);
    *room -= from.len();
    let mut paths = Vec::with_capacity(from.len());
    for (j, from) in from.iter().enumerate() {
        let field = |name: &str| format!("{list}[{j}].{name}");
        let path_type = match from.path_type.as_str() {
            "Exact" => PathType::Exact,
            "Prefix" => PathType::Prefix,
            "ImplementationSpecific" => PathType::ImplementationSpecific,
            "" => {
                faults.tell(field("pathType"), "it is missing; the path is ignored");
                continue;
            }
            other => {
                faults.tell(
                    field("pathType"),
                    format!(
                        "{} is not Exact, Prefix or ImplementationSpecific; the path is ignored",
                        quoted(other)
                    ),
                );
                continue;
            }
        };
        let path = from.path.as_deref().unwrap_or_default();
        let judged = match path_type {
            PathType::Exact | PathType::Prefix => syntax::path(path),
            PathType::ImplementationSpecific if path.is_empty() => Ok(()),
            PathType::ImplementationSpecific => syntax::absolute_path(path),
        };
        if let Err(reason) = judged {
            faults.tell(field("path"), format!("{reason}; the path is ignored"));
            continue;
        }
        paths.push(IngressPath {
            index: j,
            path: path.to_owned(),
            path_type,
            backend: backend(&field("backend"), &from.backend, "the path answers 503", faults),
        });
    }
    paths
}

/// Whatever is wrong with a backend is told here, with what becomes of it (`then`).
fn backend(field: &str, from: &api::IngressBackend, then: &str, faults: &mut Faults) -> IngressBackend {
    let mut unsupported = |name: &str, reason: String| {
        let field = if name.is_empty() { field.to_owned() } else { format!("{field}.{name}") };
        faults.tell(field, format!("{reason}; {then}"));
        IngressBackend::Unsupported(reason)
    };
    let service = match (&from.service, &from.resource) {
        (Some(service), None) => service,
        (None, Some(resource)) => {
            let group = resource.api_group.as_deref().filter(|group| !group.is_empty()).unwrap_or("v1");
            let (kind, group) = (quoted(&resource.kind), quoted(group));
            return unsupported("resource", format!("kind {kind} of {group} cannot be served"));
        }
        (Some(_), Some(_)) => return unsupported("", "both service and resource are set".into()),
        (None, None) => return unsupported("", "neither service nor resource is set".into()),
    };
    if let Err(reason) = syntax::service_name(&service.name) {
        return unsupported("service.name", reason);
    }
    let port = service.port.as_ref();
    let name = port.and_then(|port| port.name.as_deref()).filter(|name| !name.is_empty());
    let number = port.and_then(|port| port.number).filter(|number| *number != 0);
    let port = match (name, number) {
        (Some(name), None) => match syntax::port_name(name) {
            Ok(()) => BackendPort::Name(name.to_owned()),
            Err(reason) => return unsupported("service.port.name", reason),
        },
        (None, Some(number)) => match u16::try_from(number) {
            Ok(number) => BackendPort::Number(number),
            Err(_) => return unsupported("service.port.number", format!("{number} is not a port (1-65535)")),
        },
        (Some(_), Some(_)) => return unsupported("service.port", "both name and number are set".into()),
        (None, None) => return unsupported("service.port", "neither name nor number is set".into()),
    };
    IngressBackend::Service { name: service.name.clone(), port }
}

fn tls(spec: &api::IngressSpec, faults: &mut Faults) -> Vec<IngressTls> {
    let from = spec.tls.as_deref().unwrap_or_default();
    let from = faults.first("spec.tls", from, TLS);
    let mut room = TLS_HOSTS;
    let mut entries = Vec::with_capacity(from.len());
    for (i, from) in from.iter().enumerate() {
        let list = format!("spec.tls[{i}].hosts");
        let written = from.hosts.as_deref().unwrap_or_default();
        let kept = faults.first(&list, written, room);
        room -= kept.len();
        let mut hosts = Vec::with_capacity(kept.len());
        for (j, host) in kept.iter().enumerate() {
            match syntax::host(host) {
                Ok(()) => hosts.push((j, host.clone())),
                Err(reason) => faults.tell(format!("{list}[{j}]"), format!("{reason}; it is ignored")),
            }
        }
        // No host at all means those that the certificate covers (I28): not what was written.
        if hosts.is_empty() && !written.is_empty() {
            continue;
        }
        let secret = from.secret_name.as_deref().filter(|name| !name.is_empty());
        let secret = secret.filter(|name| match syntax::subdomain(name) {
            Ok(()) => true,
            Err(reason) => {
                let field = format!("spec.tls[{i}].secretName");
                faults.tell(field, format!("{reason}; the default certificate is used"));
                false
            }
        });
        entries.push(IngressTls { index: i, hosts, secret: secret.map(str::to_owned) });
    }
    entries
}

/// What is no address in there was not written by Weir, and is none of its business.
fn status(from: &api::Ingress) -> Vec<StatusAddress> {
    let status = from.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let address = |from: &api::IngressLoadBalancerIngress| {
        let ip = from.ip.as_deref().and_then(|ip| parse_ip(ip).ok()).map(StatusAddress::Ip);
        let name = from.hostname.as_deref().filter(|name| !name.is_empty());
        ip.or_else(|| name.map(|name| StatusAddress::Hostname(name.to_owned())))
    };
    ingress.iter().take(STATUS).filter_map(address).collect()
}

/// The manager of Weir's that `status.loadBalancer.ingress` belongs to.
fn status_manager(meta: &ObjectMeta) -> Option<String> {
    let entries = meta.managed_fields.as_deref().unwrap_or_default();
    let ours = entries.iter().find(|entry| {
        let manager = entry.manager.as_deref().unwrap_or_default();
        let fields =
            entry.fields_v1.as_ref().map(|fields| &fields.0["f:status"]["f:loadBalancer"]["f:ingress"]);
        manager.starts_with(MANAGER_PREFIX)
            && entry.subresource.as_deref() == Some("status")
            && fields.is_some_and(|fields| !fields.is_null())
    });
    ours.and_then(|entry| entry.manager.clone())
}

#[cfg(test)]
#[path = "ingress_tests.rs"]
mod tests;
