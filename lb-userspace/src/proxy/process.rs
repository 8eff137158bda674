//! The proxy's process: gives up its privileges, then serves what it is handed and told.
//!
//! It is handed listening sockets and links by its supervisor, and the routing table by
//! agents. It accepts nothing before the first whole table is there (I72). An agent that dies
//! changes nothing; the next one is linked anew. When the supervisor dies the process goes on,
//! answers the next supervisor in its place, and ends once that one accepts connections, or
//! after the drain time if none comes.

use crate::proxy::channel::{Assembly, Batch, FromProxy, PROTOCOL, Reader, ToProxy, frame, open};
use crate::proxy::confine::{self, Needs};
use crate::proxy::control::{Control, ListenerName, Order, Report, View};
use crate::proxy::engine::{Engine, Settings};
use crate::proxy::{control, handover, privileges};
use anyhow::Context;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep_until};

/// How long a proxy waits for another link before it says that it has none.
const UNLINKED: Duration = Duration::from_secs(1);

/// How the process behaves.
#[derive(Clone, Debug)]
pub struct Options {
    pub settings: Settings,
    /// User and group that it becomes when it is started as root.
    pub user: u32,
    /// How long connections may live on when it is to end (I73).
    pub drain_timeout: Duration,
    /// A file that it writes to later: made, and made its own, while it still may.
    pub log_file: Option<PathBuf>,
}

/// Runs the process to its end. The engine is started without privileges.
///
/// # Errors
/// When it was not started by a supervisor, cannot get rid of its privileges, or cannot serve.
pub fn run(options: Options) -> anyhow::Result<()> {
    let control = control::inherited()?;
    privileges::close_inherited(control.as_fd())?;
    // Only what tools show.
    let _cosmetic = rustix::thread::set_name(c"weir-proxy");
    privileges::raise_open_files();
    if let Some(path) = &options.log_file
        && let Err(error) = privileges::own(path, options.user)
    {
        tracing::warn!(path = %path.display(), %error, "the access log cannot be prepared");
    }
    privileges::drop_all(options.user).context("the proxy keeps privileges and does not run")?;
    let needs = Needs { log: options.log_file, memory: options.settings.memory.clone() };
    let view = confine::confine(&needs).context("the proxy is not confined and does not run")?;
    match &view {
        View::Open { reason } => tracing::warn!(reason, "the proxy sees the files that its user may see"),
        View::Confined { .. } | View::Untold => tracing::info!(?view, "the proxy sees no files"),
    }
    let engine = Arc::new(Engine::start(options.settings)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (said, heard) = mpsc::channel(4);
        Proxy {
            control: Control::new(control)?,
            drain_timeout: options.drain_timeout,
            engine,
            listeners: Arc::default(),
            routed: false,
            link: None,
            said,
            handover: None,
            stage: Stage::Supervised,
        }
        .serve(heard, view)
        .await
    })
}

/// Who this process answers to.
#[derive(PartialEq, Eq, Debug)]
enum Stage {
    Supervised,
    /// The supervisor is gone: how long to wait for the next; `None` while one makes itself
    /// ready.
    Orphan(Option<Instant>),
    /// No more connections are taken.
    Draining,
}

/// What the agent says, and where the answer goes.
enum Said {
    Table(Batch, oneshot::Sender<()>),
    Metrics(oneshot::Sender<String>),
    /// It is gone, for a while by now.
    Over,
}

struct Proxy {
    control: Control,
    drain_timeout: Duration,
    engine: Arc<Engine>,
    /// Kept to be handed on.
    listeners: Arc<Mutex<Vec<(ListenerName, TcpListener)>>>,
    /// The first whole table is there.
    routed: bool,
    link: Option<AbortHandle>,
    said: mpsc::Sender<Said>,
    handover: Option<OwnedFd>,
    stage: Stage,
}

impl Proxy {
    async fn serve(mut self, mut heard: mpsc::Receiver<Said>, view: View) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (succession, mut successor) = mpsc::channel(4);
        let mut succession = Some(succession);
        let mut drained: Option<JoinHandle<()>> = None;
        let version = env!("CARGO_PKG_VERSION").into();
        let hello = Report::Hello { protocol: PROTOCOL, version, view };
        self.report(&hello).await;
        let mut controlled = true;
        loop {
            let deadline = match self.stage {
                Stage::Orphan(deadline) => deadline,
                Stage::Supervised | Stage::Draining => None,
            };
            let drain = tokio::select! {
                order = self.control.recv::<Order>(), if controlled => match order {
                    // At once: nothing that serves is waited for.
                    Ok(Some((Order::End, _))) => std::process::exit(0),
                    Ok(Some((Order::Drain, _))) => true,
                    Ok(Some((order, handed))) => {
                        self.obey(order, handed).await;
                        false
                    }
                    Ok(None) | Err(_) => {
                        controlled = false;
                        self.orphan(succession.take())
                    }
                },
                Some(said) = heard.recv() => {
                    self.hear(said).await;
                    false
                }
                Some(event) = successor.recv() => self.succeeded(event),
                // The supervisor has them too, and says what they mean.
                _ = terminate.recv() => !controlled,
                _ = interrupt.recv() => !controlled,
                () = at(deadline) => {
                    tracing::warn!("no supervisor came: the proxy ends");
                    true
                }
                () = ended(&mut drained) => return Ok(()),
            };
            if drain && self.stage != Stage::Draining {
                self.stage = Stage::Draining;
                self.listeners().clear();
                tracing::info!("the proxy drains");
                let (engine, timeout) = (Arc::clone(&self.engine), self.drain_timeout);
                drained = Some(tokio::spawn(async move { engine.drain(timeout).await }));
            }
        }
    }

    /// Says something to the supervisor; one that is gone is noticed elsewhere.
    async fn report(&self, report: &Report) {
        let _gone = self.control.send(report, None).await;
    }

    async fn obey(&mut self, order: Order, handed: Option<OwnedFd>) {
        match (order, handed) {
            (Order::Listen(name), Some(socket)) if self.stage != Stage::Draining => {
                let socket = TcpListener::from(socket);
                if self.routed {
                    self.accept(&name, &socket);
                }
                self.listeners().push((name, socket));
            }
            (Order::Link { .. }, Some(stream)) => {
                let said = self.said.clone();
                let task = tokio::spawn(async move {
                    if let Err(error) = follow(stream, said.clone()).await {
                        tracing::warn!(%error, "the agent's link failed");
                    }
                    // The next agent's link most likely comes first, and ends this.
                    tokio::time::sleep(UNLINKED).await;
                    let _ending = said.send(Said::Over).await;
                });
                if let Some(earlier) = self.link.replace(task.abort_handle()) {
                    earlier.abort();
                }
            }
            (Order::HandOver, Some(socket)) => self.handover = Some(socket),
            // Ended and drained by the caller; the rest is not for a proxy.
            _ => {}
        }
    }

    async fn hear(&mut self, said: Said) {
        match said {
            Said::Table(Batch { generation, whole, updates }, done) => {
                let count = updates.len();
                // A link begins with a whole table, so nothing is built on what is not there.
                self.engine.update(updates, whole);
                tracing::debug!(generation, whole, count, "table updated");
                let _link_is_over = done.send(());
                if whole && !std::mem::replace(&mut self.routed, true) {
                    for (name, socket) in &*self.listeners() {
                        self.accept(name, socket);
                    }
                    tracing::info!(values = count, "the proxy serves");
                    self.report(&Report::Ready).await;
                }
            }
            Said::Over => self.report(&Report::Unlinked).await,
            Said::Metrics(answer) => {
                let _link_is_over = answer.send(self.engine.metrics());
            }
        }
    }

    fn accept(&self, name: &ListenerName, socket: &TcpListener) {
        let accepted = socket.try_clone().map_err(Into::into);
        if let Err(error) = accepted.and_then(|socket| self.engine.listen(socket, name.scheme)) {
            tracing::error!(address = %name.address, error = format!("{error:#}"), "cannot accept connections");
        }
    }

    /// The supervisor is gone. Says whether there is nothing left to do but to end.
    fn orphan(&mut self, succession: Option<mpsc::Sender<handover::Event>>) -> bool {
        if self.stage == Stage::Draining {
            return false;
        }
        let (Some(socket), Some(succession), true) = (self.handover.take(), succession, self.routed) else {
            return true;
        };
        tracing::warn!("the supervisor is gone; the proxy goes on until the next one comes");
        self.stage = Stage::Orphan(Some(Instant::now() + self.drain_timeout));
        let listeners = Arc::clone(&self.listeners);
        let offered = move || {
            let listeners = listeners.lock().unwrap_or_else(PoisonError::into_inner);
            listeners
                .iter()
                .filter_map(|(name, socket)| Some((name.clone(), socket.try_clone().ok()?)))
                .collect()
        };
        tokio::spawn(handover::answer(socket, offered, succession));
        false
    }

    /// Something is known of the next supervisor. Says whether it has taken over.
    fn succeeded(&mut self, event: handover::Event) -> bool {
        if let Stage::Orphan(deadline) = &mut self.stage {
            *deadline = match event {
                handover::Event::Asked => None,
                handover::Event::Gone => Some(Instant::now() + self.drain_timeout),
                handover::Event::Done => return true,
            };
        }
        false
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<(ListenerName, TcpListener)>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits for the drain, if there is one.
async fn ended(drained: &mut Option<JoinHandle<()>>) {
    match drained {
        // However it ended.
        Some(drained) => drop(drained.await),
        None => std::future::pending().await,
    }
}

/// Follows one agent until it is gone.
async fn follow(stream: OwnedFd, said: mpsc::Sender<Said>) -> io::Result<()> {
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(true)?;
    let (read, mut write) = tokio::net::UnixStream::from_std(stream)?.into_split();
    let mut reader = Reader::new(read);
    let mut assembly = Assembly::default();
    let version = env!("CARGO_PKG_VERSION").into();
    tell(&mut write, &FromProxy::Hello { protocol: PROTOCOL, version }).await?;
    let mut known = false;
    while let Some(payload) = reader.next().await? {
        let (head, body) = open::<ToProxy>(&payload)?;
        match head {
            ToProxy::Hello { protocol } if protocol == PROTOCOL => known = true,
            _ if !known => return Err(io::Error::other("an agent of another build")),
            ToProxy::Hello { .. } => return Err(io::Error::other("an agent that says hello twice")),
            ToProxy::Updates { generation, whole, last } => {
                let Some(batch) = assembly.take(generation, whole, last, body)? else { continue };
                let (done, applied) = oneshot::channel();
                if said.send(Said::Table(batch, done)).await.is_err() || applied.await.is_err() {
                    return Ok(());
                }
                tell(&mut write, &FromProxy::Applied { generation }).await?;
            }
            ToProxy::Metrics => {
                let (sender, answer) = oneshot::channel();
                if said.send(Said::Metrics(sender)).await.is_err() {
                    return Ok(());
                }
                let Ok(text) = answer.await else { return Ok(()) };
                tell(&mut write, &FromProxy::Metrics { text }).await?;
            }
        }
    }
    Ok(())
}

async fn tell(write: &mut (impl AsyncWrite + Unpin), what: &FromProxy) -> io::Result<()> {
    write.write_all(&frame(what)?).await
}
