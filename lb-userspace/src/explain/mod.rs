//! What would become of a connection, and why: told from the live tables.
//!
//! The frontend, its flags and its backends are those of the maps; names come from the
//! desired state. Where no frontend matches, the nearest misses are told: another port,
//! another protocol, a node port on an address that does not serve them.

mod story;
mod target;
pub mod url;

pub use target::{Target, Wanted, parse};

use crate::datapath::Programmed;
use crate::model::{BackendState, FrontendKind, FrontendState, PortKey, PortState, ServiceState};
use crate::node::{Inputs, NodeState};
use crate::problem::ObjectKey;
use lb_common::abi::{
    Addr, AffinityKey, Backend, BackendFlags, BackendId, Be16, DropReason, Frontend, FrontendFlags,
    FrontendKey, Prefix, Proto, Table,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Everything that an explanation is made from.
pub struct View<'a> {
    pub programmed: Programmed,
    pub services: &'a BTreeMap<ObjectKey, ServiceState>,
    pub node: &'a NodeState,
    pub inputs: &'a Inputs,
    /// Backend ids in a table, as the map holds them; empty where that is not told.
    pub slots: &'a mut dyn FnMut(&Table) -> Vec<BackendId>,
    pub affinity: &'a mut dyn FnMut(&AffinityKey) -> Option<(BackendId, u64)>,
}

/// The end of the story.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Served,
    /// At once, so that the client knows (S35).
    Refused,
    /// In silence (S37, S51).
    Dropped,
    /// No frontend: the packet goes on untouched.
    NotBalanced,
}

/// The answer of `weir explain`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Explanation {
    pub target: String,
    pub served: bool,
    pub outcome: Outcome,
    /// Label of the counter that would go up.
    pub reason: Option<&'static str>,
    pub client: Client,
    pub frontend: Option<FrontendTold>,
    pub endpoints: Vec<EndpointTold>,
    pub choice: Option<String>,
    pub translation: Option<Translation>,
    /// One sentence for each decision, in order.
    pub steps: Vec<String>,
    pub nearest: Vec<String>,
}

/// Who asks, and on which side of the node that is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Client {
    pub address: Option<String>,
    pub inside: bool,
    pub what: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FrontendTold {
    pub address: String,
    pub service: String,
    pub port_name: String,
    pub kind: &'static str,
    pub set: &'static str,
    pub affinity_seconds: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct EndpointTold {
    pub address: String,
    pub local: bool,
    pub state: &'static str,
    /// New flows of this client may go there.
    pub chosen_from: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Translation {
    pub destination: String,
    pub source: String,
}

/// Explains one target for a client.
pub fn explain(view: &mut View<'_>, target: &Target, from: Option<IpAddr>) -> Explanation {
    match &target.wanted {
        Wanted::Url(_) => story::no_l7(target),
        Wanted::Address { ip, port, proto } => {
            let key = FrontendKey::new(Addr::from(*ip), Be16::new(*port), *proto);
            match find(view, &key) {
                Some((key, frontend)) if !frontend.flags.has(FrontendFlags::RETIRED) => {
                    matched(view, target, &key, &frontend, *ip, from)
                }
                Some((_, frontend)) => story::retired(view, target, &key, &frontend, from),
                None => story::missed(view, target, &key, from),
            }
        }
        Wanted::Service { key, port } => match entrance(view, key, port) {
            Ok((frontend, proto)) => {
                let addr = if frontend.kind == FrontendKind::NodePort {
                    node_address(view, &frontend)
                } else {
                    frontend.addr
                };
                let concrete = Target {
                    text: target.text.clone(),
                    wanted: Wanted::Address { ip: addr.into(), port: frontend.port, proto },
                };
                explain(view, &concrete, from)
            }
            Err(why) => story::unknown(view, target, why, from),
        },
    }
}

/// The frontend that a packet with this destination would find, as the packet path looks.
fn find(view: &View<'_>, key: &FrontendKey) -> Option<(FrontendKey, Frontend)> {
    if let Some(frontend) = view.programmed.frontends.get(key) {
        return Some((*key, *frontend));
    }
    let node_port = view.node.facts.addresses.get(&key.addr).is_some_and(|address| address.node_port == 1);
    let any = FrontendKey { addr: key.addr.family().any(), ..*key };
    let frontend = view.programmed.frontends.get(&any).filter(|_| node_port)?;
    Some((any, *frontend))
}

/// The frontend to explain for a Service and port: the ClusterIP where it has one.
fn entrance(view: &View<'_>, key: &ObjectKey, port: &str) -> Result<(FrontendState, Proto), String> {
    let Some(state) = view.services.get(key) else {
        return Err(format!("There is no Service {key}."));
    };
    let all: Vec<(&PortKey, &FrontendState)> =
        state.ports.iter().flat_map(|(port, state)| state.frontends.iter().map(move |f| (port, f))).collect();
    if all.is_empty() {
        return Err(format!(
            "Service {key} has no address that Weir serves: it is headless, of type ExternalName, or its problems say why."
        ));
    }
    let (name, proto) = port.split_once('/').unwrap_or((port, ""));
    let fits = |(candidate, frontend): &&(&PortKey, &FrontendState)| {
        (candidate.port_name == name || name.parse() == Ok(frontend.port))
            && (proto.is_empty() || proto.eq_ignore_ascii_case(&candidate.proto.to_string()))
    };
    let found =
        all.iter().filter(fits).min_by_key(|(port, frontend)| (frontend.kind, port.family, port.proto));
    found.map(|(port, frontend)| (**frontend, port.proto)).ok_or_else(|| {
        let mut ports: Vec<String> = all
            .iter()
            .map(|(port, frontend)| format!("{}/{} ({})", frontend.port, port.proto, port.port_name))
            .collect();
        ports.sort();
        ports.dedup();
        format!("Service {key} has no port {port}; it has {}.", ports.join(", "))
    })
}

/// An address of this node on which a node port answers.
fn node_address(view: &View<'_>, frontend: &FrontendState) -> Addr {
    let family = frontend.addr.family();
    let mut addresses = view
        .node
        .facts
        .addresses
        .iter()
        .filter(|(addr, node)| addr.family() == family && node.node_port == 1);
    addresses.next().map_or(frontend.addr, |(addr, _)| *addr)
}

/// Who asks. Without `--from`: a pod of this node for a ClusterIP, else somebody outside.
fn client(view: &View<'_>, from: Option<IpAddr>, cluster_ip: bool) -> Client {
    let (address, inside, what) = match from {
        None if cluster_ip => (None, true, "a pod of this node".to_string()),
        None => (None, false, "a client outside of this node".to_string()),
        Some(ip) if view.node.facts.addresses.contains_key(&Addr::from(ip)) => {
            (Some(ip), true, format!("{ip}, which is this node itself"))
        }
        Some(ip) if view.inputs.pod_ips.contains(&ip) => {
            (Some(ip), true, format!("{ip}, a pod of this node"))
        }
        Some(ip) => (Some(ip), false, format!("{ip}, outside of this node")),
    };
    Client { address: address.map(|ip| ip.to_string()), inside, what }
}

/// The Service port behind a frontend, and what was desired of it.
fn owner<'a>(view: &View<'a>, key: &FrontendKey) -> Option<(&'a PortKey, &'a PortState, FrontendState)> {
    view.services.values().flat_map(|state| &state.ports).find_map(|(port, state)| {
        let frontend = state.frontends.iter().find(|frontend| {
            frontend.addr == key.addr && frontend.port == key.port.get() && port.proto == key.proto
        })?;
        Some((port, state, *frontend))
    })
}

fn matched(
    view: &mut View<'_>,
    target: &Target,
    key: &FrontendKey,
    frontend: &Frontend,
    ip: IpAddr,
    from: Option<IpAddr>,
) -> Explanation {
    let flags = frontend.flags;
    let client = client(view, from, flags.has(FrontendFlags::CLUSTER_IP));
    let owner = owner(view, key);
    let member = member_flag(flags, client.inside);
    let table = if client.inside { frontend.inside } else { frontend.outside };
    let slots = (view.slots)(&table);
    let desired = owner.as_ref().map(|(_, state, _)| state.backends.as_slice()).unwrap_or_default();
    let of_service =
        view.programmed.backends.iter().filter(|(_, backend)| backend.service == frontend.service);
    let mut endpoints = Vec::new();
    let mut chosen = Vec::new();
    for (id, backend) in of_service {
        let in_set =
            table.count > 0 && if slots.is_empty() { backend.flags.has(member) } else { slots.contains(id) };
        if in_set {
            chosen.push((*id, *backend));
        }
        endpoints.push(told(backend, in_set, desired));
    }
    endpoints.sort_by(|a, b| (!a.chosen_from, &a.address).cmp(&(!b.chosen_from, &b.address)));
    let drops = if client.inside { FrontendFlags::INSIDE_DROPS } else { FrontendFlags::OUTSIDE_DROPS };
    let fenced_out = flags.has(FrontendFlags::SOURCE_RANGES)
        && client.address.as_ref().and_then(|text| text.parse::<IpAddr>().ok()).is_some_and(|ip| {
            let held = |prefix: &Prefix| prefix.contains(frontend.service, &ip.into());
            !view.programmed.prefixes.iter().any(held)
        });
    let (outcome, reason) = if fenced_out {
        (Outcome::Dropped, Some(DropReason::SourceRange.label()))
    } else if table.count == 0 && flags.has(drops) {
        (Outcome::Dropped, Some(DropReason::NoLocalEndpoint.label()))
    } else if table.count == 0 {
        (Outcome::Refused, Some(DropReason::NoEndpoint.label()))
    } else if chosen.is_empty() {
        (Outcome::Dropped, Some(DropReason::StaleTable.label()))
    } else {
        (Outcome::Served, None)
    };
    let remembered = remembered(view, frontend, &client, from, member);
    let frontend_told = FrontendTold {
        address: if key.addr.is_unspecified() {
            format!("{} (node port {})", socket(ip, key.port.get()), key.port)
        } else {
            socket(ip, key.port.get())
        },
        service: owner
            .as_ref()
            .map_or_else(|| format!("id {}", frontend.service), |(port, ..)| port.service.to_string()),
        port_name: owner.as_ref().map(|(port, ..)| port.port_name.clone()).unwrap_or_default(),
        kind: kind(flags, owner.as_ref().map(|(.., frontend)| frontend.kind)),
        set: if flags.has(FrontendFlags::CLUSTER_IP) {
            "cluster_ip"
        } else if client.inside {
            "inside"
        } else {
            "outside"
        },
        affinity_seconds: frontend.affinity_seconds,
    };
    let parts = story::Matched {
        client,
        frontend: frontend_told,
        endpoints,
        chosen,
        remembered,
        outcome,
        reason,
        proto: key.proto,
        ranges: flags.has(FrontendFlags::SOURCE_RANGES),
        masquerades: flags.has(FrontendFlags::MASQUERADE),
    };
    story::matched(view, target, parts, from)
}

fn member_flag(flags: FrontendFlags, inside: bool) -> BackendFlags {
    if flags.has(FrontendFlags::CLUSTER_IP) {
        BackendFlags::CLUSTER
    } else if inside {
        BackendFlags::INSIDE
    } else {
        BackendFlags::OUTSIDE
    }
}

/// The backend that affinity would choose (S31, S32). A host-network client counts as the
/// node's own address (S33).
fn remembered(
    view: &mut View<'_>,
    frontend: &Frontend,
    client: &Client,
    from: Option<IpAddr>,
    member: BackendFlags,
) -> Option<(Backend, u64)> {
    let mut addr = Addr::from(from?);
    if client.inside && view.node.facts.addresses.contains_key(&addr) {
        let config = &view.node.facts.config;
        addr = if addr.is_v4() { config.v4 } else { config.v6 };
    }
    let (id, age) = (view.affinity)(&AffinityKey { client: addr, service: frontend.service })?;
    let backend = view.programmed.backends.get(&id)?;
    let valid = frontend.affinity_seconds != 0
        && age <= u64::from(frontend.affinity_seconds)
        && backend.service == frontend.service
        && backend.flags.has(member);
    valid.then_some((*backend, age))
}

fn told(backend: &Backend, chosen_from: bool, desired: &[BackendState]) -> EndpointTold {
    let wanted = desired.iter().find(|state| state.addr == backend.addr && state.port == backend.port.get());
    EndpointTold {
        address: socket(backend.addr.into(), backend.port.get()),
        local: backend.flags.has(BackendFlags::LOCAL),
        state: match wanted {
            None => "leaving",
            Some(_) if chosen_from => "ready",
            Some(state) if state.in_cluster_ip || state.in_inside || state.in_outside => {
                "ready, not for this client"
            }
            Some(state) if state.serving => "serving, no new flows",
            Some(_) => "not ready",
        },
        chosen_from,
    }
}

fn kind(flags: FrontendFlags, desired: Option<FrontendKind>) -> &'static str {
    match desired {
        Some(FrontendKind::ClusterIp) => "ClusterIP",
        Some(FrontendKind::NodePort) => "node port",
        Some(FrontendKind::LoadBalancer) => "load-balancer address",
        Some(FrontendKind::ExternalIp) => "external IP",
        None if flags.has(FrontendFlags::CLUSTER_IP) => "ClusterIP",
        None if flags.has(FrontendFlags::NODE_PORT) => "node port",
        None => "external address",
    }
}

/// `address:port`, with brackets where needed.
fn socket(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

#[cfg(test)]
mod tests;
