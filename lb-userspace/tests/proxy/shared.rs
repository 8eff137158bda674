//! HTTP/2 connections to origins, which all clients of a worker share.

use crate::harness::*;
use crate::http2::{body, connect, empty, origin, origin_with, within};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use weir::model::routes::Protocol;
use weir::proxy::engine::Settings;

const ZEROES: &[u8] = &[0; 16 * 1024];

/// A body of so many bytes, and all that went into such ones.
pub(crate) struct Zeroes {
    pub(crate) left: usize,
    pub(crate) went: Arc<AtomicUsize>,
}

impl Body for Zeroes {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let count = self.left.min(ZEROES.len());
        self.left -= count;
        self.went.fetch_add(count, Ordering::SeqCst);
        Poll::Ready((count > 0).then(|| Ok(Frame::data(Bytes::from_static(&ZEROES[..count])))))
    }
}

fn start(settings: Settings, address: std::net::SocketAddr) -> Proxy {
    let proxy = Proxy::empty(settings);
    proxy.engine.update(routes("a.test", Protocol::H2c, &[address]), true);
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_hold_up_nobody_else() {
    let went = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&went);
    let address = origin(move |request: Request<Incoming>| {
        let left = if request.uri().path() == "/endless" { usize::MAX } else { 2 };
        let body = Zeroes { left, went: Arc::clone(&counted) };
        async move { Response::new(body) }
    })
    .await;
    let proxy = start(settings(), address);
    let mut held: Vec<Client> = (0..40).map(|_| proxy.client()).collect();
    let reading = tokio::task::spawn_blocking(move || {
        for client in &mut held {
            client.send("GET /endless HTTP/1.1\r\nhost: a.test\r\n\r\n");
            assert!(client.head().unwrap().starts_with("HTTP/1.1 200"));
        }
        // Until all that can be taken in for them was.
        let mut before = 0;
        while went.load(Ordering::SeqCst) != before {
            before = went.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(500));
        }
        let mut client = proxy.client();
        for _ in 0..10 {
            assert_eq!(client.get("/small").body.len(), 2);
        }
    });
    reading.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_connection_is_made_where_an_origin_allows_few_streams() {
    let address = origin_with(4, |request: Request<Incoming>| async move {
        if request.uri().path() == "/hang" {
            std::future::pending::<()>().await;
        }
        let (feed, sending) = body();
        feed.send(Frame::data(Bytes::from_static(b"ok"))).unwrap();
        Response::new(sending)
    })
    .await;
    let proxy = start(settings(), address);
    let mut client = connect(proxy.http).await;
    let ask = |path: &str| Request::get(format!("http://a.test{path}")).body(empty()).unwrap();
    let answer = within(client.send_request(ask("/small"))).await.unwrap();
    within(answer.into_body().collect()).await.unwrap();
    let mut hanging = Vec::new();
    for _ in 0..10 {
        hanging.push(tokio::spawn(client.send_request(ask("/hang"))));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answer = within(client.send_request(ask("/small"))).await.unwrap();
    assert_eq!(within(answer.into_body().collect()).await.unwrap().to_bytes(), "ok");
    assert!(hanging.iter().all(|one| !one.is_finished()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_on_which_nothing_comes_is_not_used_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut dead, _) = listener.accept().await.unwrap();
        // It says its settings, and then nothing.
        dead.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let (alive, _) = listener.accept().await.unwrap();
        let service = service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"alive"))))
        });
        let _end = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(alive), service)
            .await;
    });
    let mut settings = settings();
    settings.upstream.read = Duration::from_millis(300);
    let proxy = start(settings, address);
    let asked = tokio::task::spawn_blocking(move || {
        let mut client = proxy.client();
        assert_eq!(client.get("/").status, 504);
        assert_eq!(client.get("/").text(), "alive");
    });
    asked.await.unwrap();
}
