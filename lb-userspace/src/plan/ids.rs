//! Numbers for Services and backends, used again only after a pause.
//!
//! Flows, affinity and packets in flight remember numbers. They check more than the number,
//! so that a stale one is harmless; the pause makes it rare as well. Time is an argument.

use std::collections::{BTreeSet, VecDeque};

/// Seconds before something freed is given out again. Times are whole seconds, so three of
/// them are at least two that have passed.
pub(super) const PAUSE: u64 = 3;

/// Numbers from 1 up to a limit; 0 is never given out.
#[derive(Debug)]
pub(super) struct Ids {
    limit: u32,
    next: u32,
    /// When freed, and which; oldest first.
    freed: VecDeque<(u64, u32)>,
}

impl Ids {
    /// `limit` is the number of entries of the map that the numbers index, entry 0 included.
    pub(super) fn new(limit: u32) -> Self {
        Self { limit, next: 1, freed: VecDeque::new() }
    }

    /// Starts over with these in use; gaps between them wait their turn as if just freed.
    pub(super) fn restore(&mut self, used: &BTreeSet<u32>, now: u64) {
        self.next = used.last().map_or(1, |last| last.saturating_add(1)).clamp(1, self.limit.max(1));
        self.freed = (1..self.next).filter(|id| !used.contains(id)).map(|id| (now, id)).collect();
    }

    /// A number that is free: the one that has been free longest, else a new one.
    pub(super) fn take(&mut self, now: u64) -> Option<u32> {
        if let Some(&(freed, id)) = self.freed.front()
            && freed.saturating_add(PAUSE) <= now
        {
            self.freed.pop_front();
            return Some(id);
        }
        let id = self.next;
        (id < self.limit).then(|| {
            self.next += 1;
            id
        })
    }

    pub(super) fn free(&mut self, id: u32, now: u64) {
        if self.holds(id) {
            self.freed.push_back((now, id));
        }
    }

    /// Whether the number is within the limit.
    pub(super) fn holds(&self, id: u32) -> bool {
        id != 0 && id < self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_start_at_one_and_end_below_the_limit() {
        let mut ids = Ids::new(4);
        assert_eq!([(); 4].map(|()| ids.take(0)), [Some(1), Some(2), Some(3), None]);
    }

    #[test]
    fn a_freed_number_waits_and_the_oldest_comes_first() {
        let mut ids = Ids::new(3);
        assert_eq!((ids.take(0), ids.take(0)), (Some(1), Some(2)));
        ids.free(2, 10);
        ids.free(1, 11);
        assert_eq!(ids.take(12), None);
        assert_eq!(ids.take(13), Some(2));
        assert_eq!(ids.take(13), None);
        assert_eq!(ids.take(14), Some(1));
    }

    #[test]
    fn restored_numbers_are_not_given_out_and_gaps_are_found() {
        let mut ids = Ids::new(10);
        ids.restore(&[2, 4].into(), 100);
        assert_eq!(ids.take(100), Some(5));
        assert_eq!((ids.take(103), ids.take(103), ids.take(103)), (Some(1), Some(3), Some(6)));
    }

    #[test]
    fn numbers_beyond_a_smaller_limit_are_dropped() {
        let mut ids = Ids::new(4);
        ids.restore(&[9].into(), 0);
        ids.free(9, 0);
        let mut given: Vec<_> = std::iter::from_fn(|| ids.take(50)).collect();
        given.sort();
        assert_eq!(given, [1, 2, 3]);
    }
}
