//! Tables for a choice by hash (Maglev, Eisenbud et al., NSDI 2016, 3.4).
//!
//! Every backend walks the table in an order of its own and takes one free place a turn, so
//! shares differ by at most one place, and a backend that goes or comes moves little else. The
//! order depends on the backend's address and port alone, never on its id: all nodes build the
//! same table, and a flow that lands on another node finds the same backend.

use lb_common::abi::{Addr, BackendId};

/// A backend as tables know it; the port is in host order.
pub(super) type Member = (Addr, u16, BackendId);

/// Table sizes: the largest primes below powers of two, so that a table fills its blocks.
const SIZES: [u32; 7] = [251, 509, 1021, 2039, 4093, 8191, 16381];

/// Places per backend that a table should have: shares then differ by one in a hundred.
const PLACES: usize = 100;

/// Above this many backends even the largest table is too coarse; they are chosen from the
/// slots by hash instead.
const MOST: usize = 4_000;

/// The table size for so many backends; 0 where a table would be of no use.
pub(super) fn size(backends: usize) -> u32 {
    if !(2..=MOST).contains(&backends) {
        return 0;
    }
    let wanted = backends * PLACES;
    let [.., largest] = SIZES;
    SIZES.into_iter().find(|&size| size as usize >= wanted).unwrap_or(largest)
}

/// Builds the table of [`size`] places; empty when that is 0.
pub(super) fn build(members: &[Member]) -> Vec<BackendId> {
    let size = u64::from(size(members.len()));
    let mut table = vec![0; size as usize];
    if size == 0 {
        return table;
    }
    let mut order: Vec<_> = members.iter().map(|&(addr, port, id)| (identity(addr, port), id)).collect();
    // By the bytes on the wire, so that nodes of either byte order agree.
    order.sort_unstable();
    let mut walks: Vec<_> = order
        .into_iter()
        .map(|([high, low, port], id)| {
            let first = mix(mix(mix(SEED ^ high) ^ low) ^ port);
            (first % size, mix(first ^ SEED) % (size - 1) + 1, id)
        })
        .collect();
    let mut free = table.len();
    loop {
        for (place, step, id) in &mut walks {
            // A free place is left, and as the size is prime the walk visits all.
            while table[*place as usize] != 0 {
                *place = (*place + *step) % size;
            }
            table[*place as usize] = *id;
            free -= 1;
            if free == 0 {
                return table;
            }
        }
    }
}

/// The same on all nodes and in all versions: changing it moves every flow without memory.
const SEED: u64 = 0x5765_6972_4d61_676c;

fn identity(addr: Addr, port: u16) -> [u64; 3] {
    let bytes: [u8; 16] = bytemuck::cast(addr);
    let bits = u128::from_be_bytes(bytes);
    [(bits >> 64) as u64, bits as u64, u64::from(port)]
}

/// The finaliser of SplitMix64 (Steele et al., OOPSLA 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    fn members(count: u32) -> Vec<Member> {
        (1..=count).map(|n| (Ipv4Addr::from(0x0a00_0000 + n).into(), 8080, n)).collect()
    }

    #[test]
    fn sizes_are_primes_that_fill_their_blocks() {
        for (index, size) in SIZES.into_iter().enumerate() {
            assert!((2..size).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
            assert_eq!(size.div_ceil(16), 16 << index);
        }
        let found: Vec<_> = [0, 1, 2, 3, 5, 6, 163, 164, 4000, 4001].map(size).into();
        assert_eq!(found, [0, 0, 251, 509, 509, 1021, 16381, 16381, 16381, 0]);
    }

    #[test]
    fn shares_differ_by_at_most_one_place() {
        for count in [2, 3, 10, 100, 163, 1000, 4000] {
            let mut shares = BTreeMap::new();
            for id in build(&members(count)) {
                *shares.entry(id).or_insert(0) += 1;
            }
            assert_eq!(shares.len(), count as usize);
            let (least, most) = (shares.values().min().expect("some"), shares.values().max().expect("some"));
            assert!(most - least <= 1, "{count}: {least} to {most}");
        }
    }

    #[test]
    fn the_table_depends_on_addresses_alone() {
        let forward = members(20);
        let renamed: Vec<_> = forward.iter().rev().map(|&(a, p, id)| (a, p, id + 1000)).collect();
        let plus: Vec<_> = build(&forward).into_iter().map(|id| id + 1000).collect();
        assert_eq!(plus, build(&renamed));
    }

    #[test]
    fn a_backend_that_goes_moves_little_else() {
        for count in [10, 50, 150] {
            let all = members(count);
            let before = build(&all);
            for gone in [1, count / 2, count] {
                let rest: Vec<_> = all.iter().copied().filter(|m| m.2 != gone).collect();
                let after = build(&rest);
                if before.len() != after.len() {
                    continue;
                }
                let moved = before.iter().zip(&after).filter(|(b, a)| b != a).count();
                // Twice its share, and one place in a hundred for the disorder that follows.
                let bound = 2 * before.len() / count as usize + before.len() / 100;
                assert!(moved <= bound, "{count}: {moved} of {}", before.len());
            }
        }
    }

    #[test]
    fn this_table_never_changes() {
        // Nodes of different versions must agree, so the algorithm is frozen here.
        let sum = build(&members(3))
            .iter()
            .zip(1u64..)
            .fold(0u64, |sum, (&id, n)| mix(sum ^ (n << 8) ^ u64::from(id)));
        assert_eq!(sum, 13_441_696_797_879_639_935);
    }
}
