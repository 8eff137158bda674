//! Which endpoints each kind of client may be sent to (S22 to S27, S35, S37, S46, S47).
//!
//! Two sets are decided for a Service port: the Cluster set and the Local set, each with its
//! own fall-back to endpoints that still serve while they terminate. The traffic policies then
//! say which of the two a frontend uses.

use super::endpoints::{Endpoints, is_local};
use super::{BackendState, NodeView};
use crate::source::{Endpoint, Service, TrafficPolicy};
use std::sync::Arc;

/// The backends of a port with the sets they are in, and what an empty set means.
pub(super) struct Decision {
    pub(super) backends: Vec<BackendState>,
    pub(super) cluster_ip_drops: bool,
    pub(super) outside_drops: bool,
}

/// Decides the sets of one Service port.
///
/// `internalTrafficPolicy` governs the ClusterIP alone, `externalTrafficPolicy` everything
/// else (S24). Clients on this node that use an external frontend always get the Cluster set
/// (S46, S47), so that set never drops.
pub(super) fn decide(endpoints: &Endpoints<'_>, service: &Service, node: &NodeView) -> Decision {
    let all = || endpoints.values().copied();
    let mode = TopologyMode::of(all(), node);
    let cluster_ready = all().any(|e| e.ready);
    let local_ready = all().any(|e| e.ready && is_local(e, &node.name));
    let in_cluster = |e: &Endpoint| if cluster_ready { e.ready && mode.allows(e, node) } else { draining(e) };
    let in_local = |e: &Endpoint| is_local(e, &node.name) && if local_ready { e.ready } else { draining(e) };
    let chosen = |policy, e: &Endpoint| match policy {
        TrafficPolicy::Cluster => in_cluster(e),
        TrafficPolicy::Local => in_local(e),
    };

    let backends: Vec<_> = endpoints
        .iter()
        .map(|(&(addr, port), e)| BackendState {
            addr,
            port,
            local: is_local(e, &node.name),
            serving: e.ready || e.serving,
            in_cluster_ip: chosen(service.internal_policy, e),
            in_inside: in_cluster(e),
            in_outside: chosen(service.external_policy, e),
        })
        .filter(|b| b.serving)
        .collect();
    // S37 against S35: dropped in silence only when somebody elsewhere could have answered.
    let elsewhere = all().any(|e| e.ready || draining(e));
    let drops = |policy, in_set: fn(&BackendState) -> bool| {
        policy == TrafficPolicy::Local && elsewhere && !backends.iter().any(in_set)
    };
    Decision {
        cluster_ip_drops: drops(service.internal_policy, |b| b.in_cluster_ip),
        outside_drops: drops(service.external_policy, |b| b.in_outside),
        backends,
    }
}

/// Usable only while nothing ready is there. `publishNotReadyAddresses` needs no mention: its
/// slices say ready while terminating, and ready endpoints never reach this (S25).
fn draining(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// How far topology hints narrow the Cluster set (S26).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TopologyMode {
    SameNode,
    SameZone,
    Anywhere,
}

impl TopologyMode {
    /// Looks at ready endpoints only: one that terminates and lacks a hint must not switch the
    /// mode off while it drains (S27). A mode holds when every ready endpoint has a hint of its
    /// kind and one of them names us.
    fn of<'a>(endpoints: impl Iterator<Item = &'a Endpoint> + Clone, node: &NodeView) -> Self {
        let ready = endpoints.filter(|e| e.ready);
        let holds = |hints: fn(&Endpoint) -> &[Arc<str>], name: &str| {
            ready.clone().all(|e| !hints(e).is_empty()) && ready.clone().any(|e| names(hints(e), name))
        };
        if holds(|e| &e.hint_nodes, &node.name) {
            Self::SameNode
        } else if node.zone.as_deref().is_some_and(|zone| !zone.is_empty() && holds(|e| &e.hint_zones, zone))
        {
            Self::SameZone
        } else {
            Self::Anywhere
        }
    }

    fn allows(self, endpoint: &Endpoint, node: &NodeView) -> bool {
        match self {
            Self::SameNode => names(&endpoint.hint_nodes, &node.name),
            Self::SameZone => node.zone.as_deref().is_some_and(|zone| names(&endpoint.hint_zones, zone)),
            Self::Anywhere => true,
        }
    }
}

fn names(hints: &[Arc<str>], name: &str) -> bool {
    hints.iter().any(|hint| **hint == *name)
}
