//! Long-lived flows and connection load, run inside a helper process.
//!
//! Every message carries a number and must come back: a flow that is silent past its
//! deadline, ends, or answers with another number is lost, with the reason.

use crate::clients::{Identity, any, ask, micros};
use crate::netns::sys::monotonic_us;
use crate::servers::{ECHO, WHO};
use crate::web::TrafficReport;
use crate::wire::{FlowReport, Flows, FlowsReport, LATE_US, Load, LoadReport, Proto, Reply};
use anyhow::{Context, Result, bail};
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Time that late echoes of UDP are waited for after the last message.
const GRACE: Duration = Duration::from_secs(1);

pub(crate) type Shared<T> = Arc<Mutex<T>>;

/// Changes what tasks share.
pub(crate) fn update<T, R>(shared: &Shared<T>, f: impl FnOnce(&mut T) -> R) -> R {
    f(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Something that runs until it is stopped.
pub(crate) struct Activity {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    counters: Counters,
}

/// What an activity counts.
pub(crate) enum Counters {
    Flows(Vec<Shared<FlowReport>>),
    Load(Shared<LoadReport>),
    Traffic(Shared<TrafficReport>),
}

impl Activity {
    /// Tasks that end when `stop` turns true.
    pub(crate) fn new(stop: watch::Sender<bool>, tasks: JoinSet<()>, counters: Counters) -> Self {
        Self { stop, tasks, counters }
    }

    pub(crate) fn report(&self) -> Reply {
        match &self.counters {
            Counters::Flows(flows) => Reply::Flows(FlowsReport {
                flows: flows.iter().map(|flow| update(flow, |flow| flow.clone())).collect(),
            }),
            Counters::Load(load) => Reply::Load(update(load, |load| load.clone())),
            Counters::Traffic(traffic) => Reply::Traffic(update(traffic, |traffic| traffic.clone())),
        }
    }

    pub(crate) async fn stop(mut self) -> Reply {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        self.report()
    }
}

/// Opens all flows; answers when each has heard from its server once. `unconnected` ones of UDP
/// use sendto().
pub(crate) async fn open(flows: &Flows, unconnected: bool) -> Result<Activity> {
    if flows.to.is_empty() {
        bail!("flows need a target");
    }
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut reports = Vec::new();
    for (number, &to) in (0..flows.count).zip(flows.to.iter().cycle()) {
        let report = Shared::default();
        // Spread over the interval, so that flows do not move in step.
        let offset = Duration::from_millis(flows.interval_ms) * number / flows.count;
        let task = Flow {
            to,
            report: Arc::clone(&report),
            stopped: stopped.clone(),
            offset,
            spec: flows.clone(),
            unconnected,
        };
        match flows.proto {
            Proto::Tcp => {
                let stream =
                    task.open_tcp().await.with_context(|| format!("opening flow {number} to {to}"))?;
                tasks.spawn(task.run_tcp(stream));
            }
            Proto::Udp => {
                let socket =
                    task.open_udp().await.with_context(|| format!("opening flow {number} to {to}"))?;
                tasks.spawn(task.run_udp(socket));
            }
        }
        reports.push(report);
    }
    Ok(Activity::new(stop, tasks, Counters::Flows(reports)))
}

struct Flow {
    to: SocketAddr,
    report: Shared<FlowReport>,
    stopped: watch::Receiver<bool>,
    offset: Duration,
    spec: Flows,
    unconnected: bool,
}

impl Flow {
    fn deadline(&self) -> Duration {
        Duration::from_millis(self.spec.deadline_ms)
    }

    /// Whom datagrams are sent to one by one, where the socket is not connected.
    fn peer(&self) -> Option<SocketAddr> {
        self.unconnected.then_some(self.to)
    }

    fn met(&self, identity: &Identity) {
        update(&self.report, |report| {
            report.pod.clone_from(&identity.pod);
            report.seen = Some(identity.peer);
            report.target = Some(self.to);
        });
    }

    fn ticks(&self) -> tokio::time::Interval {
        let mut ticks = interval(Duration::from_millis(self.spec.interval_ms));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset_after(self.offset);
        ticks
    }

    async fn open_tcp(&self) -> Result<BufReader<TcpStream>> {
        let socket = match self.to {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if self.spec.from_port != 0 {
            socket.set_reuseaddr(true)?;
            socket.bind(any(self.to, self.spec.from_port))?;
        }
        let stream = timeout(self.deadline(), socket.connect(self.to)).await??;
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        stream.write_all(ECHO).await?;
        let mut line = String::new();
        timeout(self.deadline(), stream.read_line(&mut line)).await??;
        self.met(&serde_json::from_str(&line)?);
        Ok(stream)
    }

    async fn run_tcp(mut self, mut stream: BufReader<TcpStream>) {
        let mut ticks = self.ticks();
        for number in 0_u64.. {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = self.stopped.changed() => return,
            }
            update(&self.report, |report| report.sent += 1);
            let start = Instant::now();
            let echoed = timeout(self.deadline(), exchange(&mut stream, number)).await;
            let took = micros(start);
            let lost = match echoed {
                Ok(Ok(back)) if back == number => None,
                Ok(Ok(back)) => Some(format!("message {number} came back as {back}")),
                Ok(Err(error)) => Some(format!("message {number}: {error}")),
                Err(_) => Some(format!("message {number}: no echo within {} ms", self.spec.deadline_ms)),
            };
            let ended = lost.is_some();
            update(&self.report, |report| {
                report.slowest_us = report.slowest_us.max(took);
                report.echoed += u64::from(!ended);
                report.lost = lost;
            });
            if ended {
                return;
            }
        }
    }

    async fn open_udp(&self) -> Result<UdpSocket> {
        let from = any(self.to, self.spec.from_port);
        let socket = Socket::new(Domain::for_address(from), Type::DGRAM, None)?;
        // Another process may have a flow from the same port.
        socket.set_reuse_address(from.port() != 0)?;
        socket.bind(&from.into())?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket.into())?;
        if !self.unconnected {
            socket.connect(self.to).await?;
        }
        let peer = self.peer();
        send(&socket, peer, WHO).await?;
        let mut buffer = [0; 4096];
        let length = timeout(self.deadline(), receive(&socket, peer, &mut buffer)).await??;
        self.met(&serde_json::from_slice(&buffer[..length])?);
        Ok(socket)
    }

    async fn run_udp(mut self, socket: UdpSocket) {
        let (mut ticks, peer) = (self.ticks(), self.peer());
        let mut buffer = [0; 4096];
        let mut number = 0_u64;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    number += 1;
                    let sent = send(&socket, peer, &number.to_be_bytes()).await;
                    update(&self.report, |report| {
                        report.sent += 1;
                        if let Err(error) = sent {
                            report.lost.get_or_insert(format!("message {number}: {error}"));
                        }
                    });
                }
                received = receive(&socket, peer, &mut buffer) => self.take(received, &buffer),
                _ = self.stopped.changed() => break,
            }
        }
        let end = Instant::now() + GRACE;
        while update(&self.report, |report| report.echoed < report.sent) {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(received) = timeout(left, receive(&socket, peer, &mut buffer)).await else { break };
            self.take(received, &buffer);
        }
    }

    /// Counts what came back: the pod's name, a line break, the message.
    fn take(&self, received: std::io::Result<usize>, buffer: &[u8]) {
        update(&self.report, |report| match received {
            Ok(length) => {
                report.echoed += 1;
                let name = buffer[..length].split(|&byte| byte == b'\n').next().unwrap_or_default();
                report.strangers += u64::from(name != report.pod.as_bytes());
            }
            Err(error) => {
                report.lost.get_or_insert(error.to_string());
            }
        });
    }
}

async fn send(socket: &UdpSocket, peer: Option<SocketAddr>, bytes: &[u8]) -> std::io::Result<usize> {
    match peer {
        Some(to) => socket.send_to(bytes, to).await,
        None => socket.send(bytes).await,
    }
}

/// What comes from somebody else than `peer` is an error.
async fn receive(socket: &UdpSocket, peer: Option<SocketAddr>, buffer: &mut [u8]) -> std::io::Result<usize> {
    let Some(peer) = peer else { return socket.recv(buffer).await };
    let (length, from) = socket.recv_from(buffer).await?;
    if from == peer { Ok(length) } else { Err(std::io::Error::other(format!("an answer from {from}"))) }
}

async fn exchange(stream: &mut BufReader<TcpStream>, number: u64) -> std::io::Result<u64> {
    stream.write_all(&number.to_be_bytes()).await?;
    let mut back = [0; 8];
    stream.read_exact(&mut back).await?;
    Ok(u64::from_be_bytes(back))
}

/// Starts new connections at a fixed rate.
pub(crate) fn start_load(load: Load) -> Activity {
    let (stop, mut stopped) = watch::channel(false);
    let counters = Shared::<LoadReport>::default();
    let shared = Arc::clone(&counters);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut ticks = interval(Duration::from_secs(1) / load.per_second.max(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stopped.changed() => break,
            }
            let (question, shared) = (load.ask.clone(), Arc::clone(&shared));
            running.spawn_blocking(move || {
                update(&shared, |report| report.started += 1);
                let answer = ask(&question);
                update(&shared, |report| report.count(&answer));
            });
            while running.try_join_next().is_some() {}
        }
        while running.join_next().await.is_some() {}
    });
    Activity::new(stop, tasks, Counters::Load(counters))
}

impl LoadReport {
    fn count(&mut self, answer: &crate::wire::Answer) {
        self.slowest_us = self.slowest_us.max(answer.elapsed_us);
        self.late += u64::from(answer.elapsed_us > LATE_US);
        if let Some(pod) = &answer.pod {
            self.answered += 1;
            let (connections, last) = self.pods.entry(pod.clone()).or_default();
            *connections += 1;
            *last = (*last).max(answer.started_us);
        } else if answer.refused() {
            self.refused += 1;
            self.failures.extend((self.failures.len() < 10).then(|| answer.clone()));
        } else {
            self.failures.extend((self.failures.len() < 10).then(|| answer.clone()));
            let reason = answer.error.clone().unwrap_or_default();
            *self.failed.entry(reason).or_default() += 1;
        }
    }
}

/// The clock by which [`LoadReport::pods`] tells when a connection was begun.
pub fn now_us() -> u64 {
    monotonic_us()
}
