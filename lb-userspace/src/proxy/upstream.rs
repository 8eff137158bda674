//! One connection to an origin.
//!
//! An HTTP/1 connection is driven by whoever uses it, in the task of the client's request: no
//! task of its own, no hand-over between tasks, and when the request is given up the
//! connection is closed with it at once. An HTTP/2 connection is shared, so it has a task.

use crate::proxy::judge::Reason;
use crate::proxy::judge::io::origin::{Origin, Owed};
use crate::proxy::judge::response::Question;
use crate::proxy::session::Local;
use crate::proxy::silence::Silence;
use crate::proxy::upload::{Source, Upload};
use crate::proxy::worker::Worker;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

/// The most that hyper keeps of what it reads and what it is to write.
const BUFFER: usize = 64 * 1024;
/// Streams of one HTTP/2 connection, where the origin does not want fewer.
const STREAMS: usize = 100;
/// What an origin may send on a stream that nobody reads. The connection's window is as large
/// as those of all its streams: answers that are not read must not hold up the others (H25).
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 100 * STREAM_WINDOW;

/// How long an HTTP/2 origin's kernel may leave bytes unacknowledged. Such an origin reads all
/// the time, whatever becomes of its streams, so a window that stays shut means the same.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// Why an exchange with an origin came to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    /// Bytes of the request may have reached the origin.
    pub(super) sent: bool,
    /// Bytes of an answer came.
    pub(super) answered: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// Not connected.
    Refused,
    /// Closed, reset, or not HTTP.
    Broken,
    /// Nothing moved for too long.
    TimedOut,
}

/// What an HTTP/1 connection's bytes say about it, beside themselves.
pub(super) struct Pulse {
    pub(super) silence: Silence,
    /// The next read first asks the kernel whether the connection is still open.
    probe: Cell<bool>,
    sent: Cell<bool>,
    answered: Cell<bool>,
    /// The most that one read takes of an answer.
    room: Cell<usize>,
}

/// The socket of an HTTP/1 connection to an origin.
pub(super) struct OriginIo {
    tcp: TcpStream,
    pulse: Rc<Pulse>,
}

type Connection = http1::Connection<TokioIo<Origin<OriginIo>>, Upload>;

/// An HTTP/1 connection to an origin.
pub(super) struct Http1 {
    pub(super) address: SocketAddr,
    sender: http1::SendRequest<Upload>,
    connection: Connection,
    is_done: bool,
    owed: Arc<Owed>,
    pulse: Rc<Pulse>,
    pub(super) requests: u32,
    /// On the worker's clock.
    pub(super) idle_since: u64,
}

/// An HTTP/2 connection to an origin; clones share it.
#[derive(Clone)]
pub(super) struct Http2 {
    sender: http2::SendRequest<Upload>,
    connection: Rc<RefCell<http2::Connection<TokioIo<TcpStream>, Upload, Local>>>,
    open: Rc<Cell<usize>>,
}

/// Counts a stream as open at its connection for as long as it lives.
pub(super) struct Stream(Rc<Cell<usize>>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl AsyncRead for OriginIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.pulse.probe.replace(false) && is_closed_by_peer(&self.tcp) {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let room = self.pulse.room.get();
        if room < buf.remaining() {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut part))?;
            let count = part.filled().len();
            buf.advance(count);
        } else {
            ready!(Pin::new(&mut self.tcp).poll_read(cx, buf))?;
        }
        if buf.filled().len() > before {
            self.pulse.answered.set(true);
            self.pulse.silence.beat();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for OriginIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.tcp).poll_write(cx, buf))?;
        self.pulse.sent.set(true);
        self.pulse.silence.beat();
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs))?;
        self.pulse.sent.set(true);
        self.pulse.silence.beat();
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// Connects, within the time for it.
async fn connect(worker: &Worker, address: SocketAddr) -> Result<TcpStream, Failure> {
    let failure = |cause| Failure { cause, sent: false, answered: false };
    let deadline = worker.deadlines.add();
    deadline.set(worker.shared.settings.upstream.connect);
    let mut connecting = pin!(TcpStream::connect(address));
    let tcp = poll_fn(|cx| {
        if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(|_| failure(Cause::Refused)));
        }
        if deadline.poll(cx) { Poll::Ready(Err(failure(Cause::TimedOut))) } else { Poll::Pending }
    })
    .await?;
    // It fails only when the connection is gone already, which the first write tells.
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

impl Http1 {
    pub(super) async fn connect(worker: &Worker, address: SocketAddr) -> Result<Box<Self>, Failure> {
        let tcp = connect(worker, address).await?;
        let limits = &worker.shared.settings.upstream;
        let pulse = Rc::new(Pulse {
            silence: Silence::new(worker, limits.read.max(limits.send)),
            probe: Cell::new(false),
            sent: Cell::new(false),
            answered: Cell::new(false),
            room: Cell::new(BUFFER),
        });
        let (judged, owed) = Origin::new(OriginIo { tcp, pulse: Rc::clone(&pulse) });
        let shaken = http1::Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(judged)).await;
        let Ok((sender, connection)) = shaken else {
            return Err(Failure { cause: Cause::Broken, sent: false, answered: false });
        };
        Ok(Box::new(Self {
            address,
            sender,
            connection,
            is_done: false,
            owed,
            pulse,
            requests: 0,
            idle_since: 0,
        }))
    }

    /// Lets the connection do what it can. True: it is over.
    pub(super) fn poll_done(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_done {
            self.is_done = Pin::new(&mut self.connection).poll(cx).is_ready();
        }
        self.is_done
    }

    /// Tells whether the next request may go over it. `probe`: the kernel is asked, too, since
    /// the request could not be sent again; else what is known must do. The task that used the
    /// connection before is forgotten.
    pub(super) fn is_usable(&mut self, probe: bool) -> bool {
        self.pulse.probe.set(probe);
        let mut nobody = Context::from_waker(Waker::noop());
        !self.poll_done(&mut nobody) && self.sender.is_ready() && self.owed.is_reusable()
    }

    /// Why the origin's bytes were refused, if they were.
    pub(super) fn fault(&self) -> Option<&'static str> {
        self.owed.fault().map(Reason::label)
    }

    pub(super) fn silence(&self) -> &Silence {
        &self.pulse.silence
    }

    /// Sends a request and returns the answer's head; its body comes while the connection is
    /// polled on, at most `room` bytes at once.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Upload>,
        source: Option<&Source>,
        upgrade: bool,
        room: usize,
    ) -> Result<Response<Incoming>, Failure> {
        self.requests += 1;
        self.pulse.room.set(room.min(BUFFER));
        self.pulse.sent.set(false);
        self.pulse.answered.set(false);
        self.owed.ask(Question { head: *request.method() == Method::HEAD, upgrade });
        let mut answer = pin!(self.sender.try_send_request(request));
        self.pulse.silence.watch();
        let Self { connection, is_done, pulse, .. } = self;
        let result = poll_fn(|cx| {
            if !*is_done {
                *is_done = Pin::new(&mut *connection).poll(cx).is_ready();
            }
            // The connection was polled just now, so nobody else will wake for the answer.
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Cause::Broken)),
                Poll::Pending if *is_done => return Poll::Ready(Err(Cause::Broken)),
                Poll::Pending => {}
            }
            if pulse.silence.poll(cx, source) { Poll::Ready(Err(Cause::TimedOut)) } else { Poll::Pending }
        })
        .await;
        self.pulse.silence.rest();
        result.map_err(|cause| Failure {
            cause,
            sent: self.pulse.sent.get(),
            answered: self.pulse.answered.get(),
        })
    }

    /// Takes the socket back after a 101, with what hyper has read beyond it.
    pub(super) fn into_tunnel(self) -> (Origin<OriginIo>, bytes::Bytes, Rc<Pulse>) {
        let parts = self.connection.into_parts();
        (parts.io.into_inner(), parts.read_buf, self.pulse)
    }
}

impl Http2 {
    pub(super) async fn connect(worker: &Rc<Worker>, address: SocketAddr) -> Result<Self, Failure> {
        let tcp = connect(worker, address).await?;
        // Shared for as long as it is good, it must not outlive its peer: bytes that nobody
        // acknowledges end it. It fails only when the connection is gone already.
        let _ = socket2::SockRef::from(&tcp).set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let shaken = http2::Builder::new(Local)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 * 1024)
            .max_send_buf_size(64 * 1024)
            .handshake(TokioIo::new(tcp))
            .await;
        let Ok((sender, connection)) = shaken else {
            return Err(Failure { cause: Cause::Broken, sent: false, answered: false });
        };
        let connection = Rc::new(RefCell::new(connection));
        let driven = Rc::clone(&connection);
        // An error ends the streams, whose users are told by them.
        spawn_local(poll_fn(move |cx| Pin::new(&mut *driven.borrow_mut()).poll(cx).map(drop)));
        Ok(Self { sender, connection, open: Rc::default() })
    }

    /// Tells whether one more stream would be served at once.
    pub(super) fn has_room(&self) -> bool {
        let wanted = self.connection.try_borrow().map_or(STREAMS, |it| it.current_max_send_streams());
        self.is_usable() && self.open.get() < wanted.min(STREAMS)
    }

    /// Tells whether both are the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.open, &other.open)
    }

    /// Counts a stream that is about to be opened.
    pub(super) fn begin(&self) -> Stream {
        self.open.set(self.open.get() + 1);
        Stream(Rc::clone(&self.open))
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and returns the answer's head.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Upload>,
        source: Option<&Source>,
        silence: &Silence,
    ) -> Result<Response<Incoming>, Failure> {
        let mut answer = pin!(self.sender.try_send_request(request));
        silence.watch();
        let result = poll_fn(|cx| {
            match answer.as_mut().poll(cx) {
                Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
                Poll::Ready(Err(error)) => {
                    let sent = error.message().is_none();
                    return Poll::Ready(Err(Failure { cause: Cause::Broken, sent, answered: false }));
                }
                Poll::Pending => {}
            }
            if silence.poll(cx, source) {
                return Poll::Ready(Err(Failure { cause: Cause::TimedOut, sent: true, answered: false }));
            }
            Poll::Pending
        })
        .await;
        silence.rest();
        result
    }
}

/// Asks the kernel whether the peer has closed a socket, without taking anything from it.
fn is_closed_by_peer(tcp: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    match socket2::SockRef::from(tcp).peek(&mut byte) {
        // Nothing is owed on an idle connection: bytes are as bad as its end.
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}
