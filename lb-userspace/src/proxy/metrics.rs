//! What the proxy counts, in the Prometheus text format: in own names, `lb_proxy_*`, and in
//! those of ingress-nginx, so that published dashboards fill (I75).
//!
//! Each worker writes numbers of its own through its [`Recorder`], without a lock or a locked
//! instruction; a scrape adds them up. Routes are told apart by Ingress and Service, answers
//! by status class, and the number of series is bounded: see [`Options::most_series`].

mod routes;
mod shard;
mod text;

#[cfg(test)]
mod tests;

use crate::problem::ObjectKey;
use crate::proxy::access_log::Tally;
use crate::proxy::record::{Record, Route};
use crate::proxy::tls::{Certificates, Facts, Refused, Version};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use routes::{Routes, Series};
use shard::{Shard, count_label};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What there is to count, and how much of it.
#[derive(Clone, Debug)]
pub struct Options {
    pub workers: usize,
    /// Bound on the number of series. Routes beyond it are counted together, with `other` as
    /// their Ingress and Service.
    pub most_series: usize,
    /// Whether the names of ingress-nginx are written as well.
    pub nginx_names: bool,
    /// Labels of `lb_proxy_refused_total`: what the judges of raw bytes refuse.
    pub refusals: Vec<&'static str>,
    /// Labels of `lb_proxy_local_answers_total`: why the proxy answers itself.
    pub local: Vec<&'static str>,
    /// The label `controller_pod` of ingress-nginx's names.
    pub node: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 1,
            most_series: 3_000,
            nginx_names: true,
            refusals: Vec::new(),
            local: Vec::new(),
            node: String::new(),
        }
    }
}

/// All numbers of a proxy.
pub struct Metrics {
    shared: Arc<Shared>,
    registry: Mutex<Registry>,
}

struct Shared {
    options: Options,
    shards: Box<[Arc<Shard>]>,
    routes: Mutex<Routes>,
    /// Goes up when series are dropped: recorders then look theirs up again.
    epoch: AtomicU64,
    /// Seconds since the epoch of the last routing table.
    configured: AtomicU64,
    certificates: Option<Arc<Certificates>>,
    log: Option<Arc<Tally>>,
}

impl Metrics {
    /// `certificates` and `log` are read at each scrape.
    pub fn new(options: Options, certificates: Option<Arc<Certificates>>, log: Option<Arc<Tally>>) -> Self {
        let workers = options.workers.max(1);
        let shard = || Shard::new(Refused::LABELS.len(), options.refusals.len(), options.local.len());
        let shared = Arc::new(Shared {
            shards: (0..workers).map(|_| Arc::new(shard())).collect(),
            routes: Mutex::new(Routes::new(workers, options.most_series)),
            epoch: AtomicU64::new(0),
            configured: AtomicU64::new(0),
            certificates,
            log,
            options,
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(text::Scrape(Arc::clone(&shared))));
        Self { shared, registry: Mutex::new(registry) }
    }

    /// The recorder of a worker, which counts from 0. A worker has one, and no other.
    pub fn recorder(&self, worker: usize) -> Recorder {
        let last = self.shared.shards.len() - 1;
        let worker = worker.min(last);
        Recorder {
            shard: Arc::clone(&self.shared.shards[worker]),
            worker,
            cache: RefCell::new(Cache { epoch: 0, series: HashMap::new() }),
            other: self.routes(|routes| Arc::clone(&routes.other)),
            none: self.routes(|routes| Arc::clone(&routes.none)),
            shared: Arc::clone(&self.shared),
            _one_thread: Cell::new(()),
        }
    }

    /// A routing table was taken, at a time in seconds since the epoch.
    pub fn configured(&self, now: u64) {
        self.shared.configured.store(now, Ordering::Relaxed);
    }

    /// Drops the series of all routes but these, each an Ingress and the Service that it leads
    /// to, if it does; to be told before a scrape.
    pub fn keep<'a>(&self, live: impl IntoIterator<Item = (&'a ObjectKey, Option<&'a ObjectKey>)>) {
        let live: BTreeSet<_> = live.into_iter().collect();
        if self.routes(|routes| routes.keep(&live)) {
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
    }

    /// All metrics as OpenMetrics text, without the closing `# EOF`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String cannot fail.
        let _written = encode(&mut text, &registry);
        let length = text.strip_suffix("# EOF\n").map_or(text.len(), str::len);
        text.truncate(length);
        text
    }

    fn routes<T>(&self, act: impl FnOnce(&mut Routes) -> T) -> T {
        act(&mut self.shared.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What one worker counts with. It stays in the worker's thread.
pub struct Recorder {
    shared: Arc<Shared>,
    shard: Arc<Shard>,
    worker: usize,
    other: Arc<Series>,
    none: Arc<Series>,
    cache: RefCell<Cache>,
    /// Its numbers have one writer, so it is not shared between threads.
    _one_thread: Cell<()>,
}

/// Series of the routes that this worker has met.
struct Cache {
    epoch: u64,
    /// By the addresses of Ingress and Service in the routing table, so that a request costs
    /// no comparison of names. The keys are held, so that an address means one thing.
    series: HashMap<(usize, usize), Cached>,
}

struct Cached {
    series: Arc<Series>,
    _ingress: Arc<ObjectKey>,
    _service: Option<Arc<ObjectKey>>,
}

/// Most routes that a recorder remembers; then it begins anew.
const CACHED: usize = 16 << 10;

impl Recorder {
    /// A client connection was accepted.
    pub fn opened(&self, tls: bool) {
        self.shard.accepted[usize::from(tls)].add(1);
    }

    /// A client connection is gone.
    pub fn closed(&self, tls: bool) {
        self.shard.closed[usize::from(tls)].add(1);
    }

    pub fn handshake(&self, done: Result<&Facts, &Refused>) {
        match done {
            Ok(facts) => {
                let version = usize::from(facts.version == Version::Tls13);
                self.shard.handshakes[version][usize::from(facts.resumed)].add(1);
            }
            Err(refused) => {
                count_label(&self.shard.failed_handshakes, &Refused::LABELS, refused.label());
            }
        }
    }

    /// A request's head has come.
    pub fn begun(&self) {
        self.shard.begun.add(1);
    }

    /// A request's answer has ended.
    pub fn ended(&self, record: &Record<'_>) {
        self.shard.ended.add(1);
        self.shard.retries.add(record.attempts.len().saturating_sub(1) as u64);
        for attempt in record.attempts {
            if let Some(connect) = attempt.connect {
                self.shard.connect.observe(connect);
            }
            if let Some(header) = attempt.header {
                self.shard.header.observe(header);
            }
        }
        if let Some(reason) = record.local {
            count_label(&self.shard.local, &self.shared.options.local, reason);
        }
        match &record.route {
            Some(route) => self.with(route, |series| series.record(self.worker, &self.other, record)),
            None => self.none.record(self.worker, &self.other, record),
        }
    }

    /// The judges of raw bytes refused something.
    pub fn refused(&self, reason: &str) {
        count_label(&self.shard.refused, &self.shared.options.refusals, reason);
    }

    /// An endpoint is left out for a while.
    pub fn ejected(&self) {
        self.shard.ejections.add(1);
    }

    /// An upgraded connection began.
    pub fn tunnel_opened(&self) {
        self.shard.tunnels_opened.add(1);
    }

    pub fn tunnel_closed(&self) {
        self.shard.tunnels_closed.add(1);
    }

    fn with(&self, route: &Route<'_>, act: impl FnOnce(&Series)) {
        let service = route.pool.map(|pool| &pool.service);
        let address = |key: &Arc<ObjectKey>| Arc::as_ptr(key).addr();
        let key = (address(route.ingress), service.map_or(0, address));
        let mut cache = self.cache.borrow_mut();
        let epoch = self.shared.epoch.load(Ordering::Acquire);
        if cache.epoch != epoch || cache.series.len() >= CACHED {
            cache.series.clear();
            cache.epoch = epoch;
        }
        let cached = cache.series.entry(key).or_insert_with(|| {
            let mut routes = self.shared.routes.lock().unwrap_or_else(PoisonError::into_inner);
            Cached {
                series: routes.of(route.ingress, service.map(AsRef::as_ref)),
                _ingress: Arc::clone(route.ingress),
                _service: service.cloned(),
            }
        });
        act(&cached.series);
    }
}
