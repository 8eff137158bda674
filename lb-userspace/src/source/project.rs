//! From API objects to their compact form, at once, so that nothing else is kept.
//!
//! Every field is judged on its own: one that cannot be used is left out and told as a
//! [`FieldProblem`], spelled as the API spells it, and the rest of the object still counts.
//! What the API server would refuse is refused here too, since manifests never met one.

use super::FieldProblem;
use lb_common::abi::Proto;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

mod ingress;
mod ingress_class;
mod namespace;
mod node;
mod pod;
mod secret;
mod service;
mod service_cidr;
mod slice;
mod syntax;

pub use ingress::{MANAGER_PREFIX, ingress};
pub use ingress_class::ingress_class;
pub use namespace::namespace;
pub use node::node;
pub use pod::{MissingReady, pod};
pub use secret::{TLS_CERT, TLS_KEY, TLS_TYPE, secret};
pub use service::{cluster_ip_texts, service};
pub use service_cidr::service_cidr;
pub use slice::slice;

/// Label that gives a Service to another proxy (S1).
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Label that hides an EndpointSlice from L4 (S1).
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Label that names the Service of an EndpointSlice (S3).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Names that are repeated by thousands of endpoints, kept once.
#[derive(Debug, Default)]
pub struct Names {
    known: HashSet<Arc<str>>,
    /// Size at which names that nobody uses any more are dropped.
    sweep_at: usize,
}

impl Names {
    /// The shared copy of `name`.
    pub fn share(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.known.get(name) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at.max(1024) {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = self.known.len() * 2;
        }
        let shared: Arc<str> = Arc::from(name);
        self.known.insert(Arc::clone(&shared));
        shared
    }
}

/// Collects what is wrong with one object.
#[derive(Debug, Default)]
struct Faults(Vec<FieldProblem>);

impl Faults {
    fn tell(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.0.push(FieldProblem { field: field.into(), reason: reason.into() });
    }

    /// The beginning of a list that is longer than `most`.
    fn first<'a, T>(&mut self, field: &str, list: &'a [T], most: usize) -> &'a [T] {
        let Some(kept) = list.get(..most).filter(|kept| kept.len() < list.len()) else { return list };
        self.tell(field, format!("it has {} entries; those after the first {most} are ignored", list.len()));
        kept
    }

    /// An IP address as the API server reads it: strictly (no leading zeros, no zone) and never
    /// an IPv4 address in IPv6 clothes, which would name two families at once.
    fn ip(&mut self, field: impl FnOnce() -> String, text: &str) -> Option<IpAddr> {
        match parse_ip(text) {
            Ok(ip) => Some(ip),
            Err(reason) => {
                self.tell(field(), format!("{reason}; it is ignored"));
                None
            }
        }
    }

    /// A port number; 0 is none.
    fn port(&mut self, field: impl FnOnce() -> String, number: i32) -> Option<u16> {
        match u16::try_from(number) {
            Ok(port) if port != 0 => Some(port),
            _ => {
                self.tell(field(), format!("{number} is not a port (1-65535); the port is ignored"));
                None
            }
        }
    }

    /// TCP when the field is absent, as the API server fills it in.
    fn proto(&mut self, field: impl FnOnce() -> String, text: Option<&str>) -> Option<Proto> {
        match text {
            None | Some("" | "TCP") => Some(Proto::TCP),
            Some("UDP") => Some(Proto::UDP),
            Some("SCTP") => Some(Proto::SCTP),
            Some(other) => {
                self.tell(field(), format!("{other:?} is not TCP, UDP or SCTP; the port is ignored"));
                None
            }
        }
    }
}

/// Reads an IP address as strictly as the API server does.
///
/// # Errors
/// Why the text is no address, as the beginning of a sentence.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    match text.parse() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Err(format!("{text:?} is an IPv4 address in IPv6 form"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(format!("{text:?} is not an IP address")),
    }
}

#[cfg(test)]
#[path = "project_tests.rs"]
mod tests;
