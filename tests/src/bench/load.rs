//! The loads that a client puts on an address for a slice of time.
//!
//! One thread, plain system calls, no runtime: what is measured should be the kernel's path
//! and not the generator's.

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, connect, getsockopt, recv, send, socket, sockopt,
};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of a TCP question and of its answer.
pub(super) const MESSAGE: usize = 64;
/// Bytes of a datagram: the payload of the smallest Ethernet frame.
pub(super) const DATAGRAM: usize = 18;
/// Connections that [`Load::Short`] keeps under way.
const PARALLEL: usize = 16;
/// Longest wait for an answer; a slice that meets it has a failure to tell.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is done over and over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) enum Load {
    /// TCP: connect, ask, read the answer, close; 16 at a time.
    Short,
    /// TCP: ask and read the answer on one connection.
    Ask,
    /// UDP: the same with one connected socket.
    AskUdp,
    /// UDP: the same with sendto and recvfrom on one socket.
    AskUdpUnconnected,
    /// UDP: a new socket for each question, as resolvers do.
    ShortUdp,
    /// UDP: datagrams one way, as fast as they go; the server counts.
    Packets,
    /// TCP: bytes one way, as fast as they go; the server counts.
    Bulk,
}

/// A load, its target and its length.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Slice {
    pub(super) load: Load,
    pub(super) to: SocketAddrV4,
    pub(super) micros: u64,
}

/// What came of a slice.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Done {
    /// Questions answered; for one-way loads what was sent.
    pub(super) count: u64,
    /// Questions that failed or were not answered in time.
    pub(super) failed: u64,
    pub(super) micros: u64,
    /// Time to an answer, where there is one.
    pub(super) p50_micros: f64,
    pub(super) p99_micros: f64,
}

/// Counts answers and their times.
struct Tally {
    start: Instant,
    end: Instant,
    nanos: Vec<u32>,
    failed: u64,
}

impl Tally {
    fn new(micros: u64) -> Self {
        let start = Instant::now();
        Self {
            start,
            end: start + Duration::from_micros(micros),
            nanos: Vec::with_capacity(1 << 16),
            failed: 0,
        }
    }

    /// Notes an answer; false when the slice is over.
    fn answered(&mut self, asked: Instant) -> bool {
        let now = Instant::now();
        self.nanos.push(u32::try_from((now - asked).as_nanos()).unwrap_or(u32::MAX));
        now < self.end
    }

    fn failed(&mut self) -> bool {
        self.failed += 1;
        Instant::now() < self.end
    }

    fn done(mut self) -> Done {
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.nanos.sort_unstable();
        let at = |q: f64| {
            let index = (q * self.nanos.len().saturating_sub(1) as f64) as usize;
            self.nanos.get(index).map_or(0.0, |nanos| f64::from(*nanos) / 1000.0)
        };
        let (p50_micros, p99_micros) = (at(0.5), at(0.99));
        Done { count: self.nanos.len() as u64, failed: self.failed, micros, p50_micros, p99_micros }
    }
}

/// Puts one slice of load on its target.
pub(super) fn run(slice: Slice) -> Result<Done> {
    let Slice { load, to, micros } = slice;
    match load {
        Load::Short => short(to, micros),
        Load::Ask => ask(to, micros),
        Load::AskUdp => ask_udp(to, micros, true),
        Load::AskUdpUnconnected => ask_udp(to, micros, false),
        Load::ShortUdp => short_udp(to, micros),
        Load::Packets => packets(to, micros),
        Load::Bulk => bulk(to, micros),
    }
    .with_context(|| format!("{load:?} to {to}"))
}

fn ask(to: SocketAddrV4, micros: u64) -> Result<Done> {
    let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (question, mut answer) = ([b'q'; MESSAGE], [0; MESSAGE]);
    let mut tally = Tally::new(micros);
    loop {
        let asked = Instant::now();
        stream.write_all(&question)?;
        stream.read_exact(&mut answer)?;
        if !tally.answered(asked) {
            return Ok(tally.done());
        }
    }
}

fn ask_udp(to: SocketAddrV4, micros: u64, connected: bool) -> Result<Done> {
    let socket = datagrams()?;
    if connected {
        socket.connect(to)?;
    }
    let (question, mut answer) = ([b'q'; DATAGRAM], [0; 64]);
    let mut tally = Tally::new(micros);
    loop {
        let asked = Instant::now();
        let received = if connected {
            socket.send(&question).and_then(|_| socket.recv(&mut answer))
        } else {
            socket.send_to(&question, to).and_then(|_| socket.recv_from(&mut answer)).map(|(n, _)| n)
        };
        let more = if received.is_ok() { tally.answered(asked) } else { tally.failed() };
        if !more {
            return Ok(tally.done());
        }
    }
}

fn short_udp(to: SocketAddrV4, micros: u64) -> Result<Done> {
    let (question, mut answer) = ([b'q'; DATAGRAM], [0; 64]);
    let mut tally = Tally::new(micros);
    loop {
        let asked = Instant::now();
        let socket = datagrams()?;
        socket.connect(to)?;
        let received = socket.send(&question).and_then(|_| socket.recv(&mut answer));
        let more = if received.is_ok() { tally.answered(asked) } else { tally.failed() };
        if !more {
            return Ok(tally.done());
        }
    }
}

fn packets(to: SocketAddrV4, micros: u64) -> Result<Done> {
    let socket = datagrams()?;
    socket.connect(to)?;
    one_way(micros, || Ok(u64::from(socket.send(&[b'p'; DATAGRAM]).is_ok())))
}

fn bulk(to: SocketAddrV4, micros: u64) -> Result<Done> {
    let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let bytes = vec![b'b'; 128 * 1024];
    one_way(micros, || Ok(stream.write(&bytes)? as u64))
}

fn one_way(micros: u64, mut step: impl FnMut() -> Result<u64>) -> Result<Done> {
    let start = Instant::now();
    let end = start + Duration::from_micros(micros);
    let mut count = 0;
    loop {
        // The clock is read once for several sends.
        for _ in 0..8 {
            count += step()?;
        }
        let now = Instant::now();
        if now >= end {
            let micros = u64::try_from((now - start).as_micros()).unwrap_or(u64::MAX);
            return Ok(Done { count, micros, ..Done::default() });
        }
    }
}

fn datagrams() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A connection of [`Load::Short`] under way.
struct Short {
    socket: OwnedFd,
    begun: Instant,
    asked: bool,
}

fn short(to: SocketAddrV4, micros: u64) -> Result<Done> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let address = SockaddrIn::from(to);
    let mut tally = Tally::new(micros);
    let mut under_way: Vec<Option<Short>> = Vec::new();
    for token in 0..PARALLEL {
        under_way.push(Some(begin(&epoll, &address, token as u64)?));
    }
    let mut events = [EpollEvent::empty(); PARALLEL];
    let mut open = PARALLEL;
    let patience = EpollTimeout::try_from(PATIENCE)?;
    while open > 0 {
        let ready = epoll.wait(&mut events, patience)?;
        if ready == 0 {
            // Nothing moves any more: whatever is open is lost.
            tally.failed += open as u64;
            break;
        }
        for event in &events[..ready] {
            let token = event.data() as usize;
            let Some(connection) = under_way.get_mut(token).and_then(Option::as_mut) else { continue };
            let step = advance(connection, event.events());
            let more = match step {
                Ok(false) => continue,
                Ok(true) => tally.answered(connection.begun),
                Err(_) => tally.failed(),
            };
            under_way[token] = None;
            if more {
                under_way[token] = Some(begin(&epoll, &address, token as u64)?);
            } else {
                open -= 1;
            }
        }
    }
    ensure!(tally.failed < 1000, "{} connections failed", tally.failed);
    Ok(tally.done())
}

fn begin(epoll: &Epoll, to: &SockaddrIn, token: u64) -> Result<Short> {
    let begun = Instant::now();
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
    match connect(socket.as_raw_fd(), to) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error).context("connect"),
    }
    epoll.add(&socket, EpollEvent::new(interest, token))?;
    Ok(Short { socket, begun, asked: false })
}

/// Takes the next step of a connection; true when it has its answer.
fn advance(connection: &mut Short, ready: EpollFlags) -> Result<bool> {
    let fd = connection.socket.as_raw_fd();
    if !connection.asked {
        if !ready.contains(EpollFlags::EPOLLOUT) {
            return Ok(false);
        }
        let error = getsockopt(&connection.socket, sockopt::SocketError)?;
        ensure!(error == 0, "not connected: {}", Errno::from_raw(error));
        ensure!(send(fd, &[b'q'; MESSAGE], MsgFlags::MSG_NOSIGNAL)? == MESSAGE, "sent in part");
        connection.asked = true;
        return Ok(false);
    }
    match recv(fd, &mut [0; MESSAGE], MsgFlags::empty()) {
        Ok(MESSAGE) => Ok(true),
        Ok(n) => anyhow::bail!("{n} bytes of an answer"),
        Err(Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
