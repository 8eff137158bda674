//! Which routes have series of their own, within a bound on all of them (I75).
//!
//! A route is an Ingress and a Service. It gets series at its first request, as long as there
//! is room: in full, with histograms, for as many routes as half of the room is for; then
//! counters; then it is counted under `other`. Room comes back when routes go.

use super::shard::{Count, Sizes, Times};
use crate::problem::ObjectKey;
use crate::proxy::record::Record;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Status classes `1xx` to `5xx`.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Series that a route in full may have, in own names and in those of ingress-nginx: requests
/// by class, a histogram of times, bytes; requests by class, two of times, two of sizes.
const FULL: usize = (5 + 11 + 2) + (5 + 2 * 11 + 2 * 6);
/// Series of counters alone.
const COUNTED: usize = (5 + 2) + 5;
/// Series that are there without any route, certificates included.
pub(super) const FIXED: usize = 480;

/// The name of a route.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct RouteName {
    pub(super) ingress: ObjectKey,
    /// Empty: answered without one.
    pub(super) service: ObjectKey,
}

/// The numbers of a route: one shard for each worker.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) counters: Box<[Counters]>,
    /// Empty: its times and sizes are under `other`.
    pub(super) details: Box<[Details]>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counters {
    pub(super) requests: [Count; 5],
    pub(super) request_bytes: Count,
    pub(super) body_bytes: Count,
}

#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Details {
    pub(super) took: Times,
    pub(super) response: Times,
    pub(super) request_size: Sizes,
    pub(super) response_size: Sizes,
}

impl Series {
    pub(super) fn new(workers: usize, full: bool) -> Self {
        Self {
            counters: (0..workers).map(|_| Counters::default()).collect(),
            details: (0..if full { workers } else { 0 }).map(|_| Details::default()).collect(),
        }
    }

    /// Counts a request by the shard of a worker.
    pub(super) fn record(&self, worker: usize, other: &Self, record: &Record<'_>) {
        if let Some(counters) = self.counters.get(worker) {
            let class = usize::from(record.status / 100).clamp(1, 5) - 1;
            if let Some(requests) = counters.requests.get(class) {
                requests.add(1);
            }
            counters.request_bytes.add(record.request_bytes);
            counters.body_bytes.add(record.body_bytes);
        }
        if let Some(details) = self.details.get(worker).or_else(|| other.details.get(worker)) {
            details.took.observe(record.took);
            if let Some(last) = record.attempts.last() {
                details.response.observe(last.response);
            }
            details.request_size.observe(record.request_bytes);
            details.response_size.observe(record.body_bytes);
        }
    }
}

/// All routes that have series.
#[derive(Debug)]
pub(super) struct Routes {
    workers: usize,
    room: usize,
    used: usize,
    pub(super) series: BTreeMap<RouteName, Arc<Series>>,
    /// Of routes that there is no room for.
    pub(super) other: Arc<Series>,
    /// Of requests that no route was found for.
    pub(super) none: Arc<Series>,
    /// Whether `other` was ever needed.
    pub(super) overflowed: bool,
}

impl Routes {
    pub(super) fn new(workers: usize, most_series: usize) -> Self {
        let always = || Arc::new(Series::new(workers, true));
        let room = most_series.saturating_sub(FIXED + 2 * FULL);
        Self {
            workers,
            room,
            used: 0,
            series: BTreeMap::new(),
            other: always(),
            none: always(),
            overflowed: false,
        }
    }

    /// The series of a route: its own, or `other`.
    pub(super) fn of(&mut self, ingress: &ObjectKey, service: Option<&ObjectKey>) -> Arc<Series> {
        let name = RouteName { ingress: ingress.clone(), service: service.cloned().unwrap_or_default() };
        if let Some(series) = self.series.get(&name) {
            return Arc::clone(series);
        }
        let full = self.used + FULL <= self.room / 2;
        let cost = if full { FULL } else { COUNTED };
        if self.used + cost > self.room {
            self.overflowed = true;
            return Arc::clone(&self.other);
        }
        self.used += cost;
        let series = Arc::new(Series::new(self.workers, full));
        self.series.insert(name, Arc::clone(&series));
        series
    }

    /// Drops the routes that are gone; says whether there were any.
    pub(super) fn keep(&mut self, live: &BTreeSet<(&ObjectKey, Option<&ObjectKey>)>) -> bool {
        let none = ObjectKey::default();
        let before = self.series.len();
        let used = &mut self.used;
        self.series.retain(|name, series| {
            let service = Some(&name.service).filter(|service| **service != none);
            let keep = live.contains(&(&name.ingress, service));
            if !keep {
                *used -= if series.details.is_empty() { COUNTED } else { FULL };
            }
            keep
        });
        before != self.series.len()
    }
}
