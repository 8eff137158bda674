//! The thread that the reconciler lives on, and the ways to reach it.

use super::Reconciler;
use super::sweep::{self, Swept};
use super::takeover::{self, Seen};
use crate::board::Board;
use crate::model::l7::Names;
use crate::node::Tables;
use crate::source::Batch;
use anyhow::Context;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// A question that runs on the reconciler's thread, between two rounds.
pub type Ask = Box<dyn FnOnce(&mut Reconciler) + Send>;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a reconciler is fed with.
pub struct Intake {
    pub batches: mpsc::Receiver<Batch>,
    /// Its first change is the first reading; the value before it means nothing.
    pub tables: watch::Receiver<Arc<Tables>>,
    /// Looked-up names.
    pub names: watch::Receiver<Arc<Names>>,
    /// The newest routing table that a proxy routes by.
    pub in_force: watch::Receiver<u64>,
}

/// Asks a running reconciler.
#[derive(Clone, Debug)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
}

impl Handle {
    /// Runs `question` and returns its answer.
    ///
    /// # Errors
    /// When the reconciler is gone, or busy for too long.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Reconciler) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let (sender, answer) = oneshot::channel();
        let ask: Ask = Box::new(move |reconciler| {
            // Whoever asked may have gone away.
            let _gone = sender.send(question(reconciler));
        });
        let answer = async {
            self.asks.send(ask).await.map_err(|_| anyhow::anyhow!("the agent is stopping"))?;
            answer.await.context("the agent is stopping")
        };
        tokio::time::timeout(PATIENCE, answer).await.context("the agent is busy")?
    }
}

/// Starts the thread. It ends when the answer's receiver of `stop` is dropped or when the
/// source is gone; the returned channel then yields.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(
    mut reconciler: Reconciler,
    intake: Intake,
    stop: oneshot::Receiver<()>,
) -> anyhow::Result<(Handle, oneshot::Receiver<()>)> {
    let (asks, questions) = mpsc::channel(64);
    let (ended, end) = oneshot::channel();
    let board = Arc::clone(&reconciler.board);
    let (stamped, batches) = mpsc::channel(1024);
    tokio::spawn(stamp(intake.batches, stamped, board));
    let (done, sweeps) = mpsc::channel(1);
    let sweeping = sweep::spawn(reconciler.datapath.sweeper()?, done)?;
    let (saw, looks) = mpsc::channel(1);
    if reconciler.datapath.in_kernel() {
        reconciler.following.start(takeover::spawn(saw)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name("reconcile".into()).spawn(move || {
        let intake =
            Driven { batches, tables: intake.tables, names: intake.names, in_force: intake.in_force };
        runtime.block_on(drive(reconciler, intake, questions, sweeps, looks, stop));
        drop(sweeping);
        let _nobody = ended.send(());
    })?;
    Ok((Handle { asks }, end))
}

/// Notes when each batch came, also while the reconciler is busy.
async fn stamp(
    mut batches: mpsc::Receiver<Batch>,
    stamped: mpsc::Sender<(Instant, Batch)>,
    board: Arc<Board>,
) {
    while let Some(batch) = batches.recv().await {
        board.heard();
        if stamped.send((Instant::now(), batch)).await.is_err() {
            return;
        }
    }
}

/// [`Intake`], with the time at which each batch came.
struct Driven {
    batches: mpsc::Receiver<(Instant, Batch)>,
    tables: watch::Receiver<Arc<Tables>>,
    names: watch::Receiver<Arc<Names>>,
    in_force: watch::Receiver<u64>,
}

async fn drive(
    mut reconciler: Reconciler,
    intake: Driven,
    mut questions: mpsc::Receiver<Ask>,
    mut sweeps: mpsc::Receiver<Swept>,
    mut looks: mpsc::Receiver<Seen>,
    mut stop: oneshot::Receiver<()>,
) {
    let Driven { mut batches, mut tables, mut names, mut in_force } = intake;
    reconciler.round();
    loop {
        tokio::select! {
            biased;
            _ = &mut stop => return,
            batch = batches.recv() => {
                let Some((heard, batch)) = batch else { return };
                reconciler.take(heard, batch);
                while let Ok((heard, batch)) = batches.try_recv() {
                    reconciler.take(heard, batch);
                }
            }
            // A watcher that is gone leaves the last tables standing.
            Ok(()) = tables.changed() => reconciler.set_tables(tables.borrow_and_update().clone()),
            Ok(()) = names.changed() => reconciler.set_names(names.borrow_and_update().clone()),
            // Without a round: it changes only what is told.
            Ok(()) = in_force.changed() => {
                let table = *in_force.borrow_and_update();
                reconciler.set_in_force(table);
                continue;
            }
            Some(swept) = sweeps.recv() => reconciler.set_swept(swept),
            Some(seen) = looks.recv() => reconciler.set_seen(seen),
            Some(ask) = questions.recv() => {
                ask(&mut reconciler);
                continue;
            }
            () = tokio::time::sleep_until(reconciler.next_wake().into()) => {}
        }
        reconciler.round();
    }
}
