//! Which blocks of the tables map are free.
//!
//! A buddy allocator: runs are powers of two long and aligned to their length, so what is
//! freed joins its neighbour again and the map does not fragment beyond its sizes. Blocks that
//! are freed rest before they are written anew, because a packet in flight may still read them
//! through the frontend it copied. Block 0 is never given out.

use super::ids::PAUSE;
use lb_common::abi::TABLE_BLOCK;
use std::collections::{BTreeSet, VecDeque};

#[derive(Debug)]
pub(super) struct Blocks {
    /// Starts of free runs, by the power of two of their length.
    free: Vec<BTreeSet<u32>>,
    /// When freed, start, power; oldest first.
    resting: VecDeque<(u64, u32, usize)>,
    /// Blocks in all, and those in free runs; what rests counts as used.
    total: u32,
    available: u32,
}

impl Blocks {
    pub(super) fn new(limit: u32) -> Self {
        let mut free = vec![BTreeSet::new(); 32];
        let mut start = 1;
        while start < limit {
            let power = start.trailing_zeros().min((limit - start).ilog2()) as usize;
            free[power].insert(start);
            start += 1 << power;
        }
        let total = limit.saturating_sub(1);
        Self { free, resting: VecDeque::new(), total, available: total }
    }

    /// A run for so many ids; `None` when there is no room (yet).
    pub(super) fn take(&mut self, ids: u32, now: u64) -> Option<u32> {
        self.wake(now);
        let wanted = power(ids);
        let found = (wanted..self.free.len()).find(|&p| !self.free[p].is_empty())?;
        let start = self.free[found].pop_first()?;
        self.split(start, found, start, wanted);
        self.available -= 1 << wanted;
        Some(start)
    }

    /// Whether at least a quarter of all blocks is free: room enough for what is only nice to
    /// have.
    pub(super) fn is_roomy(&mut self, now: u64) -> bool {
        self.wake(now);
        self.available >= self.total.div_ceil(4)
    }

    /// Ends the rest of what was freed long enough ago.
    fn wake(&mut self, now: u64) {
        while let Some(&(freed, start, power)) = self.resting.front()
            && freed.saturating_add(PAUSE) <= now
        {
            self.resting.pop_front();
            self.join(start, power);
            self.available += 1 << power;
        }
    }

    /// Marks a run as used, as found in the maps at start. False when it is not free, not
    /// aligned or out of bounds: then it is nobody's.
    pub(super) fn reserve(&mut self, start: u32, ids: u32) -> bool {
        let wanted = power(ids);
        if start & ((1 << wanted) - 1) != 0 {
            return false;
        }
        for found in wanted..self.free.len() {
            let run = start & !((1u32 << found) - 1);
            if self.free[found].remove(&run) {
                self.split(run, found, start, wanted);
                self.available -= 1 << wanted;
                return true;
            }
        }
        false
    }

    pub(super) fn free(&mut self, start: u32, ids: u32, now: u64) {
        self.resting.push_back((now, start, power(ids)));
    }

    /// Cuts a run of `power` down to the run of `wanted` at `start`; the rest becomes free.
    fn split(&mut self, mut run: u32, mut power: usize, start: u32, wanted: usize) {
        while power > wanted {
            power -= 1;
            let upper = run + (1 << power);
            if start >= upper {
                self.free[power].insert(run);
                run = upper;
            } else {
                self.free[power].insert(upper);
            }
        }
    }

    fn join(&mut self, mut start: u32, mut power: usize) {
        while self.free[power].remove(&(start ^ (1 << power))) {
            start &= !(1 << power);
            power += 1;
        }
        self.free[power].insert(start);
    }
}

/// The power of two of the blocks that hold so many ids.
fn power(ids: u32) -> usize {
    let blocks = ids.div_ceil(TABLE_BLOCK as u32).max(1);
    (u32::BITS - (blocks - 1).leading_zeros()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn lengths_are_powers_of_two() {
        let found: Vec<_> = [1, 16, 17, 32, 33, 251, 509, 16381].map(power).into();
        assert_eq!(found, [0, 0, 1, 1, 2, 4, 5, 10]);
    }

    #[test]
    fn all_blocks_but_the_first_can_be_had() {
        for limit in [0, 1, 2, 7, 64, 100] {
            let mut blocks = Blocks::new(limit);
            let mut got: Vec<_> = std::iter::from_fn(|| blocks.take(1, 0)).collect();
            got.sort();
            assert_eq!(got, (1..limit).collect::<Vec<_>>());
        }
    }

    #[test]
    fn freed_runs_rest() {
        let mut blocks = Blocks::new(2);
        assert_eq!(blocks.take(16, 5), Some(1));
        blocks.free(1, 16, 5);
        assert_eq!((blocks.take(16, 7), blocks.take(16, 8)), (None, Some(1)));
    }

    #[test]
    fn a_map_is_roomy_while_a_quarter_is_free() {
        let mut blocks = Blocks::new(9);
        let taken: Vec<_> = (0..6).filter_map(|_| blocks.take(16, 0)).collect();
        assert!(blocks.is_roomy(0), "two of eight");
        assert!(blocks.reserve(8, 1) || blocks.take(16, 0).is_some());
        assert!(!blocks.is_roomy(0));
        blocks.free(taken[0], 16, 5);
        assert!(!blocks.is_roomy(7), "what rests may still be read");
        assert!(blocks.is_roomy(8));
    }

    #[test]
    fn what_does_not_fit_is_not_reserved() {
        let mut blocks = Blocks::new(64);
        assert!(blocks.reserve(32, 251));
        assert!(!blocks.reserve(32, 251), "twice");
        assert!(!blocks.reserve(33, 16), "inside another");
        assert!(!blocks.reserve(8, 251), "not aligned");
        assert!(!blocks.reserve(0, 16) && !blocks.reserve(64, 16) && !blocks.reserve(u32::MAX, 1));
        assert!(blocks.reserve(3, 1));
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_nothing_is_lost(steps in prop::collection::vec((0..3u8, 1..600u32, any::<prop::sample::Index>()), 1..200)) {
            const LIMIT: u32 = 300;
            let mut blocks = Blocks::new(LIMIT);
            let mut held: BTreeMap<u32, u32> = BTreeMap::new();
            let mut now = 0;
            for (kind, ids, which) in steps {
                now += 1;
                if kind == 0 && !held.is_empty() {
                    let start = *held.keys().nth(which.index(held.len())).expect("in range");
                    let ids = held.remove(&start).expect("held");
                    blocks.free(start, ids, now);
                } else if let Some(start) = blocks.take(ids, now) {
                    held.insert(start, ids);
                }
                let mut end = 1;
                for (&start, &ids) in &held {
                    prop_assert!(start >= end);
                    end = start + (1 << power(ids));
                }
                prop_assert!(end <= LIMIT);
                prop_assert_eq!(blocks.available, blocks.free.iter().enumerate().map(|(p, runs)| (runs.len() as u32) << p).sum::<u32>());
            }
            // A restart that reserves what is held finds the same room.
            let mut again = Blocks::new(LIMIT);
            for (&start, &ids) in &held {
                prop_assert!(again.reserve(start, ids));
            }
            // All freed, the map is whole again.
            for (start, ids) in held {
                blocks.free(start, ids, now);
                again.free(start, ids, now);
            }
            for blocks in [&mut blocks, &mut again] {
                prop_assert_eq!(blocks.take(128 * 16, now + PAUSE), Some(128));
                prop_assert_eq!(std::iter::from_fn(|| blocks.take(1, now + PAUSE)).count() as u32, LIMIT - 1 - 128);
            }
        }
    }
}
