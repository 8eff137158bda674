//! Which backend a new flow is sent to.

use super::Origin;
use super::Tables;
use crate::abi::{
    Addr, Affinity, AffinityKey, Backend, BackendFlags, BackendId, FlowKey, Frontend, FrontendFlags,
    TABLE_BLOCK, Table,
};

/// A chosen backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    pub id: BackendId,
    pub backend: Backend,
}

/// The table that clients of this origin choose from.
#[inline(always)]
pub(super) fn table_for(frontend: &Frontend, from: Origin) -> Table {
    match from {
        Origin::Inside => frontend.inside,
        Origin::Outside => frontend.outside,
    }
}

/// The bit that a backend must carry to be in that table (S32).
#[inline(always)]
fn membership(frontend: &Frontend, from: Origin) -> BackendFlags {
    if frontend.flags.has(FrontendFlags::CLUSTER_IP) {
        return BackendFlags::CLUSTER;
    }
    match from {
        Origin::Inside => BackendFlags::INSIDE,
        Origin::Outside => BackendFlags::OUTSIDE,
    }
}

/// Chooses a backend from a table that is not empty: the client's remembered one while it is
/// still in the set (S31, S32), else by `hash`, through the maglev table where there is one.
/// `None` when a table names a backend that does not exist, which the order of writes rules
/// out short of a damaged map.
#[inline(always)]
pub(super) fn select<T: Tables>(
    tables: &T,
    frontend: &Frontend,
    from: Origin,
    client: &Addr,
    hash: u32,
    by_maglev: bool,
) -> Option<Choice> {
    let key = AffinityKey { client: *client, service: frontend.service };
    if frontend.affinity_seconds != 0
        && let Some(choice) = remembered(tables, frontend, from, &key)
    {
        return Some(choice);
    }
    let table = table_for(frontend, from);
    let (block, count) = if by_maglev && table.maglev_len != 0 {
        (table.maglev, table.maglev_len)
    } else {
        (table.slots, table.count)
    };
    let index = ((u64::from(hash) * u64::from(count)) >> 32) as u32;
    let id = tables.slot(block, index)?;
    let backend = tables.backend(id)?;
    if backend.service != frontend.service {
        return None;
    }
    if frontend.affinity_seconds != 0 {
        tables.put_affinity(&key, &Affinity { backend: id, pad: 0, seen_nanos: tables.nanos() });
    }
    Some(Choice { id, backend })
}

/// The client's remembered backend, its time starting anew with this flow.
#[inline(always)]
fn remembered<T: Tables>(tables: &T, frontend: &Frontend, from: Origin, key: &AffinityKey) -> Option<Choice> {
    let affinity = tables.affinity(key)?;
    let now = tables.nanos();
    if now.saturating_sub(affinity.seen_nanos) > u64::from(frontend.affinity_seconds) * 1_000_000_000 {
        return None;
    }
    let backend = tables.backend(affinity.backend)?;
    if backend.service != frontend.service || !backend.flags.has(membership(frontend, from)) {
        return None;
    }
    tables.put_affinity(key, &Affinity { seen_nanos: now, ..affinity });
    Some(Choice { id: affinity.backend, backend })
}

/// A hash of a flow's tuple, the same on every node that uses the same seed.
#[inline(always)]
pub fn flow_hash(tuple: &FlowKey, seed: u32) -> u32 {
    let mut hash = u64::from(seed) ^ 0x9e37_79b9_7f4a_7c15;
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (tuple.source.0, tuple.destination.0);
    hash = mix(hash, s0, s1);
    hash = mix(hash, s2, s3);
    hash = mix(hash, d0, d1);
    hash = mix(hash, d2, d3);
    let ports = u32::from(tuple.source_port.get()) << 16 | u32::from(tuple.destination_port.get());
    hash = mix(hash, ports, u32::from(tuple.proto.0));
    hash ^= hash >> 29;
    (hash.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
}

#[inline(always)]
const fn mix(hash: u64, high: u32, low: u32) -> u64 {
    let word = (u32::from_be(high) as u64) << 32 | u32::from_be(low) as u64;
    let mixed = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 32)
}

/// Splits a table index into its block and the place in it.
#[inline(always)]
pub const fn split(block: u32, index: u32) -> (u32, usize) {
    (block.wrapping_add(index / TABLE_BLOCK as u32), index as usize % TABLE_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{Be16, Proto};
    use core::net::Ipv4Addr;

    #[test]
    fn hash_spreads_over_clients_and_ports() {
        let mut bins = [0u32; 16];
        for client in 0..100u8 {
            for port in 0..100u16 {
                let tuple = FlowKey {
                    source: Ipv4Addr::new(10, 0, 0, client).into(),
                    destination: Ipv4Addr::new(10, 96, 0, 1).into(),
                    source_port: Be16::new(30_000 + port),
                    destination_port: Be16::new(80),
                    proto: Proto::TCP,
                    pad: [0; 3],
                };
                let bin = (u64::from(flow_hash(&tuple, 7)) * 16) >> 32;
                bins[bin as usize] += 1;
            }
        }
        // 625 expected; chi square with 15 degrees of freedom stays under 37.7 at p = 0.001.
        let chi: f64 = bins.iter().map(|n| (f64::from(*n) - 625.0).powi(2) / 625.0).sum();
        assert!(chi < 37.7, "{bins:?}");
    }
}
