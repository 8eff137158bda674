//! Who is waited for, and how long (H24): clients that are slow or silent, one way or both.

use crate::harness::*;
use crate::http2::{body, connect, origin, request, within};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
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
