//! Connections that are held on purpose (H24, H25).

use crate::tally::Tally;
use lab::attack::exchange::{End, read_to_end};
use lab::attack::h2::{self, END_HEADERS, HEADERS, block, frame};
use lab::attack::rig::{HOST, Rig, SECURE};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The longest that a useless connection may live.
const LONGEST: Duration = Duration::from_secs(65);

/// What is sent at once, and what is then repeated after each pause.
struct Way {
    name: &'static str,
    tls: bool,
    first: Vec<u8>,
    dribble: &'static [u8],
    pause: Duration,
}

fn ways() -> Vec<Way> {
    let second = Duration::from_secs(1);
    let way = |name, first: &str, dribble: &'static str| Way {
        name,
        tls: false,
        first: first.replace("HOST", HOST).into_bytes(),
        dribble: dribble.as_bytes(),
        pause: second,
    };
    let tls = |name, first: &[u8], dribble: &'static [u8]| Way {
        name,
        tls: true,
        first: first.to_vec(),
        dribble,
        pause: second,
    };
    vec![
        way("silence", "", ""),
        way("half a head", "GET / HTTP/1.1\r\nHost: HO", ""),
        way("a dribbled head", "GET / HTTP/1.1\r\nHost: HOST\r\n", "x: y\r\n"),
        way("a head by single bytes", "GET / HTTP/1.1\r\nHost: HOST\r\nx: ", "x"),
        way("empty lines for ever", "", "\r\n"),
        way("no body", "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100\r\n\r\n", ""),
        way("a dribbled body", "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100000\r\n\r\n", "x"),
        way(
            "dribbled chunks",
            "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n",
            "1\r\nx\r\n",
        ),
        way(
            "half a chunk",
            "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\nxx",
            "",
        ),
        way("idle after an answer", "GET / HTTP/1.1\r\nHost: HOST\r\n\r\n", ""),
        tls("half a hello", &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3], b""),
        tls("a dribbled hello", &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3], b"\0"),
    ]
}

/// Holds a connection until the other side ends it; says how long that took.
fn hold(mut stream: TcpStream, way: &Way) -> Result<Duration, String> {
    let began = Instant::now();
    let _sent = stream.write_all(&way.first);
    loop {
        let answer = read_to_end(&mut stream, way.pause);
        if answer.end != End::Open {
            return Ok(began.elapsed());
        }
        if began.elapsed() > LONGEST {
            return Err(format!("still open after {LONGEST:?}"));
        }
        let _sent = stream.write_all(way.dribble);
    }
}

/// An answer that nobody reads.
fn unread(rig: &Rig) -> Result<Duration, String> {
    let mut stream = rig.connect().map_err(|error| error.to_string())?;
    let request = format!("GET /bytes/100000000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let began = Instant::now();
    while began.elapsed() < LONGEST {
        std::thread::park_timeout(Duration::from_millis(500));
        // Pending on the origin's side until the proxy gives up.
        if rig.origin.active() == 0 && began.elapsed() > Duration::from_secs(1) {
            return Ok(began.elapsed());
        }
    }
    Err(format!("still served after {LONGEST:?}"))
}

/// An HTTP/2 connection without a stream, with one that never ends, with one that dribbles.
fn h2_held(rig: &Rig, first: &[u8], dribble: &[u8]) -> Result<Duration, String> {
    let mut connection = rig.h2().map_err(|error| error.to_string())?;
    let began = Instant::now();
    let mut dribbled = began;
    connection.send(first).map_err(|error| error.to_string())?;
    while began.elapsed() < LONGEST {
        if let Some(frame) = connection.next(Duration::from_secs(1)) {
            // A stream ends with its answer or a reset; a connection with its socket, not with GOAWAY.
            if !first.is_empty() && matches!(frame.kind, HEADERS | h2::RST_STREAM) {
                return Ok(began.elapsed());
            }
        }
        // At most one a second, however quickly it is acknowledged: not a flood.
        let is_due = !dribble.is_empty() && dribbled.elapsed() >= Duration::from_secs(1);
        if connection.ended || (is_due && connection.send(dribble).is_err()) {
            return Ok(began.elapsed());
        }
        if is_due {
            dribbled = Instant::now();
        }
    }
    Err(format!("still open after {LONGEST:?}"))
}

#[test]
fn whoever_holds_a_connection_for_nothing_loses_it() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut tally = Tally::new("H24 slowness");
    let post = [(":method", "POST"), (":scheme", "https"), (":authority", SECURE), (":path", "/")];
    let open = frame(HEADERS, END_HEADERS, 1, &block(&post));
    let one = frame(h2::DATA, 0, 1, b"x");
    let ping = frame(h2::PING, 0, 0, &[0; 8]);
    let (rig, ways, open, one, ping) = (&rig, &ways(), &open, &one, &ping);
    let results: Vec<(String, Result<Duration, String>)> = std::thread::scope(|scope| {
        let mut running = Vec::new();
        for way in ways {
            let stream = if way.tls { rig.connect_tls_port() } else { rig.connect() };
            running.push((way.name, scope.spawn(move || hold(stream.unwrap(), way))));
        }
        running.push(("an unread answer", scope.spawn(move || unread(rig))));
        running.push(("an idle h2 connection", scope.spawn(move || h2_held(rig, &[], &[]))));
        running.push(("a pinging h2 connection", scope.spawn(move || h2_held(rig, &[], ping))));
        running.push(("an open h2 stream", scope.spawn(move || h2_held(rig, open, &[]))));
        running.push(("a dribbled h2 stream", scope.spawn(move || h2_held(rig, open, one))));
        running.into_iter().map(|(name, thread)| (name.to_owned(), thread.join().unwrap())).collect()
    });
    for (name, result) in results {
        println!("H24 {name}: {result:?}");
        tally.case(name, result.map(drop));
    }
    tally.case("a fresh client", rig.probe().map(drop).map_err(|error| error.to_string()));
    tally.end(17);
}

#[test]
fn held_connections_keep_nobody_out() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut tally = Tally::new("H25 held connections");
    for way in ways() {
        let before = rig.resident().unwrap();
        let mut held: Vec<TcpStream> =
            (0..400).map(|_| if way.tls { rig.connect_tls_port() } else { rig.connect() }.unwrap()).collect();
        for stream in &mut held {
            stream.write_all(&way.first).unwrap();
        }
        let mut times: Vec<Duration> = (0..50).map(|_| rig.probe().unwrap()).collect();
        times.sort();
        let (slowest, grown) = (times[48], rig.resident().unwrap().saturating_sub(before));
        println!("H25 400 × {}: p98 {slowest:?}, {} KiB a connection", way.name, grown / 400);
        let quick = if slowest < Duration::from_millis(500) { Ok(()) } else { Err(format!("{slowest:?}")) };
        tally.case(format!("{}: probes", way.name), quick);
        let small = if grown < 400 * 64 { Ok(()) } else { Err(format!("{grown} KiB")) };
        tally.case(format!("{}: memory", way.name), small);
        drop(held);
    }
    tally.end(24);
}

/// A client that reads too little to be let go on, but never nothing, is slow and not hostile:
/// it is served while it keeps a minimum rate.
#[test]
fn a_slow_but_honest_download_is_served() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut stream = rig.connect().unwrap();
    stream
        .write_all(
            format!("GET /bytes/2000000 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut total = 0;
    let mut buffer = vec![0; 100_000];
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        total += count;
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert!(total > 2_000_000, "{total}");
}
