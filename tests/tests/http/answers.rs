//! The origins' answers of the corpus through the whole proxy: a client gets the answer or
//! 502, or its answer is broken off; and the next requests, on its own connection and on those
//! to the origin, get their own answers (H11, H12).

use crate::tally::Tally;
use lab::attack::bystander::Bystander;
use lab::attack::h2::{Connection, Outcome};
use lab::attack::reply::{Nothing, Replies};
use lab::attack::rig::{HOST, Rig, SECURE};
use lab::raw::ANSWERS;
use lab::raw::corpus::{self, Case};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(5);
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// What the client may see.
struct Expected {
    status: u16,
    body: Vec<u8>,
    whole: bool,
}

fn expected(case: &Case) -> Expected {
    let seen = case.marked("= ").unwrap();
    let seen = seen.first().map(Vec::as_slice);
    // Without a line of its own: what is refused before its head went on.
    let status = seen.map_or(502, |seen| String::from_utf8_lossy(&seen[..3]).parse().unwrap());
    let body = seen.and_then(|seen| seen.get(4..)).unwrap_or_default().to_vec();
    Expected { status, body, whole: seen.is_none() || matches!(case.verdict(), "keep" | "close") }
}

/// Whether the case says the same when the origin leaves the connection open.
fn needs_no_end(case: &Case) -> bool {
    let verdict = case.verdict();
    verdict == "keep"
        || verdict.starts_with("bad-gateway")
        || verdict.starts_with("abort")
        || verdict == "close" && case.name.starts_with("leftover")
}

/// Asks for the case's answer, and for something else on the same connection if it can be used.
fn ask(rig: &Rig, connection: &mut Option<Replies<TcpStream>>, case: &Case, way: &str) -> Result<(), String> {
    let (question, wanted) = (case.expect[0].as_str(), expected(case));
    let (method, fields) = match question {
        "? HEAD" => ("HEAD", ""),
        "? UPGRADE" => ("GET", UPGRADE),
        _ => ("GET", ""),
    };
    let open = || rig.connect().map(Replies::new).map_err(|error| error.to_string());
    let mut replies = connection.take().map_or_else(open, Ok)?;
    let send = |replies: &mut Replies<TcpStream>, method: &str, target: &str, fields: &str| {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n");
        replies.wire.write_all(request.as_bytes()).map_err(|error| error.to_string())
    };
    send(&mut replies, method, &format!("/{way}/{}", case.name), fields)?;
    let reply = match replies.next(method == "HEAD", PATIENCE) {
        Ok(reply) => reply,
        // Broken off before anything of it was sent.
        Err(Nothing::Ended) if !wanted.whole => return Ok(()),
        Err(nothing) => return Err(format!("{nothing:?} in place of {}", wanted.status)),
    };
    if reply.status == 502 && !wanted.whole && wanted.status != 502 {
        // What followed the head came together with it, and was seen before that went on.
        return Ok(());
    }
    if (reply.status, reply.whole) != (wanted.status, wanted.whole) {
        return Err(format!(
            "{} whole {}, not {} {}",
            reply.status, reply.whole, wanted.status, wanted.whole
        ));
    }
    if reply.status == 101 {
        return Ok(());
    }
    if wanted.whole && wanted.status != 502 && method != "HEAD" && reply.body != wanted.body {
        return Err(format!("body {:?}, not {:?}", reply.text(), corpus::show(&wanted.body)));
    }
    if !reply.reusable {
        return if replies.ends(PATIENCE) { Ok(()) } else { Err("not closed".into()) };
    }
    send(&mut replies, "GET", "/after", "")?;
    match replies.next(false, PATIENCE) {
        Ok(after) if after.status == 200 && after.text().ends_with(" /after") => {
            *connection = Some(replies).filter(|_| after.reusable);
            Ok(())
        }
        other => Err(format!("the next request on the connection got {other:?}")),
    }
}

/// The same from a client of HTTP/2.
fn ask_h2(
    rig: &Rig,
    connection: &mut Option<(Connection, u32)>,
    case: &Case,
    way: &str,
) -> Result<(), String> {
    let wanted = expected(case);
    let told = |error: anyhow::Error| format!("{error:#}");
    let (mut known, stream) = match connection.take() {
        Some(known) => known,
        None => (rig.h2().map_err(told)?, 1),
    };
    let method = if case.expect[0] == "? HEAD" { "HEAD" } else { "GET" };
    let get = |known: &mut Connection, stream: u32, method: &str, path: &str| {
        let fields = [(":method", method), (":scheme", "https"), (":authority", SECURE), (":path", path)];
        known.request(stream, &fields, true).map_err(|error| error.to_string())?;
        Ok::<_, String>(known.outcome_or_goaway(stream, PATIENCE))
    };
    let (outcome, _) = get(&mut known, stream, method, &format!("/{way}/{}", case.name))?;
    let held = match outcome {
        Outcome::Status(status, true) => {
            status == wanted.status && wanted.whole || status == 502 && !wanted.whole
        }
        Outcome::Status(status, false) => !wanted.whole && status == wanted.status,
        Outcome::Reset(_) => !wanted.whole,
        Outcome::Goaway(_) | Outcome::Closed | Outcome::Silent => false,
    };
    if !held {
        return Err(format!("{outcome:?}, not {} whole {}", wanted.status, wanted.whole));
    }
    let (after, leave) = get(&mut known, stream + 2, "GET", "/after")?;
    if after != Outcome::Status(200, true) {
        return Err(format!("the next stream got {after:?}"));
    }
    *connection = Some((known, stream + 4)).filter(|_| !leave);
    Ok(())
}

#[test]
fn hostile_answers_reach_no_client_but_as_502_or_broken_off() {
    let cases = corpus::read(ANSWERS).unwrap();
    let scripts: BTreeMap<_, _> = cases.iter().map(|case| (case.name.clone(), case.bytes.clone())).collect();
    // One worker: all clients share the connections to the origin.
    let rig = Rig::start(scripts, &["--proxy-workers", "1"]).unwrap();
    let (mut tally, mut bystander, began) =
        (Tally::new("H11 answers of the corpus"), Bystander::default(), Instant::now());
    let (mut one, mut two) = (None, None);
    for case in &cases {
        // `answer`: the origin closes behind it; `stays`: it waits for the next request.
        for way in ["answer", "stays"].into_iter().filter(|way| *way == "answer" || needs_no_end(case)) {
            let result = ask(&rig, &mut one, case, way);
            tally.case(format!("{} ({way})", case.name), result.and(bystander.ask(&rig)));
            if case.expect[0] != "? UPGRADE" {
                let result = ask_h2(&rig, &mut two, case, way);
                tally.case(format!("{} ({way}, h2)", case.name), result.and(bystander.ask(&rig)));
            }
        }
    }
    let broken = rig.origin.take_broken();
    let clean = if broken.is_empty() { Ok(()) } else { Err(format!("{broken:?}")) };
    tally.case("nothing but requests at the origin", clean);
    println!("H11 answers of the corpus: {:?}", began.elapsed());
    tally.end(500);
}
