//! How often one Ingress's status is written.
//!
//! Two installations of one controller that publish different addresses would answer each other
//! at once and for ever: each write is an event that the other one hears. Whoever writes the
//! same status again soon after waits ever longer (I69).

use crate::problem::ObjectKey;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Shortest time between two writes of one status.
const FIRST: Duration = Duration::from_secs(1);
/// Longest time that a write is put off.
const LONGEST: Duration = Duration::from_secs(600);

/// Writes of late.
#[derive(Debug, Default)]
pub(super) struct Pace(BTreeMap<ObjectKey, Written>);

#[derive(Clone, Copy, Debug)]
struct Written {
    at: Instant,
    pause: Duration,
}

impl Pace {
    /// Until when a status is left as it is.
    pub(super) fn rests_until(&self, key: &ObjectKey, now: Instant) -> Option<Instant> {
        let written = self.0.get(key)?;
        Some(written.at + written.pause).filter(|until| *until > now)
    }

    /// Notes a write.
    pub(super) fn wrote(&mut self, key: &ObjectKey, now: Instant) {
        let again = self.0.get(key).filter(|written| now < written.at + 2 * written.pause);
        let pause = again.map_or(FIRST, |written| (2 * written.pause).min(LONGEST));
        self.0.insert(key.clone(), Written { at: now, pause });
    }

    /// Forgets what is not there any more.
    pub(super) fn keep(&mut self, keys: &BTreeSet<&ObjectKey>) {
        self.0.retain(|key, _| keys.contains(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarrel_slows_down_and_a_change_now_and_then_does_not_wait() {
        let (mut pace, key, mut now) = (Pace::default(), ObjectKey::new("default", "web"), Instant::now());
        let begun = now;
        let mut writes = 0;
        while now < begun + Duration::from_secs(3600) {
            match pace.rests_until(&key, now) {
                Some(until) => now = until,
                None => {
                    pace.wrote(&key, now);
                    writes += 1;
                }
            }
        }
        assert!((10..=20).contains(&writes), "{writes} in an hour");
        assert_eq!(pace.rests_until(&ObjectKey::new("default", "other"), now), None);

        let mut pace = Pace::default();
        for _ in 0..20 {
            assert_eq!(pace.rests_until(&key, now), None);
            pace.wrote(&key, now);
            now += 3 * FIRST;
        }
        pace.keep(&BTreeSet::new());
        assert!(pace.0.is_empty());
    }
}
