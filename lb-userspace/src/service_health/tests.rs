#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::board::{Phase, Snapshot};
use crate::problem::Kind;
use std::io::{Read, Write};
use std::net::TcpStream;
use tokio::time::{Instant, timeout};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn check(port: u16, local: usize) -> HealthCheck {
    HealthCheck { port, uid: "u".into(), families: [true, false], local: [local, 9] }
}

fn board() -> Arc<Board> {
    let board = Arc::<Board>::default();
    board.publish(Snapshot { phase: Phase::Synced, node_eligible: true, ..Snapshot::default() });
    board
}

/// A port that nobody has right now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn ask(at: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(at)?;
    stream.write_all(b"GET /any/path HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

async fn asked(at: SocketAddr) -> std::io::Result<String> {
    tokio::task::spawn_blocking(move || ask(at)).await.unwrap()
}

#[tokio::test]
async fn answers_are_kube_proxys_and_follow_the_count() {
    let board = board();
    let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let wanted = |local| {
        Arc::new(Wanted {
            addresses: [at.ip(), "::1".parse().unwrap()].into(),
            checks: [(key("web"), check(at.port(), local))].into(),
        })
    };
    let (sender, receiver) = watch::channel(wanted(2));
    let (failures, _failed) = mpsc::channel(4);
    let server = tokio::spawn(serve(receiver, Arc::clone(&board), failures));
    eventually("open", || board.health_ports() == [1, 0]).await;
    let text = asked(at).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    let lower = text.to_ascii_lowercase();
    for header in [
        "\r\ncontent-type: application/json\r\n",
        "\r\nx-content-type-options: nosniff\r\n",
        "\r\nx-load-balancing-endpoint-weight: 2\r\n",
    ] {
        assert!(lower.contains(header), "{text}");
    }
    let body: serde_json::Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let expected = serde_json::json!({
        "service": { "namespace": "default", "name": "web" },
        "localEndpoints": 2,
        "serviceProxyHealthy": true,
    });
    assert_eq!(body, expected);

    sender.send(wanted(0)).unwrap();
    sleep(Duration::from_millis(20)).await;
    let text = asked(at).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("\"localEndpoints\":0"), "{text}");

    // An agent that does not follow the objects any more is no place to send clients to.
    sender.send(wanted(1)).unwrap();
    board.publish(Snapshot { phase: Phase::Starting, ..Snapshot::default() });
    sleep(Duration::from_millis(20)).await;
    let text = asked(at).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("\"serviceProxyHealthy\":false"), "{text}");

    sender.send(Arc::default()).unwrap();
    eventually("closed", || board.health_ports() == [0, 0]).await;
    assert_eq!(asked(at).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    drop(sender);
    server.await.unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_opened_once_it_is_free() {
    let board = board();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let other = free_port();
    let wanted = Wanted {
        addresses: ["127.0.0.1".parse().unwrap()].into(),
        checks: [(key("a"), check(port, 1)), (key("b"), check(other, 1))].into(),
    };
    let (_sender, receiver) = watch::channel(Arc::new(wanted));
    let (failures, mut failed) = mpsc::channel(4);
    let server = tokio::spawn(serve(receiver, Arc::clone(&board), failures));
    eventually("the other one", || board.health_ports() == [1, 1]).await;
    let problems = board.problems();
    assert_eq!((problems.len(), problems[0].object.kind), (1, Kind::Service), "{problems:?}");
    assert_eq!(problems[0].field, "spec.healthCheckNodePort");
    let failure = timeout(Duration::from_secs(20), failed.recv()).await.unwrap().unwrap();
    assert_eq!((failure.service, &*failure.uid), (key("a"), "u"));
    drop(taken);
    eventually("opened", || board.health_ports() == [2, 0]).await;
    assert!(board.problems().is_empty());
    server.abort();
}

#[test]
fn sockets_are_bounded_and_only_of_families_that_are_served() {
    let addresses: BTreeSet<IpAddr> =
        (0..10u8).map(|n| IpAddr::from([127, 0, 0, n])).chain(["::1".parse().unwrap()]).collect();
    let checks = (0..500).map(|n| (key(&format!("s{n:03}")), check(20_000 + n, 1))).collect();
    let (places, left_out) = places(&Wanted { addresses, checks });
    assert_eq!((places.len(), left_out.len()), (SOCKETS, 91));
    assert!(places.iter().all(|place| place.at.is_ipv4()));
}
