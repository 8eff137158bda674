//! Upgrades: tunnels where both sides agreed on one, and nowhere else (H8, H35).

use crate::tally::Tally;
use lab::attack::exchange::{End, read_to_end};
use lab::attack::rig::{HOST, Rig};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const FIELDS: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn upgrade(target: &str, fields: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n").into_bytes()
}

/// Reads a head and nothing of what follows it.
fn head(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        head.extend(byte);
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn echo(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    let mut back = vec![0; bytes.len()];
    stream.write_all(bytes).is_ok() && stream.read_exact(&mut back).is_ok() && back == bytes
}

#[test]
fn a_tunnel_carries_every_byte_both_ways() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut tunnels = Vec::new();
    for number in 0..200_u32 {
        let mut stream = rig.connect().unwrap();
        // The first frame comes together with the request.
        let early = format!("early {number}").into_bytes();
        stream.write_all(&[upgrade("/tunnel", FIELDS), early.clone()].concat()).unwrap();
        let told = head(&mut stream);
        assert!(told.starts_with("HTTP/1.1 101 "), "{told:?}");
        let low = told.to_ascii_lowercase();
        assert!(low.contains("upgrade: websocket") && low.contains("connection: upgrade"), "{told:?}");
        let mut back = vec![0; early.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, early);
        tunnels.push(stream);
    }
    for (number, stream) in tunnels.iter_mut().enumerate() {
        let bytes: Vec<u8> = (0..4_000_usize).map(|at| (at * 31 + number) as u8).collect();
        assert!(echo(stream, &bytes), "tunnel {number}");
    }
    for seen in rig.origin.take() {
        assert_eq!(seen.request.faults, Vec::<String>::new());
        assert_eq!(seen.request.values("upgrade"), ["websocket"]);
        assert_eq!(seen.request.values("connection").join(",").to_ascii_lowercase(), "upgrade");
        assert_eq!(seen.request.values("sec-websocket-key"), ["dGhlIHNhbXBsZSBub25jZQ=="]);
    }
    println!("H35 tunnels: {} of 200", tunnels.len());
}

/// One side that ends ends the other.
#[test]
fn the_end_of_a_tunnel_reaches_the_other_side() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut stream = rig.connect().unwrap();
    stream.write_all(&upgrade("/tunnel", FIELDS)).unwrap();
    assert!(head(&mut stream).starts_with("HTTP/1.1 101 "));
    assert_eq!(rig.origin.active(), 1);
    drop(stream);
    lab::wait::until("the origin's side ends", Duration::from_secs(2), || {
        anyhow::ensure!(rig.origin.active() == 0);
        Ok(())
    })
    .unwrap();
}

/// What is no proper upgrade makes no tunnel: bytes that follow are judged as a request.
#[test]
fn nothing_else_becomes_a_tunnel() {
    let answers = BTreeMap::from([(
        "refuse".to_owned(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno".to_vec(),
    )]);
    let rig = Rig::start(answers, &[]).unwrap();
    let mut tally = Tally::new("H8 upgrades");
    let get = |lines: &str| upgrade("/tunnel", lines);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("HTTP/1.0", format!("GET /tunnel HTTP/1.0\r\nHost: {HOST}\r\n{FIELDS}\r\n").into_bytes()),
        (
            "POST",
            format!("POST /tunnel HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n{FIELDS}\r\n")
                .into_bytes(),
        ),
        (
            "a body by length",
            format!("GET /tunnel HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n{FIELDS}\r\nhello")
                .into_bytes(),
        ),
        (
            "a chunked body",
            format!(
                "GET /tunnel HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n{FIELDS}\r\n0\r\n\r\n"
            )
            .into_bytes(),
        ),
        (
            "no Connection",
            get(
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            ),
        ),
        ("Connection: close", get(&FIELDS.replace("Connection: Upgrade", "Connection: close"))),
        ("no Upgrade", get(&FIELDS.replace("Upgrade: websocket\r\n", ""))),
        (
            "h2c",
            get(
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            ),
        ),
        ("h2c beside websocket", get(&FIELDS.replace("websocket", "h2c, websocket"))),
        ("h2", get("Connection: Upgrade\r\nUpgrade: h2\r\n")),
        ("TLS", get("Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n")),
        ("an empty Upgrade", get(&FIELDS.replace("websocket", ""))),
        ("version 12", get(&FIELDS.replace("Version: 13", "Version: 12"))),
        ("no version", get(&FIELDS.replace("Sec-WebSocket-Version: 13\r\n", ""))),
        ("no key", get(&FIELDS.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""))),
        ("a short key", get(&FIELDS.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="))),
        (
            "a key that is no base64",
            get(&FIELDS.replace("dGhlIHNhbXBsZSBub25jZQ==", "!!!!!!!!!!!!!!!!!!!!!!==")),
        ),
        ("two keys", get(&format!("{FIELDS}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"))),
    ];
    for (name, bytes) in cases {
        let answer = rig.exchange(&bytes, Duration::from_millis(700)).unwrap();
        let text = answer.text();
        let held = if text.contains(" 101 ") { Err(text) } else { Ok(()) };
        tally.case(name, held);
        for seen in rig.origin.take() {
            let upgrade = seen.request.values("upgrade");
            let plain = upgrade.is_empty() && seen.request.faults.is_empty();
            tally.case(
                format!("{name}, at the origin"),
                if plain { Ok(()) } else { Err(format!("{:?}", seen.request)) },
            );
        }
    }
    // Refused by the origin: what follows is a request of this client's, judged as such.
    let after = format!("GET /private HTTP/1.1\r\nHost: {HOST}:bad\r\n\r\n");
    let bytes = [upgrade("/answer/refuse", FIELDS), after.into_bytes()].concat();
    let answer = rig.exchange(&bytes, Duration::from_secs(3)).unwrap();
    let judged = matches!(answer.statuses()[..], [200] | [200, 400]) && answer.end != End::Open;
    let told = format!("{:?} {:?}", answer.text(), answer.end);
    tally.case("bytes after an upgrade that was refused", if judged { Ok(()) } else { Err(told) });
    let broken = rig.origin.take_broken();
    tally.case(
        "nothing raw at the origin",
        if broken.is_empty() { Ok(()) } else { Err(format!("{broken:?}")) },
    );
    tally.end(20);
}

/// A client that gives up is noticed at the origin at once.
#[test]
fn cancellation_reaches_the_origin() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    for _ in 0..20 {
        let mut stream = rig.connect().unwrap();
        stream.write_all(format!("GET /hang HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).unwrap();
        lab::wait::until("the origin has it", Duration::from_secs(5), || {
            anyhow::ensure!(rig.origin.active() == 1);
            Ok(())
        })
        .unwrap();
        let gone = Instant::now();
        drop(stream);
        let noticed = lab::wait::until("the origin notices", Duration::from_secs(2), || {
            rig.origin.take_hung_up().first().copied().ok_or_else(|| anyhow::anyhow!("not yet"))
        })
        .unwrap();
        assert!(noticed.saturating_duration_since(gone) < Duration::from_millis(100));
    }
    let mut stream = rig.connect().unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    drop(stream);
    assert!(read_to_end(&mut rig.connect().unwrap(), Duration::from_millis(50)).bytes.is_empty());
}
