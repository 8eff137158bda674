//! What becomes of a request when something goes wrong: at the origin, or at the client.

use crate::harness::*;
use std::time::{Duration, Instant};
use weir::proxy::engine::Settings;

fn quick() -> Settings {
    let mut settings = settings();
    settings.upstream.read = Duration::from_millis(300);
    settings.upstream.send = Duration::from_millis(300);
    settings.upstream.connect = Duration::from_millis(300);
    settings
}

fn post(client: &mut Client, body: &str) {
    client.send(&format!("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
}

#[test]
fn what_refuses_is_502_and_what_is_silent_is_504() {
    let silent = Origin::start(|mut client| {
        client.head();
        assert!(client.is_closed());
    });
    let proxy = Proxy::start(quick(), &[nobody()]);
    assert_eq!(proxy.get("/").status, 502);
    let proxy = Proxy::start(quick(), &[silent.address]);
    let begun = Instant::now();
    assert_eq!(proxy.get("/").status, 504);
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[test]
fn another_endpoint_is_tried_when_one_refuses() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[nobody(), origin.address, nobody()]);
    for _ in 0..20 {
        assert_eq!(proxy.get("/").status, 200);
        let mut client = proxy.client();
        // Nothing was sent, so even a POST with a body goes elsewhere (I59).
        post(&mut client, "body");
        let reply = client.reply();
        assert_eq!(reply.status, 200);
        assert!(reply.text().ends_with("body"));
    }
}

#[test]
fn a_request_that_may_have_arrived_is_repeated_only_if_it_may_be() {
    let closing = || {
        Origin::start(|mut client| {
            client.request();
        })
    };
    let origins = [closing(), closing()];
    let proxy = Proxy::start(settings(), &[origins[0].address, origins[1].address]);
    assert_eq!(proxy.get("/").status, 502);
    assert_eq!(origins[0].count() + origins[1].count(), 2, "a GET goes to each of them");
    let before = origins[0].count() + origins[1].count();
    let mut client = proxy.client();
    post(&mut client, "once");
    assert_eq!(client.reply().status, 502);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nhost: a.test\r\n\r\n");
    assert_eq!(client.reply().status, 502);
    assert_eq!(origins[0].count() + origins[1].count(), before + 2, "a POST goes to one");
}

#[test]
fn a_request_is_sent_no_more_often_than_the_tries() {
    let deliveries = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let closing = || {
        let counted = std::sync::Arc::clone(&deliveries);
        // One answer, so that the connection is kept; then it takes a request and closes.
        Origin::start(move |mut client| {
            while let Some((head, _)) = client.request() {
                if head.starts_with("GET /doomed") {
                    counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    return;
                }
                client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            }
        })
    };
    let origins: Vec<Origin> = (0..5).map(|_| closing()).collect();
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let proxy = Proxy::start(settings(), &addresses);
    while origins.iter().any(|origin| origin.count() == 0) {
        assert_eq!(proxy.get("/").status, 200);
    }
    assert_eq!(proxy.get("/doomed").status, 502);
    assert_eq!(deliveries.load(std::sync::atomic::Ordering::SeqCst), 3);
}

#[test]
fn an_idle_connection_that_died_costs_nothing() {
    // Each connection serves one request and is then closed without a word.
    let origin = Origin::start(|mut client| {
        if let Some((head, body)) = client.request() {
            let text = head + &String::from_utf8_lossy(&body);
            client.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()));
        }
    });
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    for _ in 0..50 {
        assert_eq!(client.get("/").status, 200);
    }
    for _ in 0..50 {
        // The close is given the moment that it needs to arrive: what crosses a POST on the
        // way cannot be told from a POST that was acted on.
        std::thread::sleep(Duration::from_millis(2));
        post(&mut client, "x");
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn a_broken_upload_costs_its_own_connection_alone() {
    let (tell, told) = std::sync::mpsc::channel();
    let origin = Origin::start(move |mut client| {
        while let Some(head) = client.head() {
            if head.starts_with("POST") {
                tell.send(()).unwrap();
                std::thread::park_timeout(PATIENCE);
            }
            std::thread::sleep(Duration::from_millis(300));
            client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut clients: Vec<Client> = (0..5).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send("GET /slow HTTP/1.1\r\nhost: a.test\r\n\r\n");
    }
    clients.iter_mut().for_each(|client| assert_eq!(client.reply().status, 200));
    assert_eq!(origin.count(), 5);
    let mut bad = proxy.client();
    bad.send("POST / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    told.recv_timeout(PATIENCE).unwrap();
    bad.send("zz\r\n");
    assert_eq!(bad.reply().status, 400);
    for client in &mut clients {
        client.send("GET /slow HTTP/1.1\r\nhost: a.test\r\n\r\n");
    }
    clients.iter_mut().for_each(|client| assert_eq!(client.reply().status, 200));
    assert_eq!(origin.count(), 6, "one was lost with the upload, four were used again");
}

#[test]
fn a_broken_answer_is_502_before_its_head_and_an_abort_behind_it() {
    for (answer, status) in [
        ("HTTP/1.1 2000 OK\r\n\r\n", 502),
        ("nonsense\r\n\r\n", 502),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n12", 502),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", 502),
        ("HTTP/1.1 200 OK\r\nx: 1\nl: 2\r\n\r\n", 502),
    ] {
        let origin = Origin::saying(answer);
        let proxy = Proxy::start(quick(), &[origin.address]);
        let mut client = proxy.client();
        assert_eq!(client.get("/").status, status, "{answer}");
        // The client's connection goes on, and the next answer is its own (H12).
        proxy.engine.update(vec![pool("a.test", Default::default(), &[Origin::echo().address])], false);
        assert!(client.get("/next").text().starts_with("GET /next "), "{answer}");
    }
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\nzz\r\n",
    ] {
        let origin = Origin::start(move |mut client| {
            client.request();
            client.send(answer);
        });
        let proxy = Proxy::start(quick(), &[origin.address]);
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n");
        assert!(client.try_reply().is_none(), "no clean end: {answer}");
    }
}

#[test]
fn leftover_bytes_end_an_origins_connection() {
    let origin = Origin::saying(
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
    );
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").text(), "ok");
    }
    assert_eq!(origin.count(), 5);
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let origin = Origin::echo();
    let mut settings = settings();
    settings.client.body_size = 100;
    let proxy = Proxy::start(settings, &[origin.address]);
    let mut client = proxy.client();
    post(&mut client, &"x".repeat(100));
    assert_eq!(client.reply().status, 200);
    let mut client = proxy.client();
    post(&mut client, &"x".repeat(101));
    let reply = client.reply();
    assert_eq!((reply.status, reply.field("connection")), (413, Some("close")));
    let mut client = proxy.client();
    let chunks = format!("60\r\n{0}\r\n60\r\n{0}\r\n0\r\n\r\n", "x".repeat(0x60));
    client.send(&format!("POST / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"));
    assert_eq!(client.reply().status, 413);
}

#[test]
fn slow_clients_are_ended() {
    let origin = Origin::echo();
    let mut settings = settings();
    let time = Duration::from_millis(300);
    (settings.client.idle, settings.client.head, settings.client.stall) = (time, time, time);
    settings.client.rate_grace = time;
    let proxy = Proxy::start(settings, &[origin.address]);
    let cases: [(&str, &str, bool, Option<u16>); 5] = [
        ("silence", "", false, None),
        ("half a head", "GET / HT", false, Some(408)),
        ("a dribbled head", "GET / HTTP/1.1\r\n", true, Some(408)),
        ("no body", "POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 9\r\n\r\n", false, Some(408)),
        (
            "a dribbled body",
            "POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 999\r\n\r\n",
            true,
            Some(408),
        ),
    ];
    for (name, bytes, dribbles, status) in cases {
        let mut client = proxy.client();
        client.send(bytes);
        let begun = Instant::now();
        let mut writer = client.stream.get_ref().try_clone().unwrap();
        let dribble = std::thread::spawn(move || {
            while dribbles && std::io::Write::write_all(&mut writer, b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
                if begun.elapsed() > PATIENCE {
                    return;
                }
            }
        });
        assert_eq!(client.try_reply().map(|reply| reply.status), status, "{name}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{name}: {:?}", begun.elapsed());
        drop(client);
        dribble.join().unwrap();
    }
    // An idle keep-alive connection ends without a word.
    let mut client = proxy.client();
    assert_eq!(client.get("/").status, 200);
    assert!(client.is_closed());
}

#[test]
fn an_answer_that_is_not_read_is_given_up() {
    let (tell, told) = std::sync::mpsc::channel();
    let origin = Origin::start(move |mut client| {
        client.head().unwrap();
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        let part = vec![0; 1 << 16];
        let mut sent = 0_usize;
        while std::io::Write::write_all(client.stream.get_mut(), &part).is_ok() {
            sent += part.len();
        }
        tell.send(sent).unwrap();
    });
    let mut settings = settings();
    settings.client.stall = Duration::from_millis(300);
    let proxy = Proxy::start(settings, &[origin.address]);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n");
    let sent = told.recv_timeout(PATIENCE).unwrap();
    assert!(sent < 100 << 20, "{sent} bytes were taken in for a client that reads none");
}

#[test]
fn a_connection_serves_so_many_requests_and_says_which_is_the_last() {
    let origin = Origin::echo();
    let mut settings = settings();
    settings.client.requests = 3;
    let proxy = Proxy::start(settings, &[origin.address]);
    let mut client = proxy.client();
    for n in 1..=3 {
        let reply = client.get("/");
        assert_eq!(reply.field("connection"), (n == 3).then_some("close"));
    }
    assert!(client.is_closed());
}

#[test]
fn a_drain_ends_after_the_answers() {
    let (tell, told) = std::sync::mpsc::channel();
    let origin = Origin::start(move |mut client| {
        while let Some((head, _)) = client.request() {
            if head.starts_with("GET /slow") {
                tell.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(300));
            }
            client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut idle = proxy.client();
    assert_eq!(idle.get("/").status, 200);
    let mut busy = proxy.client();
    busy.send("GET /slow HTTP/1.1\r\nhost: a.test\r\n\r\n");
    told.recv_timeout(PATIENCE).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| runtime.block_on(proxy.engine.drain(PATIENCE)));
        let reply = busy.reply();
        assert_eq!((reply.status, reply.field("connection")), (200, Some("close")));
        assert!(!drained.is_finished(), "an idle connection has a request under way, perhaps");
        let reply = idle.get("/");
        assert_eq!((reply.status, reply.field("connection")), (200, Some("close")));
        let begun = Instant::now();
        drained.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2));
    });
    // The engine's socket is closed; nobody else holds this one.
    assert!(std::net::TcpStream::connect(proxy.http).is_err());
}

#[test]
fn a_websocket_is_told_at_the_end_of_a_drain() {
    let origin = Origin::start(|mut client| {
        client.head().unwrap();
        client.send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\u{1}",
        );
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut client.stream, &mut rest);
    });
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    client.send(
        "GET / HTTP/1.1\r\nhost: a.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert_eq!(client.reply().status, 101);
    let mut byte = [0];
    std::io::Read::read_exact(&mut client.stream, &mut byte).unwrap();
    // Half a frame's head: no frame may be put in between.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(proxy.engine.drain(Duration::from_millis(200)));
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.stream, &mut rest);
    assert!(rest.is_empty(), "{rest:?}");
}
