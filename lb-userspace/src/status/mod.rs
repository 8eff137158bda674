//! `status.loadBalancer.ingress` of Ingresses, and Events about them, written to the API server
//! by one agent of the cluster (I4, I69, I70).
//!
//! What is to be written is decided here, from values alone. [`lease`] says which agent writes,
//! [`follow`] reads what addresses are made of, [`writer`] is the loop, [`crate::events`] decides
//! about Events. Whose an entry is the API server itself remembers: it is applied under a field
//! manager of Weir's own, and applying nothing takes away what that manager wrote, and no more.

use crate::args::PublishConfig;
use crate::problem::{ObjectKey, Problem};
use crate::source::project::{MANAGER_PREFIX, parse_ip};
use crate::source::{Ingress, StatusAddress};
use k8s_openapi::api::core::v1 as core;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

mod follow;
mod lease;
mod pace;
mod writer;

pub use writer::{Options, run};

/// Addresses that one status holds, at most: they are copied into every Ingress.
const ADDRESSES: usize = 64;
/// Label of a Node that outside traffic shall not be sent to.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What there is to say about one Ingress.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    pub ingress: Arc<Ingress>,
    /// Its class is ours (I1).
    pub ours: bool,
    /// Its routes, as of this generation, are those that a proxy routes by.
    pub in_force: bool,
    pub problems: Vec<Problem>,
}

/// The reports of all Ingresses: the reconciler puts them, the writer takes those that changed.
#[derive(Debug, Default)]
pub struct Reports {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    reports: BTreeMap<ObjectKey, Report>,
    dirty: BTreeSet<ObjectKey>,
}

impl Reports {
    /// Takes what is to be said of an Ingress now; `None`: it is gone.
    pub fn put(&self, key: &ObjectKey, report: Option<Report>) {
        let mut state = self.lock();
        if state.reports.get(key) == report.as_ref() {
            return;
        }
        match report {
            Some(report) => {
                state.reports.insert(key.clone(), report);
                state.dirty.insert(key.clone());
            }
            None => {
                state.reports.remove(key);
                state.dirty.remove(key);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Returns once there may be something new to take.
    async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Those that changed since they were taken last.
    pub(crate) fn take(&self) -> Vec<Report> {
        let mut state = self.lock();
        let dirty = std::mem::take(&mut state.dirty);
        dirty.iter().filter_map(|key| state.reports.get(key).cloned()).collect()
    }

    /// All of them; none counts as changed then.
    fn take_all(&self) -> Vec<Report> {
        let mut state = self.lock();
        state.dirty.clear();
        state.reports.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the addresses come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Publish {
    Given(Vec<StatusAddress>),
    /// Those of a Service.
    Service(ObjectKey),
    /// Those of the ready nodes that this label selector picks.
    Nodes(String),
}

impl From<&PublishConfig> for Publish {
    fn from(config: &PublishConfig) -> Self {
        match &config.service {
            _ if !config.addresses.is_empty() => Self::Given(config.addresses.clone()),
            Some(service) => Self::Service(service.clone()),
            None => Self::Nodes(config.node_selector.clone()),
        }
    }
}

/// What is known of where the addresses come from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Seen {
    /// `None`: not read yet, or not there.
    service: Option<Vec<StatusAddress>>,
    /// `None`: not listed yet.
    nodes: Option<BTreeMap<String, Vec<IpAddr>>>,
}

/// The addresses to publish, sorted, each once; `None`: not known, so nothing is changed.
///
/// Without any ready node nothing is known either: an answer to nobody is no reason to take the
/// name of a site out of the DNS.
fn addresses(publish: &Publish, seen: &Seen) -> Option<Vec<StatusAddress>> {
    let found: BTreeSet<StatusAddress> = match publish {
        Publish::Given(addresses) => addresses.iter().cloned().collect(),
        Publish::Service(_) => seen.service.as_ref()?.iter().cloned().collect(),
        Publish::Nodes(_) => {
            let nodes = seen.nodes.as_ref()?;
            let found: BTreeSet<_> = nodes.values().flatten().copied().map(StatusAddress::Ip).collect();
            if found.is_empty() {
                return None;
            }
            found
        }
    };
    Some(found.into_iter().take(ADDRESSES).collect())
}

/// What a Node contributes: its external addresses, else its internal ones; nothing while it is
/// not ready, leaves, or is excluded.
fn node_addresses(node: &core::Node) -> Vec<IpAddr> {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let excluded = node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED));
    if !ready || excluded || node.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let of = |kind: &str| -> Vec<IpAddr> {
        let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        let addresses = addresses.iter().filter(|address| address.type_ == kind);
        addresses.filter_map(|address| parse_ip(&address.address).ok()).collect()
    };
    let external = of("ExternalIP");
    if external.is_empty() { of("InternalIP") } else { external }
}

/// What a Service contributes: its load balancer's addresses and names, else its external
/// addresses, else its ClusterIPs; the name of an ExternalName.
fn service_addresses(service: &core::Service) -> Vec<StatusAddress> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ips = |texts: &[String]| -> Vec<StatusAddress> {
        texts.iter().filter_map(|text| parse_ip(text).ok()).map(StatusAddress::Ip).collect()
    };
    let kind = spec.type_.as_deref().unwrap_or_default();
    if kind == "ExternalName" {
        let name = spec.external_name.clone().filter(|name| !name.is_empty());
        return name.map(StatusAddress::Hostname).into_iter().collect();
    }
    let mut found = ips(spec.external_ips.as_deref().unwrap_or_default());
    if kind == "LoadBalancer" {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        for entry in status.and_then(|status| status.ingress.as_deref()).unwrap_or_default() {
            let ip = entry.ip.as_deref().and_then(|ip| parse_ip(ip).ok()).map(StatusAddress::Ip);
            let name = entry.hostname.clone().filter(|name| !name.is_empty());
            found.extend(ip.or(name.map(StatusAddress::Hostname)));
        }
        // One that is still awaited is not replaced by an address that nobody outside reaches.
        return found;
    }
    if found.is_empty() {
        found = ips(spec.cluster_ips.as_deref().unwrap_or_default());
    }
    found
}

/// What is to be done to the status of one Ingress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Edit<'a> {
    Keep,
    Write(&'a [StatusAddress]),
    /// Takes away what we wrote.
    Clear,
}

/// Decides about one Ingress. `addresses` as [`addresses`] says; `manager` is the name that we
/// write under.
fn edit<'a>(
    ingress: &Ingress,
    ours: bool,
    manager: &str,
    addresses: Option<&'a [StatusAddress]>,
) -> Edit<'a> {
    let written = ingress.status_manager.as_deref() == Some(manager);
    match addresses {
        _ if !ours && written => Edit::Clear,
        Some([]) if written => Edit::Clear,
        Some(addresses @ [_, ..]) if ours && ingress.status != addresses => Edit::Write(addresses),
        Some(_) | None => Edit::Keep,
    }
}

/// Whether a status may hold what we wrote: it does, or the API server has yet to tell us what
/// came of a write of ours. Taking away what is not there changes nothing.
fn may_be_written(report: &Report, manager: &str) -> bool {
    report.ours || report.ingress.status_manager.as_deref() == Some(manager)
}

/// The field manager that writes: one for each set of controllers, or two installations would
/// take each other's entries away.
pub fn manager(controllers: &BTreeSet<String>) -> String {
    let own = controllers.iter().find(|name| *name == "weir.dev/ingress").or(controllers.first());
    let name = own.map_or("", String::as_str);
    // At most 128 printable bytes.
    let name: String = name.chars().filter(|c| c.is_ascii_graphic()).take(100).collect();
    format!("{MANAGER_PREFIX}{name}")
}

#[cfg(test)]
mod tests;
