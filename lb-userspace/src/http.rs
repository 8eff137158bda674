//! Serving small HTTP answers: health and metrics over TCP, admin over a unix socket.
//!
//! A port that is taken is a problem that is told and tried again, never an exit.

use crate::board::{Board, Listener};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub(crate) type Answer = Response<Full<Bytes>>;

/// How often a taken port is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Longest wait for a request's headers.
const HEADERS: Duration = Duration::from_secs(10);
/// Connections that a TCP listener keeps open. Anybody may connect: one more closes the
/// oldest, so that idle ones neither use up the agent's files nor keep a probe out.
const CONNECTIONS: usize = 64;

/// An answer of that status, type and body.
pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static(content_type));
    headers.insert("x-content-type-options", hyper::header::HeaderValue::from_static("nosniff"));
    response
}

/// JSON of `value`.
pub(crate) fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(status, "application/json", body),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

/// Serves `address` for ever; `name` is the flag that set it.
pub(crate) async fn serve_tcp<H, F>(name: &'static str, address: SocketAddr, board: Arc<Board>, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    loop {
        let (told, error) = match bind(address).await {
            Ok(listener) => {
                let told = listener.local_addr().unwrap_or(address).to_string();
                board.set_listener(Listener { name: name.into(), address: told.clone(), error: None });
                (told, accept(&listener, handler.clone()).await)
            }
            Err(error) => (address.to_string(), error),
        };
        board.set_listener(Listener { name: name.into(), address: told, error: Some(error.to_string()) });
        tokio::time::sleep(RETRY).await;
    }
}

/// Serves a listener until it fails.
pub(crate) async fn accept<H, F>(listener: &TcpListener, handler: H) -> std::io::Error
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let mut open = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                make_room(&mut open);
                open.push_back(spawn(stream, handler.clone()));
            }
            // Out of files, most likely: others will be closed.
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => return error,
        }
    }
}

/// Forgets connections that are over, and closes the oldest if that was not enough.
fn make_room(open: &mut VecDeque<AbortHandle>) {
    open.retain(|connection| !connection.is_finished());
    if open.len() >= CONNECTIONS
        && let Some(oldest) = open.pop_front()
    {
        oldest.abort();
    }
}

/// Binds; "all addresses" means IPv4 alone where IPv6 is off.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Serves a unix socket that only its owner may open, for ever, taking the place of a stale one.
/// Where another agent answers, it is left there until `held` says that the node is ours. One
/// that cannot be made is tried again: nobody can ask then, and the rest goes on (H60).
pub(crate) async fn serve_unix<H, F>(
    name: &'static str,
    path: &Path,
    board: Arc<Board>,
    mut held: watch::Receiver<bool>,
    handler: H,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    loop {
        if !*held.borrow() && UnixStream::connect(path).await.is_ok() {
            hold(&mut held).await;
        }
        let (listener, inode) = match bind_unix(path) {
            Ok(bound) => bound,
            Err(error) => {
                board.set_part(name, Some(format!("{error:#}; tried again")));
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        board.set_part(name, None);
        let mut waiting = !*held.borrow();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => drop(spawn(stream, handler.clone())),
                    Err(error) => {
                        tracing::warn!(%error, "admin socket cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                () = hold(&mut held), if waiting => {
                    waiting = false;
                    if inode_of(path) != Some(inode) {
                        // Whoever had the node took the path meanwhile, or removed it at the end.
                        break;
                    }
                }
            }
        }
    }
}

/// Waits until the node is ours; for ever, if the agent ends before.
async fn hold(held: &mut watch::Receiver<bool>) {
    if held.wait_for(|held| *held).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn inode_of(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// The socket gets its mode under another name, so that nobody can open it before.
fn bind_unix(path: &Path) -> anyhow::Result<(UnixListener, (u64, u64))> {
    use anyhow::Context;
    use std::os::unix::fs::PermissionsExt;
    let told = || format!("admin socket {}", path.display());
    if let Some(folder) = path.parent() {
        crate::lock::prepare(folder).with_context(told)?;
    }
    let fresh = crate::proxy::handover::beside(path);
    let listener = UnixListener::bind(&fresh).with_context(told)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).with_context(told)?;
    let inode = inode_of(&fresh).with_context(told)?;
    std::fs::rename(&fresh, path).with_context(told)?;
    Ok((listener, inode))
}

fn spawn<S, H, F>(stream: S, handler: H) -> AbortHandle
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let connection = tokio::spawn(async move {
        let service = service_fn(move |request| {
            let answer = handler(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            // One question each: nobody asks often enough to gain by more.
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // A client that goes away in the middle of its own question is no event.
        let _gone = connection.await;
    });
    connection.abort_handle()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn idle_connections_are_bounded_and_keep_nobody_out() {
        let board = Arc::<Board>::default();
        let handler = |_| std::future::ready(answer(StatusCode::OK, "text/plain", "ok"));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = tokio::spawn(serve_tcp("test", address, Arc::clone(&board), handler));
        while board.listeners().is_empty() {
            tokio::task::yield_now().await;
        }
        let address: SocketAddr = board.listeners()[0].address.parse().unwrap();
        let mut idle = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        // Ends by itself: a connection answers one question.
        probe.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        for stream in &mut idle[..CONNECTIONS] {
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the oldest are closed");
        }
        let mut byte = [0];
        let newest = idle.last_mut().unwrap().try_read(&mut byte);
        assert_eq!(newest.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        server.abort();
    }
}
