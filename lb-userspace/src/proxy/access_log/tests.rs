#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::model::routes::PoolKey;
use crate::problem::ObjectKey;
use crate::proxy::record::{Attempt, Route};
use crate::proxy::tls::Version;
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

fn at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_436_135)
}

fn record<'a>() -> Record<'a> {
    Record {
        peer: "192.0.2.7:40000".parse().unwrap(),
        client: "198.51.100.9".parse().unwrap(),
        method: "GET",
        target: "/a?b=c",
        host: "a.example.com",
        http: http::Version::HTTP_11,
        tls: Some(Version::Tls13),
        referer: None,
        user_agent: Some(b"curl/8"),
        request_id: "0123456789abcdef",
        status: 200,
        request_bytes: 321,
        body_bytes: 12,
        took: Duration::from_micros(4_567),
        route: None,
        attempts: &[],
        local: None,
    }
}

fn line(format: Format, record: &Record<'_>) -> String {
    let mut bytes = Vec::new();
    line::write(&mut bytes, format, record, Clock::default().at(at()));
    String::from_utf8(bytes).unwrap()
}

fn json(record: &Record<'_>) -> Value {
    let line = line(Format::Json, record);
    assert_eq!(line.matches('\n').count(), 1, "{line}");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn a_line_is_that_of_ingress_nginx() {
    let local = Record { status: 404, local: Some("no_route"), ..record() };
    assert_eq!(
        line(Format::Nginx, &local),
        "198.51.100.9 - - [23/Nov/2026:12:15:35 +0000] \"GET /a?b=c HTTP/1.1\" 404 12 \"-\" \"curl/8\" \
         321 0.004 [-] [] - - - - 0123456789abcdef\n"
    );
    let (ingress, pool) = (
        Arc::new(ObjectKey::new("shop", "front")),
        PoolKey { service: Arc::new(ObjectKey::new("shop", "web")), port: 80 },
    );
    let failed = Attempt {
        address: "10.0.0.1:8080".parse().unwrap(),
        connect: None,
        header: None,
        response: Duration::from_millis(1),
        bytes: 0,
        status: None,
    };
    let done = Attempt {
        address: "[fd00::2]:8080".parse().unwrap(),
        response: Duration::from_millis(1_003),
        bytes: 12,
        status: Some(200),
        ..failed
    };
    let forwarded = Record {
        http: http::Version::HTTP_2,
        referer: Some(b"https://b.example.com/"),
        route: Some(Route { ingress: &ingress, pool: Some(&pool) }),
        attempts: &[failed, done],
        ..record()
    };
    assert_eq!(
        line(Format::Nginx, &forwarded),
        "198.51.100.9 - - [23/Nov/2026:12:15:35 +0000] \"GET /a?b=c HTTP/2.0\" 200 12 \
         \"https://b.example.com/\" \"curl/8\" 321 0.004 [shop-web-80] [] 10.0.0.1:8080, [fd00::2]:8080 \
         0, 12 0.001, 1.003 502, 200 0123456789abcdef\n"
    );
    let value = json(&forwarded);
    for (key, expected) in [
        ("time_iso8601", Value::from("2026-11-23T12:15:35+00:00")),
        ("remote_addr", "198.51.100.9".into()),
        ("client", "192.0.2.7:40000".into()),
        ("request", "GET /a?b=c HTTP/2.0".into()),
        ("status", 200.into()),
        ("request_time", 0.004.into()),
        ("duration", 0.004_567.into()),
        ("proxy_upstream_name", "shop-web-80".into()),
        ("upstream_addr", "10.0.0.1:8080, [fd00::2]:8080".into()),
        ("upstream_status", "502, 200".into()),
        ("retries", 1.into()),
        ("ssl_protocol", "TLSv1.3".into()),
        ("req_id", "0123456789abcdef".into()),
        ("ingress", "shop/front".into()),
    ] {
        assert_eq!(value[key], expected, "{key}");
    }
    assert_eq!(value.get("reason"), None);
}

#[test]
fn the_calendar_has_its_leap_days() {
    for (second, expected) in [
        (0, "1970-01-01T00:00:00+00:00"),
        (951_782_399, "2000-02-28T23:59:59+00:00"),
        (951_782_400, "2000-02-29T00:00:00+00:00"),
        (951_868_800, "2000-03-01T00:00:00+00:00"),
        (1_709_164_800, "2024-02-29T00:00:00+00:00"),
        (1_735_689_599, "2024-12-31T23:59:59+00:00"),
        (1_795_436_135, "2026-11-23T12:15:35+00:00"),
        (4_107_542_400, "2100-03-01T00:00:00+00:00"),
    ] {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let mut line = Vec::new();
        line::write(&mut line, Format::Json, &record(), Clock::default().at(now));
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["time_iso8601"], expected);
    }
}

/// What a hostile client would like to see in the log.
const FORGERIES: [&[u8]; 10] = [
    b"\n198.51.100.1 - - [23/Nov/2026:12:15:35 +0000] \"GET /admin HTTP/1.1\" 200 1 \"-\" \"-\"",
    b"\r\nforged",
    b"\" 200 0 \"-\" \"forged",
    b"\\",
    b"\\\"",
    b"\",\"status\":999,\"x\":\"",
    b"\x00\x1b[2J\x7f\x85",
    b"\xff\xfe\xc3(",
    "\u{2028}{\"status\":999}\u{2029}\u{85}".as_bytes(),
    b"\\x22\\u0022",
];

#[test]
fn nothing_a_client_sends_forges_a_line_or_a_key() {
    let clean = json(&record()).as_object().unwrap().len();
    for forged in FORGERIES {
        let text = String::from_utf8_lossy(forged);
        let record = Record {
            method: &text,
            target: &text,
            host: &text,
            referer: Some(forged),
            user_agent: Some(forged),
            request_id: &text,
            ..record()
        };
        let line = line(Format::Nginx, &record);
        assert_eq!(line.find('\n'), Some(line.len() - 1), "{line}");
        assert!(line.is_ascii() && !line.trim_end().contains(|c: char| c.is_ascii_control()), "{line}");
        assert_eq!(line.matches('"').count(), 6, "{line}");
        assert_eq!(line.replace("\\x", "").matches('\\').count(), 0, "{line}");
        let value = json(&record);
        assert_eq!(value.as_object().unwrap().len(), clean);
        assert_eq!(value["status"], 200);
        assert_eq!(value["http_user_agent"], text.as_ref(), "nothing is lost but what is no UTF-8");
        assert_eq!(value["host"], text.as_ref());
    }
}

#[test]
fn long_values_are_cut() {
    let long = "a".repeat(1 << 20);
    let record = Record { target: &long, host: &long, user_agent: Some(long.as_bytes()), ..record() };
    assert!(line(Format::Nginx, &record).len() < 20 << 10);
    assert!(line(Format::Json, &record).len() < 30 << 10);
    // Also within a character.
    let wide = "ä".repeat(1 << 15);
    let text =
        json(&Record { host: &wide[..], user_agent: Some(&wide.as_bytes()[1..]), ..record })["host"].clone();
    assert!(text.as_str().unwrap().starts_with("ää"));
}

/// Waits for a condition of the writer's thread.
fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn counts(log: &AccessLog) -> [u64; 3] {
    log.tally().read().map(|(_, n)| n)
}

#[test]
fn lines_reach_the_file_and_follow_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = AccessLog::open(Target::File(path.clone()), Format::Nginx).unwrap();
    let (one, two) = (log.lane().unwrap(), log.lane().unwrap());
    let lines = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default().lines().count();
    for _ in 0..100 {
        one.log(&record());
        two.log(&record());
    }
    wait("200 lines", || lines(&path) == 200);
    let rotated = dir.path().join("access.log.1");
    fs::rename(&path, &rotated).unwrap();
    wait("a new file", || {
        one.log(&record());
        lines(&path) > 0
    });
    fs::remove_file(&path).unwrap();
    wait("a new file after removal", || {
        two.log(&record());
        lines(&path) > 0
    });
    let [written, dropped, failed] = counts(&log);
    assert!(written > 200 && dropped == 0 && failed == 0);
    // The last lines are there once the log is closed.
    for _ in 0..10 {
        one.log(&record());
    }
    let before = lines(&path) as u64;
    let tally = log.tally();
    drop(log);
    assert!(lines(&path) as u64 >= before);
    assert_eq!(tally.read()[1].1 + tally.read()[2].1, 0);
}

#[test]
fn a_reader_that_does_not_keep_up_costs_lines_and_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    // A reader that reads nothing.
    let mut reader = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let log = AccessLog::open(Target::File(path), Format::Nginx).unwrap();
    let mut lane = log.lane().unwrap();
    lane.room = 64 << 10;
    let long = "a".repeat(4_000);
    let record = Record { target: &long, ..record() };
    let begin = Instant::now();
    for _ in 0..1_000 {
        lane.log(&record);
    }
    let took = begin.elapsed();
    let dropped = || counts(&log)[1];
    assert!(dropped() > 500, "{:?}", counts(&log));
    // The writer waits for its reader for a second at a time.
    assert!(took < Duration::from_millis(900), "{took:?}");
    // Once it reads, every line has its count.
    let mut text = vec![0; 64 << 10];
    wait("every line has its count", || {
        let _empty = reader.read(&mut text);
        counts(&log).iter().sum::<u64>() == 1_000
    });
    assert!(counts(&log)[0] > 0, "{:?}", counts(&log));
}

#[test]
fn a_full_disk_costs_lines_and_is_got_over() {
    // Every write to it fails as on a full disk.
    let full = PathBuf::from("/dev/full");
    let log = AccessLog::open(Target::File(full), Format::Json).unwrap();
    let lane = log.lane().unwrap();
    for _ in 0..10 {
        lane.log(&record());
    }
    wait("ten failures", || counts(&log) == [0, 0, 10]);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("later/access.log");
    let log = AccessLog::open(Target::File(path.clone()), Format::Json).unwrap();
    let lane = log.lane().unwrap();
    lane.log(&record());
    wait("no folder yet", || counts(&log) == [0, 0, 1]);
    fs::create_dir(dir.path().join("later")).unwrap();
    wait("it is there", || {
        lane.log(&record());
        counts(&log)[0] > 0
    });
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
}

#[test]
fn a_torn_line_does_not_spoil_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let mut sink = Sink::file(path.clone());
    let now = Instant::now();
    assert_eq!(sink.write(b"one\ntwo\nthr", now), 2);
    assert_eq!(sink.write(b"four\n", now), 1);
    assert_eq!(fs::read_to_string(path).unwrap(), "one\ntwo\nthr\nfour\n");
}

#[test]
fn a_log_that_is_off_has_no_lane() {
    let log = AccessLog::open("off".parse().unwrap(), Format::Nginx).unwrap();
    assert!(log.lane().is_none());
    assert_eq!("-".parse(), Ok(Target::Stdout));
    assert_eq!("/var/log/access.log".parse(), Ok(Target::File("/var/log/access.log".into())));
}
