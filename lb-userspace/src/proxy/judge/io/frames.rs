//! The books of HTTP/2 frames, around a client's connection.
//!
//! A connection that has overdrawn its budget is ended by the library itself: in the place of
//! the frame that was too much it gets [one that is always an error](BREAK), says GOAWAY and
//! closes.

use super::held::Held;
use crate::proxy::judge::h2::{Abuse, Frames, Ruling};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// DATA on stream 0: a connection error of type PROTOCOL_ERROR (RFC 9113 6.1).
const BREAK: [u8; 9] = [0; 9];

/// Why a connection was ended, once it was.
pub type Ended = Arc<OnceLock<Abuse>>;

/// A client's HTTP/2 connection, with its frames counted in front of hyper.
#[derive(Debug)]
pub struct Counted<IO> {
    io: IO,
    since: Instant,
    frames: Frames,
    ended: Ended,
    /// A frame's header that is not whole; 8 bytes at most, and what came with its rest.
    held: Held,
    /// Handed on of the frame that ends the connection.
    broke: usize,
}

impl<IO> Counted<IO> {
    pub fn new(io: IO) -> (Self, Ended) {
        let ended = Ended::default();
        let counted = Self {
            io,
            since: Instant::now(),
            frames: Frames::default(),
            ended: Arc::clone(&ended),
            held: Held::default(),
            broke: 0,
        };
        (counted, ended)
    }

    pub const fn get_ref(&self) -> &IO {
        &self.io
    }

    fn judge(frames: &mut Frames, ended: &OnceLock<Abuse>, now: Duration, bytes: &[u8]) -> usize {
        let mut good = 0;
        loop {
            let rest = bytes.get(good..).unwrap_or_default();
            if rest.is_empty() {
                // What is known only once a frame is whole ends the connection right behind it.
                if let Some(abuse) = frames.overdrawn() {
                    let _first = ended.set(abuse);
                }
                return good;
            }
            match frames.client(rest, now) {
                Ruling::Pass(count) => good += count,
                Ruling::More => return good,
                Ruling::End(abuse) => {
                    // A connection is ended once.
                    let _first = ended.set(abuse);
                    return good;
                }
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if buf.remaining() == 0 || this.held.hand_on(buf) {
                return Poll::Ready(Ok(()));
            }
            if let Some(abuse) = this.ended.get() {
                // A preface that is none is the library's own error, and so is an end within a
                // frame; then nothing more.
                let ends = matches!(abuse, Abuse::Preface | Abuse::SlowHead);
                let rest = BREAK.get(this.broke..).filter(|_| !ends).unwrap_or_default();
                let count = rest.len().min(buf.remaining());
                buf.put_slice(rest.get(..count).unwrap_or_default());
                this.broke += count;
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            let whole = this.held.is_empty() && this.frames.unseen() >= buf.remaining();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let fresh = buf.filled().get(before..).unwrap_or_default();
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if whole {
                let count = fresh.len();
                this.frames.passed_unseen(count);
                return Poll::Ready(Ok(()));
            }
            let age = this.since.elapsed();
            if this.held.take(buf, before, |bytes| Self::judge(&mut this.frames, &this.ended, age, bytes)) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.frames.server(buf.get(..count).unwrap_or_default());
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        let mut left = count;
        for buf in bufs {
            let here = left.min(buf.len());
            this.frames.server(buf.get(..here).unwrap_or_default());
            left -= here;
        }
        Poll::Ready(Ok(count))
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
