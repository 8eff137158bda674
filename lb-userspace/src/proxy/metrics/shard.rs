//! Numbers that one worker writes and a scrape reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A counter with one writer: no locked instruction, no cache line shared with another worker.
/// A reader sees a value that was true a moment ago.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram of `N` buckets; the last one is without bound.
#[derive(Debug)]
pub(super) struct Histogram<const N: usize> {
    buckets: [Count; N],
    sum: Count,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Count::default()), sum: Count::default() }
    }
}

/// Upper bounds of durations, in microseconds: a part of those of ingress-nginx.
pub(super) const TIMES: [u64; 8] =
    [5_000, 25_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000];
/// Upper bounds of sizes, in bytes.
pub(super) const SIZES: [u64; 3] = [1_000, 100_000, 10_000_000];

pub(super) type Times = Histogram<9>;
pub(super) type Sizes = Histogram<4>;

impl Times {
    pub(super) fn observe(&self, took: Duration) {
        self.observe_in(&TIMES, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}

impl Sizes {
    pub(super) fn observe(&self, bytes: u64) {
        self.observe_in(&SIZES, bytes);
    }
}

impl<const N: usize> Histogram<N> {
    fn observe_in(&self, bounds: &[u64], value: u64) {
        let at = bounds.iter().position(|bound| value <= *bound).unwrap_or(N - 1);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.add(1);
        }
        self.sum.add(value);
    }

    /// Adds what this one holds to a sum of several.
    pub(super) fn add_to(&self, total: &mut Total<N>) {
        for (bucket, total) in self.buckets.iter().zip(&mut total.buckets) {
            *total += bucket.get();
        }
        total.sum += self.sum.get();
    }
}

/// The sum of all workers' histograms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Total<const N: usize> {
    pub(super) buckets: [u64; N],
    pub(super) sum: u64,
}

impl<const N: usize> Default for Total<N> {
    fn default() -> Self {
        Self { buckets: [0; N], sum: 0 }
    }
}

impl<const N: usize> Total<N> {
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// What one worker counts apart from routes.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard {
    /// Over HTTP and over HTTPS.
    pub(super) accepted: [Count; 2],
    pub(super) closed: [Count; 2],
    pub(super) begun: Count,
    pub(super) ended: Count,
    pub(super) tunnels_opened: Count,
    pub(super) tunnels_closed: Count,
    /// By version, then full and resumed.
    pub(super) handshakes: [[Count; 2]; 2],
    /// In the order of their labels, then one for every other label.
    pub(super) failed_handshakes: Box<[Count]>,
    pub(super) refused: Box<[Count]>,
    pub(super) local: Box<[Count]>,
    pub(super) retries: Count,
    pub(super) ejections: Count,
    pub(super) connect: Times,
    pub(super) header: Times,
}

impl Shard {
    pub(super) fn new(failures: usize, refusals: usize, local: usize) -> Self {
        let row = |labels: usize| (0..=labels).map(|_| Count::default()).collect();
        Self {
            accepted: Default::default(),
            closed: Default::default(),
            begun: Count::default(),
            ended: Count::default(),
            tunnels_opened: Count::default(),
            tunnels_closed: Count::default(),
            handshakes: Default::default(),
            failed_handshakes: row(failures),
            refused: row(refusals),
            local: row(local),
            retries: Count::default(),
            ejections: Count::default(),
            connect: Times::default(),
            header: Times::default(),
        }
    }
}

/// Adds one to a label's counter, or to that of all labels that nobody named.
pub(super) fn count_label(row: &[Count], labels: &[&'static str], label: &str) {
    let at = labels.iter().position(|known| *known == label).unwrap_or(labels.len());
    if let Some(count) = row.get(at) {
        count.add(1);
    }
}
