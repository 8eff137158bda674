//! HTTP/2 connections that make a server work for nothing (H15 to H20).
//!
//! Each flood says how far it came before its connection was ended, how many requests the
//! origin served at once, how much the proxy grew; and a fresh client is served beside it.

use lab::attack::h2::{
    self, ACK, CONTINUATION, Connection, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, block, field, frame, indexed_field,
};
use lab::attack::rig::{Rig, SECURE};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Odd, from 1.
fn id(number: u32) -> u32 {
    number * 2 + 1
}

fn request(stream: u32, path: &str, end: bool) -> Vec<u8> {
    let flags = END_HEADERS | if end { END_STREAM } else { 0 };
    frame(HEADERS, flags, stream, &block(&h2::get(SECURE, path)))
}

/// How a flood went.
#[derive(Debug)]
struct Flood {
    /// Rounds that could be sent before the connection was ended; the whole number if it never was.
    sent: u32,
    ended: bool,
    slowest_probe: Duration,
    grown_kib: i64,
    peak: usize,
}

/// Sends rounds until the connection ends, reading what comes and probing now and then.
fn flood(rig: &Rig, name: &str, rounds: u32, mut round: impl FnMut(u32) -> Vec<u8>) -> Flood {
    rig.probe().unwrap();
    let mut connection = rig.h2().unwrap();
    rig.origin.take_peak();
    let before = rig.resident().unwrap() as i64;
    let mut slowest_probe = Duration::ZERO;
    let (mut sent, mut ended) = (0, false);
    let mut pending = Vec::new();
    for number in 0..rounds {
        pending.extend(round(number));
        if (number + 1) % 20 == 0 || number + 1 == rounds {
            if connection.send(&std::mem::take(&mut pending)).is_err() {
                ended = true;
            }
            ended |= over(&mut connection, Duration::from_micros(200));
        }
        if (number + 1) % 2_500 == 0 {
            slowest_probe = slowest_probe.max(rig.probe().unwrap());
        }
        if ended {
            break;
        }
        sent = number + 1;
    }
    // What was sent may be judged a moment later.
    if !ended {
        ended = over(&mut connection, Duration::from_secs(1));
    }
    slowest_probe = slowest_probe.max(rig.probe().unwrap());
    let told = Flood {
        sent,
        ended,
        slowest_probe,
        grown_kib: rig.resident().unwrap() as i64 - before,
        peak: rig.origin.take_peak(),
    };
    println!("{name}: {told:?}");
    told
}

/// Reads what is there; says whether the connection was ended.
fn over(connection: &mut Connection, patience: Duration) -> bool {
    while let Some(frame) = connection.next(patience) {
        if frame.kind == h2::GOAWAY {
            return true;
        }
    }
    connection.ended
}

fn rig() -> Rig {
    Rig::start(BTreeMap::new(), &[]).unwrap()
}

#[test]
fn rapid_reset_is_ended_and_reaches_no_origin() {
    let rig = rig();
    let told = flood(&rig, "H15 rapid reset", 10_000, |number| {
        [request(id(number), "/slow/50", true), frame(RST_STREAM, 0, id(number), &[0, 0, 0, 8])].concat()
    });
    assert!(told.ended && told.sent <= 1_000, "{told:?}");
    assert!(told.peak <= 300, "{told:?}");
}

#[test]
fn resets_that_the_server_is_made_to_send_count_as_well() {
    let rig = rig();
    type Round = fn(u32) -> Vec<u8>;
    let ways: [(&str, Round); 4] = [
        ("H16 window update of zero", |n| {
            [request(id(n), "/slow/50", true), frame(WINDOW_UPDATE, 0, id(n), &[0; 4])].concat()
        }),
        ("H16 window overflow", |n| {
            [request(id(n), "/slow/50", true), frame(WINDOW_UPDATE, 0, id(n), &[0x7f, 255, 255, 255])]
                .concat()
        }),
        ("H16 stream that depends on itself", |n| {
            let own = id(n).to_be_bytes();
            [
                request(id(n), "/slow/50", true),
                frame(PRIORITY, 0, id(n), &[own[0], own[1], own[2], own[3], 0]),
            ]
            .concat()
        }),
        ("H16 data on a half-closed stream", |n| {
            [request(id(n), "/slow/50", true), frame(DATA, 0, id(n), b"x")].concat()
        }),
    ];
    for (name, round) in ways {
        let told = flood(&rig, name, 5_000, round);
        assert!(told.ended && told.sent <= 1_000, "{name}: {told:?}");
        assert!(told.peak <= 300, "{name}: {told:?}");
    }
}

#[test]
fn continuation_floods_are_ended() {
    let rig = rig();
    let piece = field("x-filler", vec![b'x'; 1000]);
    let told = flood(&rig, "H17 continuation", 1_000, |number| match number {
        0 => frame(HEADERS, END_STREAM, 1, &block(&h2::get(SECURE, "/"))),
        _ => frame(CONTINUATION, 0, 1, &piece),
    });
    // Rounds are sent by twenty.
    assert!(told.ended && told.sent <= 80, "{told:?}");
    let told = flood(&rig, "H17 empty continuation", 10_000, |number| match number {
        0 => frame(HEADERS, END_STREAM, 1, &block(&h2::get(SECURE, "/"))),
        _ => frame(CONTINUATION, 0, 1, &[]),
    });
    assert!(told.ended && told.sent <= 1_000, "{told:?}");
}

#[test]
fn frames_without_a_purpose_are_cheap_and_end() {
    let rig = rig();
    type Round = fn(u32) -> Vec<u8>;
    let ways: [(&str, Round); 8] = [
        ("H18 ping", |n| frame(PING, 0, 0, &u64::from(n).to_be_bytes())),
        ("H18 settings", |_| frame(SETTINGS, 0, 0, &[])),
        ("H18 settings acknowledged", |_| frame(SETTINGS, ACK, 0, &[])),
        ("H18 priority", |n| frame(PRIORITY, 0, id(n), &[0, 0, 0, 0, 1])),
        ("H18 window update", |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("H18 unknown", |_| frame(0xf0, 0, 0, b"whatever")),
        ("H18 empty data", |n| match n {
            0 => frame(
                HEADERS,
                END_HEADERS,
                1,
                &block(&[(":method", "POST"), (":scheme", "https"), (":authority", SECURE), (":path", "/")]),
            ),
            _ => frame(DATA, 0, 1, &[]),
        }),
        ("H18 padding", |n| match n {
            0 => frame(
                HEADERS,
                END_HEADERS,
                1,
                &block(&[(":method", "POST"), (":scheme", "https"), (":authority", SECURE), (":path", "/")]),
            ),
            _ => frame(DATA, PADDED, 1, &[3, 0, 0, 0]),
        }),
    ];
    for (name, round) in ways {
        let told = flood(&rig, name, 20_000, round);
        assert!(told.ended && told.sent <= 10_000, "{name}: {told:?}");
        assert!(told.grown_kib < 1024, "{name}: {told:?}");
        assert!(told.slowest_probe < Duration::from_millis(500), "{name}: {told:?}");
    }
}

#[test]
fn header_tables_are_no_amplifier() {
    let rig = rig();
    // One field of 4 KiB enters the table; each following head refers to it 3,000 times.
    let told = flood(&rig, "H19 table bomb", 40, |number| {
        let mut head = block(&h2::get(SECURE, "/bomb"));
        match number {
            0 => head.extend(indexed_field("x-bomb", &[b'x'; 4_000])),
            _ => head.extend([0xbe; 3_000]),
        }
        frame(HEADERS, END_HEADERS | END_STREAM, id(number), &head)
    });
    assert!(told.grown_kib < 4 * 1024, "{told:?}");
    let bombs = rig.origin.take().iter().filter(|seen| seen.request.target == "/bomb").count();
    assert!(bombs <= 1, "{bombs} reached the origin");
    let mut connection = rig.h2().unwrap();
    let mut head = block(&h2::get(SECURE, "/many"));
    for _ in 0..2_500 {
        head.extend(field("a", "b"));
    }
    let _sent = connection.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head));
    let outcome = connection.outcome(1, Duration::from_secs(5));
    assert!(outcome.refused(), "2,500 fields: {outcome:?}");
    assert!(!rig.origin.take().iter().any(|seen| seen.request.target == "/many"));
    let told = flood(&rig, "H19 table size flips", 20_000, |number| {
        // Two size updates before each head (RFC 7541 section 6.3).
        let head = [vec![0x20, 0x3f, 0xe1, 0x1f], block(&h2::get(SECURE, "/"))].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, id(number), &head)
    });
    assert!(told.grown_kib < 4 * 1024, "{told:?}");
}

#[test]
fn streams_and_what_is_kept_for_them_are_bounded() {
    let rig = rig();
    rig.probe().unwrap();
    let mut connection = rig.h2().unwrap();
    rig.origin.take_peak();
    for number in 0..3_000 {
        if connection.send(&request(id(number), "/hang", true)).is_err() {
            break;
        }
        if over(&mut connection, Duration::from_micros(10)) {
            break;
        }
    }
    over(&mut connection, Duration::from_secs(1));
    let peak = rig.origin.take_peak();
    println!("H20 open streams: {peak} served at once");
    assert!(peak <= 128, "{peak}");
    drop(connection);
    rig.probe().unwrap();

    // Downloads that the client never gives room for: no window, or all of it and nothing read.
    let open: [u8; 4] = 0x7fff_0000_u32.to_be_bytes();
    for (name, window, count) in [("without a window", [0; 4], 1_000), ("that nobody reads", open, 100)] {
        let rig = self::rig();
        // What 100 streams and their origins' connections take in any case is there by then.
        let mut connection = rig.h2().unwrap();
        let all: Vec<u8> = (0..100).flat_map(|number| request(id(number), "/bytes/10", true)).collect();
        connection.send(&all).unwrap();
        over(&mut connection, Duration::from_secs(1));
        drop(connection);
        let before = rig.resident().unwrap() as i64;
        let mut connection = Connection::bare(rig.connect_tls_port().unwrap(), SECURE).unwrap();
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        connection.send(&frame(SETTINGS, 0, 0, &[&[0, 4], &window[..]].concat())).unwrap();
        if window != [0; 4] {
            connection.send(&frame(WINDOW_UPDATE, 0, 0, &window)).unwrap();
        }
        for number in 0..count {
            if connection.send(&request(id(number), "/bytes/10000000", true)).is_err() {
                break;
            }
            if window == [0; 4] && over(&mut connection, Duration::from_micros(10)) {
                break;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(3);
        let mut grown = 0;
        while Instant::now() < deadline {
            grown = grown.max(rig.resident().unwrap() as i64 - before);
            std::thread::park_timeout(Duration::from_millis(50));
        }
        println!("H20 downloads {name}: {grown} KiB");
        // Twice what peers hold; a development build, whose allocator keeps what came and went.
        assert!(grown < 8 * 1024, "{name}: {grown} KiB");
        rig.probe().unwrap();
    }
}

#[test]
fn a_busy_honest_connection_is_never_cut() {
    let rig = rig();
    let mut connection = rig.h2().unwrap();
    // 3,000 requests, one after the other, each with pings and window updates about it.
    let (mut stream, mut connections) = (1, 1);
    for number in 0..3_000_u32 {
        let mut bytes = h2::frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&h2::get(SECURE, "/")));
        bytes.extend(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 100]));
        bytes.extend(frame(PING, 0, 0, &[0; 8]));
        connection.send(&bytes).unwrap();
        let (outcome, leave) = connection.outcome_or_goaway(stream, Duration::from_secs(5));
        stream += 2;
        if leave {
            connection = rig.h2().unwrap();
            (stream, connections) = (1, connections + 1);
        }
        // Not accepted, and told so: the one thing that a client may send again (H21).
        if leave && outcome == h2::Outcome::Goaway(0) {
            continue;
        }
        assert_eq!(outcome, h2::Outcome::Status(200, true), "request {number}");
    }
    assert!(connections <= 4, "{connections} connections for 3,000 requests");
}
