//! Who a request is from and who it is for, as the origin is told (H9, H10, H33, H34).

use crate::tally::Tally;
use lab::attack::origin::Seen;
use lab::attack::rig::{HOST, Rig};
use lab::attack::strict::Request;
use std::collections::BTreeMap;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

/// Sends one request with these lines and says what the origin got.
fn arrives(rig: &Rig, lines: &str) -> Result<Request, String> {
    let bytes = format!("GET /x HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n");
    let bytes = if lines.to_ascii_lowercase().contains("connection:") {
        bytes
    } else {
        bytes.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)
    };
    rig.origin.take();
    let answer = rig.exchange(bytes.as_bytes(), Duration::from_millis(500)).map_err(|e| e.to_string())?;
    match <[Seen; 1]>::try_from(rig.origin.take()) {
        Ok([seen]) if seen.request.faults.is_empty() => Ok(seen.request),
        Ok([seen]) => Err(format!("{:?}", seen.request.faults)),
        Err(seen) => Err(format!("{} requests arrived; {}", seen.len(), answer.text())),
    }
}

fn expect(found: Vec<String>, wanted: &[&str]) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{found:?} in place of {wanted:?}")) }
}

#[test]
fn nobody_says_for_another_who_he_is() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut tally = Tally::new("H33 forwarding fields");
    let told = [
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Real-IP", "127.0.0.1"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Scheme", "http"),
        ("X-Scheme", "http"),
        ("X-Forwarded-Host", HOST),
        ("X-Forwarded-Port", "80"),
    ];
    for (name, wanted) in told {
        let low = name.to_ascii_lowercase();
        for lines in [
            String::new(),
            format!("{name}: forged\r\n"),
            format!("{name}: 1.2.3.4\r\n{name}: 5.6.7.8\r\n"),
            format!("{low}: forged\r\n"),
            format!("{name}: forged\r\nConnection: close, {name}\r\n"),
        ] {
            let result = arrives(&rig, &lines).and_then(|request| expect(request.values(&low), &[wanted]));
            tally.case(format!("{lines:?}"), result);
        }
        let twin = name.replace('-', "_");
        let result = arrives(&rig, &format!("{twin}: forged\r\n"))
            .and_then(|request| expect(request.values(&twin.to_ascii_lowercase()), &[]));
        tally.case(twin, result);
    }
    for name in [
        "Forwarded",
        "Proxy",
        "X-Original-URL",
        "X-Rewrite-URL",
        "ssl-client-verify",
        "ssl-client-subject-dn",
        "ssl-client-issuer-dn",
        "ssl-client-cert",
        "X_Client_Cert",
    ] {
        // Not ours to forward unless somebody said so: identity that an origin may believe.
        let stripped = !matches!(name, "X-Original-URL" | "X-Rewrite-URL");
        let result = arrives(&rig, &format!("{name}: forged\r\n")).and_then(|request| {
            let found = request.values(&name.to_ascii_lowercase());
            if stripped { expect(found, &[]) } else { Ok(()) }
        });
        tally.case(name, result);
    }
    let id = arrives(&rig, "").map(|request| request.values("x-request-id"));
    let made = match &id {
        Ok(ids) if ids.len() == 1 && ids[0].len() >= 16 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    tally.case("X-Request-ID is made", made);
    let kept = arrives(&rig, "X-Request-ID: abcdef0123456789\r\n")
        .and_then(|request| expect(request.values("x-request-id"), &["abcdef0123456789"]));
    tally.case("X-Request-ID is kept", kept);
    tally.end(50);
}

#[test]
fn trusted_senders_are_believed() {
    let rig = Rig::start(BTreeMap::new(), &["--trusted-proxies", "127.0.0.0/8,10.0.0.0/8"]).unwrap();
    let mut tally = Tally::new("H33 trusted senders");
    for (sent, wanted) in [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("10.1.2.3, 203.0.113.7", "203.0.113.7"),
    ] {
        let result = arrives(&rig, &format!("X-Forwarded-For: {sent}\r\nX-Forwarded-Proto: https\r\n"))
            .and_then(|request| {
                expect(request.values("x-real-ip"), &[wanted])?;
                expect(request.values("x-forwarded-proto"), &["https"])
            });
        tally.case(sent, result);
    }
    tally.end(4);
}

#[test]
fn fields_of_one_hop_go_no_further() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut tally = Tally::new("H34 hop by hop");
    for (name, value) in [
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "gzip"),
        ("Upgrade", "foo"),
        ("HTTP2-Settings", "AAMAAABk"),
    ] {
        let result = arrives(&rig, &format!("{name}: {value}\r\n"))
            .and_then(|request| expect(request.values(&name.to_ascii_lowercase()), &[]));
        tally.case(name, result);
    }
    for nominated in ["X-Secret", "x-secret", "X-Other, X-Secret", "close, X-Secret", "X-Secret,,close"] {
        let result = arrives(&rig, &format!("X-Secret: v\r\nConnection: {nominated}\r\n"))
            .and_then(|request| expect(request.values("x-secret"), &[]));
        tally.case(format!("Connection: {nominated}"), result);
    }
    // What the proxy itself relies on cannot be nominated away.
    for nominated in ["Host", "Cookie", "Content-Length", "Authorization", "X-Forwarded-For"] {
        let result = arrives(&rig, &format!("Cookie: a=b\r\nConnection: close, {nominated}\r\n"))
            .and_then(|request| expect(request.values("host"), &[HOST]));
        tally.case(format!("Connection nominates {nominated}"), result);
    }
    let trailers = arrives(&rig, "TE: trailers\r\nConnection: TE, close\r\n").and_then(|request| {
        if request.values("te").iter().all(|te| te == "trailers") { Ok(()) } else { Err("te".into()) }
    });
    tally.case("TE: trailers", trailers);
    tally.end(16);
}

#[test]
fn a_host_is_one_valid_name_or_the_request_is_refused() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut tally = Tally::new("H9 host");
    let refused = [
        "",
        "Host:\r\n",
        "Host: \r\n",
        "Host: a b\r\n",
        "Host: attack.test\r\nHost: attack.test\r\n",
        "Host: attack.test\r\nHost: other.test\r\n",
        "Host: attack.test, other.test\r\n",
        "Host: user@attack.test\r\n",
        "Host: user:pw@attack.test\r\n",
        "Host: attack.test/\r\n",
        "Host: attack.test?\r\n",
        "Host: attack.test#\r\n",
        "Host: attack.test\\\r\n",
        "Host: attack.test:http\r\n",
        "Host: attack.test:\u{660}\r\n",
        "Host: attack.test:99999\r\n",
        "Host: attack.test:80:80\r\n",
        "Host: attack.test:-80\r\n",
        "Host: [::1\r\n",
        "Host: ::1\r\n",
        "Host: attack.test\0\r\n",
        "Host: attack.test\x01\r\n",
        "Host : attack.test\r\n",
        " Host: attack.test\r\n",
        "Host: attack%00.test\r\n",
        "Host: <attack.test>\r\n",
        "Host: attack.test|\r\n",
        "Host: \"attack.test\"\r\n",
    ];
    for lines in refused {
        let bytes = format!("GET /x HTTP/1.1\r\n{lines}Connection: close\r\n\r\n");
        let answer = rig.exchange(bytes.as_bytes(), PATIENCE).unwrap();
        let seen = rig.origin.take().len() + rig.other.take().len();
        let held = if answer.statuses() == [400] && seen == 0 {
            Ok(())
        } else {
            Err(format!("{:?}, {seen} seen", answer.text()))
        };
        tally.case(format!("{lines:?}"), held);
    }
    for (line, lines) in [
        ("GET /x", "Host: attack.test\r\n"),
        ("GET /x", "Host: ATTACK.test\r\n"),
        ("GET /x", "Host: attack.test:80\r\n"),
        ("GET /x", "Host: attack.test.\r\n"),
        ("GET /x", "Host: attack.test:8080\r\n"),
        ("GET http://attack.test/x", "Host: other.test\r\n"),
        ("GET http://ATTACK.test:80/x", "Host: other.test\r\n"),
    ] {
        let bytes = format!("{line} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n");
        let answer = rig.exchange(bytes.as_bytes(), PATIENCE).unwrap();
        let seen = rig.origin.take();
        let other = rig.other.take().len();
        let held = match &seen[..] {
            [one] if other == 0 && one.request.faults.is_empty() && one.request.target == "/x" => Ok(()),
            _ => Err(format!("{:?}, {} seen, {other} elsewhere", answer.text(), seen.len())),
        };
        tally.case(format!("{line} {lines:?}"), held);
    }
    for target in [
        "http://user@attack.test/x",
        "http://attack.test:port/x",
        "http:///x",
        "http://",
        "ftp://attack.test/x",
        "http://attack.test,other.test/x",
        "http://attack.test /x",
        "attack.test/x",
        "x",
        "http://attack.test#/x",
    ] {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: attack.test\r\nConnection: close\r\n\r\n");
        let answer = rig.exchange(bytes.as_bytes(), PATIENCE).unwrap();
        let seen = rig.origin.take().len() + rig.other.take().len();
        let held = if answer.statuses() == [400] && seen == 0 {
            Ok(())
        } else {
            Err(format!("{:?}, {seen} seen", answer.text()))
        };
        tally.case(target, held);
    }
    tally.end(45);
}
