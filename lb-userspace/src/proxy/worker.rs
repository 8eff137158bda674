//! One worker: a thread with its own runtime, connections and pools of upstreams.
//!
//! Everything in it stays in its thread, so it is held by `Rc` and `Cell`. It ends when it is
//! told to, or when the engine is gone.

use crate::proxy::access_log::Lane;
use crate::proxy::deadline::{Deadlines, TICK};
use crate::proxy::engine::{Scheme, Shared};
use crate::proxy::metrics::Recorder;
use crate::proxy::table::RoutingTable;
use crate::proxy::{cork, drain, listener, pool};
use arc_swap::{ArcSwap, Cache};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;
use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, spawn_local};

/// How often idle connections to origins are looked over, in milliseconds.
const SWEEP: u64 = 1000;

/// What a worker is told.
pub(super) enum Command {
    Listen(TcpListener, Scheme),
    /// Until when, and whom to tell that it is done.
    Drain(Duration, oneshot::Sender<()>),
    Stop,
}

/// What the tasks of one worker share.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) deadlines: Rc<Deadlines>,
    pub(super) connections: drain::Connections,
    pub(super) idle: pool::Idle,
    /// For what HTTP/2 connections write.
    pub(super) spare: Rc<cork::Spare>,
    pub(super) recorder: Recorder,
    /// The access log's; none: it is off.
    pub(super) lane: Option<Lane>,
    table: RefCell<Cache<TableSource, Arc<RoutingTable>>>,
    random: Cell<u64>,
}

/// Where the cache looks for a newer table.
struct TableSource(Arc<Shared>);

impl std::ops::Deref for TableSource {
    type Target = ArcSwap<RoutingTable>;

    fn deref(&self) -> &Self::Target {
        &self.0.table
    }
}

/// Serves until told to stop. Tells first whether it could be started.
pub(super) fn run(
    number: usize,
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    started: &SyncSender<io::Result<()>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // The default of 61 polls tasks too long before it looks at sockets again.
        .event_interval(31)
        .build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let _ = started.send(Ok(()));
    runtime.block_on(obey(Rc::new(Worker::new(number, shared)), commands));
}

async fn obey(worker: Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let ticker = Rc::clone(&worker);
    spawn_local(async move {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut swept = 0;
        loop {
            ticks.tick().await;
            ticker.deadlines.tick();
            let now = ticker.deadlines.now();
            if now.saturating_sub(swept) >= SWEEP {
                swept = now;
                ticker.idle.sweep(now, &ticker.shared.settings.upstream);
            }
        }
    });
    let mut listeners: Vec<AbortHandle> = Vec::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(listener, scheme) => {
                listeners
                    .push(spawn_local(listener::accept(Rc::clone(&worker), listener, scheme)).abort_handle());
            }
            Command::Drain(deadline, done) => {
                listeners.drain(..).for_each(|listener| listener.abort());
                let worker = Rc::clone(&worker);
                spawn_local(async move {
                    drain::drain(&worker, deadline).await;
                    let _ = done.send(());
                });
            }
            Command::Stop => return,
        }
    }
}

impl Worker {
    fn new(number: usize, shared: Arc<Shared>) -> Self {
        // Any seed does, as long as workers differ.
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8) | 1;
        Self {
            deadlines: Deadlines::new(shared.started),
            connections: drain::Connections::default(),
            idle: pool::Idle::default(),
            spare: Rc::default(),
            recorder: shared.metrics.recorder(number),
            lane: shared.log.lane(),
            table: RefCell::new(Cache::new(TableSource(Arc::clone(&shared)))),
            random: Cell::new(seed),
            shared,
        }
    }

    /// The routing table as of now.
    pub(super) fn table(&self) -> Arc<RoutingTable> {
        Arc::clone(self.table.borrow_mut().load())
    }

    /// A random number, good for spreading load and naming requests, not for secrets.
    pub(super) fn random(&self) -> u64 {
        // xorshift64*; the state is never 0.
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A random number below a bound that is not 0.
    pub(super) fn random_below(&self, bound: usize) -> usize {
        usize::try_from((u128::from(self.random()) * bound as u128) >> 64).unwrap_or(0)
    }
}
