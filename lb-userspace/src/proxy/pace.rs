//! The least rate that a client must keep while nothing goes on without it (H24).
//!
//! Only the time spent waiting for the client counts. A few seconds are free, each byte that
//! moves pays for more, and no more is saved up than the longest silence: a byte now and then
//! buys nothing, however much moved before. It serves both directions: what is waited for is a
//! body's next bytes, or room for an answer's.

use crate::proxy::deadline::millis;
use crate::proxy::settings::ClientLimits;
use std::cell::Cell;
use std::time::Duration;

/// The time that a client has; all in milliseconds, on the worker's clock.
pub(super) struct Pace {
    /// Below zero where the clock's tick came late: what is owed is not forgotten.
    left: Cell<i64>,
    most: i64,
    /// Bytes per second.
    rate: u64,
    stall: Duration,
    since: Cell<Option<u64>>,
}

impl Pace {
    pub(super) fn new(limits: &ClientLimits) -> Self {
        Self {
            left: Cell::new(signed(millis(limits.rate_grace))),
            most: signed(millis(limits.stall.max(limits.rate_grace))),
            rate: u64::from(limits.rate.max(1)),
            stall: limits.stall,
            since: Cell::new(None),
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.since.get().is_some()
    }

    /// From now on the client is waited for; returns how long at most.
    pub(super) fn waits(&self, now: u64) -> Duration {
        self.since.set(Some(now));
        Duration::from_millis(u64::try_from(self.left.get()).unwrap_or(0)).min(self.stall)
    }

    /// The client is not waited for any more.
    pub(super) fn goes_on(&self, now: u64) {
        if let Some(since) = self.since.take() {
            self.left.set(self.left.get().saturating_sub(signed(now.saturating_sub(since))));
        }
    }

    pub(super) fn moved(&self, bytes: usize) {
        if self.left.get() < self.most {
            let earned = (bytes as u64).saturating_mul(1000) / self.rate;
            self.left.set(self.left.get().saturating_add(signed(earned)).min(self.most));
        }
    }
}

fn signed(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_buys_nothing() {
        let limits = ClientLimits::default();
        let second = Duration::from_secs(1);
        // After nothing, and after a gigabyte.
        for (before, most) in [(0, 6), (1 << 30, 61)] {
            let pace = Pace::new(&limits);
            pace.moved(before);
            let mut now = 0;
            while pace.waits(now) > Duration::from_millis(100) {
                now += 1000;
                pace.goes_on(now);
                pace.moved(1);
            }
            assert!(now / 1000 <= most, "{before}: {now}");
        }
        // A clock that ticks seldom changes nothing: bytes between two ticks, and silence for one.
        let pace = Pace::new(&limits);
        for second in 0..7 {
            let tick = 1000 * second;
            for _ in 0..100 {
                pace.waits(tick);
                pace.goes_on(tick);
                pace.moved(1);
            }
            pace.waits(tick);
            pace.goes_on(tick + 1000);
        }
        assert!(pace.waits(10_000) > Duration::from_millis(700), "100 of 240 bytes a second, for 7 s");
        pace.goes_on(13_000);
        pace.moved(100);
        assert_eq!(pace.waits(13_000), Duration::ZERO);
        // Who keeps the rate is waited for forever, no silence longer than the limit.
        let pace = Pace::new(&limits);
        let mut now = 0;
        for _ in 0..1000 {
            assert!(pace.waits(now) >= second);
            now += 1000;
            pace.goes_on(now);
            pace.moved(240);
        }
        pace.moved(1 << 30);
        assert_eq!(pace.waits(now), limits.stall);
    }
}
