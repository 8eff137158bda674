//! How long an origin may be silent, whichever HTTP it speaks (I58).
//!
//! One clock for a request: it runs while the origin is waited for, begins anew when something
//! moves, and does not run against the origin while the client is what is waited for.

use crate::proxy::deadline::Deadline;
use crate::proxy::upload::Source;
use crate::proxy::worker::Worker;
use std::cell::Cell;
use std::task::Context;
use std::time::Duration;

pub(super) struct Silence {
    deadline: Deadline,
    limit: Duration,
    watched: Cell<bool>,
}

impl Silence {
    pub(super) fn new(worker: &Worker, limit: Duration) -> Self {
        Self { deadline: worker.deadlines.add(), limit, watched: Cell::new(false) }
    }

    /// From now on, silence is measured; no change where it is already.
    pub(super) fn watch(&self) {
        if !self.watched.replace(true) {
            self.deadline.set(self.limit);
        }
    }

    /// The origin is not waited for any more.
    pub(super) fn rest(&self) {
        if self.watched.replace(false) {
            self.deadline.clear();
        }
    }

    /// Something moved.
    pub(super) fn beat(&self) {
        if self.watched.get() {
            self.deadline.set(self.limit);
        }
    }

    /// Tells whether nothing moved for too long. `source`: the request's body, which may be
    /// what the origin itself waits for.
    pub(super) fn poll(&self, cx: &Context<'_>, source: Option<&Source>) -> bool {
        if !self.deadline.poll(cx) {
            return false;
        }
        let Some(more) = source.and_then(|source| source.excuse(self.limit)) else { return true };
        self.deadline.set(more);
        let _ = self.deadline.poll(cx);
        false
    }
}
