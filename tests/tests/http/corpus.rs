//! The requests of the corpus through the whole proxy, over HTTP and over TLS: what reaches
//! the origin is what each case says, and nothing else (H1 to H10, H12, H33, H34).

use crate::tally::Tally;
use lab::attack::bystander::Bystander;
use lab::attack::exchange::Wire;
use lab::attack::h2;
use lab::attack::origin::Seen;
use lab::attack::reply::{Nothing, Replies};
use lab::attack::rig::Rig;
use lab::raw::corpus::{self, Case, show};
use lab::raw::requests::joined;
use lab::raw::{REQUESTS, paths};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use weir::proxy::judge::Reason;

const PATIENCE: Duration = Duration::from_secs(5);
/// How long a request that never ends is listened to.
const WHILE: Duration = Duration::from_millis(50);

/// What was forwarded, as the corpus writes it.
fn written(seen: &Seen) -> Vec<u8> {
    let request = &seen.request;
    joined(format!("{} {}", request.method, request.target).into_bytes(), &request.body)
}

/// A message of the corpus as it is sent on: the target without scheme and host (H9).
fn sent_on(message: &[u8]) -> Vec<u8> {
    let mut words = message.splitn(3, |byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let scheme = ["http://", "https://"].into_iter().find(|scheme| {
        target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
    });
    let target = match scheme {
        None => target.to_vec(),
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            let path = rest.iter().position(|byte| b"/?".contains(byte)).map_or(&b""[..], |at| &rest[at..]);
            if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() }
        }
    };
    joined([method, b" ", &target].concat(), words.next().unwrap_or_default())
}

/// What the path rule refuses although the message is beyond reproach (H32).
fn refused_by_path(message: &[u8]) -> bool {
    let target = sent_on(message).split(|byte| *byte == b' ').nth(1).unwrap_or_default().to_vec();
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    path.starts_with(b"/") && paths::verdict(path).starts_with("refuse")
}

/// Nothing of it may have a second meaning, or be the client's word for who it is.
fn is_clean(seen: &Seen, scheme: &str) -> Result<(), String> {
    let request = &seen.request;
    if !request.faults.is_empty() {
        return Err(format!("the origin got {:?}", request.faults));
    }
    for (name, wanted) in [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-proto", scheme)] {
        if request.values(name) != [wanted] {
            return Err(format!("{name}: {:?}", request.values(name)));
        }
    }
    const NEVER: [&str; 5] = ["proxy", "proxy-connection", "keep-alive", "http2-settings", "forwarded"];
    match request.fields.iter().find(|(name, _)| name.contains('_') || NEVER.contains(&name.as_str())) {
        Some((name, _)) => Err(format!("the origin got {name}")),
        None => Ok(()),
    }
}

/// What a case comes to at the client. `astray`: the message behind those that are expected is
/// refused for its path.
fn answered<W: Wire>(case: &Case, expected: &[Vec<u8>], astray: bool, wire: W) -> Result<(), String> {
    let mut replies = Replies::new(wire);
    // A refusal may come before all is sent.
    let _sent = replies.wire.write_all(&case.bytes).and_then(|()| replies.wire.flush());
    let mut reusable = true;
    for message in expected {
        let reply = replies.next(message.starts_with(b"HEAD "), PATIENCE);
        let reply = reply.map_err(|nothing| format!("{nothing:?} in place of an answer"))?;
        if (reply.status, reply.whole) != (200, true) {
            return Err(format!("{} to {}", reply.status, show(message)));
        }
        reusable = reply.reusable;
    }
    if astray {
        return match replies.next(false, PATIENCE) {
            Ok(reply) if reply.status == 400 && reply.whole => Ok(()),
            other => Err(format!("{other:?} in place of 400")),
        };
    }
    match case.verdict().strip_prefix("refuse ") {
        Some(label) => {
            let reason = Reason::ALL.iter().find(|reason| reason.label() == label);
            let status = reason.map(|reason| reason.status()).unwrap_or_default();
            match replies.next(false, PATIENCE) {
                // Over plain TCP the preface is HTTP/2, and HTTP/2 ends it.
                Err(Nothing::Garbage) if case.name == "http2-preface" => return Ok(()),
                Ok(reply) if reply.status == status && !reply.reusable => {}
                // What is still being sent when it is refused may make a reset of the refusal.
                Err(Nothing::Ended) if case.bytes.len() > 30_000 => return Ok(()),
                other => return Err(format!("{other:?} in place of {status}")),
            }
            if replies.ends(PATIENCE) { Ok(()) } else { Err("not closed after a refusal".into()) }
        }
        None if case.verdict() == "wait" => match replies.next(false, WHILE) {
            Err(Nothing::Silent) => Ok(()),
            other => Err(format!("{other:?} before its end")),
        },
        None if reusable => {
            let after = b"GET /after HTTP/1.1\r\nHost: a.example\r\n\r\n";
            let sent = replies.wire.write_all(after).and_then(|()| replies.wire.flush());
            sent.map_err(|error| error.to_string())?;
            match replies.next(false, PATIENCE) {
                Ok(reply) if reply.status == 200 && reply.text().ends_with("/after") => Ok(()),
                other => Err(format!("the next request got {other:?}")),
            }
        }
        None => Ok(()),
    }
}

/// Compares what the origin got with what the case says.
fn arrived(rig: &Rig, expected: &[Vec<u8>], scheme: &str) -> Result<(), String> {
    let (mut found, mut result) = (Vec::new(), Ok(()));
    for seen in rig.origin.take() {
        if !seen.request.target.starts_with("/probe/") && seen.request.target != "/after" {
            result = result.and_then(|()| is_clean(&seen, scheme));
            found.push(written(&seen));
        }
    }
    result?;
    if found != expected {
        let list = |all: &[Vec<u8>]| all.iter().map(|one| show(one)).collect::<Vec<_>>();
        return Err(format!("the origin got {:?}, not {:?}", list(&found), list(expected)));
    }
    // A body that was refused on its way is broken off.
    let aborted = |why: &String| why.contains("unexpected end of file") || why.contains("reset");
    let broken = rig.origin.take_broken();
    if !broken.iter().all(aborted) {
        return Err(format!("the origin got what is no request: {broken:?}"));
    }
    match rig.other.take().len() {
        0 => Ok(()),
        count => Err(format!("{count} requests at another's origin")),
    }
}

fn run(rig: &Rig, name: &'static str, tls: bool) {
    let (mut tally, mut bystander, began) = (Tally::new(name), Bystander::default(), Instant::now());
    let scheme = if tls { "https" } else { "http" };
    for case in REQUESTS.iter().flat_map(|(_, text)| corpus::read(text).unwrap()) {
        let mut expected = case.marked("> ").unwrap();
        let astray = expected.iter().position(|message| refused_by_path(message));
        expected.truncate(astray.unwrap_or(expected.len()));
        let expected: Vec<Vec<u8>> = expected.iter().map(|message| sent_on(message)).collect();
        let answer = || -> Result<(), String> {
            let tcp = if tls { rig.connect_tls_port() } else { rig.connect() };
            let tcp = tcp.map_err(|error| error.to_string())?;
            if tls {
                let wire = h2::tls(tcp, "a.example", &[b"http/1.1"]).map_err(|error| format!("{error:#}"))?;
                answered(&case, &expected, astray.is_some(), wire)
            } else {
                answered(&case, &expected, astray.is_some(), tcp)
            }
        };
        // All three in any case: what one leaves behind must not be another's.
        let (result, aside) = (answer(), bystander.ask(rig));
        tally.case(&case.name, result.and(aside).and(arrived(rig, &expected, scheme)));
    }
    println!("{name}: {:?}", began.elapsed());
    tally.end(600);
}

#[test]
fn requests_reach_the_origin_as_the_corpus_says() {
    // One worker: the bystander shares the connections to the origin with the attacker.
    let rig = Rig::open(BTreeMap::new(), &["--proxy-workers", "1"]).unwrap();
    run(&rig, "H1-H10 corpus over HTTP", false);
    run(&rig, "H1-H10 corpus over TLS", true);
}
