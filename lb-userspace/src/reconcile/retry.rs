//! When a Service whose plan failed is tried again: soon, then less and less often.

use crate::problem::ObjectKey;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// Services to be tried again.
#[derive(Debug, Default)]
pub(super) struct Retries {
    waiting: BTreeMap<ObjectKey, Wait>,
}

#[derive(Debug)]
struct Wait {
    due: Instant,
    delay: Duration,
    /// The kernel refused an operation; else the objects ask for more than there is room for.
    refused: bool,
}

impl Retries {
    /// The Service failed (again): the pause doubles.
    pub(super) fn failed(&mut self, key: &ObjectKey, now: Instant, refused: bool) {
        let delay = self.waiting.get(key).map_or(FIRST, |wait| (wait.delay * 2).min(LONGEST));
        self.waiting.insert(key.clone(), Wait { due: now + delay, delay, refused });
    }

    pub(super) fn succeeded(&mut self, key: &ObjectKey) {
        self.waiting.remove(key);
    }

    pub(super) fn due(&self, now: Instant) -> BTreeSet<ObjectKey> {
        self.waiting.iter().filter(|(_, wait)| wait.due <= now).map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|wait| wait.due).min()
    }

    /// Whether some wait is the kernel's doing. What only objects are to blame for is told as
    /// their problem and makes nobody unhealthy.
    pub(super) fn refused(&self) -> bool {
        self.waiting.values().any(|wait| wait.refused)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_success_forgets_them() {
        let (mut retries, key, start) = (Retries::default(), ObjectKey::new("a", "b"), Instant::now());
        let mut now = start;
        for expected in [100, 200, 400, 800] {
            retries.failed(&key, now, true);
            assert_eq!(retries.next(), Some(now + Duration::from_millis(expected)));
            assert!(retries.due(now).is_empty());
            now += Duration::from_millis(expected);
            assert!(retries.due(now).contains(&key));
        }
        for _ in 0..20 {
            retries.failed(&key, now, false);
        }
        assert_eq!((retries.next(), retries.refused()), (Some(now + LONGEST), false));
        retries.succeeded(&key);
        assert_eq!((retries.len(), retries.next()), (0, None));
    }
}
