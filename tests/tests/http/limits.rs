//! What is served at least, and what is refused (H22).

use crate::tally::Tally;
use lab::attack::rig::{HOST, Rig};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

fn request(target: &str, fields: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}Connection: close\r\n\r\n").into_bytes()
}

fn expect(rig: &Rig, bytes: &[u8], wanted: &[u16]) -> Result<(), String> {
    let answer = rig.exchange(bytes, PATIENCE).map_err(|error| error.to_string())?;
    match answer.statuses()[..] {
        [status] if wanted.contains(&status) => Ok(()),
        // A client that is still writing when it is refused may meet a reset first.
        [] if !wanted.contains(&200) && answer.end == lab::attack::exchange::End::Reset => Ok(()),
        _ => Err(format!("{:?} {:?}", answer.statuses(), answer.end)),
    }
}

#[test]
fn heads_are_served_up_to_the_usual_sizes_and_refused_far_above() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut tally = Tally::new("H22 limits");
    let x = |count: usize| "x".repeat(count);
    let fields = |count: usize| (0..count).map(|n| format!("x-{n}: v\r\n")).collect::<String>();
    let (served, refused): (&[u16], &[u16]) = (&[200], &[400, 414, 431, 413]);
    let table: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("a field of 1 KiB", request("/", &format!("x: {}\r\n", x(1024))), served),
        ("a field of 4 KiB", request("/", &format!("x: {}\r\n", x(4096))), served),
        ("a field of 7.5 KiB", request("/", &format!("x: {}\r\n", x(7680))), served),
        ("a cookie of 7.5 KiB", request("/", &format!("cookie: a={}\r\n", x(7680))), served),
        ("two fields of 7.5 KiB", request("/", &format!("x: {0}\r\ny: {0}\r\n", x(7680))), served),
        ("a target of 1 KiB", request(&format!("/{}", x(1024)), ""), served),
        ("a target of 7.5 KiB", request(&format!("/{}", x(7680)), ""), served),
        ("a query of 7.5 KiB", request(&format!("/?{}", x(7680)), ""), served),
        ("a name of 256 B", request("/", &format!("{}: v\r\n", x(256))), served),
        ("20 fields", request("/", &fields(20)), served),
        ("50 fields", request("/", &fields(50)), served),
        ("92 fields", request("/", &fields(92)), served),
        ("a method of 16 B", request("/", "").replace_method("PROPPATCHPROPPAT"), served),
        ("a field of 128 KiB", request("/", &format!("x: {}\r\n", x(131_072))), refused),
        ("a field of 1 MiB", request("/", &format!("x: {}\r\n", x(1 << 20))), refused),
        ("a target of 128 KiB", request(&format!("/{}", x(131_072)), ""), refused),
        ("a target of 1 MiB", request(&format!("/{}", x(1 << 20)), ""), refused),
        ("a name of 128 KiB", request("/", &format!("{}: v\r\n", x(131_072))), refused),
        ("a method of 128 KiB", request("/", "").replace_method(&x(131_072)), refused),
        ("20,000 fields", request("/", &fields(20_000)), refused),
        ("2,500 fields", request("/", &fields(2_500)), refused),
        ("200,000 empty lines first", [b"\r\n".repeat(200_000), request("/", "")].concat(), refused),
    ];
    for (name, bytes, wanted) in &table {
        tally.case(*name, expect(&rig, bytes, wanted));
        tally.case(format!("a fresh client after {name}"), rig.probe().map(drop).map_err(|e| e.to_string()));
    }
    tally.case("a head byte by byte", byte_by_byte(&rig));
    tally.case(
        "a target that is too long is told so",
        expect(&rig, &request(&format!("/{}", x(40_000)), ""), &[414]),
    );
    let many = request("/", &format!("x: {}\r\n", x(60_000)));
    tally.case("a head that is too long is told so", expect(&rig, &many, &[431]));
    let body =
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2000000\r\nConnection: close\r\n\r\n");
    tally.case("a body that is too long is told so", expect(&rig, body.as_bytes(), &[413]));
    tally.end(48);
    assert!(rig.origin.take_broken().is_empty(), "a refused request reached the origin");
}

/// What may stand between and behind chunks is dropped, and bounded (H4, H5).
#[test]
fn chunk_extensions_and_trailers_are_bounded_and_go_no_further() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut tally = Tally::new("H4 chunk extensions and trailers");
    let post = |chunks: &str, trailers: &str| {
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n");
        format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n{trailers}\r\n").into_bytes()
    };
    let chunk = |extension: &str| format!("1;{extension}\r\nx\r\n");
    let x = |count: usize| "x".repeat(count);
    let (served, refused): (&[u16], &[u16]) = (&[200], &[400, 431]);
    let table: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("an extension of 200 B", post(&chunk(&x(200)), ""), served),
        ("60 extensions, 12 KiB in all", post(&chunk(&x(200)).repeat(60), ""), served),
        ("an extension of 1 KiB", post(&chunk(&x(1024)), ""), refused),
        ("an extension of 128 KiB", post(&chunk(&x(131_072)), ""), refused),
        ("100 extensions, 20 KiB in all", post(&chunk(&x(200)).repeat(100), ""), refused),
        ("10,000 extensions, 2 MiB in all", post(&chunk(&x(200)).repeat(10_000), ""), refused),
        ("a trailer of 4 KiB", post("", &format!("x-sum: {}\r\n", x(4096))), served),
        ("50 trailers", post("", &(0..50).map(|n| format!("x-{n}: v\r\n")).collect::<String>()), served),
        ("a trailer of 40 KiB", post("", &format!("x-sum: {}\r\n", x(40_000))), refused),
        ("trailers of 2 MiB", post("", &format!("x-sum: {}\r\n", x(1_000)).repeat(2_000)), refused),
        (
            "2,000 trailers",
            post("", &(0..2_000).map(|n| format!("x-{n}: v\r\n")).collect::<String>()),
            refused,
        ),
    ];
    for (name, bytes, wanted) in &table {
        tally.case(*name, expect(&rig, bytes, wanted));
        let whole: Vec<_> =
            rig.origin.take().into_iter().filter(|seen| seen.request.method == "POST").collect();
        // The origin's reader finds fault with any extension.
        let clean = whole.len() == usize::from(wanted.contains(&200))
            && whole.iter().all(|seen| seen.request.faults.is_empty());
        tally.case(
            format!("{name}, at the origin"),
            if clean { Ok(()) } else { Err(format!("{} requests: {:?}", whole.len(), whole.first())) },
        );
        tally.case(format!("a fresh client after {name}"), rig.probe().map(drop).map_err(|e| e.to_string()));
    }
    tally.end(33);
}

/// No annotation of an Ingress moves a limit; the operator's flag does, for everybody (H23).
#[test]
fn limits_are_the_operators_and_no_annotation_moves_them() {
    let mut tally = Tally::new("H23 whose limits");
    for (flags, most) in [(&[][..], 1 << 20), (&["--proxy-body-size", "64k"], 64 << 10)] {
        let rig = Rig::start(BTreeMap::new(), flags).unwrap();
        rig.annotate(&[
            ("nginx.ingress.kubernetes.io/proxy-body-size", "100m"),
            ("nginx.ingress.kubernetes.io/client-body-buffer-size", "100m"),
            ("nginx.ingress.kubernetes.io/proxy-read-timeout", "1"),
            ("nginx.ingress.kubernetes.io/configuration-snippet", "large_client_header_buffers 4 1m;"),
            ("nginx.ingress.kubernetes.io/server-snippet", "client_max_body_size 100m;"),
            ("weir.dev/proxy-body-size", "100m"),
            ("weir.dev/head-limit", "1m"),
        ])
        .unwrap();
        let post = |length: usize| {
            let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n");
            [format!("{head}Content-Length: {length}\r\n\r\n").into_bytes(), vec![b'x'; length]].concat()
        };
        tally.case(format!("{most}: a body of the limit"), expect(&rig, &post(most), &[200]));
        tally.case(format!("{most}: a byte more"), expect(&rig, &post(most + 1), &[413]));
        let wide = request("/", &format!("x: {}\r\n", "x".repeat(60_000)));
        tally.case(format!("{most}: a wide head"), expect(&rig, &wide, &[431]));
        let slow = request("/slow/1500", "");
        tally.case(format!("{most}: an answer after 1.5 s"), expect(&rig, &slow, &[200]));
    }
    tally.end(8);
}

fn byte_by_byte(rig: &Rig) -> Result<(), String> {
    let mut stream = rig.connect().map_err(|error| error.to_string())?;
    for byte in request("/slowly", "x: y\r\n") {
        stream.write_all(&[byte]).map_err(|error| error.to_string())?;
        // Each byte in a segment of its own, as far as the kernel goes along.
        std::thread::yield_now();
    }
    let answer = lab::attack::exchange::read_to_end(&mut stream, PATIENCE);
    if answer.statuses() == [200] { Ok(()) } else { Err(answer.text()) }
}

trait ReplaceMethod {
    fn replace_method(self, method: &str) -> Vec<u8>;
}

impl ReplaceMethod for Vec<u8> {
    fn replace_method(self, method: &str) -> Vec<u8> {
        [method.as_bytes(), &self[3..]].concat()
    }
}
