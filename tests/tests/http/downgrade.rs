//! HTTP/2 requests that would say something else once they are HTTP/1.1 (H14).

use crate::tally::Tally;
use lab::attack::h2::{self, END_HEADERS, END_STREAM, HEADERS, Outcome, block, field, frame};
use lab::attack::origin::Seen;
use lab::attack::rig::{OTHER, Rig, SECURE};
use std::collections::BTreeMap;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

/// What must become of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    /// Never served, nothing reaches an origin.
    Refused,
    /// Not answered as if it were whole; its beginning may have reached the origin.
    Cut,
    /// Served.
    Served,
    /// Either; what reaches the origin has no fault.
    Safe,
}

struct Case {
    name: String,
    /// Frames on stream 1.
    bytes: Vec<u8>,
    expect: Expect,
}

/// A case whose one oddity is its header block; the stream ends with it.
fn headers(name: impl Into<String>, block: Vec<u8>, expect: Expect) -> Case {
    Case { name: name.into(), bytes: frame(HEADERS, END_HEADERS | END_STREAM, 1, &block), expect }
}

fn with(name: impl Into<String>, fields: Vec<u8>, expect: Expect) -> Case {
    let mut all = block(&h2::get(SECURE, "/case"));
    all.extend(fields);
    headers(name, all, expect)
}

/// A request with the given pseudo-fields in place of the usual ones.
fn pseudo(name: impl Into<String>, fields: &[(&str, &str)], expect: Expect) -> Case {
    headers(name, block(fields), expect)
}

fn replaced(which: &str, value: &str, expect: Expect) -> Case {
    let fields: Vec<(&str, &str)> = h2::get(SECURE, "/case")
        .into_iter()
        .map(|(name, old)| (name, if name == which { value } else { old }))
        .collect();
    pseudo(format!("{which} {value:?}"), &fields, expect)
}

fn body(
    name: &str,
    fields: &[(&str, &str)],
    pieces: &[&[u8]],
    trailers: Option<Vec<u8>>,
    expect: Expect,
) -> Case {
    let mut all = vec![(":method", "POST"), (":scheme", "https"), (":authority", SECURE), (":path", "/case")];
    all.extend(fields);
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &block(&all));
    for (index, piece) in pieces.iter().enumerate() {
        let last = index + 1 == pieces.len() && trailers.is_none();
        bytes.extend(frame(h2::DATA, if last { END_STREAM } else { 0 }, 1, piece));
    }
    if let Some(trailers) = trailers {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers));
    }
    Case { name: name.into(), bytes, expect }
}

/// Names and values that HTTP/1.1 could not carry (RFC 9113 sections 8.2.1, 10.3).
fn characters() -> Vec<Case> {
    let mut cases = Vec::new();
    for name in [
        "x\r",
        "x\n",
        "x\0",
        "x:",
        "x y",
        "x\t",
        "X-Upper",
        "",
        "x\r\nhost: evil",
        "x\r\n\r\nGET /smuggled",
        " x",
        "x ",
        "x(",
        "x,",
        "x/",
        "x@",
        "x\x7f",
        "x\u{e9}",
        "transfer-encoding\0",
        "content-length ",
    ] {
        cases.push(with(format!("name {name:?}"), field(name, "v"), Expect::Refused));
    }
    for value in [
        "a\rb",
        "a\nb",
        "a\0b",
        "a\r\nx: y",
        "a\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n",
        "\r",
        "\n",
        "\0",
        "a\r",
        "a\n",
        "\ra",
        "\na",
        "a\x01b",
        "a\x1fb",
        "a\x7fb",
        "\x0ba",
        "a\x08",
    ] {
        cases.push(with(format!("value {value:?}"), field("x-value", value), Expect::Refused));
        cases.push(with(format!("cookie {value:?}"), field("cookie", value), Expect::Refused));
    }
    for value in [" a", "a ", "\ta", "a\t", " ", "a\tb", "\u{e9}", ""] {
        cases.push(with(format!("value {value:?}"), field("x-value", value), Expect::Safe));
    }
    cases
}

/// Pseudo-fields (sections 8.3, 8.3.1).
fn pseudo_fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for value in
        ["", "GET ", " GET", "GET /smuggled HTTP/1.1\r\nx:", "G\0T", "GET\r\n", "G T", "GET\t", "G:T", "PRI"]
    {
        let expect = if value == "PRI" { Expect::Safe } else { Expect::Refused };
        cases.push(replaced(":method", value, expect));
    }
    for value in [
        "",
        "/a b",
        "/a\r\nx: y",
        "/a\0",
        "/a\n",
        "a",
        "//evil.test/x#",
        "/a#b",
        "http://evil.test/",
        "*",
        "/a\x7f",
        "/a\x01",
        "/ HTTP/1.1\r\nhost: evil\r\n\r\nGET /smuggled",
        "?a",
        "/\u{e9}",
    ] {
        // A fragment is cut off before anybody routes by it, and a query alone is that of `/`.
        let safe = value.contains('#') || matches!(value, "?a" | "/\u{e9}");
        cases.push(replaced(":path", value, if safe { Expect::Safe } else { Expect::Refused }));
    }
    for value in [
        "",
        "a b",
        "secure.test\r\nx: y",
        "secure.test\0",
        "user@secure.test",
        "secure.test,other.test",
        "secure.test/x",
        "secure.test:port",
        "secure.test:80:80",
        "secure.test#",
        "secure.test?",
        "secure.test\\",
        "[::1",
        ":443",
        "secure.test:99999",
    ] {
        cases.push(replaced(":authority", value, Expect::Refused));
    }
    for value in ["", "ftp", "http\r\nx: y", "https://evil/?", "h t"] {
        // The origin is told the connection's own scheme, whatever the client says.
        let safe = matches!(value, "" | "ftp");
        cases.push(replaced(":scheme", value, if safe { Expect::Safe } else { Expect::Refused }));
    }
    for which in [":method", ":scheme", ":path", ":authority"] {
        let mut twice = h2::get(SECURE, "/case");
        let again = twice.iter().copied().find(|(name, _)| *name == which);
        twice.extend(again);
        cases.push(pseudo(format!("{which} twice"), &twice, Expect::Refused));
        let without: Vec<_> =
            h2::get(SECURE, "/case").into_iter().filter(|(name, _)| *name != which).collect();
        cases.push(pseudo(format!("no {which}"), &without, Expect::Refused));
        let mut late: Vec<_> = without;
        late.push(("x-plain", "v"));
        late.extend(again);
        cases.push(pseudo(format!("{which} after a field"), &late, Expect::Refused));
    }
    for (name, value) in [(":status", "200"), (":unknown", "x"), (":", "x"), (":Path", "/x")] {
        let mut more = h2::get(SECURE, "/case");
        more.push((name, value));
        cases.push(pseudo(format!("{name} in a request"), &more, Expect::Refused));
    }
    let connect = [(":method", "CONNECT"), (":authority", SECURE)];
    cases.push(pseudo("CONNECT", &connect, Expect::Refused));
    let websocket = [
        (":method", "CONNECT"),
        (":protocol", "nonsense"),
        (":scheme", "https"),
        (":path", "/tunnel"),
        (":authority", SECURE),
    ];
    cases.push(pseudo("extended CONNECT to an unknown protocol", &websocket, Expect::Refused));
    let mut protocol = h2::get(SECURE, "/case");
    protocol.push((":protocol", "websocket"));
    cases.push(pseudo(":protocol with GET", &protocol, Expect::Refused));
    cases
}

/// Fields that mean something to HTTP/1.1 alone (section 8.2.2), and who the request is for.
fn connection_fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, value) in [
        ("connection", "keep-alive"),
        ("connection", "x-forwarded-for"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("transfer-encoding", ""),
        ("upgrade", "h2c"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "trailers, deflate"),
    ] {
        cases.push(with(format!("{name}: {value}"), field(name, value), Expect::Refused));
    }
    cases.push(with("te: trailers", field("te", "trailers"), Expect::Served));
    cases.push(with("host as :authority", field("host", SECURE), Expect::Served));
    cases.push(with("host of another tenant", field("host", OTHER), Expect::Refused));
    let mut hosts = field("host", SECURE);
    hosts.extend(field("host", OTHER));
    cases.push(with("two hosts", hosts, Expect::Refused));
    cases.push(with("http2-settings", field("http2-settings", "AAMAAABkAAQAAP__"), Expect::Safe));
    cases.push(with(
        "cookie crumbs",
        [field("cookie", "a=1"), field("cookie", "b=2")].concat(),
        Expect::Served,
    ));
    cases
}

/// Lengths and trailers (sections 8.1, 8.1.1).
fn bodies() -> Vec<Case> {
    use Expect::{Cut, Refused, Safe, Served};
    let smuggled = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n".as_slice();
    let mut cases = vec![
        body("body without a length", &[], &[b"abc"], None, Served),
        body("a body that looks like a request", &[], &[smuggled], None, Served),
        body("content-length as it is", &[("content-length", "3")], &[b"abc"], None, Served),
        body("content-length too small", &[("content-length", "0")], &[smuggled], None, Cut),
        body("content-length too small by one", &[("content-length", "2")], &[b"abc"], None, Cut),
        body("content-length too great", &[("content-length", "30")], &[b"abc"], None, Cut),
        body("two lengths", &[("content-length", "3"), ("content-length", "4")], &[b"abc"], None, Refused),
        body("a list of lengths", &[("content-length", "3, 4")], &[b"abc"], None, Refused),
        body("trailers", &[], &[b"abc"], Some(block(&[("x-sum", "1")])), Served),
        body("chunks in the body", &[], &[b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"], None, Served),
        body(
            "length and coding",
            &[("content-length", "3"), ("transfer-encoding", "chunked")],
            &[b"abc"],
            None,
            Refused,
        ),
        body("expect", &[("expect", "100-continue")], &[b"abc"], None, Safe),
        body("expect something else", &[("expect", "200-maybe")], &[b"abc"], None, Safe),
        body("empty pieces", &[], &[b"", b"a", b"", b"b", b""], None, Served),
    ];
    for value in ["+3", "-3", "0x3", " 3", "3 ", "3;", "", "3a", "18446744073709551619", "三"] {
        cases.push(body(
            &format!("content-length {value:?}"),
            &[("content-length", value)],
            &[b"abc"],
            None,
            Refused,
        ));
    }
    for name in [":path", ":method", ":status", "X-Upper", "x\r\ny"] {
        let trailers = Some(block(&[(name, "/x")]));
        cases.push(body(&format!("{name:?} in trailers"), &[], &[b"abc"], trailers, Safe));
    }
    for name in ["content-length", "transfer-encoding", "host", "authorization", "te", "connection"] {
        let trailers = Some(block(&[(name, "3")]));
        cases.push(body(&format!("{name} in trailers"), &[], &[b"abc"], trailers, Safe));
    }
    cases
}

/// Tells why the case did not hold.
fn verdict(expect: Expect, outcome: &Outcome, seen: &[Seen], broken: &[String]) -> Result<(), String> {
    for seen in seen {
        if !seen.request.faults.is_empty() || seen.request.target.contains("smuggled") {
            return Err(format!("the origin got {:?} {:?}", seen.request.target, seen.request.faults));
        }
    }
    // An aborted body is what an origin must see of one whose length lies.
    let aborted = broken.iter().all(|why| why.contains("unexpected end of file") || why.contains("reset"));
    if !broken.is_empty() && (!aborted || expect == Expect::Served) {
        return Err(format!("the origin got what is no request: {broken:?}"));
    }
    match expect {
        Expect::Refused | Expect::Cut if !outcome.refused() => Err(format!("{outcome:?}")),
        Expect::Refused if !seen.is_empty() => {
            Err(format!("{outcome:?}, and the origin got {:?}", seen[0].request))
        }
        Expect::Served if *outcome != Outcome::Status(200, true) => Err(format!("{outcome:?}")),
        Expect::Served if seen.len() != 1 => Err(format!("the origin got {} requests", seen.len())),
        Expect::Safe if *outcome == Outcome::Silent => Err("silence".into()),
        Expect::Refused | Expect::Cut | Expect::Served | Expect::Safe => Ok(()),
    }
}

#[test]
fn nothing_is_smuggled_by_a_downgrade() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut tally = Tally::new("H14 downgrade");
    let cases = [characters(), pseudo_fields(), connection_fields(), bodies()];
    for case in cases.into_iter().flatten() {
        let mut connection = rig.h2().unwrap();
        // Refused while it was being sent: the outcome tells.
        let _sent = connection.send(&case.bytes);
        let outcome = connection.outcome(1, PATIENCE);
        drop(connection);
        let probe = rig.probe().map_err(|error| error.to_string());
        let seen: Vec<Seen> = [rig.origin.take(), rig.other.take()]
            .concat()
            .into_iter()
            .filter(|seen| !seen.request.target.starts_with("/probe/"))
            .collect();
        let broken = [rig.origin.take_broken(), rig.other.take_broken()].concat();
        let result = probe.and_then(|_| verdict(case.expect, &outcome, &seen, &broken));
        tally.case(case.name, result);
    }
    tally.end(140);
}
