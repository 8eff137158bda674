//! What one Service may ask of a node, at most.
//!
//! Maps and rounds are shared by all Services, and anybody who may write objects may write large
//! ones: ports times addresses and ports times endpoints grow far beyond the objects. So both
//! products are bounded for each Service, and the work on the way there with them.

use super::{BackendState, PortKey, PortState};
use crate::source::{Service, TrafficPolicy};
use std::collections::BTreeMap;

/// Frontends of one Service. Never more than [`BACKENDS`], so that each port gets an endpoint.
pub(super) const FRONTENDS: usize = 10_000;

/// Backends of one Service, counted over its ports and families.
pub(super) const BACKENDS: usize = 10_000;

/// Source ranges of one Service, counted over its ports and families.
pub(super) const RANGES: usize = 2_000;

/// Endpoints that are looked at for one Service, counted in the same way: not all of them serve,
/// and one may be listed twice.
pub(super) const VISITS: usize = 10 * BACKENDS;

/// Cuts the backends down to [`BACKENDS`] and says whether it had to.
///
/// Ports share the room evenly, what one leaves is for the others. Those that are chosen from
/// stay before those that only finish their flows, and those of this node before others where a
/// policy asks for them; beyond that their order decides, which is the same on all nodes.
pub(super) fn cut(ports: &mut BTreeMap<PortKey, PortState>, service: &Service) -> bool {
    let wanted = ports.values().map(|port| port.backends.len()).collect();
    let Some(share) = share(wanted, BACKENDS) else { return false };
    let keeps_local = [service.internal_policy, service.external_policy].contains(&TrafficPolicy::Local);
    let rank = |backend: &BackendState| {
        let chosen = backend.in_cluster_ip || backend.in_inside || backend.in_outside;
        (!chosen, !(keeps_local && backend.local))
    };
    for port in ports.values_mut().filter(|port| port.backends.len() > share) {
        port.backends.sort_by_key(rank);
        port.backends.truncate(share);
        port.backends.sort();
    }
    true
}

/// How many each may have so that all have `room` together; `None`: as many as they want.
pub(super) fn share(mut wanted: Vec<usize>, room: usize) -> Option<usize> {
    wanted.sort_unstable();
    let mut left = room;
    let count = wanted.len();
    for (done, wanted) in wanted.into_iter().enumerate() {
        let share = left / (count - done);
        if wanted > share {
            return Some(share);
        }
        left -= wanted;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_leaves_is_for_the_others() {
        for (wanted, expected) in [
            (vec![], None),
            (vec![10_000], None),
            (vec![10_001], Some(10_000)),
            (vec![9_000, 9_000, 1_000], Some(4_500)),
            (vec![5_000, 5_000], None),
            (vec![1; 10_001], Some(0)),
            (vec![1_000; 3_000], Some(3)),
        ] {
            assert_eq!(share(wanted.clone(), BACKENDS), expected, "{:?}", &wanted[..wanted.len().min(4)]);
        }
    }
}
