//! `weir run` with L7 on: the process that keeps the listening sockets and starts the others.
//!
//! It binds what clients connect to and keeps it open, starts an agent and a proxy from its own
//! program, links the two, starts again what ends, and takes over from, or hands over to,
//! another supervisor of the same state folder. It reads no object, holds no BPF descriptor and
//! no credential, and parses nothing that a stranger sends. [`state`] decides; this carries out.
//!
//! ```text
//!              ┌── agent   Services, BPF maps; the routing table ──┐ link: a socket pair
//!  supervisor ─┤                                                   │ for each pair of them
//!   listeners  └── proxy   unprivileged; HTTP and HTTPS ───────────┘
//! ```

mod child;
mod listeners;
mod predecessor;
mod restarts;
pub mod role;
mod state;

use crate::args::Config;
use crate::proxy::control::{Order, ProxyState, ProxyStatus, Report, Status};
use crate::proxy::handover::{self, Offer};
use crate::{lock, logs};
use anyhow::Context;
use child::{Child, Heard, Launcher};
use listeners::Listeners;
use predecessor::{Found, Predecessor};
use rustix::process::{Pid, Signal, kill_process};
use state::{Action, Event, Machine, Stage, Times, Who};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Longest wait for processes that were told to end at once.
const LAST: Duration = Duration::from_secs(1);

/// Runs agent and proxy until SIGTERM or SIGINT.
///
/// # Errors
/// When the state folder cannot be made or the processes cannot be looked after at all. An
/// agent that fails before it ever worked is said by itself, and an exit code of 1.
pub fn run(config: &Config) -> anyhow::Result<ExitCode> {
    logs::init(&config.log);
    let l7 = config.l7.as_ref().context("there is nothing to supervise with --l7 off")?;
    lock::prepare(&config.state_dir)?;
    let launcher = Launcher::new().context("our own program cannot be found")?;
    // One thread, this one: children live as long as the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let clean = runtime.block_on(async {
        let (heard, hearing) = mpsc::channel(64);
        let (found, finding) = mpsc::channel(8);
        let (succession, succeeding) = mpsc::channel(8);
        let times = Times { delay: l7.drain_delay, drain: l7.drain_timeout };
        let (machine, actions) = Machine::start(times, Instant::now());
        let mut supervisor = Supervisor {
            machine,
            launcher,
            children: BTreeMap::new(),
            listeners: Arc::new(Mutex::new(Listeners::new(&l7.http, &l7.https))),
            path: handover::path(&config.state_dir),
            handover: None,
            answering: None,
            predecessor: None,
            events: VecDeque::new(),
            told: Status::default(),
            exit: None,
            heard,
            found,
            succession,
        };
        supervisor.carry_out(actions);
        supervisor.serve(Intake { hearing, finding, succeeding }).await
    })?;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that is heard of.
struct Intake {
    hearing: mpsc::Receiver<(Who, Heard)>,
    finding: mpsc::Receiver<Found>,
    succeeding: mpsc::Receiver<handover::Event>,
}

struct Supervisor {
    machine: Machine,
    launcher: Launcher,
    children: BTreeMap<Who, Child>,
    /// Also read by whoever answers the next supervisor.
    listeners: Arc<Mutex<Listeners>>,
    path: PathBuf,
    /// The socket that the next supervisor asks on; proxies get it too.
    handover: Option<OwnedFd>,
    answering: Option<AbortHandle>,
    predecessor: Option<Predecessor>,
    /// What came of carrying out actions.
    events: VecDeque<Event>,
    told: Status,
    exit: Option<bool>,
    heard: mpsc::Sender<(Who, Heard)>,
    found: mpsc::Sender<Found>,
    succession: mpsc::Sender<handover::Event>,
}

impl Supervisor {
    /// The loop; says whether the end is a clean one.
    async fn serve(&mut self, mut intake: Intake) -> anyhow::Result<bool> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut upgrade = signal(SignalKind::user_defined2())?;
        loop {
            while let Some(event) = self.events.pop_front() {
                let actions = self.machine.step(Instant::now(), event);
                self.carry_out(actions);
            }
            self.launcher.keep(|upgrade| self.machine.needs(upgrade));
            self.bind();
            self.tell();
            if let Some(clean) = self.exit {
                let ends = async { while !self.children.is_empty() && self.ended(&mut intake).await {} };
                let _hangs = tokio::time::timeout(LAST, ends).await;
                return Ok(clean);
            }
            let wake = [self.machine.next_wake(), self.listeners().next_retry()].into_iter().flatten().min();
            tokio::select! {
                _ = terminate.recv() => self.stop(),
                _ = interrupt.recv() => self.stop(),
                _ = upgrade.recv() => {
                    tracing::info!("starting a proxy from the program on disk");
                    self.events.push_back(Event::Upgrade);
                }
                Some((who, heard)) = intake.hearing.recv() => self.hear(who, heard),
                Some(found) = intake.finding.recv() => self.find(found),
                Some(event) = intake.succeeding.recv() => self.succeed(event),
                () = at(wake) => self.events.push_back(Event::Tick),
            }
        }
    }

    /// Waits for a process to end; says whether there is something to wait for.
    async fn ended(&mut self, intake: &mut Intake) -> bool {
        let heard = intake.hearing.recv().await;
        if let Some((who, Heard::Ended { .. })) = &heard {
            self.children.remove(who);
        }
        heard.is_some()
    }

    fn stop(&mut self) {
        tracing::info!("weir stops; the data path stays in place, connections drain");
        self.events.push_back(Event::Stop);
    }

    fn hear(&mut self, who: Who, heard: Heard) {
        let event = match (heard, who) {
            (Heard::Said(Report::Hello { protocol, version, view }), _) => {
                tracing::debug!(?who, version, "a process is there");
                if let Some(child) = self.children.get_mut(&who) {
                    child.view = view;
                }
                Event::Hello { who, protocol }
            }
            (Heard::Said(Report::Up), Who::Agent) => Event::Up,
            (Heard::Said(Report::Ready), Who::Proxy(number)) => {
                tracing::info!(proxy = number, "the proxy is ready");
                Event::Ready(number)
            }
            (Heard::Said(Report::Unlinked), Who::Proxy(number)) => Event::Unlinked(number),
            (Heard::Said(Report::Up | Report::Ready | Report::Unlinked), _) => return,
            (Heard::Ended { failed, how }, _) => {
                if let Some(child) = self.children.remove(&who) {
                    tracing::info!(?who, pid = child.pid, how, "a process ended");
                }
                Event::Exited { who, failed }
            }
        };
        self.events.push_back(event);
    }

    /// What is known of the supervisor before us.
    fn find(&mut self, found: Found) {
        match found {
            Found::Offered(offers) => {
                tracing::info!(listeners = offers.len(), "taking over from an earlier weir");
                for (name, socket) in offers {
                    if self.listeners().adopt(&name, socket) {
                        self.hand_out(&name);
                    }
                }
                self.listeners().want(Instant::now());
            }
            Found::Nobody => {
                self.listeners().want(Instant::now());
                self.answer();
            }
            Found::Relieved => self.answer(),
        }
    }

    /// Something is known of the supervisor after us.
    fn succeed(&mut self, event: handover::Event) {
        self.events.push_back(match event {
            handover::Event::Asked => Event::Asked,
            handover::Event::Gone => {
                tracing::warn!("the next weir is gone again");
                Event::Gone
            }
            handover::Event::Done => {
                tracing::info!("the next weir has taken over");
                Event::Done
            }
        });
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            tracing::debug!(?action, "next");
            match action {
                Action::Adopt => {
                    self.predecessor = Some(Predecessor::look(self.path.clone(), self.found.clone()));
                }
                Action::Start(who, program) => self.start(who, program),
                Action::Link(number) => self.link(number),
                Action::Drain(number) => self.order(Who::Proxy(number), Order::Drain, None),
                Action::End(who) => self.end(who),
                Action::StopAgent => self.signal(Who::Agent, Signal::TERM),
                Action::Relieve => {
                    if let Some(predecessor) = &mut self.predecessor {
                        predecessor.relieve();
                    }
                }
                Action::Release => {
                    self.listeners().release();
                    self.handover = None;
                    if let Some(answering) = self.answering.take() {
                        answering.abort();
                    }
                }
                Action::Exit(clean) => self.exit = Some(clean),
            }
        }
    }

    fn start(&mut self, who: Who, program: state::Program) {
        match self.launcher.start(who, program, self.heard.clone()) {
            Ok(child) => {
                tracing::info!(?who, pid = child.pid, "started a process");
                self.children.insert(who, child);
            }
            Err(error) => {
                tracing::error!(?who, %error, "a process cannot be started");
                self.events.push_back(Event::Exited { who, failed: true });
                return;
            }
        }
        match who {
            Who::Agent => self.told = Status::default(),
            Who::Proxy(_) => {
                let bound: Vec<Offer> = offers(&self.listeners());
                for (name, socket) in bound {
                    self.order(who, Order::Listen(name), Some(socket.into()));
                }
                let handover = self.handover.as_ref().and_then(|socket| socket.try_clone().ok());
                if let Some(socket) = handover {
                    self.order(who, Order::HandOver, Some(socket));
                }
            }
        }
    }

    /// Gives every proxy a listener that was not there when it was started.
    fn hand_out(&self, name: &crate::proxy::control::ListenerName) {
        let bound = offers(&self.listeners());
        for (name, socket) in bound.into_iter().filter(|(bound, _)| bound == name) {
            for who in self.children.keys().filter(|who| **who != Who::Agent) {
                if let Ok(socket) = socket.try_clone() {
                    self.order(*who, Order::Listen(name.clone()), Some(socket.into()));
                }
            }
        }
    }

    fn bind(&mut self) {
        let bound = self.listeners().bind(Instant::now());
        for name in &bound {
            self.hand_out(name);
        }
    }

    fn link(&self, number: u64) {
        let Some(pid) = self.children.get(&Who::Proxy(number)).map(|child| child.pid) else { return };
        match UnixStream::pair() {
            Ok((one, other)) => {
                let order = Order::Link { number, pid };
                self.order(Who::Proxy(number), order.clone(), Some(one.into()));
                self.order(Who::Agent, order, Some(other.into()));
            }
            Err(error) => tracing::error!(%error, "agent and proxy cannot be linked"),
        }
    }

    fn order(&self, who: Who, order: Order, handed: Option<OwnedFd>) {
        if let Some(child) = self.children.get(&who) {
            child.order(order, handed);
        }
    }

    fn signal(&self, who: Who, signal: Signal) {
        let pid = self.children.get(&who).and_then(|child| Pid::from_raw(child.pid.try_into().ok()?));
        if let Some(pid) = pid {
            // A proxy is another user's process: without CAP_KILL only its orders reach it.
            let _refused = kill_process(pid, signal);
        }
    }

    fn end(&mut self, who: Who) {
        self.order(who, Order::End, None);
        self.signal(who, Signal::KILL);
    }

    /// Answers the next supervisor from now on, in place of whoever did.
    fn answer(&mut self) {
        let taken = handover::take(&self.path).and_then(|socket| Ok((socket.try_clone()?, socket)));
        let (socket, kept) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "an upgrade cannot be handed over");
                return;
            }
        };
        let listeners = Arc::clone(&self.listeners);
        let offered = move || offers(&listeners.lock().unwrap_or_else(PoisonError::into_inner));
        let task = tokio::spawn(handover::answer(socket, offered, self.succession.clone()));
        if let Some(earlier) = self.answering.replace(task.abort_handle()) {
            earlier.abort();
        }
        for who in self.children.keys().filter(|who| **who != Who::Agent) {
            if let Ok(socket) = kept.try_clone() {
                self.order(*who, Order::HandOver, Some(socket));
            }
        }
        self.handover = Some(kept);
    }

    /// Tells the agent how things stand, if that has changed.
    fn tell(&mut self) {
        let (agent_restarts, proxy_restarts) = self.machine.restarts();
        let proxies = self.machine.proxies().filter_map(|(number, stage)| {
            let state = match stage {
                Stage::Starting => ProxyState::Starting,
                Stage::Serving => ProxyState::Serving,
                Stage::Draining(_) => ProxyState::Draining,
            };
            let child = self.children.get(&Who::Proxy(number))?;
            Some(ProxyStatus { number, pid: child.pid, state, view: child.view.clone() })
        });
        let status = Status {
            listeners: self.listeners().status(),
            proxies: proxies.collect(),
            agent_restarts,
            proxy_restarts,
            trouble: self.machine.trouble(),
        };
        if status != self.told && self.children.contains_key(&Who::Agent) {
            if status.trouble.is_some() && status.trouble != self.told.trouble {
                tracing::error!(trouble = status.trouble, "a process does not stay up");
            }
            self.order(Who::Agent, Order::Status(status.clone()), None);
            self.told = status;
        }
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sockets that are bound, duplicated.
fn offers(listeners: &Listeners) -> Vec<Offer> {
    listeners.bound().filter_map(|(name, socket)| Some((name.clone(), socket.try_clone().ok()?))).collect()
}

async fn at(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}
