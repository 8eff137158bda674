//! The paths of the corpus through the whole proxy, over HTTP/1.1 and HTTP/2: each reaches the
//! origin of the route that all of its readings select, as it was sent, or none (H32, I13).

use crate::tally::Tally;
use lab::attack::bystander::Bystander;
use lab::attack::h2::{Connection, END_HEADERS, END_STREAM, HEADERS, Outcome, block, field, frame};
use lab::attack::origin::Origin;
use lab::attack::rig::Rig;
use lab::raw::PATHS;
use lab::raw::paths::{Row, read};
use std::collections::BTreeMap;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);
const HOST: &str = "paths.test";

/// Name, path and type of each route, as `paths.txt` has them.
const ROUTES: [(&str, &str, &str); 7] = [
    ("exact", "/api/exact", "Exact"),
    ("admin", "/admin", "Prefix"),
    ("public", "/public", "Prefix"),
    ("projects", "/projects", "Prefix"),
    ("web", "/web", "Prefix"),
    ("files", "/files", "Prefix"),
    ("api", "/api", "Prefix"),
];

type Send = fn(&Rig, &[u8]) -> Result<u16, String>;
const VERSIONS: [(&str, Send); 2] = [("h1", over_http1), ("h2", over_http2)];

/// Sends the path over HTTP/1.1 and returns the status.
fn over_http1(rig: &Rig, path: &[u8]) -> Result<u16, String> {
    let end = format!(" HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let bytes = [b"GET ", path, end.as_bytes()].concat();
    let answer = rig.exchange(&bytes, PATIENCE).map_err(|error| error.to_string())?;
    answer.statuses().first().copied().ok_or_else(|| format!("{:?}", answer.end))
}

/// The same as a `:path`.
fn over_http2(rig: &Rig, path: &[u8]) -> Result<u16, String> {
    let told = |error: anyhow::Error| format!("{error:#}");
    let mut connection = Connection::open(rig.connect_tls_port().map_err(told)?, HOST).map_err(told)?;
    let mut head = block(&[(":method", "GET"), (":scheme", "https"), (":authority", HOST)]);
    head.extend(field(":path", path));
    let sent = connection.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head));
    sent.map_err(|error| error.to_string())?;
    match connection.outcome(1, PATIENCE) {
        Outcome::Status(status, true) => Ok(status),
        // What no path may hold ends the stream.
        Outcome::Reset(_) | Outcome::Goaway(_) => Ok(400),
        other @ (Outcome::Status(..) | Outcome::Closed | Outcome::Silent) => Err(format!("{other:?}")),
    }
}

/// What a row must come to.
fn check(row: &Row, status: u16, origins: &[Origin], rig: &Rig) -> Result<(), String> {
    let wanted = match row.verdict.as_str() {
        "route -" => 404,
        verdict if verdict.starts_with("route ") => 200,
        _ => 400,
    };
    let mut found = Vec::new();
    for ((name, ..), origin) in ROUTES.iter().zip(origins) {
        for seen in origin.take() {
            found.push((format!("route {name}"), seen.request.target.into_bytes(), seen.request.faults));
        }
    }
    let all = (wanted == 200).then(|| (row.verdict.clone(), row.path.clone(), Vec::new()));
    // A target may be too long to be judged by its path.
    let told = status == wanted || status == 414 && wanted == 400 && row.path.len() > 8_000;
    if !told || !found.iter().eq(&all) {
        return Err(format!("{status}, not {wanted}; the origins got {found:?}"));
    }
    let elsewhere = rig.origin.take().into_iter().any(|seen| !seen.request.target.starts_with("/probe/"));
    if elsewhere { Err("another origin got it".into()) } else { Ok(()) }
}

#[test]
fn paths_reach_the_origin_of_the_route_on_which_all_readings_agree() {
    let rig = Rig::start(BTreeMap::new(), &["--proxy-workers", "1"]).unwrap();
    let origins = rig.branch(&ROUTES).unwrap();
    let (mut tally, mut bystander) = (Tally::new("H32 paths"), Bystander::default());
    for row in read(PATHS).unwrap() {
        for (version, send) in VERSIONS {
            let result = send(&rig, &row.path).and_then(|status| check(&row, status, &origins, &rig));
            tally.case(format!("{} ({version})", row.name), result.and(bystander.ask(&rig)));
        }
    }
    tally.end(450);
}
