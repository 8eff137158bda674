//! Clients that break the protocol, or speak what is not spoken any more: an alert or the end
//! of the connection, soon, and never more than that (H27 to H29).

use super::*;
use rustls::PeerIncompatible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The first flight of a client; with `length` bytes of application protocols.
fn hello(version: Version, length: usize) -> Vec<u8> {
    let name = ServerName::try_from("a.example.com").unwrap();
    let config = Arc::new(offering(version, length));
    let mut bytes = Vec::new();
    rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

fn offering(version: Version, length: usize) -> ClientConfig {
    let mut config = client(version);
    config.alpn_protocols = vec![b"x".repeat(199); length / 200];
    config.alpn_protocols.push(b"http/1.1".to_vec());
    config
}

fn one() -> Acceptor {
    let own = certificate(&["a.example.com"]);
    let mut acceptor = acceptor(&[told("own", &own), name("a.example.com", "own"), name("*", "own")]);
    acceptor.options.hello = Duration::from_millis(100);
    acceptor
}

/// Sends bytes, keeps the connection open for a while, and reads what comes.
async fn send(acceptor: &Acceptor, bytes: &[u8]) -> (Result<Facts, Refused>, Vec<u8>) {
    let (mut near, far) = duplex(256 << 10);
    let server = async {
        let done = acceptor.accept(far).await;
        done.map(|(_stream, facts)| facts)
    };
    let client = async {
        // The other side may close at any byte.
        let _sent = near.write_all(bytes).await;
        let mut reply = Vec::new();
        let patience = Duration::from_millis(300);
        let waited = tokio::time::timeout(patience, near.read_to_end(&mut reply)).await;
        drop(near);
        (waited.is_ok(), reply)
    };
    let (done, (closed, reply)) = tokio::join!(server, client);
    // Whatever was not refused was answered with a flight of the server's.
    assert!(closed || reply.first() == Some(&22), "neither alert nor close nor answer");
    (done, reply)
}

/// The alert in a reply.
fn alert(reply: &[u8]) -> Option<AlertDescription> {
    let at = reply.len().checked_sub(7)?;
    (reply[at] == 21).then(|| AlertDescription::from(reply[at + 6]))
}

async fn still_serves(acceptor: &Acceptor) {
    let done = shake(acceptor, &client(Version::Tls13), "a.example.com").await;
    done.server.unwrap();
}

#[tokio::test]
async fn what_is_no_hello_is_refused() {
    let acceptor = one();
    let valid = hello(Version::Tls13, 0);
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = valid.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let warning = [21, 3, 3, 0, 2, 1, 90];
    let ccs = [20, 3, 3, 0, 1, 1];
    let mut oversized = records(&[&[1, 0, 0x40, 1][..], &[0; 16_385]].concat(), 16_384);
    oversized.truncate(17_000);
    for (what, bytes, label) in [
        ("SSL 2", vec![0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10], "malformed"),
        ("nonsense", b"\x00\x01\x02\x03\x04\x05\x06\x07".to_vec(), "malformed"),
        ("lower case text", b"hello there, are you a server?".to_vec(), "malformed"),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n".to_vec(), "plain_http"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "plain_http"),
        ("a ServerHello", with(5, &[2]), "malformed"),
        ("a record of 32 KiB", with(3, &[0x80, 0]), "malformed"),
        ("an empty record", vec![22, 3, 1, 0, 0], "malformed"),
        ("application data first", vec![23, 3, 3, 0, 1, 0], "malformed"),
        ("5,000 warnings", warning.repeat(5_000), "malformed"),
        ("500 CCS", ccs.repeat(500), "malformed"),
        ("a hello of 16 KiB and a byte", oversized, "hello_too_large"),
        ("a part of a hello", valid[..40].to_vec(), "timeout"),
        ("more length than bytes", with(6, &[0, 0x3f, 0xff]), "timeout"),
        ("no record's body", valid[..5].to_vec(), "timeout"),
    ] {
        let begin = Instant::now();
        let (done, reply) = send(&acceptor, &bytes).await;
        let refused = done.err().unwrap_or_else(|| panic!("{what} was accepted"));
        assert_eq!(refused.label(), label, "{what}: {refused}");
        assert!(begin.elapsed() < Duration::from_secs(3), "{what}");
        match label {
            "plain_http" => assert!(reply.starts_with(b"HTTP/1.1 400 "), "{what}"),
            "hello_too_large" => assert_eq!(alert(&reply), Some(AlertDescription::DecodeError)),
            _ => {}
        }
    }
    still_serves(&acceptor).await;
}

#[tokio::test]
async fn what_is_not_spoken_any_more_is_refused() {
    let acceptor = one();
    let old = hello(Version::Tls12, 0);
    // Client version, random, an empty or a 32-byte session, then the suites.
    let session = usize::from(old[43]);
    let suites = 44 + session;
    let count = usize::from(u16::from_be_bytes([old[suites], old[suites + 1]])) / 2;
    let with_suite = |suite: u16| {
        let mut changed = old.clone();
        for at in 0..count {
            changed[suites + 2 + 2 * at..][..2].copy_from_slice(&suite.to_be_bytes());
        }
        changed
    };
    let without = |extension: [u8; 4]| {
        let mut changed = old.clone();
        let at = changed.windows(4).position(|bytes| bytes == extension).unwrap();
        changed[at..at + 2].copy_from_slice(&[0x0a, 0x0a]);
        changed
    };
    let version = |minor: u8| {
        // Without the extension that would say better.
        let mut changed = without([0, 0x2b, 0, 3]);
        changed[10] = minor;
        changed
    };
    let no_null_compression = {
        let mut changed = old.clone();
        changed[suites + 2 + 2 * count + 1] = 1;
        changed
    };
    for (what, bytes) in [
        ("SSL 3", version(0)),
        ("TLS 1.0", version(1)),
        ("TLS 1.1", version(2)),
        ("RSA key exchange, CBC", with_suite(0x002f)),
        ("RSA key exchange, GCM", with_suite(0x009c)),
        ("ECDHE, CBC", with_suite(0xc009)),
        ("DHE, GCM", with_suite(0x009e)),
        ("RC4", with_suite(0x0005)),
        ("export", with_suite(0x0008)),
        ("NULL", with_suite(0xc006)),
        ("anonymous", with_suite(0xc018)),
        ("compression only", no_null_compression),
        ("no extended master secret", without([0, 0x17, 0, 0])),
    ] {
        let (done, reply) = send(&acceptor, &bytes).await;
        let refused = done.err().unwrap_or_else(|| panic!("{what} was accepted"));
        assert_eq!(refused.label(), "incompatible", "{what}: {refused}");
        assert!(alert(&reply).is_some(), "{what}: {reply:?}");
    }
    let (done, _reply) = send(&acceptor, &without([0, 0x17, 0, 0])).await;
    let expected = rustls::Error::PeerIncompatible(PeerIncompatible::ExtendedMasterSecretExtensionRequired);
    assert!(matches!(done, Err(Refused::Tls(error)) if error == expected));
}

#[tokio::test]
async fn three_hundred_mutants_do_no_harm() {
    let acceptor = one();
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap()
    };
    let mut mutants = Vec::new();
    for n in 0..300 {
        let mut bytes = hello(if n % 2 == 0 { Version::Tls13 } else { Version::Tls12 }, n % 3 * 400);
        for _ in 0..=next(4) {
            let at = next(bytes.len());
            match next(6) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][next(5)],
                2 => bytes.truncate(at.max(1)),
                3 => drop(bytes.remove(at)),
                4 => bytes.insert(at, 0xff),
                _ => {
                    let end = (at + 1 + next(32)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    bytes.extend(copy);
                }
            }
        }
        mutants.push(bytes);
    }
    let mut refused = 0;
    // Thirty at a time: those that are waited for wait together.
    for some in mutants.chunks(30) {
        let begin = Instant::now();
        let done = futures_util::future::join_all(some.iter().map(|bytes| send(&acceptor, bytes))).await;
        assert!(begin.elapsed() < Duration::from_secs(3));
        refused += done.iter().filter(|(done, _)| done.is_err()).count();
    }
    // A client that never sends its Finished is not served.
    assert_eq!(refused, 300);
    still_serves(&acceptor).await;
}

/// Splits a handshake message into records of `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 1], &length[..], part].concat()
    };
    message.chunks(size).flat_map(record).collect()
}

/// A connection whose first record is split.
struct Split {
    io: DuplexStream,
    size: usize,
    /// What is to be written of the first record; `None`: it has not come yet.
    waiting: Option<Vec<u8>>,
}

impl AsyncWrite for Split {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let size = self.size;
        if self.waiting.is_none() {
            self.waiting = Some(records(&buf[5..], size));
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        while let Some(waiting) = this.waiting.as_mut().filter(|waiting| !waiting.is_empty()) {
            let written = ready!(Pin::new(&mut this.io).poll_write(cx, waiting))?;
            waiting.drain(..written);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl AsyncRead for Split {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

#[tokio::test]
async fn a_hello_in_many_records_is_put_together() {
    let mut acceptor = one();
    acceptor.options.hello = Duration::from_secs(2);
    for version in [Version::Tls12, Version::Tls13] {
        // 1,700 bytes: what post-quantum key shares make of it. 9,000: odd, but allowed.
        for length in [0, 1_600, 9_000] {
            assert!(hello(version, length).len() > length);
            for size in [1, 2, 3, 7, 255, 1_000] {
                let (near, far) = duplex(512);
                let client = TlsConnector::from(Arc::new(offering(version, length)));
                let name = ServerName::try_from("a.example.com").unwrap();
                let near = Split { io: near, size, waiting: None };
                let (connected, accepted) = tokio::join!(client.connect(name, near), acceptor.accept(far));
                let facts = accepted.unwrap_or_else(|error| panic!("{length} in {size}: {error}")).1;
                connected.unwrap();
                assert_eq!((facts.alpn, facts.version), (Alpn::Http1, version));
            }
        }
    }
}

#[tokio::test]
async fn floods_after_the_handshake_end_the_connection() {
    let acceptor = one();
    let (near, far) = duplex(1 << 20);
    let connector = TlsConnector::from(Arc::new(client(Version::Tls13)));
    let name = ServerName::try_from("a.example.com").unwrap();
    let (open, accepted) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    let (mut open, (mut accepted, _facts)) = (open.unwrap(), accepted.unwrap());
    for _ in 0..2_000 {
        open.get_mut().1.refresh_traffic_keys().unwrap();
        // The other side may have closed.
        let _sent = open.flush().await;
    }
    let mut word = [0; 4];
    let read = tokio::time::timeout(Duration::from_secs(3), accepted.read_exact(&mut word)).await;
    assert!(read.unwrap().is_err(), "2,000 KeyUpdates");
    still_serves(&acceptor).await;
}

#[tokio::test]
async fn a_client_that_is_silent_or_leaves_is_given_up() {
    let mut acceptor = one();
    acceptor.options.timeout = Duration::from_millis(50);
    let (near, far) = duplex(1024);
    assert!(matches!(acceptor.accept(far).await, Err(Refused::Timeout)));
    drop(near);
    let (near, far) = duplex(1024);
    drop(near);
    assert!(matches!(acceptor.accept(far).await, Err(Refused::Closed)));
    // Bytes that trickle do not lengthen the time for a hello.
    acceptor.options.timeout = Duration::from_secs(8);
    let (mut near, far) = duplex(1024);
    let begin = Instant::now();
    let trickle = async {
        for byte in hello(Version::Tls13, 0) {
            if near.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (done, ()) = tokio::join!(acceptor.accept(far), trickle);
    assert!(matches!(done, Err(Refused::Timeout)));
    assert!(begin.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn the_protocol_inside_is_agreed() {
    let acceptor = one();
    for (offered, expected) in [
        (&["h2", "http/1.1"][..], Ok(Alpn::H2)),
        (&["http/1.1", "h2"], Ok(Alpn::H2)),
        (&["http/1.1"], Ok(Alpn::Http1)),
        (&["spdy/3", "http/1.1"], Ok(Alpn::Http1)),
        (&[], Ok(Alpn::None)),
        (&["acme-tls/1"], Err("malformed")),
        (&["http/1.0"], Err("malformed")),
    ] {
        let mut client = client(Version::Tls13);
        client.alpn_protocols = offered.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let done = shake(&acceptor, &client, "a.example.com").await;
        assert_eq!(
            done.server.map(|facts| facts.alpn).map_err(|error| error.label()),
            expected,
            "{offered:?}"
        );
        if expected.is_err() {
            let alert = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
            assert_eq!(done.client.unwrap_err(), alert);
        }
    }
}
