//! Puts the judges around a connection.
//!
//! [`Judged`] stands between a client's socket and hyper. What was let through is handed on
//! without a copy where it came in one piece. A head that is refused never reaches hyper: in
//! its place it gets a [fixed request](STAND_IN), and the [`Ledger`], which the connection's
//! service asks at each request, says with which status to answer that one. So a refusal is
//! answered in order, behind the good requests that were sent before it, and ends the
//! connection. A body that goes wrong ends in a read error, and the ledger says why.

pub mod frames;
mod held;
pub mod origin;

use super::request::{Place, Requests};
use super::{Reason, Verdict};
use futures_util::task::AtomicWaker;
use held::Held;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What hyper reads in the place of a head that is refused. It asks for the connection's end.
pub const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
/// Most bytes kept from a client that sends on before its upgrade is answered.
const HELD_LIMIT: usize = 64 * 1024;

/// What the judge of a connection and its service tell each other.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The first refusal of the connection and the number, from 1, of its request.
    refusal: OnceLock<(u64, Reason)>,
    /// Requests that the service has begun.
    begun: AtomicU64,
    /// The request whose upgrade was decided last, and, in the lowest bit, how.
    decided: AtomicU64,
    waker: AtomicWaker,
}

/// One request in the hands of the service. Dropping it says that no upgrade came of it.
#[derive(Debug)]
pub struct Turn {
    ledger: Arc<Ledger>,
    number: u64,
}

impl Ledger {
    /// Begins the next request of the connection; called once for each, in order.
    ///
    /// # Errors
    /// When this one was refused: it is to be answered with the reason's status, and its
    /// fields are not the client's.
    pub fn begin(self: &Arc<Self>) -> Result<Turn, Reason> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        match self.refusal.get() {
            Some((refused, reason)) if number >= *refused => Err(*reason),
            Some(_) | None => Ok(Turn { ledger: Arc::clone(self), number }),
        }
    }

    /// The reason for which the connection was refused, if it was.
    #[must_use]
    pub fn refusal(&self) -> Option<Reason> {
        self.refusal.get().map(|(_, reason)| *reason)
    }

    fn refuse(&self, number: u64, reason: Reason) {
        // A connection is refused once: the judge says the same ever after.
        let _first = self.refusal.set((number, reason));
    }

    fn decide(&self, number: u64, tunnel: bool) {
        let before = self.decided.fetch_max(number << 1 | u64::from(tunnel), Ordering::AcqRel);
        if before >> 1 < number {
            self.waker.wake();
        }
    }

    fn decision(&self, number: u64) -> Option<bool> {
        let decided = self.decided.load(Ordering::Acquire);
        (decided >> 1 >= number).then_some(decided == (number << 1 | 1))
    }
}

impl Turn {
    /// Why this request's body was refused, once reading it has failed.
    #[must_use]
    pub fn refusal(&self) -> Option<Reason> {
        let (number, reason) = self.ledger.refusal.get()?;
        (*number <= self.number).then_some(*reason)
    }

    /// Says that this request is answered with 101: what the client sends from now on is no
    /// HTTP. To be called before the answer is given to hyper.
    pub fn upgraded(self) {
        self.ledger.decide(self.number, true);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.ledger.decide(self.number, false);
    }
}

/// A client's connection, with the judge of its requests in front of hyper.
#[derive(Debug)]
pub struct Judged<IO> {
    io: IO,
    requests: Requests,
    ledger: Arc<Ledger>,
    held: Held,
    /// Handed on of the stand-in, once there is a refusal.
    stood_in: usize,
}

impl<IO> Judged<IO> {
    pub fn new(io: IO) -> (Self, Arc<Ledger>) {
        let ledger = Arc::new(Ledger::default());
        let judged = Self {
            io,
            requests: Requests::default(),
            ledger: Arc::clone(&ledger),
            held: Held::default(),
            stood_in: 0,
        };
        (judged, ledger)
    }

    /// Where in the conversation the client is: which deadline applies.
    pub const fn place(&self) -> Place {
        self.requests.place()
    }

    pub const fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The connection itself: what is read of it is not judged.
    pub const fn get_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// Judges `bytes`, none of which was handed on; says how many may be. A refusal behind
    /// them is in the ledger, and comes to bear once they are handed on.
    fn judge(requests: &mut Requests, ledger: &Ledger, bytes: &[u8]) -> usize {
        let mut good = 0;
        loop {
            match requests.judge(bytes.get(good..).unwrap_or_default()) {
                Verdict::Pass(count) => good += count,
                Verdict::More => return good,
                Verdict::Refuse(reason) => {
                    let number = requests.heads() + u64::from(!requests.refused_in_body());
                    ledger.refuse(number, reason);
                    return good;
                }
            }
        }
    }

    /// After a refusal: the stand-in, then nothing more; or the end of a broken body.
    fn refused(&mut self, reason: Reason, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.requests.refused_in_body() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, reason.label())));
        }
        let rest = STAND_IN.get(self.stood_in..).unwrap_or_default();
        if rest.is_empty() {
            return Poll::Pending;
        }
        let count = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..count).unwrap_or_default());
        self.stood_in += count;
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Judged<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if buf.remaining() == 0 || this.held.hand_on(buf) {
                return Poll::Ready(Ok(()));
            }
            match this.requests.place() {
                Place::Refused => {
                    let reason = this.ledger.refusal().unwrap_or(Reason::RequestLine);
                    return this.refused(reason, buf);
                }
                Place::Asked => {
                    this.ledger.waker.register(cx.waker());
                    if let Some(tunnel) = this.ledger.decision(this.requests.heads()) {
                        this.requests.decide(tunnel);
                        this.held.judge(|bytes| Self::judge(&mut this.requests, &this.ledger, bytes));
                        continue;
                    }
                    if this.held.len() >= HELD_LIMIT {
                        return Poll::Pending;
                    }
                }
                Place::Between | Place::Head | Place::Body | Place::Tunnel => {}
            }
            let before = buf.filled().len();
            let unseen = if this.held.is_empty() { this.requests.unseen() } else { 0 };
            let whole = unseen >= buf.remaining() as u64;
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let fresh = buf.filled().get(before..).unwrap_or_default();
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if whole {
                this.requests.passed_unseen(fresh.len() as u64);
                return Poll::Ready(Ok(()));
            }
            if this.held.take(buf, before, |bytes| Self::judge(&mut this.requests, &this.ledger, bytes)) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Judged<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
