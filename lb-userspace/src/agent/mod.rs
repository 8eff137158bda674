//! Builds the parts, joins them, and stops them in order.
//!
//! The order at start: health, metrics and admin listen, then the node's lock, then the data path
//! (whose maps an earlier agent left), then the reconciler, the watchers.
//! At the end everything in the kernel stays as it is.

mod hold;
mod ingress;
mod kernel_sockets;
mod parts;
mod supervised;

use crate::admin::{Admin, Desk};
use crate::args::{Config, SourceKind};
use crate::board::{Board, Snapshot};
use crate::datapath::Datapath;
use crate::http::{self, Answer};
use crate::link::Link;
use crate::metrics::Metrics;
use crate::proxy::privileges;
use crate::reconcile::{Handle, Intake, Parts, Reconciler, spawn};
use crate::source::Syncs;
use crate::{health, lock, logs, node, status};
use anyhow::Context;
use hold::hold;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// Batches that may wait for the reconciler.
const BATCHES: usize = 64;
/// Longest wait for a round to end at shutdown.
const LAST_ROUND: Duration = Duration::from_secs(5);
/// Longest wait for another agent to take over the writing of statuses, or for their end.
const LAST_WORD: Duration = Duration::from_secs(8);

/// Runs the agent until SIGTERM or SIGINT, or the end of the supervisor that started it.
///
/// # Errors
/// When a part cannot be built; what was in the kernel before is untouched then.
pub fn run(config: Config) -> anyhow::Result<()> {
    logs::init(&config.log);
    privileges::leave_no_core()?;
    let supervisor = match config.role {
        Some(_) => Some(supervised::inherit()?),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("weir")
        .enable_all()
        .build()
        .context("threads cannot be started")?;
    let result = runtime.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let (open, tried) = (config.clone(), config.clone());
        serve_with(config, move || parts::datapath(&open), move || parts::rehearse(&tried), stop, supervisor)
            .await
    });
    // A listing that hangs must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Runs the agent over the data path that `open` gives, until `stop`.
///
/// # Errors
/// As [`run`].
pub async fn serve(
    config: Config,
    open: impl FnOnce() -> anyhow::Result<Box<dyn Datapath>> + Send + 'static,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    serve_with(config, open, || Ok(()), stop, None).await
}

async fn serve_with(
    config: Config,
    open: impl FnOnce() -> anyhow::Result<Box<dyn Datapath>> + Send + 'static,
    rehearse: impl FnOnce() -> anyhow::Result<()> + Clone + Send + 'static,
    stop: impl Future<Output = ()>,
    supervisor: Option<OwnedFd>,
) -> anyhow::Result<()> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = config.node_name, "weir starts");
    lock::prepare(&config.state_dir)?;
    let (board, metrics) = (Arc::<Board>::default(), Arc::<Metrics>::default());
    let handle = Arc::<OnceLock<Handle>>::default();
    let link = Link::default();
    // Dropping the set ends all tasks in it.
    let mut tasks = JoinSet::new();
    listen(&mut tasks, &config, &board, &metrics, &handle, &link);
    let (admin_sender, admin) = watch::channel(None);
    let (held_sender, held) = watch::channel(false);
    let desk = Desk { board: Arc::clone(&board), metrics: Arc::clone(&metrics), admin };
    let (socket, told) = (config.http.admin_socket.clone(), Arc::clone(&board));
    tasks.spawn(async move {
        let answer = move |request| desk.clone().answer(request);
        http::serve_unix("--admin-socket", &socket, told, held, answer).await;
    });
    let proxies = supervisor.is_some();
    if proxies {
        board.await_proxies(link.clone());
    }
    let (up, supervisor_gone) = supervised::follow(&mut tasks, supervisor, &link, &board)?;
    let mut stop = std::pin::pin!(async {
        tokio::select! {
            () = stop => {}
            () = supervisor_gone => tracing::warn!("the supervisor is gone"),
        }
    });

    let lock = tokio::select! {
        lock = hold(|told| lock::acquire(&config.state_dir, told), rehearse.clone(), &board) => lock?,
        () = &mut stop => return Ok(()),
    };
    let maps_lock = match &config.l4 {
        None => None,
        Some(l4) => tokio::select! {
            lock = hold(|told| lock::acquire_maps(&l4.bpffs, told), rehearse, &board) => Some(lock?),
            () = &mut stop => return Ok(()),
        },
    };
    board.publish(Snapshot::default());
    held_sender.send_replace(true);
    let datapath = tokio::task::spawn_blocking(open).await.context("the data path")??;
    let ingress = ingress::join(&mut tasks, &config, &link, proxies)?;
    let mut problems = parts::not_honoured(&config, datapath.as_ref());
    problems.extend(kernel_sockets::check(&config));
    let health = parts::service_health(&mut tasks, &config, &board);
    let reconciler = Reconciler::new(Parts {
        node_name: config.node_name.clone(),
        node_required: matches!(config.source.kind, SourceKind::Api(_)),
        model: config.model.clone(),
        node: parts::node_options(&config),
        datapath,
        board: Arc::clone(&board),
        metrics: Arc::clone(&metrics),
        l7: ingress.parts,
        service_cidrs: parts::service_cidrs(&config),
        cluster_cidrs: config.l4.as_ref().and_then(|l4| l4.cluster_cidrs.clone()),
        health,
        problems,
    })
    .context("the maps of an earlier agent cannot be taken over")?;

    let (tables_sender, tables) = watch::channel(Arc::default());
    tasks.spawn(node::follow(tables_sender));
    let (batch_sender, batches) = mpsc::channel(BATCHES);
    let (stop_reconciler, stopped) = oneshot::channel();
    let intake = Intake { batches, tables, names: ingress.names, in_force: link.in_force() };
    let (asks, mut ended) = spawn(reconciler, intake, stopped)?;
    // Set once: this is the only place.
    let _first = handle.set(asks.clone());
    let syncs = Arc::<Syncs>::default();
    parts::source(&mut tasks, &config, batch_sender, ingress.secrets, Arc::clone(&syncs))?;
    let (retire, retired) = oneshot::channel::<()>();
    let writer = parts::status(&config).zip(ingress.reports).map(|(options, reports)| {
        // Only dropped, never sent to.
        let stop = async move { drop(retired.await) };
        tokio::spawn(status::run(options, reports, Arc::clone(&board), stop))
    });
    admin_sender.send_replace(Some(Arc::new(Admin {
        node_name: config.node_name.clone(),
        l4: config.l4.is_some(),
        l7: config.l7.clone(),
        board: Arc::clone(&board),
        syncs,
        reconciler: asks,
    })));

    up.notify_one();

    tokio::select! {
        () = &mut stop => {}
        _ = &mut ended => anyhow::bail!("the reconciler ended; see the log"),
    }
    tracing::info!("weir stops; the data path stays in place");
    drop(stop_reconciler);
    drop(retire);
    let _slow = tokio::time::timeout(LAST_ROUND, ended).await;
    // The next agent, which waits for the lock, makes its own.
    let _gone = std::fs::remove_file(&config.http.admin_socket);
    // A successor on this node takes over now: then no status is taken away.
    drop((lock, maps_lock));
    if let Some(writer) = writer {
        let _slow = tokio::time::timeout(LAST_WORD, writer).await;
    }
    Ok(())
}

/// Health and metrics, also while another agent holds the node.
fn listen(
    tasks: &mut JoinSet<()>,
    config: &Config,
    board: &Arc<Board>,
    metrics: &Arc<Metrics>,
    handle: &Arc<OnceLock<Handle>>,
    link: &Link,
) {
    let answer = {
        let (board, metrics) = (Arc::clone(board), Arc::clone(metrics));
        move |request: Request<Incoming>| {
            let answer = health::answer(request.method(), request.uri().path(), &board, &metrics);
            std::future::ready(answer)
        }
    };
    tasks.spawn(http::serve_tcp("--healthz-listen", config.http.healthz, Arc::clone(board), answer));
    let answer = {
        let (metrics, handle) = (Arc::clone(metrics), Arc::clone(handle));
        let (board, link) = (Arc::clone(board), link.clone());
        move |request: Request<Incoming>| {
            let (metrics, handle) = (Arc::clone(&metrics), handle.get().cloned());
            let (board, link) = (Arc::clone(&board), link.clone());
            async move { measure(request.uri().path(), &metrics, handle, &board, &link).await }
        }
    };
    tasks.spawn(http::serve_tcp("--metrics-listen", config.http.metrics, Arc::clone(board), answer));
}

async fn measure(
    path: &str,
    metrics: &Metrics,
    handle: Option<Handle>,
    board: &Board,
    link: &Link,
) -> Answer {
    match path {
        "/metrics" => {
            let reading = match handle {
                // Busy: the last reading is told again.
                Some(handle) => handle.ask(Reconciler::reading).await.ok(),
                None => None,
            };
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            let mut text = metrics.text(reading);
            if let Some(status) = board.surroundings() {
                supervised::append(&mut text, &status, link).await;
            }
            http::answer(StatusCode::OK, content_type, text)
        }
        "/proxyMode" => http::answer(StatusCode::OK, "text/plain", "ebpf"),
        _ => http::answer(StatusCode::NOT_FOUND, "text/plain", "try /metrics or /proxyMode\n"),
    }
}
