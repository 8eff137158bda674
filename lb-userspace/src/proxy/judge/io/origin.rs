//! The judge of an origin's answers, around the connection to it.
//!
//! What is refused reaches hyper as a read error; the [`Owed`] that the connection's users
//! share says why, and whether the head of the answer had already gone on (then the client's
//! answer is broken off; before, it is a 502).

use super::held::Held;
use crate::proxy::judge::response::{Answers, Question};
use crate::proxy::judge::{Reason, Verdict};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const ASKED: u8 = 1;
const HEAD: u8 = 2;
const UPGRADE: u8 = 4;

/// What the judge of a connection to an origin and those who send requests over it share.
#[derive(Debug, Default)]
pub struct Owed {
    /// The next request, until its first bytes are written.
    next: AtomicU8,
    fault: OnceLock<Reason>,
    busy: AtomicBool,
    begun: AtomicBool,
}

impl Owed {
    /// Announces the next request; to be called right before it is given to hyper.
    pub fn ask(&self, question: Question) {
        let head = if question.head { HEAD } else { 0 };
        let upgrade = if question.upgrade { UPGRADE } else { 0 };
        self.begun.store(false, Ordering::Release);
        self.next.store(ASKED | head | upgrade, Ordering::Release);
    }

    /// Tells whether another request may be sent: nothing is owed, and nothing came unasked.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        !self.busy.load(Ordering::Acquire) && self.next.load(Ordering::Acquire) == 0 && self.fault().is_none()
    }

    /// Why the origin's bytes were refused, if they were.
    #[must_use]
    pub fn fault(&self) -> Option<Reason> {
        self.fault.get().copied()
    }

    /// Tells whether the head of the current answer went on.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }
}

/// A connection to an origin, with the judge of its answers in front of hyper.
#[derive(Debug)]
pub struct Origin<IO> {
    io: IO,
    answers: Answers,
    owed: Arc<Owed>,
    held: Held,
}

impl<IO> Origin<IO> {
    pub fn new(io: IO) -> (Self, Arc<Owed>) {
        let owed = Arc::new(Owed::default());
        let origin = Self { io, answers: Answers::default(), owed: Arc::clone(&owed), held: Held::default() };
        (origin, owed)
    }

    pub const fn get_ref(&self) -> &IO {
        &self.io
    }

    fn judge(answers: &mut Answers, owed: &Owed, bytes: &[u8]) -> usize {
        let mut good = 0;
        loop {
            match answers.judge(bytes.get(good..).unwrap_or_default()) {
                Verdict::Pass(count) => good += count,
                Verdict::More => return good,
                Verdict::Refuse(reason) => {
                    // The first fault stays.
                    let _first = owed.fault.set(reason);
                    return good;
                }
            }
        }
    }

    fn tell(&self) {
        self.owed.busy.store(!self.answers.is_idle(), Ordering::Release);
        self.owed.begun.store(self.answers.has_begun(), Ordering::Release);
    }

    /// The request that was announced begins to go out.
    fn begin(&mut self) {
        let next = self.owed.next.load(Ordering::Acquire);
        if next != 0 {
            self.answers.ask(Question { head: next & HEAD != 0, upgrade: next & UPGRADE != 0 });
            self.owed.busy.store(true, Ordering::Release);
            self.owed.next.store(0, Ordering::Release);
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Origin<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if buf.remaining() == 0 || this.held.hand_on(buf) {
                return Poll::Ready(Ok(()));
            }
            if let Some(reason) = this.owed.fault() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, reason.label())));
            }
            let before = buf.filled().len();
            let unseen = if this.held.is_empty() { this.answers.unseen() } else { 0 };
            let whole = unseen >= buf.remaining() as u64;
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let fresh = buf.filled().get(before..).unwrap_or_default();
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if whole {
                this.answers.passed_unseen(fresh.len() as u64);
                this.tell();
                return Poll::Ready(Ok(()));
            }
            let stands =
                this.held.take(buf, before, |bytes| Self::judge(&mut this.answers, &this.owed, bytes));
            this.tell();
            if stands {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Origin<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.begin();
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.begin();
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
