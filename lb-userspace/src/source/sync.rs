//! How each kind of object stands: listed since when, last heard of when, failing with what.
//!
//! Written by the source, read by `weir status` and the metrics. It decides nothing: readiness
//! is a matter of [`super::Objects`].

use crate::problem::Kind;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// How one kind stands. Times are milliseconds since the epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct SyncState {
    /// When the first complete list was there; `None` while it is awaited.
    pub listed_since: Option<u64>,
    /// When the source last heard of this kind.
    pub last_event: Option<u64>,
    /// Why the last attempt failed; `None` once it works again.
    pub error: Option<String>,
}

/// The board that a source writes and everybody reads.
#[derive(Debug, Default)]
pub struct Syncs {
    board: Mutex<Board>,
}

#[derive(Debug, Default)]
struct Board {
    origin: String,
    kinds: BTreeMap<Kind, SyncState>,
}

impl Syncs {
    /// Where objects come from: the API server's address, or the manifests' paths.
    pub fn origin(&self) -> String {
        self.lock().origin.clone()
    }

    pub fn kinds(&self) -> BTreeMap<Kind, SyncState> {
        self.lock().kinds.clone()
    }

    pub fn set_origin(&self, origin: impl Into<String>) {
        self.lock().origin = origin.into();
    }

    /// A complete list of the kind was sent.
    pub fn listed(&self, kind: Kind) {
        let now = now_ms();
        let mut board = self.lock();
        let state = board.kinds.entry(kind).or_default();
        state.listed_since.get_or_insert(now);
        state.last_event = Some(now);
        state.error = None;
    }

    /// Something was heard of the kind.
    pub fn event(&self, kind: Kind) {
        let now = now_ms();
        let mut board = self.lock();
        let state = board.kinds.entry(kind).or_default();
        state.last_event = Some(now);
        state.error = None;
    }

    /// The kind cannot be read at the moment; what is known of it stays.
    pub fn failed(&self, kind: Kind, error: impl Into<String>) {
        self.lock().kinds.entry(kind).or_default().error = Some(error.into());
    }

    /// A thread that panicked while it held the board left it consistent: each write is one field.
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_the_first_list_and_the_next_event_clears_it() {
        let syncs = Syncs::default();
        syncs.failed(Kind::Service, "refused");
        assert_eq!(syncs.kinds()[&Kind::Service].listed_since, None);
        syncs.listed(Kind::Service);
        let first = syncs.kinds()[&Kind::Service].listed_since;
        assert!(first.is_some());
        syncs.failed(Kind::Service, "gone");
        assert_eq!(syncs.kinds()[&Kind::Service].listed_since, first);
        assert_eq!(syncs.kinds()[&Kind::Service].error.as_deref(), Some("gone"));
        syncs.event(Kind::Service);
        assert_eq!(syncs.kinds()[&Kind::Service].error, None);
    }
}
