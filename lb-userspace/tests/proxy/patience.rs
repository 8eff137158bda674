//! Who is waited for, and how long (H24): clients that are slow or silent, one way or both.

use crate::harness::*;
use crate::http2::{body, connect, empty, origin, request, within};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::time::{Duration, Instant};
use weir::model::routes::Protocol;
use weir::proxy::engine::Settings;

const SHORT: Duration = Duration::from_millis(300);

fn impatient() -> Settings {
    let mut settings = settings();
    settings.client.idle = SHORT;
    settings.client.head = SHORT;
    settings.client.stall = SHORT;
    settings.client.rate_grace = SHORT;
    settings.upstream.read = SHORT;
    settings.upstream.send = SHORT;
    settings
}

/// Frames of a raw client: nothing answers for it.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

const PING: u8 = 6;

/// How long a connection lives over which this is sent, one piece after the other.
fn outlives(proxy: &Proxy, first: &[u8], mut next: impl FnMut() -> Vec<u8> + Send) -> Duration {
    let mut client = proxy.client();
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.write(&frame(4, 0, 0, &[]));
    client.write(first);
    let begun = Instant::now();
    let mut writer = client.stream.get_ref().try_clone().unwrap();
    std::thread::scope(|scope| {
        let dribble = scope.spawn(move || {
            while begun.elapsed() < PATIENCE && std::io::Write::write_all(&mut writer, &next()).is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        // To the end of the connection: a GOAWAY is not one.
        let _ended = std::io::Read::read_to_end(&mut client.stream, &mut Vec::new());
        let took = begun.elapsed();
        drop(client);
        dribble.join().unwrap();
        took
    })
}

#[test]
fn frames_that_ask_for_nothing_keep_no_connection() {
    let origin = Origin::echo();
    let proxy = Proxy::start(impatient(), &[origin.address]);
    let took = outlives(&proxy, &[], || frame(PING, 0, 0, &[7; 8]));
    assert!(took < Duration::from_secs(5), "pings: {took:?}");
    // A head that never ends.
    let took = outlives(&proxy, &[0, 0, 200, 1, 4, 0, 0, 0, 1], || vec![0x40]);
    assert!(took < Duration::from_secs(5), "a dribbled head: {took:?}");
}

fn get(stream: u8) -> Vec<u8> {
    frame(1, 5, stream, b"\x82\x86\x84\x41\x06a.test")
}

#[test]
fn a_connection_that_was_told_to_go_goes() {
    let origin = Origin::echo();
    let mut settings = settings();
    settings.client.requests = 3;
    settings.client.stall = SHORT;
    let proxy = Proxy::start(settings, &[origin.address]);
    let mut stream = 0;
    // It never acknowledges the ping that comes with the first GOAWAY, and asks for more.
    let took = outlives(&proxy, &[], || {
        stream += if stream < 201 { 2 } else { 0 };
        get(stream - 1)
    });
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_download_below_the_least_rate_is_ended() {
    let (tell, told) = std::sync::mpsc::channel();
    let origin = endless(tell);
    let mut settings = settings();
    // No rate suffices, so that what the kernel holds for the client earns nothing.
    settings.client.rate = u32::MAX;
    settings.client.rate_grace = SHORT;
    let proxy = Proxy::start(settings, &[origin.address]);
    let mut client = proxy.client();
    client.send("GET /endless HTTP/1.1\r\nhost: a.test\r\n\r\n");
    let mut some = vec![0; 100_000];
    let begun = Instant::now();
    while told.try_recv().is_err() {
        assert!(begun.elapsed() < PATIENCE, "it is still fed");
        let _count = std::io::Read::read(&mut client.stream, &mut some);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_408_is_never_a_part_of_the_answer_before_it() {
    const SIZE: usize = 8 << 20;
    let origin = Origin::start(|mut client| {
        client.head().unwrap();
        client.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n"));
        client.write(&vec![b'x'; SIZE]);
        std::thread::park_timeout(PATIENCE);
    });
    let mut settings = settings();
    settings.client.head = Duration::from_millis(150);
    let proxy = Proxy::start(settings, &[origin.address]);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n");
    let head = client.head().unwrap();
    assert!(head.starts_with("HTTP/1.1 200"));
    // The next head dribbles in while the answer is read slowly.
    client.send("GET /next HTTP/1.1\r\nx: ");
    let mut received = Vec::new();
    let mut some = vec![0; 100_000];
    while let Ok(count @ 1..) = std::io::Read::read(&mut client.stream, &mut some) {
        received.extend_from_slice(&some[..count]);
        client.send("y");
        std::thread::sleep(Duration::from_millis(40));
    }
    let answer = &received[..received.len().min(SIZE)];
    assert!(answer.iter().all(|byte| *byte == b'x'), "{} bytes", received.len());
}

/// Says when an endless answer was given up; other answers are short.
fn endless(tell: std::sync::mpsc::Sender<()>) -> Origin {
    Origin::start(move |mut client| {
        while let Some(head) = client.head() {
            if !head.starts_with("GET /endless") {
                client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                continue;
            }
            client.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n");
            while std::io::Write::write_all(client.stream.get_mut(), &[0; 1 << 16]).is_ok() {}
            tell.send(()).unwrap();
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_not_read_is_ended_and_no_other() {
    let (tell, told) = std::sync::mpsc::channel();
    let origin = endless(tell);
    let proxy = Proxy::start(impatient(), &[origin.address]);
    let stream = tokio::net::TcpStream::connect(proxy.http).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_millis(50))
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let ask = |path: &str| Request::get(format!("http://a.test{path}")).body(empty()).unwrap();
    let unread = within(client.send_request(ask("/endless"))).await.unwrap();
    tokio::task::spawn_blocking(move || told.recv_timeout(PATIENCE)).await.unwrap().unwrap();
    let answer = within(client.send_request(ask("/"))).await.unwrap();
    assert_eq!(within(answer.into_body().collect()).await.unwrap().to_bytes(), "ok");
    drop(unread);
}

#[test]
fn a_content_type_buys_no_time() {
    let origin = Origin::echo();
    let proxy = Proxy::start(impatient(), &[origin.address]);
    let mut client = proxy.client();
    client.send(
        "POST / HTTP/1.1\r\nhost: a.test\r\ncontent-type: application/grpc\r\n\
         transfer-encoding: chunked\r\n\r\n",
    );
    let mut writer = client.stream.get_ref().try_clone().unwrap();
    let begun = Instant::now();
    let dribble = std::thread::spawn(move || {
        while begun.elapsed() < PATIENCE && std::io::Write::write_all(&mut writer, b"1\r\nx\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    // Told in the way of gRPC, as the type asks for.
    assert_eq!(client.reply().field("grpc-status"), Some("4"));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(client);
    dribble.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_stream_ends_when_both_sides_are_silent() {
    const MESSAGES: usize = 30;
    let address = origin(|request: Request<Incoming>| async move {
        let (feed, sending) = body();
        tokio::spawn(async move {
            for _ in 0..MESSAGES {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let _gone = feed.send(Frame::data(Bytes::from_static(b"message")));
            }
            // Neither ends: the request is held as well.
            let _request = request;
            std::future::pending::<()>().await;
            drop(feed);
        });
        Response::builder().header("content-type", "application/grpc").body(sending).unwrap()
    })
    .await;
    let proxy = Proxy::empty(impatient());
    proxy.engine.update(routes("a.test", Protocol::H2c, &[address]), true);
    let mut client = connect(proxy.http).await;
    let (feed, sending) = body();
    feed.send(Frame::data(Bytes::from_static(b"subscribe"))).unwrap();
    let asked = request("/pkg.Service/Watch").header("content-type", "application/grpc");
    let answer = within(client.send_request(asked.body(sending).unwrap())).await.unwrap();
    let mut received = answer.into_body();
    let mut length = 0;
    while length < MESSAGES * b"message".len() {
        let frame = within(received.frame()).await.unwrap();
        length += frame.expect("the client may be silent meanwhile").into_data().unwrap().len();
    }
    let begun = Instant::now();
    assert!(within(received.frame()).await.is_none_or(|frame| frame.is_err()));
    assert!(
        begun.elapsed() >= SHORT / 2 && begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    drop(feed);
}
