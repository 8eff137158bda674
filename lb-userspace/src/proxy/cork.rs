//! Gathers what is written to an HTTP/2 client in one turn of its task.
//!
//! The library behind HTTP/2 writes and flushes the frames of each answer by themselves: over TLS
//! a record and a system call for every answer, although many are ready at the same time. Here
//! they wait in memory until the turn is over, a few microseconds, and then go together.
//! What is written is never held beyond the turn in which it was, unless the client cannot take
//! it; then at most [`ROOM`] waits here, and the library waits with the rest.

use crate::proxy::io::ClientIo;
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that is gathered: what a TLS record holds.
const ROOM: usize = 16 * 1024;
/// What is as large as this gains nothing by waiting.
const LARGE: usize = 4 * 1024;

/// A buffer that the connections of a worker use in turn, so that idle ones have none.
pub(super) type Spare = Cell<Vec<u8>>;

/// A client's connection; clones are the same one.
pub(super) struct Corked<IO = ClientIo>(Rc<RefCell<Inner<IO>>>);

struct Inner<IO> {
    io: IO,
    gathered: Vec<u8>,
    /// How much of it went.
    sent: usize,
    /// Something was written and not flushed.
    stands: bool,
    spare: Rc<Spare>,
}

impl<IO> Clone for Corked<IO> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<IO: AsyncWrite + Unpin> Corked<IO> {
    pub(super) fn new(io: IO, spare: Rc<Spare>) -> Self {
        Self(Rc::new(RefCell::new(Inner { io, gathered: Vec::new(), sent: 0, stands: false, spare })))
    }

    /// Sends what was gathered: to be called at the end of every turn. An error is the
    /// connection's end; while it is pending, the task is woken when the client takes more.
    pub(super) fn poll_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if !inner.stands {
            return Poll::Ready(Ok(()));
        }
        ready!(inner.poll_empty(cx))?;
        ready!(Pin::new(&mut inner.io).poll_flush(cx))?;
        inner.stands = false;
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> Inner<IO> {
    /// Writes out what was gathered.
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.gathered.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        if !self.gathered.is_empty() {
            self.sent = 0;
            self.gathered.clear();
            self.spare.set(std::mem::take(&mut self.gathered));
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room for so much; false: it is to be written by itself.
    fn poll_room(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<bool>> {
        self.stands = true;
        if self.gathered.len() + length > ROOM {
            ready!(self.poll_empty(cx))?;
        }
        if length >= LARGE && self.gathered.is_empty() {
            return Poll::Ready(Ok(false));
        }
        if self.gathered.capacity() == 0 {
            self.gathered = self.spare.take();
            self.gathered.reserve(ROOM);
        }
        Poll::Ready(Ok(true))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Corked<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Corked<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        if !ready!(inner.poll_room(cx, length))? {
            return Pin::new(&mut inner.io).poll_write_vectored(cx, bufs);
        }
        for buf in bufs {
            inner.gathered.extend_from_slice(buf);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written goes at the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.0.borrow_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Takes so many bytes and keeps each write apart.
    #[derive(Default)]
    struct Peer {
        room: usize,
        writes: Vec<Vec<u8>>,
        flushes: usize,
    }

    impl AsyncWrite for Peer {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let count = self.room.min(buf.len());
            if count == 0 {
                return Poll::Pending;
            }
            self.room -= count;
            self.writes.push(buf[..count].to_vec());
            Poll::Ready(Ok(count))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn corked(room: usize) -> Corked<Peer> {
        Corked::new(Peer { room, ..Peer::default() }, Rc::default())
    }

    fn write(corked: &mut Corked<Peer>, bytes: &[u8]) -> Poll<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(corked).poll_write(&mut cx, bytes).map(Result::unwrap)
    }

    fn out(corked: &Corked<Peer>) -> Poll<()> {
        corked.poll_out(&mut Context::from_waker(Waker::noop())).map(Result::unwrap)
    }

    #[test]
    fn what_is_written_in_a_turn_goes_at_once() {
        let mut corked = corked(usize::MAX);
        for part in [&b"one "[..], b"two ", b"three"] {
            assert_eq!(write(&mut corked, part), Poll::Ready(part.len()));
        }
        let flushed = Pin::new(&mut corked).poll_flush(&mut Context::from_waker(Waker::noop()));
        assert!(flushed.is_ready() && corked.0.borrow().io.writes.is_empty());
        assert_eq!(out(&corked), Poll::Ready(()));
        assert_eq!(out(&corked), Poll::Ready(()));
        let inner = corked.0.borrow();
        assert_eq!(inner.io.writes, [b"one two three".to_vec()]);
        assert_eq!((inner.io.flushes, inner.gathered.capacity()), (1, 0), "an idle one holds nothing");
    }

    #[test]
    fn order_is_kept_whatever_the_sizes() {
        let mut corked = corked(usize::MAX);
        let mut all = Vec::new();
        for (number, size) in
            [100, LARGE, 5, ROOM * 2, ROOM - 1, 1, 1, LARGE - 1, LARGE].into_iter().enumerate()
        {
            let part = vec![u8::try_from(number).unwrap(); size];
            assert_eq!(write(&mut corked, &part), Poll::Ready(size));
            all.extend(part);
            assert!(corked.0.borrow().gathered.len() <= ROOM);
        }
        assert_eq!(out(&corked), Poll::Ready(()));
        assert_eq!(corked.0.borrow().io.writes.concat(), all);
    }

    #[test]
    fn a_client_that_takes_nothing_stops_the_writer() {
        let mut corked = corked(10);
        let part = vec![b'x'; LARGE - 1];
        for _ in 0..4 {
            assert_eq!(write(&mut corked, &part), Poll::Ready(part.len()));
        }
        assert_eq!(write(&mut corked, &part), Poll::Pending);
        assert_eq!(out(&corked), Poll::Pending);
        corked.0.borrow_mut().io.room = usize::MAX;
        assert_eq!(write(&mut corked, &part), Poll::Ready(part.len()));
        assert_eq!(out(&corked), Poll::Ready(()));
        assert_eq!(corked.0.borrow().io.writes.concat().len(), 5 * part.len());
    }
}
