//! The loads: one thread on the client's CPU, with as many connections as the row says.
//!
//! *Closed* (as fast as the proxy answers) for requests per second; *open* (requests fall due at
//! a steady rate whether or not earlier ones were answered, and an answer's time counts from
//! when its request was due) for latency without coordinated omission.

use super::link::{Link, Read1};
use super::proxies::Proxy;
use super::speak::two::Two;
use super::speak::{One, Wanted};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is asked of a proxy.
pub(super) struct Load {
    pub(super) to: SocketAddr,
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) connections: usize,
    pub(super) wanted: Wanted,
    pub(super) asks: Asks,
}

pub(super) enum Asks {
    /// HTTP/1.1, one request after the other on each connection, in turn out of these.
    KeepAlive(Vec<Box<[u8]>>),
    /// As [`Self::KeepAlive`], each request on a connection of its own.
    Once(Box<[u8]>),
    /// HTTP/2, so many streams at once on each connection.
    Streams(usize, String),
}

/// What a slice of load came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) answers: u64,
    pub(super) took: Duration,
    /// CPU time of the proxy.
    pub(super) cpu: Duration,
}

/// How long nothing may come at all.
const SILENCE: Duration = Duration::from_secs(5);

/// One connection with what is said over it.
struct Client {
    link: Link,
    speaks: Speaks,
    waits_to_write: bool,
    /// When the request that is under way was due; open load only.
    due: Option<Instant>,
}

enum Speaks {
    One(One),
    Two(Box<Two>),
}

struct Clients<'a> {
    load: &'a Load,
    epoll: Epoll,
    all: Vec<Client>,
    /// The next of [`Asks::KeepAlive`].
    next: usize,
    buffer: Vec<u8>,
}

/// What a turn of a connection came to.
struct Turn {
    answers: u64,
    /// It is to be replaced by another connection.
    over: bool,
}

impl<'a> Clients<'a> {
    fn open(load: &'a Load) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut clients = Self { load, epoll, all: Vec::new(), next: 0, buffer: vec![0; 256 * 1024] };
        for number in 0..load.connections {
            let client = clients.connect(number)?;
            clients.all.push(client);
        }
        Ok(clients)
    }

    fn connect(&self, number: usize) -> Result<Client> {
        let load = self.load;
        let link = Link::open(load.to, load.tls.as_ref().map(|(config, name)| (config, name)))?;
        self.epoll.add(link.tcp.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        let speaks = match &load.asks {
            Asks::KeepAlive(_) | Asks::Once(_) => Speaks::One(One::default()),
            Asks::Streams(streams, host) => Speaks::Two(Box::new(Two::new(host, load.wanted, *streams))),
        };
        Ok(Client { link, speaks, waits_to_write: false, due: None })
    }

    /// Sends the next request of a connection, or all that HTTP/2 has gathered.
    fn ask(&mut self, number: usize) -> Result<()> {
        let client = self.all.get_mut(number).context("no such connection")?;
        match (&mut client.speaks, &self.load.asks) {
            (Speaks::Two(two), _) => {
                if !two.out.is_empty() {
                    client.link.send(&two.out)?;
                    two.out.clear();
                }
            }
            (Speaks::One(_), Asks::KeepAlive(requests)) => {
                self.next = (self.next + 1) % requests.len();
                client.link.send(&requests[self.next])?;
            }
            (Speaks::One(_), Asks::Once(request)) => client.link.send(request)?,
            (Speaks::One(_), Asks::Streams(..)) => bail!("not HTTP/2"),
        }
        self.watch(number)
    }

    /// Waits for room to write where there is something to be written.
    fn watch(&mut self, number: usize) -> Result<()> {
        let client = self.all.get_mut(number).context("no such connection")?;
        let waits = client.link.waits_to_write();
        if waits != client.waits_to_write {
            client.waits_to_write = waits;
            let more = if waits { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | more, number as u64);
            self.epoll.modify(client.link.tcp.as_fd(), &mut event)?;
        }
        Ok(())
    }

    fn replace(&mut self, number: usize) -> Result<()> {
        // The old one leaves the epoll when it is closed.
        let fresh = self.connect(number)?;
        let client = self.all.get_mut(number).context("no such connection")?;
        *client = fresh;
        Ok(())
    }

    /// Reads what came; asks nothing new but for HTTP/2, whose streams do by themselves.
    fn turn(&mut self, number: usize) -> Result<Turn> {
        let client = self.all.get_mut(number).context("no such connection")?;
        client.link.flush()?;
        let mut turn = Turn { answers: 0, over: false };
        loop {
            let bytes = match client.link.receive(&mut self.buffer)? {
                Read1::Later => break,
                Read1::End => {
                    turn.over = match &client.speaks {
                        Speaks::One(one) => one.closes,
                        Speaks::Two(two) => two.is_over(),
                    };
                    ensure!(turn.over, "the connection was closed without a word");
                    break;
                }
                Read1::Bytes(count) => self.buffer.get(..count).unwrap_or_default(),
            };
            match &mut client.speaks {
                Speaks::One(one) => {
                    if one.take(bytes, self.load.wanted)? {
                        turn.answers += 1;
                        turn.over = one.closes;
                        break;
                    }
                }
                Speaks::Two(two) => {
                    turn.answers += two.take(bytes)? as u64;
                    turn.over = two.is_over();
                    if turn.over {
                        break;
                    }
                }
            }
        }
        if !turn.over {
            self.watch(number)?;
        }
        Ok(turn)
    }
}

/// Loads a proxy for `warm` and then for `length`, which is what is told.
pub(super) fn closed(load: &Load, proxy: &Proxy, warm: Duration, length: Duration) -> Result<Done> {
    let mut clients = Clients::open(load)?;
    for number in 0..load.connections {
        clients.ask(number)?;
    }
    let begun = Instant::now();
    let mut measured: Option<(Instant, Duration)> = None;
    let (mut answers, mut last) = (0, begun);
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let ready = wait(&clients.epoll, &mut events, 100)?;
        for event in &events[..ready] {
            let number = usize::try_from(event.data())?;
            let turn = clients.turn(number)?;
            answers += turn.answers;
            if turn.over {
                clients.replace(number)?;
            }
            let asks_again = turn.answers > 0 || turn.over;
            if asks_again || matches!(load.asks, Asks::Streams(..)) {
                clients.ask(number)?;
            }
        }
        let now = Instant::now();
        if ready > 0 {
            last = now;
        }
        ensure!(now - last < SILENCE, "no answer for {SILENCE:?}");
        match measured {
            None if now - begun >= warm => {
                measured = Some((now, proxy.cpu()?));
                answers = 0;
            }
            Some((from, cpu)) if now - from >= length => {
                let cpu = proxy.cpu()?.saturating_sub(cpu);
                ensure!(answers > 0, "nothing was answered");
                return Ok(Done { answers, took: now - from, cpu });
            }
            None | Some(_) => {}
        }
    }
}

/// Asks at a steady rate for `length`; the times of the answers in microseconds, from when each
/// request was due.
pub(super) fn open(load: &Load, rate: f64, length: Duration) -> Result<Vec<f64>> {
    const TIMER: u64 = u64::MAX;
    let mut clients = Clients::open(load)?;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    let step = Duration::from_secs_f64(1.0 / rate);
    timer.set(Expiration::Interval(TimeSpec::from_duration(step)), TimerSetTimeFlags::empty())?;
    clients.epoll.add(timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
    let begun = Instant::now();
    let (mut due, end) = (begun + step, begun + length);
    let mut free: Vec<usize> = (0..load.connections).collect();
    let mut waiting: VecDeque<Instant> = VecDeque::new();
    let mut times = Vec::new();
    let mut events = [EpollEvent::empty(); 64];
    let (mut last, mut left) = (begun, load.connections);
    loop {
        let ready = wait(&clients.epoll, &mut events, 100)?;
        for event in &events[..ready] {
            if event.data() == TIMER {
                // It need not be read to the last tick: what is due is told by the clock.
                let _ticks = timer.wait();
                continue;
            }
            let number = usize::try_from(event.data())?;
            let turn = clients.turn(number)?;
            if turn.answers > 0 {
                let since = clients.all[number].due.take().context("an answer to nothing")?;
                times.push(since.elapsed().as_secs_f64() * 1e6);
                free.push(number);
                last = Instant::now();
            }
            if turn.over {
                clients.replace(number)?;
            }
        }
        let now = Instant::now();
        while due <= now && due < end {
            waiting.push_back(due);
            due += step;
        }
        while let Some(number) = free.pop() {
            let Some(since) = waiting.pop_front() else {
                free.push(number);
                break;
            };
            left = left.min(free.len());
            clients.all[number].due = Some(since);
            clients.ask(number)?;
        }
        if now >= end && waiting.is_empty() && free.len() == load.connections {
            return Ok(times);
        }
        ensure!(now - last < SILENCE, "no answer for {SILENCE:?}; {left} connections were free at least");
    }
}

fn wait(epoll: &Epoll, events: &mut [EpollEvent], millis: u8) -> Result<usize> {
    match epoll.wait(events, EpollTimeout::from(millis)) {
        Err(Errno::EINTR) => Ok(0),
        ready => Ok(ready?),
    }
}
