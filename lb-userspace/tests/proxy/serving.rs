//! What is served, and what reaches the origin.

use crate::harness::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir::model::routes::{HostPattern, Protocol, Target, Update, VirtualHost};

#[test]
fn requests_share_connections_on_both_sides() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    for n in 0..50 {
        let reply = client.get(&format!("/{n}"));
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.text().starts_with(&format!("GET /{n} HTTP/1.1\r\n")), "{reply:?}");
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    let all: String = (0..10).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: a.test\r\n\r\n")).collect();
    client.send(&all);
    for n in 0..10 {
        assert!(client.reply().text().starts_with(&format!("GET /{n} ")));
    }
}

#[test]
fn the_origin_gets_a_request_made_anew() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    client.send(
        "GET /x?y=1 HTTP/1.1\r\nHost: A.test:80\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
         Keep-Alive: 5\r\nProxy-Connection: close\r\nTE: gzip\r\nX_Real_IP: 1.1.1.1\r\nProxy: evil\r\n\
         X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /evil\r\nForwarded: for=9.9.9.9\r\n\
         X-Request-ID: abc-1\r\nSSL-Client-Cert: x\r\nAccept: */*\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n",
    );
    let text = client.reply().text();
    let expected = "GET /x?y=1 HTTP/1.1\r\nhost: A.test:80\r\naccept: */*\r\nx-twice: 1\r\nx-twice: 2\r\n\
         x-request-id: abc-1\r\nx-real-ip: 127.0.0.1\r\nx-forwarded-for: 127.0.0.1\r\n\
         x-forwarded-host: A.test:80\r\nx-forwarded-port: 80\r\nx-forwarded-proto: http\r\n\
         x-forwarded-scheme: http\r\nx-scheme: http\r\nx-original-forwarded-for: 9.9.9.9\r\n\r\n";
    assert_eq!(text, expected);
}

#[test]
fn a_list_of_hops_has_an_end() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    for (count, status) in [(31, 200), (32, 400), (3000, 400)] {
        let names = (0..count).fold(String::from("close"), |list, n| format!("{list},{}", n % 10));
        let mut client = proxy.client();
        client.send(&format!("GET / HTTP/1.1\r\nhost: a.test\r\nconnection: {names}\r\n\r\n"));
        assert_eq!(client.reply().status, status, "{count}");
    }
}

#[test]
fn a_trusted_peer_is_believed() {
    let origin = Origin::echo();
    let trusted = vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
    let proxy = Proxy::start(weir::proxy::engine::Settings { trusted, ..settings() }, &[origin.address]);
    for (list, address) in [
        ("1.1.1.1, 2.2.2.2, 10.0.0.1", "2.2.2.2"),
        ("1.1.1.1", "1.1.1.1"),
        ("10.0.0.2, 10.0.0.1", "10.0.0.2"),
        ("junk, 10.0.0.1", "10.0.0.1"),
        ("junk", "127.0.0.1"),
        ("2001:db8::1, ::ffff:10.0.0.1", "2001:db8::1"),
    ] {
        let mut client = proxy.client();
        client.send(&format!(
            "GET / HTTP/1.1\r\nhost: a.test\r\nx-forwarded-for: {list}\r\nx-forwarded-proto: https\r\n\
             x-forwarded-prefix: /app\r\nx-forwarded-a_b: 1\r\n\r\n"
        ));
        let text = client.reply().text();
        assert_eq!(field(&text, "x-real-ip"), Some(address), "{list}");
        assert_eq!(field(&text, "x-forwarded-for"), Some(address), "{list}");
        assert_eq!(field(&text, "x-forwarded-proto"), Some("https"), "{list}");
        assert_eq!(field(&text, "x-forwarded-prefix"), Some("/app"), "{list}");
        assert_eq!(field(&text, "x-forwarded-a_b"), None, "{list}");
    }
}

#[test]
fn an_answer_comes_back_without_its_hop() {
    let origin = Origin::saying(
        "HTTP/1.1 201 Made\r\nServer: secret\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 3\r\n\
         Upgrade: x\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    let reply = client.get("/");
    assert_eq!((reply.status, reply.text().as_str()), (201, "ok"));
    assert_eq!(reply.field("server"), Some("weir"));
    assert_eq!(reply.field("x-kept"), Some("1"));
    assert!(reply.field("date").is_some());
    for gone in ["connection", "x-hop", "keep-alive", "upgrade"] {
        assert_eq!(reply.field(gone), None, "{reply:?}");
    }
}

#[test]
fn own_answers_have_the_usual_fields() {
    let proxy = Proxy::start(settings(), &[]);
    let mut unavailable = action("u.test");
    unavailable.target = Target::Unavailable("no such Service".to_owned());
    proxy.engine.update(vec![host("u.test", unavailable)], false);
    for (name, status) in [("a.test", 503), ("u.test", 503), ("b.test", 404)] {
        let mut client = proxy.client();
        for _ in 0..2 {
            client.send(&format!("GET / HTTP/1.1\r\nhost: {name}\r\n\r\n"));
            let reply = client.reply();
            assert_eq!(reply.status, status, "{name}");
            for present in ["server", "date", "content-type", "content-length"] {
                assert!(reply.field(present).is_some(), "{present} {reply:?}");
            }
        }
    }
}

#[test]
fn a_plain_request_is_sent_to_https_where_the_route_says_so() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut redirected = action("a.test");
    redirected.https_redirect = Some(308);
    proxy.engine.update(vec![host("a.test", redirected)], false);
    let reply = proxy.get("/x/y?z=1");
    assert_eq!(reply.status, 308);
    assert_eq!(reply.field("location"), Some("https://a.test/x/y?z=1"));
    assert_eq!(proxy.get("/.well-known/acme-challenge/t0K_e-n").status, 200);
    for path in ["..%2f..%2flogin", "../../login", "", "a/b", "a;b", "%61", "a%5cb"] {
        let path = format!("/.well-known/acme-challenge/{path}");
        assert_eq!(proxy.get(&path).status, 308, "{path}");
    }
}

#[test]
fn a_path_whose_readings_disagree_is_refused() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let rule = |path: &str, name: &str| weir::model::routes::PathRule {
        kind: weir::model::routes::PathKind::Prefix,
        path: path.into(),
        action: action(name),
    };
    let host = VirtualHost { rules: vec![rule("/admin", "b.test"), rule("", "a.test")], default: None };
    proxy.engine.update(vec![Update::Host(HostPattern::Exact("a.test".into()), Some(Arc::new(host)))], false);
    for (path, status) in [
        ("/x", 200),
        ("/admin", 503),
        ("/a/../admin", 400),
        ("/%61dmin", 400),
        ("/x%2fy", 200),
        ("/x%zz", 400),
        ("/x%00", 400),
    ] {
        assert_eq!(proxy.get(path).status, status, "{path}");
    }
}

#[test]
fn a_refused_head_is_answered_in_its_turn() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    client.send(
        "GET /good HTTP/1.1\r\nhost: a.test\r\n\r\nGET / HTTP/1.1\r\nhost: a.test\r\nbad header\r\n\r\n",
    );
    assert_eq!(client.reply().status, 200);
    let reply = client.reply();
    assert_eq!((reply.status, reply.field("connection")), (400, Some("close")));
    assert!(client.is_closed());
}

#[test]
fn bodies_stream_in_both_directions() {
    let origin = Origin::start(|mut client| {
        let head = client.head().unwrap();
        assert_eq!(field(&head, "transfer-encoding"), Some("chunked"));
        client.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        // Each chunk is sent back before the next one is there.
        for expected in ["3\r\none\r\n", "3\r\ntwo\r\n", "0\r\n\r\n"] {
            let mut chunk = vec![0; expected.len()];
            std::io::Read::read_exact(&mut client.stream, &mut chunk).unwrap();
            assert_eq!(String::from_utf8_lossy(&chunk), expected);
            client.write(&chunk);
        }
    });
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n");
    assert!(client.head().unwrap().starts_with("HTTP/1.1 200"));
    for part in ["3\r\none\r\n", "3\r\ntwo\r\n", "0\r\n\r\n"] {
        client.send(part);
        let mut chunk = vec![0; part.len()];
        std::io::Read::read_exact(&mut client.stream, &mut chunk).unwrap();
        assert_eq!(String::from_utf8_lossy(&chunk), part);
    }
}

#[test]
fn large_bodies_arrive_whole() {
    let size = 20 << 20;
    let origin = Origin::start(move |mut client| {
        while let Some((_, body)) = client.request() {
            let ok = body.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8);
            client.send(&format!("HTTP/1.1 200 OK\r\nx-ok: {ok}\r\ncontent-length: {}\r\n\r\n", body.len()));
            client.write(&body);
        }
    });
    let mut settings = settings();
    settings.client.body_size = 0;
    let proxy = Proxy::start(settings, &[origin.address]);
    let body: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
    let mut client = proxy.client();
    let mut writer = client.stream.get_ref().try_clone().unwrap();
    let sent = body.clone();
    let thread = std::thread::spawn(move || {
        use std::io::Write;
        let head = format!("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: {}\r\n\r\n", sent.len());
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(&sent).unwrap();
    });
    let reply = client.reply();
    thread.join().unwrap();
    assert_eq!((reply.status, reply.field("x-ok")), (200, Some("true")));
    assert!(reply.body == body);
}

#[test]
fn trailers_come_through_without_what_frames() {
    let origin = Origin::saying(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum, x-other\r\n\r\n\
         2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
    );
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nhost: a.test\r\nte: trailers\r\nconnection: te\r\n\r\n");
    assert_eq!(client.reply().text(), "ok|x-sum: 7");
}

#[test]
fn expect_continue_is_answered_by_the_proxy() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n");
    assert!(client.head().unwrap().starts_with("HTTP/1.1 100"));
    client.send("ok");
    let text = client.reply().text();
    assert!(text.ends_with("ok") && field(&text, "expect").is_none(), "{text}");
    // Over the limit, it is refused before the body is asked for (I56).
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 2000000\r\nexpect: 100-continue\r\n\r\n");
    assert_eq!(client.reply().status, 413);
}

#[test]
fn an_upgrade_becomes_a_tunnel() {
    let origin = Origin::start(|mut client| {
        let head = client.head().unwrap();
        assert_eq!(field(&head, "upgrade"), Some("echo"));
        assert_eq!(field(&head, "connection"), Some("upgrade"));
        client.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nfirst;");
        let mut byte = [0];
        while let Ok(1) = std::io::Read::read(&mut client.stream, &mut byte) {
            client.write(&byte);
        }
    });
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    // Bytes that are sent before the 101 is there survive.
    client.send("GET / HTTP/1.1\r\nhost: a.test\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\nearly;");
    let reply = client.reply();
    assert_eq!((reply.status, reply.field("upgrade")), (101, Some("echo")));
    assert_eq!(reply.field("connection"), Some("upgrade"));
    client.send("late");
    let mut text = [0; 16];
    std::io::Read::read_exact(&mut client.stream, &mut text).unwrap();
    assert_eq!(String::from_utf8_lossy(&text), "first;early;late");
    client.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_closed());
}

#[test]
fn an_upgrade_may_have_any_method_but_a_websocket_is_a_get() {
    let origin = Origin::start(|mut client| {
        while let Some((head, _)) = client.request() {
            let answer = match field(&head, "upgrade") {
                Some(protocol) => format!(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
                ),
                None => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
            };
            client.send(&answer);
        }
    });
    let proxy = Proxy::start(settings(), &[origin.address]);
    let key = "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (method, protocol, fields, status) in [
        ("GET", "tcp", "", 101),
        ("POST", "tcp", "", 101),
        ("POST", "spdy/3.1", "content-length: 0\r\n", 101),
        ("GET", "websocket", key, 101),
        ("POST", "websocket", key, 200),
        ("POST", "h2c", "", 200),
    ] {
        let mut client = proxy.client();
        client.send(&format!(
            "{method} / HTTP/1.1\r\nhost: a.test\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n{fields}\r\n"
        ));
        assert_eq!(client.reply().status, status, "{method} {protocol}");
    }
}

#[test]
fn an_upgrade_that_is_not_granted_is_an_ordinary_answer() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    client.send(
        "GET /1 HTTP/1.1\r\nhost: a.test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n\
         GET /2 HTTP/1.1\r\nhost: a.test\r\n\r\n",
    );
    assert!(client.reply().text().starts_with("GET /1 "));
    assert!(client.reply().text().starts_with("GET /2 "));
    // h2c is never forwarded (H8), nor is a WebSocket without a key (H35).
    for upgrade in ["h2c", "websocket"] {
        let mut client = proxy.client();
        client.send(&format!(
            "GET / HTTP/1.1\r\nhost: a.test\r\nconnection: upgrade, http2-settings\r\nupgrade: {upgrade}\r\n\
             http2-settings: AAMAAABkAAQAAP__\r\n\r\n"
        ));
        let text = client.reply().text();
        assert_eq!(field(&text, "upgrade"), None, "{text}");
        assert_eq!(field(&text, "http2-settings"), None, "{text}");
    }
}

#[test]
fn a_client_that_leaves_ends_its_request_at_the_origin() {
    let (tell, told) = std::sync::mpsc::channel();
    let origin = Origin::start(move |mut client| {
        client.head().unwrap();
        tell.send(None).unwrap();
        assert!(client.is_closed());
        tell.send(Some(Instant::now())).unwrap();
    });
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n");
    told.recv_timeout(PATIENCE).unwrap();
    let left = Instant::now();
    drop(client);
    let seen = told.recv_timeout(PATIENCE).unwrap().unwrap();
    assert!(seen - left < Duration::from_millis(100), "{:?}", seen - left);
}

#[test]
fn updates_under_load_lose_nothing() {
    let origins = [Origin::echo(), Origin::echo()];
    let proxy = Proxy::start(settings(), &[origins[0].address]);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (mut client, stop) = (proxy.client(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    // The last request of a connection says so.
                    let reply = client.get("/");
                    assert_eq!(reply.status, 200);
                    count += 1;
                    if reply.field("connection") == Some("close") {
                        client = Client::new(client.stream.get_ref().peer_addr().unwrap());
                    }
                }
                count
            })
        })
        .collect();
    for n in 0..200 {
        let endpoints = [origins[n % 2].address];
        if n % 3 == 0 {
            proxy.engine.update(routes("a.test", Protocol::Http1, &endpoints), true);
        } else {
            proxy.engine.update(vec![pool("a.test", Protocol::Http1, &endpoints)], false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let total: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(total > 0);
}

#[test]
fn a_connection_that_has_rested_serves_on() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    let mut client = proxy.client();
    for n in 0..3 {
        assert!(client.get(&format!("/{n}")).text().starts_with(&format!("GET /{n} ")));
        // Longer than an idle connection keeps its buffers.
        std::thread::sleep(Duration::from_millis(1300));
    }
    client.send("GET /a HTTP/1.1\r\nhost: a.test\r\n\r\nGET /b HTTP/1.1\r\nhost: a.te");
    assert!(client.reply().text().starts_with("GET /a "));
    std::thread::sleep(Duration::from_millis(1300));
    client.send("st\r\n\r\n");
    assert!(client.reply().text().starts_with("GET /b "));
    assert_eq!(origin.count(), 1);
}

#[test]
fn requests_are_counted_once() {
    let origin = Origin::echo();
    let proxy = Proxy::start(settings(), &[origin.address]);
    assert_eq!(proxy.get("/").status, 200);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nhost: b.test\r\n\r\n");
    assert_eq!(client.reply().status, 404);
    client.send("GET / HTTP/1.1\r\nhost: a.test\r\nbad header\r\n\r\n");
    assert_eq!(client.reply().status, 400);
    drop(client);
    let text = proxy.engine.metrics();
    for line in [
        "lb_proxy_local_answers_total{reason=\"no_route\"} 1",
        "lb_proxy_local_answers_total{reason=\"judged\"} 1",
        "lb_proxy_refused_total{reason=\"no-colon\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(text.contains("ingress=\"a.test\"") && !text.contains("# EOF"), "{text}");
}
