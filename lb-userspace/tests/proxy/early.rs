//! Answers that come before all of the request was sent: they arrive, and are the last.

use crate::harness::*;
use weir::proxy::engine::Settings;

const LARGE: usize = 5 << 20;

/// Writes all of a request before it reads anything, as many clients do.
fn post(proxy: &Proxy, path: &str) -> Reply {
    let mut client = proxy.client();
    client.send(&format!("POST {path} HTTP/1.1\r\nhost: a.test\r\ncontent-length: {LARGE}\r\n\r\n"));
    client.write(&vec![b'x'; LARGE]);
    let reply = client.reply();
    assert!(client.is_closed());
    reply
}

#[test]
fn a_body_that_is_refused_gets_its_answer() {
    let proxy = Proxy::start(settings(), &[Origin::echo().address]);
    let reply = post(&proxy, "/");
    assert_eq!((reply.status, reply.field("connection")), (413, Some("close")));
}

#[test]
fn a_head_that_is_refused_gets_its_answer() {
    let proxy = Proxy::start(settings(), &[Origin::echo().address]);
    let reply = post(&proxy, "/ /");
    assert_eq!((reply.status, reply.field("connection")), (400, Some("close")));
}

#[test]
fn a_redirect_of_a_post_gets_through() {
    let proxy = Proxy::start(settings(), &[Origin::echo().address]);
    let mut redirected = action("a.test");
    redirected.https_redirect = Some(308);
    proxy.engine.update(vec![host("a.test", redirected)], false);
    let reply = post(&proxy, "/x");
    assert_eq!((reply.status, reply.field("connection")), (308, Some("close")));
}

#[test]
fn an_origin_may_answer_early() {
    let origin = Origin::start(|mut client| {
        client.head().unwrap();
        client.send("HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno");
        // It reads no more, and waits for its peer to go.
        std::thread::park_timeout(PATIENCE);
    });
    let mut settings: Settings = settings();
    settings.client.body_size = 0;
    let proxy = Proxy::start(settings, &[origin.address]);
    let reply = post(&proxy, "/");
    assert_eq!((reply.status, reply.field("connection")), (401, Some("close")));
    // Without a body, or with all of it, the connection goes on.
    let proxy = Proxy::start(crate::harness::settings(), &[Origin::echo().address]);
    let mut client = proxy.client();
    for _ in 0..5 {
        client.send("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 4\r\n\r\nbody");
        assert_eq!(client.reply().field("connection"), None);
    }
}
