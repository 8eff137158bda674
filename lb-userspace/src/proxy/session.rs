//! One client connection from its first byte to its last.
//!
//! Finds out which protocol is spoken, hands the bytes to hyper, and watches the deadlines that
//! hyper knows nothing of. All limits of HTTP/2 are set here by hand (I53, H15 to H20).

use crate::proxy::conn::{Conn, Expiry};
use crate::proxy::cork::Corked;
use crate::proxy::engine::Scheme;
use crate::proxy::io::{ClientIo, Stream};
use crate::proxy::judge::io::Judged;
use crate::proxy::judge::io::frames::Counted;
use crate::proxy::judge::request::Place;
use crate::proxy::stream::Streams;
use crate::proxy::tls::{Alpn, Facts, TlsStream};
use crate::proxy::worker::Worker;
use crate::proxy::{serve, upgrade};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

/// What HTTP/2 with prior knowledge begins with, RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes that are read at first, to find out which protocol is spoken.
const FIRST_READ: usize = 4096;
/// The most that hyper keeps of what it reads and what it is to write, HTTP/1.
const HTTP1_BUFFER: usize = 64 * 1024;
/// What waits in a stream, beyond one part of its answer as it was read, to be written (H20).
const SEND_BUFFER: usize = 8 * 1024;
/// How long an HTTP/2 client has to take notice of a GOAWAY: what it had asked for by then is
/// served, what it asks for later is not.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long what the client still sends is read and dropped after the last answer, how long it
/// may be silent meanwhile, and how much that is: closing at once would make its kernel drop
/// that answer (RFC 9112 section 9.6), and some write all of a request before they read.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_SILENCE: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 64 << 20;
/// How long a client has to take the answer to a head that was too slow.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Keeps the connection in the worker's list, and counts it.
struct Listed {
    conn: Rc<Conn>,
    key: usize,
}

impl Listed {
    fn new(conn: &Rc<Conn>) -> Self {
        conn.worker.recorder.opened(conn.scheme == Scheme::Https);
        Self { conn: Rc::clone(conn), key: conn.worker.connections.add(conn) }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.conn.worker.recorder.closed(self.conn.scheme == Scheme::Https);
        self.conn.worker.connections.remove(self.key);
    }
}

/// Serves a connection that was just accepted.
pub(super) async fn serve(worker: Rc<Worker>, tcp: TcpStream, peer: SocketAddr, scheme: Scheme) {
    let conn = Conn::new(&worker, peer, scheme);
    let _listed = Listed::new(&conn);
    let mut alpn = Alpn::None;
    let stream = match scheme {
        Scheme::Http => Stream::Plain(tcp),
        Scheme::Https => {
            let Some((stream, facts)) = handshake(&conn, tcp).await else { return };
            alpn = facts.alpn;
            let _first = conn.tls.set(facts);
            Stream::Tls(Box::new(stream))
        }
    };
    let mut io = ClientIo::new(stream, Rc::clone(&conn));
    let is_http2 = match alpn {
        Alpn::H2 => Some(true),
        Alpn::Http1 => Some(false),
        Alpn::None => begins_with_preface(&mut io, &conn).await,
    };
    match is_http2 {
        Some(true) => Box::pin(serve_http2(io, conn)).await,
        Some(false) => Box::pin(serve_http1(io, conn)).await,
        None => {}
    }
}

/// Does the handshake, unless the drain is over before it is.
async fn handshake(conn: &Conn, tcp: TcpStream) -> Option<(TlsStream<TcpStream>, Facts)> {
    let mut accepting = pin!(conn.worker.shared.tls.accept(tcp));
    poll_fn(|cx| {
        if let Poll::Ready(result) = accepting.as_mut().poll(cx) {
            conn.worker.recorder.handshake(result.as_ref().map(|(_, facts)| facts));
            return Poll::Ready(result.ok());
        }
        // It has a limit of its own.
        match conn.poll_expiry(cx) {
            Some(Expiry::End) => Poll::Ready(None),
            Some(Expiry::Idle | Expiry::Head | Expiry::Write) | None => Poll::Pending,
        }
    })
    .await
}

/// Reads until it is known whether HTTP/2 is spoken. `None`: nothing came.
///
/// Nothing is allocated for a connection that stays silent but its own task.
async fn begins_with_preface(io: &mut ClientIo, conn: &Conn) -> Option<bool> {
    let mut first = Vec::new();
    loop {
        let read = {
            let mut reading = pin!(read_some(io, &mut first));
            poll_fn(|cx| match conn.poll_expiry(cx) {
                Some(_) => Poll::Ready(None),
                None => reading.as_mut().poll(cx).map(|read| read.ok()),
            })
            .await
        };
        let ended = matches!(read, None | Some(0));
        let is_preface = first.starts_with(PREFACE);
        let may_be = PREFACE.starts_with(&first);
        if ended && (first.is_empty() || conn.has_ended()) {
            return None;
        }
        if ended || is_preface || !may_be {
            io.unread(first);
            return Some(is_preface);
        }
    }
}

async fn read_some(io: &mut ClientIo, into: &mut Vec<u8>) -> std::io::Result<usize> {
    io.readable().await?;
    // The buffer is made when there is something to put into it.
    into.reserve(FIRST_READ);
    io.read_buf(into).await
}

/// How hyper's part of a connection ends.
enum End {
    Done(hyper::Result<()>),
    Expired(Expiry),
    /// Idle: its buffers are given back until there is something to read.
    Rests,
}

async fn serve_http1(io: ClientIo, conn: Rc<Conn>) {
    let service = {
        let conn = Rc::clone(&conn);
        service_fn(move |request| serve::serve(Rc::clone(&conn), request))
    };
    let (mut io, ledger) = Judged::new(io);
    let _first = conn.ledger.set(ledger);
    let (end, early) = loop {
        let mut http = http1::Builder::new()
            .max_buf_size(HTTP1_BUFFER)
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(io), service.clone());
        let end = poll_fn(|cx| {
            // The deadlines last: bytes that came in time count.
            if let Poll::Ready(result) = Pin::new(&mut http).poll(cx) {
                return Poll::Ready(End::Done(result));
            }
            match conn.poll_expiry(cx) {
                Some(expiry) => Poll::Ready(End::Expired(expiry)),
                None if conn.poll_rest(cx) => Poll::Ready(End::Rests),
                None => Poll::Pending,
            }
        })
        .await;
        let parts = http.into_parts();
        io = parts.io.into_inner();
        // Between requests nothing is left in hyper: what was let through is served, and a
        // part of a head is still with the judge.
        match (&end, io.place()) {
            (End::Rests, Place::Between) if parts.read_buf.is_empty() => {
                if !wakes(io.get_ref(), &conn).await {
                    return;
                }
            }
            (End::Rests, Place::Head) if parts.read_buf.is_empty() => {}
            _ => break (end, parts.read_buf),
        }
    };
    match end {
        End::Done(Err(_)) if conn.is_broken_off() => io.get_ref().reset(),
        End::Done(result) => {
            if let (Ok(()), Some(tunnel)) = (result, conn.take_tunnel()) {
                Box::pin(upgrade::run(io, early, tunnel, &conn)).await;
            } else if conn.lingers() {
                Box::pin(linger(io.get_mut())).await;
            }
        }
        // The end of the last answer is still on its way: nothing can be said in the middle of it.
        End::Expired(Expiry::Head) if conn.write_stands() => io.get_ref().reset(),
        End::Expired(Expiry::Head) => {
            let _ = tokio::time::timeout(LAST_WORDS, io.write_all(slow_head().as_bytes())).await;
            let _ = io.shutdown().await;
        }
        End::Expired(Expiry::Idle | Expiry::Write | Expiry::End) | End::Rests => {}
    }
}

/// Waits for the next bytes of a connection at rest; false: it is over.
async fn wakes(io: &ClientIo, conn: &Conn) -> bool {
    let mut readable = pin!(io.socket_readable());
    poll_fn(|cx| {
        if readable.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        conn.poll_expiry(cx).map_or(Poll::Pending, |_| Poll::Ready(false))
    })
    .await
}

/// The answer to a head that did not come in time, which hyper knows nothing of.
fn slow_head() -> String {
    let text = "408 Request Timeout\n";
    let date = httpdate::fmt_http_date(SystemTime::now());
    let length = text.len();
    format!(
        "HTTP/1.1 408 Request Timeout\r\nserver: weir\r\ndate: {date}\r\nconnection: close\r\n\
         content-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n\r\n{text}"
    )
}

/// Reads and drops what the client still sends, whatever it is, until it closes, within bounds.
async fn linger(io: &mut ClientIo) {
    let _ = tokio::time::timeout(LINGER, async {
        // Not yet done where the HTTP side has ended in an error.
        let _ = io.shutdown().await;
        let mut left = LINGER_BYTES;
        let mut sink = vec![0; 16 * 1024];
        while let Ok(Ok(count @ 1..)) = tokio::time::timeout(LINGER_SILENCE, io.read(&mut sink)).await {
            left = left.saturating_sub(count);
            if left == 0 {
                return;
            }
        }
    })
    .await;
}

/// Runs what belongs to an origin's HTTP/2 connection in this thread.
#[derive(Clone)]
pub(super) struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

async fn serve_http2(io: ClientIo, conn: Rc<Conn>) {
    conn.speaks_h2();
    let service = {
        let conn = Rc::clone(&conn);
        service_fn(move |request| serve::serve(Rc::clone(&conn), request))
    };
    let corked = Corked::new(io, Rc::clone(&conn.worker.spare));
    let (counted, ended) = Counted::new(corked.clone());
    let mut http = pin!(
        http2::Builder::new(Streams(Rc::clone(&conn)))
            .max_concurrent_streams(conn.worker.shared.settings.client.streams)
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .max_frame_size(16 * 1024)
            .max_header_list_size(64 * 1024)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(100)
            .serve_connection(TokioIo::new(counted), service)
    );
    let mut over = false;
    poll_fn(|cx| {
        if conn.is_last() && !conn.is_leaving() && !over {
            http.as_mut().graceful_shutdown();
            conn.leaves(GOODBYE);
        }
        over = over || http.as_mut().poll(cx).is_ready();
        match corked.poll_out(cx) {
            Poll::Ready(Ok(())) if over => return Poll::Ready(()),
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match conn.poll_expiry(cx) {
            None => Poll::Pending,
            Some(Expiry::Idle) if !conn.is_leaving() && !over => {
                http.as_mut().graceful_shutdown();
                conn.leaves(GOODBYE);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(_) => Poll::Ready(()),
        }
    })
    .await;
    if let Some(abuse) = ended.get() {
        conn.worker.recorder.refused(abuse.label());
    }
}
