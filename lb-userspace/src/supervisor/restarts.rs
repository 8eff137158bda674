//! When a process that ended is started again: at once the first time, then ever later, until
//! it has lived for a while.

use std::time::{Duration, Instant};

/// A process that lived so long is sound.
const SOUND: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// The past of one kind of process.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    started: Option<Instant>,
    /// Ends in a row of processes that did not live long.
    streak: u32,
    total: u64,
}

impl Restarts {
    /// It is started now.
    pub(crate) fn started(&mut self, now: Instant) {
        self.started = Some(now);
    }

    /// It ended unasked: when to start the next.
    pub(crate) fn ended(&mut self, now: Instant) -> Instant {
        self.settle(now);
        self.started = None;
        self.streak += 1;
        self.total += 1;
        match self.streak {
            1 => now,
            n => now + LONGEST.min(FIRST * 2_u32.saturating_pow(n - 2)),
        }
    }

    /// Ends so far.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Ends in a row, soon after the start each; 0 once it has lived long enough.
    pub(crate) fn streak(&self) -> u32 {
        self.streak
    }

    /// When a process that lives now has lived long enough to forget its predecessors.
    pub(crate) fn sound_at(&self) -> Option<Instant> {
        let started = self.started.filter(|_| self.streak > 0)?;
        Some(started + SOUND)
    }

    /// Forgets ends in a row once that time has come.
    pub(crate) fn settle(&mut self, now: Instant) {
        if self.sound_at().is_some_and(|at| at <= now) {
            self.streak = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_a_crash_loop_is_bounded() {
        let mut restarts = Restarts::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..12 {
            restarts.started(now);
            now += Duration::from_millis(5);
            let next = restarts.ended(now);
            waits.push((next - now).as_millis());
            now = next;
        }
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000, 10000, 10000]);
        assert_eq!((restarts.total(), restarts.streak()), (12, 12));
        assert_eq!(restarts.sound_at(), None, "none lives");
        restarts.started(now);
        now += SOUND;
        assert_eq!(restarts.sound_at(), Some(now));
        assert_eq!(restarts.ended(now), now, "it lived long enough");
        assert_eq!(restarts.streak(), 1);
    }
}
