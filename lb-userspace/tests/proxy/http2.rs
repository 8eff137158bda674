//! HTTP/2 on either side, and gRPC over it.

use crate::harness::*;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use weir::model::routes::Protocol;

pub(crate) type Sending = StreamBody<Receiver>;

/// A body that is fed by the test.
pub(crate) struct Receiver(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl futures_util::Stream for Receiver {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

pub(crate) fn body() -> (mpsc::UnboundedSender<Frame<Bytes>>, Sending) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, StreamBody::new(Receiver(receiver)))
}

pub(crate) async fn connect(to: SocketAddr) -> SendRequest<Sending> {
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) fn request(path: &str) -> http::request::Builder {
    Request::post(format!("http://a.test{path}"))
}

pub(crate) fn empty() -> Sending {
    body().1
}

/// An h2c origin.
pub(crate) async fn origin<F, R, B>(serve: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    origin_with(200, serve).await
}

/// An h2c origin that allows so many streams on a connection.
pub(crate) async fn origin_with<F, R, B>(streams: u32, serve: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let serve = serve.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = serve(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(streams)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_clients_are_served_by_http1_origins() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = connect(proxy.http).await;
    let (feed, sending) = body();
    feed.send(Frame::data(Bytes::from_static(b"body"))).unwrap();
    drop(feed);
    let mut asked = request("/x?y").header("cookie", "a=1").header("cookie", "b=2").header("te", "trailers");
    asked = asked.header("x_hidden", "1");
    let answer = within(client.send_request(asked.body(sending).unwrap())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["server"], "weir");
    assert!(answer.headers().get("connection").is_none());
    let text = within(answer.into_body().collect()).await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&text);
    assert!(text.starts_with("POST /x?y HTTP/1.1\r\nhost: a.test\r\n") && text.ends_with("body"), "{text}");
    assert_eq!(field(&text, "cookie"), Some("a=1; b=2"));
    assert_eq!(field(&text, "te"), Some("trailers"));
    assert_eq!(field(&text, "transfer-encoding"), Some("chunked"));
    assert_eq!(field(&text, "x_hidden"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_are_served_at_once() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let client = connect(proxy.http).await;
    let tasks: Vec<_> = (0..90)
        .map(|n| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let answer =
                    client.send_request(request(&format!("/{n}")).body(empty()).unwrap()).await.unwrap();
                let text = answer.into_body().collect().await.unwrap().to_bytes();
                assert!(text.starts_with(format!("POST /{n} ").as_bytes()));
            })
        })
        .collect();
    for task in tasks {
        within(task).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_contradicts_the_authority_is_refused() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = connect(proxy.http).await;
    for (name, value, status) in
        [("host", "a.test", 200), ("host", "b.test", 400), ("content-length", "+1", 400), ("x", "y", 200)]
    {
        let asked = request("/").header(name, value).body(empty()).unwrap();
        match within(client.send_request(asked)).await {
            Ok(answer) => assert_eq!(answer.status(), status, "{name}: {value}"),
            // The library itself may refuse the length, and resets the stream then.
            Err(_) => assert_eq!(status, 400, "{name}: {value}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_has_the_limits_of_http1() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = connect(proxy.http).await;
    let ask = |path: &str| Request::get(format!("http://a.test{path}"));
    let many = |count: usize, name: &str| {
        (0..count).fold(ask("/"), |asked, n| asked.header(format!("{name}-{n}"), "1"))
    };
    let cookies = |count: usize| (0..count).fold(ask("/"), |asked, _| asked.header("cookie", "a=1"));
    for (name, asked, status) in [
        ("a long target", ask(&format!("/{}", "x".repeat(8_000))), 200),
        ("one that is too long", ask(&format!("/{}", "x".repeat(8_192))), 414),
        ("many fields", many(95, "x"), 200),
        ("too many", many(101, "x"), 431),
        ("one cookie in crumbs", cookies(150), 200),
        ("a head of 40 KiB", ask("/").header("x", "y".repeat(20_000)).header("z", "y".repeat(20_000)), 431),
        ("an expectation", ask("/").header("expect", "100-Continue"), 200),
        ("another one", ask("/").header("expect", "a pony"), 417),
        ("two", ask("/").header("expect", "100-continue").header("expect", "100-continue"), 417),
    ] {
        let answer = within(client.send_request(asked.body(empty()).unwrap())).await.unwrap();
        assert_eq!(answer.status(), status, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_without_a_path_gets_its_slash() {
    let address = origin(|request: Request<Incoming>| async move {
        Response::new(Full::new(Bytes::from(request.uri().to_string())))
    })
    .await;
    let proxy = Proxy::empty(settings());
    proxy.engine.update(routes("a.test", Protocol::H2c, &[address]), true);
    let asked = tokio::task::spawn_blocking(move || {
        let mut client = proxy.client();
        client.send("GET http://a.test?x=1 HTTP/1.1\r\nhost: a.test\r\n\r\n");
        assert_eq!(client.reply().text(), "http://a.test/?x=1");
    });
    asked.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_streams_both_ways_with_trailers() {
    let address = origin(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.uri().authority().unwrap(), "a.test");
        assert!(request.headers().get("host").is_none());
        let (feed, sending) = body();
        let mut received = request.into_body();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = received.frame().await {
                if let Ok(data) = frame.into_data() {
                    feed.send(Frame::data(data)).unwrap();
                }
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            trailers.insert("content-length", HeaderValue::from_static("7"));
            feed.send(Frame::trailers(trailers)).unwrap();
        });
        Response::builder().header("content-type", "application/grpc").body(sending).unwrap()
    })
    .await;
    let proxy = Proxy::empty(settings());
    proxy.engine.update(routes("a.test", Protocol::H2c, &[address]), true);
    let mut client = connect(proxy.http).await;
    let (feed, sending) = body();
    let asked =
        request("/pkg.Service/Method").header("content-type", "application/grpc").header("te", "trailers");
    let answer = within(client.send_request(asked.body(sending).unwrap())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let mut received = answer.into_body();
    for n in 0..5 {
        // Each message comes back before the next one is sent.
        let message = Bytes::from(format!("message {n}"));
        feed.send(Frame::data(message.clone())).unwrap();
        let frame = within(received.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    drop(feed);
    let trailers = within(received.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(trailers.get("content-length").is_none(), "{trailers:?}");
    assert!(within(received.frame()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_told_to_grpc_clients_as_a_status() {
    let silent = origin(|_| async {
        std::future::pending::<()>().await;
        Response::new(Full::new(Bytes::new()))
    })
    .await;
    let mut settings = settings();
    settings.upstream.read = Duration::from_millis(300);
    let proxy = Proxy::empty(settings);
    proxy.engine.update(routes("a.test", Protocol::H2c, &[nobody()]), true);
    proxy.engine.update(routes("b.test", Protocol::H2c, &[silent]), false);
    let mut client = connect(proxy.http).await;
    for (url, timeout, code) in [
        ("http://a.test/s/m", "5S", "14"),
        ("http://b.test/s/m", "5S", "4"),
        ("http://b.test/s/m", "100m", "4"),
        ("http://c.test/s/m", "5S", "12"),
    ] {
        let asked = Request::post(url)
            .header("content-type", "application/grpc+proto")
            .header("grpc-timeout", timeout);
        let answer = within(client.send_request(asked.body(empty()).unwrap())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{url}");
        assert_eq!(answer.headers()["grpc-status"], code, "{url}");
        assert_eq!(answer.headers()["content-type"], "application/grpc", "{url}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_stream_reaches_the_origin_at_once() {
    struct Gone(mpsc::UnboundedSender<Instant>);
    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = self.0.send(Instant::now());
        }
    }
    let (tell, mut told) = mpsc::unbounded_channel();
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&begun);
    let address = origin(move |_| {
        let gone = Gone(tell.clone());
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let _gone = gone;
            std::future::pending::<()>().await;
            Response::new(Full::new(Bytes::new()))
        }
    })
    .await;
    let proxy = Proxy::empty(settings());
    proxy.engine.update(routes("a.test", Protocol::H2c, &[address]), true);
    let mut client = connect(proxy.http).await;
    let waiting = tokio::spawn(client.send_request(request("/").body(empty()).unwrap()));
    within(async {
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let left = Instant::now();
    waiting.abort();
    let seen = within(told.recv()).await.unwrap();
    assert!(seen - left < Duration::from_millis(100), "{:?}", seen - left);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_says_goaway_and_lets_streams_end() {
    let origin = Origin::start(|mut client| {
        while client.request().is_some() {
            std::thread::sleep(Duration::from_millis(300));
            client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let proxy = Proxy::start(settings(), &[origin.address]);
    let client = connect(proxy.http).await;
    let mut busy = client.clone();
    let waiting = tokio::spawn(async move {
        let answer = busy.send_request(request("/").body(empty()).unwrap()).await.unwrap();
        answer.into_body().collect().await.unwrap().to_bytes()
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    within(proxy.engine.drain(PATIENCE)).await;
    assert_eq!(within(waiting).await.unwrap(), "ok");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    within(async {
        while !client.is_closed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
