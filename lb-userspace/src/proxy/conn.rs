//! One client connection as its requests see it: who is there, and until when the client must
//! do something.
//!
//! The deadlines of H24 are kept here. One is for what the client owes next (a first byte, the
//! rest of a head, a body, the next request), one for a write that stands still. The
//! connection's task looks at both each time it is polled.

use crate::proxy::deadline::{Deadline, Deadlines, millis};
use crate::proxy::engine::Scheme;
use crate::proxy::judge::io::Ledger;
use crate::proxy::pace::Pace;
use crate::proxy::stream::Handed;
use crate::proxy::table::InFlight;
use crate::proxy::tls::Facts;
use crate::proxy::upstream::Http1;
use crate::proxy::worker::Worker;
use http::HeaderValue;
use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

/// How long an idle connection keeps its buffers for the next request.
const REST: Duration = Duration::from_secs(1);

/// What the answers of one connection may take of memory in each of the two places where they
/// wait, and among how many of them it is divided.
const ROOM: usize = 512 * 1024;
const MOST_SHARES: usize = 128;

/// What the client owes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of a head.
    Head,
    /// Nothing, or a body, whose reader keeps the deadline.
    Busy,
    /// HTTP/2: the next request, when none is open. Frames that ask for nothing do not count.
    Frames,
}

/// Why a connection ends without having been asked to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expiry {
    /// Between requests: nobody is owed an answer.
    Idle,
    /// Within a head: 408.
    Head,
    /// A write stood still.
    Write,
    /// The drain is over.
    End,
}

pub(super) struct Conn {
    pub(super) worker: Rc<Worker>,
    pub(super) peer: SocketAddr,
    pub(super) scheme: Scheme,
    /// What the handshake agreed on; none over plain TCP.
    pub(super) tls: OnceCell<Facts>,
    /// What the judge of raw bytes has to say; none over HTTP/2.
    pub(super) ledger: OnceCell<Arc<Ledger>>,
    /// The peer's address as `X-Real-IP` has it.
    pub(super) peer_text: HeaderValue,
    /// Whether forwarded headers of the peer are believed.
    pub(super) trusted: bool,
    /// What the client owes; within a request's body it belongs to the body's reader.
    pub(super) owed: Deadline,
    /// When an HTTP/2 connection that was told to go is ended, if nothing is open then.
    goodbye: OnceCell<Deadline>,
    /// From when on it serves nothing more, on the worker's clock; nothing moves it.
    deaf: Cell<u64>,
    /// When an idle connection gives back its buffers.
    rest: Deadline,
    /// Until when a write that stands still may do so, and what the client's pace leaves it.
    write: Deadline,
    pace: Pace,
    /// What the stream that is polled at the moment has got of its answer.
    handed: Cell<Option<Handed>>,
    phase: Cell<Phase>,
    requests: Cell<u32>,
    open: Cell<u32>,
    draining: Cell<bool>,
    ended: Cell<bool>,
    /// An answer was broken off: the connection must not look as if it ended in order.
    broken_off: Cell<bool>,
    /// An answer was given before its request was read: the rest is to be waited for.
    lingers: Cell<bool>,
    tunnel: RefCell<Option<Tunnel>>,
    waker: RefCell<Option<Waker>>,
}

/// What an upgraded connection is connected to.
pub(super) struct Tunnel {
    pub(super) connection: Box<Http1>,
    pub(super) in_flight: InFlight,
    pub(super) websocket: bool,
}

/// Counts a request as open at its connection for as long as it lives.
pub(super) struct Open(Rc<Conn>);

impl Conn {
    pub(super) fn new(worker: &Rc<Worker>, peer: SocketAddr, scheme: Scheme) -> Rc<Self> {
        let deadlines: &Rc<Deadlines> = &worker.deadlines;
        let settings = &worker.shared.settings;
        // A dual-stack socket names IPv4 clients by IPv4-mapped addresses (RFC 4291, 2.5.5.2).
        let address = peer.ip().to_canonical();
        let peer = SocketAddr::new(address, peer.port());
        let conn = Self {
            peer,
            scheme,
            tls: OnceCell::new(),
            ledger: OnceCell::new(),
            // An address is nothing but hex digits, dots and colons.
            peer_text: HeaderValue::try_from(address.to_string())
                .unwrap_or(HeaderValue::from_static("unknown")),
            trusted: settings.trusts(address),
            owed: deadlines.add(),
            goodbye: OnceCell::new(),
            deaf: Cell::new(u64::MAX),
            rest: deadlines.add(),
            write: deadlines.add(),
            pace: Pace::new(&settings.client),
            handed: Cell::new(None),
            phase: Cell::new(Phase::Idle),
            requests: Cell::new(0),
            open: Cell::new(0),
            draining: Cell::new(worker.connections.is_draining()),
            ended: Cell::new(false),
            broken_off: Cell::new(false),
            lingers: Cell::new(false),
            tunnel: RefCell::new(None),
            waker: RefCell::new(None),
            worker: Rc::clone(worker),
        };
        conn.owed.set(settings.client.idle);
        Rc::new(conn)
    }

    /// From now on, frames.
    pub(super) fn speaks_h2(&self) {
        self.phase.set(Phase::Frames);
        self.owed.set(self.worker.shared.settings.client.idle);
    }

    /// From now on, bytes of another protocol, with limits of their own.
    pub(super) fn is_upgraded(&self) {
        self.phase.set(Phase::Busy);
        self.owed.clear();
    }

    pub(super) fn is_h2(&self) -> bool {
        self.phase.get() == Phase::Frames
    }

    /// Bytes came.
    pub(super) fn has_read(&self) {
        match self.phase.get() {
            Phase::Idle => {
                self.phase.set(Phase::Head);
                self.owed.set(self.worker.shared.settings.client.head);
            }
            Phase::Head | Phase::Busy | Phase::Frames => {}
        }
    }

    /// Bytes went.
    pub(super) fn has_written(&self, count: usize) {
        self.has_flushed();
        self.pace.moved(count);
    }

    /// Nothing waits to go any more.
    pub(super) fn has_flushed(&self) {
        if self.pace.is_waiting() {
            self.pace.goes_on(self.worker.deadlines.now());
            self.write.clear();
        }
    }

    /// Bytes should go and cannot.
    pub(super) fn cannot_write(&self) {
        if !self.pace.is_waiting() {
            self.write.set(self.pace.waits(self.worker.deadlines.now()));
        }
    }

    /// Tells whether bytes should go and cannot.
    pub(super) fn write_stands(&self) -> bool {
        self.pace.is_waiting()
    }

    /// A part of an answer was handed over to be written.
    pub(super) fn has_handed(&self, bytes: usize) {
        let before = self.handed.get().map_or(0, |handed| handed.bytes);
        self.handed.set(Some(Handed { bytes: before.saturating_add(bytes), all: false }));
    }

    /// There is no more of an answer for the moment.
    pub(super) fn has_handed_all(&self) {
        let bytes = self.handed.get().map_or(0, |handed| handed.bytes);
        self.handed.set(Some(Handed { bytes, all: true }));
    }

    /// How much of an answer may be read at once: the more requests are open, the less, since
    /// what a client does not take stays in memory (H20).
    pub(super) fn room(&self) -> usize {
        ROOM / usize::try_from(self.open.get()).unwrap_or(MOST_SHARES).clamp(1, MOST_SHARES)
    }

    /// What was handed over since this was asked last.
    pub(super) fn take_handed(&self) -> Option<Handed> {
        self.handed.take()
    }

    /// A request begins; it is over when the answer's last byte is handed on.
    pub(super) fn begin(self: &Rc<Self>) -> Open {
        self.requests.set(self.requests.get().saturating_add(1));
        let is_first = self.open.replace(self.open.get() + 1) == 0;
        if !self.is_h2() {
            self.phase.set(Phase::Busy);
            self.owed.clear();
        } else if is_first {
            self.owed.clear();
        }
        Open(Rc::clone(self))
    }

    fn over(&self) {
        self.open.set(self.open.get().saturating_sub(1));
        match self.phase.get() {
            Phase::Busy => {
                self.phase.set(Phase::Idle);
                self.owed.set(self.worker.shared.settings.client.idle);
                self.rest.set(REST);
            }
            Phase::Frames => {
                let limits = &self.worker.shared.settings.client;
                match self.goodbye.get() {
                    _ if self.open.get() > 0 => {}
                    // The end of an answer may still be on its way to a slow client.
                    Some(goodbye) => goodbye.set(limits.stall),
                    None => self.owed.set(limits.idle),
                }
                if self.requests_are_used_up() || self.is_leaving() {
                    self.wake();
                }
            }
            Phase::Idle | Phase::Head => {}
        }
    }

    fn requests_are_used_up(&self) -> bool {
        self.requests.get() >= self.worker.shared.settings.client.requests
    }

    /// Tells whether the connection should be given up by the client after this answer.
    pub(super) fn is_last(&self) -> bool {
        self.draining.get() || self.requests_are_used_up()
    }

    /// Asks for a graceful end.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        self.wake();
    }

    /// It was told to go: what is open may end, and nothing more begins once `time` has passed.
    pub(super) fn leaves(&self, time: Duration) {
        self.owed.clear();
        self.deaf.set(self.worker.deadlines.now().saturating_add(millis(time)));
        let limits = &self.worker.shared.settings.client;
        let time = if self.pace.is_waiting() { limits.stall } else { time };
        self.goodbye.get_or_init(|| self.worker.deadlines.add()).set(time);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.goodbye.get().is_some()
    }

    /// Tells whether it was told to go and has had its time to.
    pub(super) fn has_left(&self) -> bool {
        self.worker.deadlines.now() >= self.deaf.get()
    }

    /// Ends it.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.wake();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    pub(super) fn breaks_off(&self) {
        self.broken_off.set(true);
    }

    pub(super) fn is_broken_off(&self) -> bool {
        self.broken_off.get()
    }

    pub(super) fn will_linger(&self) {
        self.lingers.set(true);
    }

    pub(super) fn lingers(&self) -> bool {
        self.lingers.get()
    }

    /// Behind the answer that is given now, the connection is a tunnel.
    pub(super) fn will_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel.borrow_mut() = Some(tunnel);
    }

    pub(super) fn take_tunnel(&self) -> Option<Tunnel> {
        self.tunnel.borrow_mut().take()
    }

    /// Wakes the connection's task.
    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Tells, once after each request, that the connection has been idle for a while, with
    /// nothing left to be written. The task is woken for it.
    pub(super) fn poll_rest(&self, cx: &Context<'_>) -> bool {
        if !self.rest.poll(cx) {
            return false;
        }
        self.rest.clear();
        self.phase.get() == Phase::Idle && !self.write_stands()
    }

    /// Tells whether the connection is over. The task is woken when that may have changed.
    pub(super) fn poll_expiry(&self, cx: &Context<'_>) -> Option<Expiry> {
        if self.ended.get() {
            return Some(Expiry::End);
        }
        {
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        if self.write.poll(cx) {
            return Some(Expiry::Write);
        }
        if self.goodbye.get().is_some_and(|goodbye| goodbye.poll(cx)) && self.open.get() == 0 {
            return Some(Expiry::Idle);
        }
        if !self.owed.poll(cx) {
            return None;
        }
        match self.phase.get() {
            // The end of the last answer is still on its way: the client owes nothing yet.
            Phase::Idle if self.write_stands() => {
                self.owed.set(self.worker.shared.settings.client.idle);
                let _ = self.owed.poll(cx);
                None
            }
            Phase::Idle | Phase::Frames => Some(Expiry::Idle),
            Phase::Head => Some(Expiry::Head),
            Phase::Busy => None,
        }
    }
}

impl Open {
    pub(super) fn conn(&self) -> &Rc<Conn> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.over();
    }
}
