//! The engine: threads that serve, and what they are told.
//!
//! Each worker is a thread with a runtime of its own, its own accept on every listening
//! socket, its own connections and its own pools of upstreams: nothing is locked while a
//! request is served. All that workers share is the routing table, swapped whole, and counters.

use crate::model::routes::Update;
use crate::proxy::access_log::AccessLog;
use crate::proxy::account::REDIRECT;
use crate::proxy::error::Refusal;
use crate::proxy::judge::Reason;
use crate::proxy::judge::h2::Abuse;
use crate::proxy::metrics::{self, Metrics};
use crate::proxy::pressure::Pressure;
use crate::proxy::table::RoutingTable;
use crate::proxy::target;
use crate::proxy::tls::{Acceptor, Certificates};
use crate::proxy::worker::{self, Command};
use anyhow::Context;
use arc_swap::ArcSwap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot};

pub use crate::proxy::settings::{ClientLimits, Scheme, Settings, UpstreamLimits};

/// A running engine; serving ends at once when it is dropped.
pub struct Engine {
    shared: Arc<Shared>,
    certificates: Arc<Certificates>,
    /// One update at a time: a table is made from the one before.
    updating: Mutex<()>,
    workers: Vec<Worker>,
}

/// What all workers share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) table: ArcSwap<RoutingTable>,
    pub(super) started: Instant,
    pub(super) tls: Acceptor,
    pub(super) metrics: Metrics,
    pub(super) log: AccessLog,
    pub(super) pressure: Pressure,
}

struct Worker {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the threads. Nothing is served before the first [`Self::listen`], and every
    /// request gets 404 before the first [`Self::update`].
    ///
    /// # Errors
    /// When a thread or its runtime cannot be started.
    pub fn start(settings: Settings) -> anyhow::Result<Self> {
        let count = settings.workers.max(1);
        let certificates = Certificates::new().context("TLS cannot be set up")?;
        let log = AccessLog::open(settings.access_log.clone(), settings.access_log_format)
            .context("the access log cannot be opened")?;
        let refusals = Reason::ALL.iter().map(|reason| reason.label());
        let refusals = refusals.chain(target::Refusal::ALL.iter().map(|reason| reason.label()));
        let refusals = refusals.chain(Abuse::ALL.iter().map(|abuse| abuse.label()));
        let options = metrics::Options {
            workers: count,
            refusals: refusals.collect(),
            local: Refusal::LABELS.into_iter().chain([REDIRECT]).collect(),
            node: settings.node.clone(),
            ..metrics::Options::default()
        };
        let metrics = Metrics::new(options, Some(Arc::clone(&certificates)), Some(log.tally()));
        let shared = Arc::new(Shared {
            tls: Acceptor::new(Arc::clone(&certificates), settings.tls),
            pressure: Pressure::new(settings.memory.clone()),
            settings,
            table: ArcSwap::default(),
            started: Instant::now(),
            metrics,
            log,
        });
        let workers = (0..count).map(|n| Worker::start(n, &shared)).collect::<anyhow::Result<_>>()?;
        Ok(Self { shared, certificates, updating: Mutex::new(()), workers })
    }

    /// Serves what arrives at a socket, which is bound and listening.
    ///
    /// # Errors
    /// When the socket cannot be duplicated for each worker.
    pub fn listen(&self, listener: TcpListener, scheme: Scheme) -> anyhow::Result<()> {
        listener.set_nonblocking(true).context("the listening socket cannot be made non-blocking")?;
        for worker in &self.workers {
            let listener = listener.try_clone().context("the listening socket cannot be duplicated")?;
            // A worker that is gone has said so in the log.
            let _ = worker.commands.send(Command::Listen(listener, scheme));
        }
        Ok(())
    }

    /// Takes these steps at once: a request sees all of them or none. `whole`: everything that
    /// they do not name is dropped.
    pub fn update(&self, updates: Vec<Update>, whole: bool) {
        let _one = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        self.certificates.update(&updates, whole);
        let next = self.shared.table.load().updated(&updates, whole);
        self.shared.table.store(Arc::new(next));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.shared.metrics.configured(now.as_secs());
    }

    /// Ends in good order (I73): accepts nothing more, asks clients to go elsewhere with
    /// `Connection: close` and GOAWAY, and returns when the last connection is done, or at the
    /// deadline, when what is left is closed, WebSockets with 1001.
    pub async fn drain(&self, deadline: Duration) {
        let mut done = Vec::new();
        for worker in &self.workers {
            let (tell, told) = oneshot::channel();
            if worker.commands.send(Command::Drain(deadline, tell)).is_ok() {
                done.push(told);
            }
        }
        for told in done {
            // An error means that the worker is gone, and so are its connections.
            let _ = told.await;
        }
    }

    /// The engine's metrics as OpenMetrics text, without `# EOF`.
    pub fn metrics(&self) -> String {
        self.certificates.tidy();
        let table = self.shared.table.load();
        self.shared.metrics.keep(table.routes());
        self.shared.metrics.text()
    }
}

impl Worker {
    fn start(number: usize, shared: &Arc<Shared>) -> anyhow::Result<Self> {
        let (commands, received) = mpsc::unbounded_channel();
        let shared = Arc::clone(shared);
        // The runtime is built in its thread, which it cannot leave; the result is waited for.
        let (tell, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("proxy-{number}"))
            .spawn(move || worker::run(number, shared, received, &tell))
            .context("a worker's thread cannot be started")?;
        started
            .recv()
            .context("a worker ended at its start")?
            .context("a worker's runtime cannot be built")?;
        Ok(Self { commands, thread: Some(thread) })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for worker in &self.workers {
            let _ = worker.commands.send(Command::Stop);
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
    }
}
