//! The HTTP/2 sequences of the corpus through the whole proxy, over TLS: what a downgrade must
//! not let through, floods that must end, and honest traffic that must live (H14 to H20, H22).

use crate::tally::Tally;
use lab::attack::bystander::Bystander;
use lab::attack::h2::{
    self, Connection, DATA, END_STREAM, Frame, GOAWAY, HEADERS, PING, RST_STREAM, status_of,
};
use lab::attack::rig::Rig;
use lab::raw::HTTP2;
use lab::raw::corpus::{self, Case};
use lab::raw::http2::{Event, Player, Step, steps};
use lab::raw::requests::joined;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(5);
const AUTHORITY: &str = "a.example";

/// Refused by RFC 9113, and served: the HTTP library cuts off the fragment, or drops the
/// pseudo-header fields of trailers, before anybody can see them (docs/hardening.md). Nothing
/// of them reaches the origin.
const KNOWN: [&str; 4] = [
    "path-with-fragment",
    "trailers-with-pseudo-path",
    "trailers-with-pseudo-method",
    "trailers-with-pseudo-status",
];

/// A client that plays a case, and what it has seen.
struct Client<'a> {
    rig: &'a Rig,
    connection: Connection,
    /// Written, and not sent yet.
    pending: Vec<u8>,
    /// Rounds that are sent in one go.
    pace: usize,
    rounds: usize,
    statuses: BTreeMap<u32, u16>,
    /// Streams that ended, in an orderly way or not.
    over: BTreeSet<u32>,
    resets: usize,
    /// The connection was ended: by GOAWAY with an error, or without a word.
    ended: bool,
    /// A graceful GOAWAY came: the next request belongs on another connection (H21).
    leaves: bool,
    /// It is honest, and goes there.
    follows: bool,
    pong: bool,
}

impl<'a> Client<'a> {
    fn new(rig: &'a Rig, raw: bool, pace: usize, follows: bool) -> Result<Self, String> {
        Ok(Self {
            rig,
            connection: connect(rig, raw)?,
            pending: Vec::new(),
            pace,
            rounds: 0,
            statuses: BTreeMap::new(),
            over: BTreeSet::new(),
            resets: 0,
            ended: false,
            leaves: false,
            follows,
            pong: false,
        })
    }

    fn send(&mut self) {
        let bytes = std::mem::take(&mut self.pending);
        if !bytes.is_empty() && self.connection.send(&bytes).is_err() {
            self.ended = true;
        }
    }

    fn take(&mut self, frame: &Frame) {
        match frame.kind {
            HEADERS => {
                if let Some(status) = status_of(&frame.payload).filter(|status| *status >= 200) {
                    self.statuses.entry(frame.stream).or_insert(status);
                }
            }
            RST_STREAM => {
                self.resets += 1;
                self.over.insert(frame.stream);
            }
            GOAWAY if h2::code(&frame.payload, 4) != 0 => self.ended = true,
            GOAWAY => self.leaves = true,
            PING => self.pong |= frame.flags & h2::ACK != 0,
            _ => {}
        }
        if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
            self.over.insert(frame.stream);
        }
    }

    /// Reads until `enough` or the connection's end, and what is there already in any case.
    fn read(&mut self, patience: Duration, enough: impl Fn(&Self) -> bool) {
        let until = Instant::now() + patience;
        while !self.ended && !enough(self) {
            let left = until.saturating_duration_since(Instant::now());
            match self.connection.next(left.max(Duration::from_micros(1))) {
                Some(frame) => self.take(&frame),
                None if self.connection.ended && !(self.leaves && self.follows) => self.ended = true,
                None => return,
            }
        }
    }

    fn step(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Send(bytes) => self.pending.extend_from_slice(bytes),
            Event::Await(stream) => {
                self.send();
                self.read(PATIENCE, |seen| seen.over.contains(&stream) || seen.leaves);
                self.follow();
            }
            Event::Round(round) => {
                self.rounds = round;
                if round % self.pace == 0 || self.pending.len() > 256 * 1024 {
                    self.send();
                    self.read(Duration::from_micros(200), |_| false);
                    self.follow();
                }
            }
        }
        if self.ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Goes elsewhere once it was asked to. What was not accepted may be sent again; no case
    /// depends on its answer.
    fn follow(&mut self) {
        if self.leaves && self.follows && !self.ended {
            match connect(self.rig, false) {
                Ok(connection) => (self.connection, self.leaves) = (connection, false),
                Err(_) => self.ended = true,
            }
        }
    }

    /// Whether something was refused.
    fn refused(&self) -> bool {
        let refusing = |status: &u16| matches!(status, 400 | 405 | 414 | 417 | 421 | 431);
        self.ended || self.resets > 0 || self.statuses.values().any(refusing)
    }
}

fn connect(rig: &Rig, raw: bool) -> Result<Connection, String> {
    let open = if raw { Connection::bare } else { Connection::open };
    rig.connect_tls_port().and_then(|tcp| open(tcp, AUTHORITY)).map_err(|error| format!("{error:#}"))
}

/// The number behind a word of what is expected: `ended-by 1000`, `resident 1MiB`.
fn limit(case: &Case, word: &str) -> Option<i64> {
    let text = case.expect.iter().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))?;
    Some(
        text.strip_suffix("MiB")
            .map_or_else(|| text.parse().unwrap(), |text| text.parse::<i64>().unwrap() << 10),
    )
}

/// The word that says what must come of a case.
fn verdict(case: &Case) -> &str {
    let line = case.expect.iter().find(|line| !line.starts_with("> ")).map_or("", String::as_str);
    line.split(' ').next().unwrap_or_default()
}

/// Plays a case and compares.
fn run(rig: &Rig, case: &Case, verdict: &str) -> Result<String, String> {
    let steps = steps(case).unwrap();
    let raw = matches!(steps.first(), Some(Step::Raw(_)));
    let most = limit(case, "ended-by").unwrap_or(10_000);
    let mut client = Client::new(rig, raw, (most as usize / 200).max(1), verdict == "alive")?;
    rig.origin.take_peak();
    let before = rig.resident().map_err(|error| error.to_string())? as i64;
    let mut player = Player::default();
    let _flow = player.play(&steps, &mut |event| client.step(event));
    client.send();
    // What becomes of the last stream, or of the connection.
    match verdict {
        "refuse" => client.read(PATIENCE, Client::refused),
        "ended" | "ended-by" => client.read(PATIENCE, |_| false),
        "serve" | "answered-or-reset" => client.read(PATIENCE, |seen| !seen.over.is_empty()),
        "alive" => {}
        _ => client.read(Duration::from_secs(1), |_| false),
    }
    let grown = rig.resident().map_err(|error| error.to_string())? as i64 - before;
    let held = match verdict {
        "refuse" => {
            let served = client.statuses.values().filter(|status| **status < 400).count();
            client.refused() && served == case.marked("> ").unwrap().len()
        }
        "serve" => client.statuses.values().eq([&200]) && client.resets == 0 && !client.ended,
        "answered-or-reset" => !client.over.is_empty() || client.ended,
        "ended" => client.ended,
        "ended-by" => client.ended && client.rounds as i64 <= most,
        "alive" => !client.ended && lives(&mut client),
        _ => true,
    };
    let told = format!(
        "ended {} after {} rounds, {:?}, {} resets, grown {grown} KiB",
        client.ended,
        client.rounds,
        client.statuses.iter().take(3).collect::<Vec<_>>(),
        client.resets
    );
    if !held {
        return Err(format!("not {verdict}: {told}"));
    }
    drop(client);
    for (word, found) in [
        ("origin-concurrent", rig.origin.take_peak() as i64),
        ("served-at-once", rig.origin.take_peak() as i64),
        ("resident", grown),
    ] {
        if limit(case, word).is_some_and(|most| found > most) {
            return Err(format!("{word}: {found}; {told}"));
        }
    }
    Ok(told)
}

/// Whether the connection still answers a request and a PING.
fn lives(client: &mut Client<'_>) -> bool {
    let stream = 1_000_001;
    let request = h2::block(&h2::get(AUTHORITY, "/alive"));
    client.pending.extend(h2::frame(HEADERS, h2::END_HEADERS | END_STREAM, stream, &request));
    client.pending.extend(h2::frame(PING, 0, 0, &[0; 8]));
    client.pong = false;
    client.send();
    client.read(PATIENCE, |seen| seen.pong && seen.over.contains(&stream));
    client.pong && client.statuses.get(&stream) == Some(&200)
}

/// Compares what the origin got with what the case says.
fn arrived(rig: &Rig, case: &Case, known: bool) -> Result<(), String> {
    let seen: Vec<_> =
        rig.origin.take().into_iter().filter(|seen| !seen.request.target.starts_with("/probe/")).collect();
    if let Some(bad) = seen.iter().find(|seen| !seen.request.faults.is_empty()) {
        return Err(format!("the origin got {:?}", bad.request.faults));
    }
    let broken = rig.origin.take_broken();
    let aborted = |why: &String| why.contains("unexpected end of file") || why.contains("reset");
    if !broken.iter().all(aborted) {
        return Err(format!("the origin got what is no request: {broken:?}"));
    }
    for line in &case.expect {
        if let Some((name, value)) =
            line.strip_prefix("never-forwarded ").and_then(|text| text.split_once(": "))
        {
            let fields =
                seen.iter().flat_map(|seen| seen.request.fields.iter().chain(&seen.request.trailers));
            if fields.into_iter().any(|(known, found)| known == name && found == value.as_bytes()) {
                return Err(format!("the origin got {name}: {value}"));
            }
        }
        if let Some(path) = line.strip_prefix("never-forwarded-path ")
            && seen.iter().any(|seen| seen.request.target == path)
        {
            return Err(format!("the origin got {path}"));
        }
    }
    let found: Vec<_> = seen
        .iter()
        .map(|seen| {
            let request = &seen.request;
            let head = [&request.method, &request.target, &request.values("host").join(",")];
            joined(head.map(String::as_str).join(" ").into_bytes(), &request.body)
        })
        .collect();
    let expected = case.marked("> ").unwrap();
    let held = match verdict(case) {
        "refuse" if known => found.len() == 1,
        "answered-or-reset" => found.iter().all(|one| expected.contains(one)),
        "refuse" | "serve" => found == expected,
        _ => true,
    };
    if !held {
        let list = |all: &[Vec<u8>]| all.iter().map(|one| corpus::show(one)).collect::<Vec<_>>();
        return Err(format!("the origin got {:?}, not {:?}", list(&found), list(&expected)));
    }
    Ok(())
}

#[test]
fn sequences_of_frames_come_to_what_the_corpus_says() {
    let rig = Rig::open(BTreeMap::new(), &["--proxy-workers", "1"]).unwrap();
    let (mut tally, mut bystander, began) =
        (Tally::new("H14-H20 sequences of the corpus"), Bystander::default(), Instant::now());
    bystander.ask(&rig).unwrap();
    for case in corpus::read(HTTP2).unwrap() {
        let start = Instant::now();
        let known = KNOWN.contains(&case.name.as_str());
        let result = run(&rig, &case, if known { "serve" } else { verdict(&case) });
        if start.elapsed() > Duration::from_secs(1) {
            println!("{}: {:?}, {result:?}", case.name, start.elapsed());
        }
        // All three in any case: what one leaves behind must not be another's.
        let (aside, arrived) = (bystander.ask(&rig), arrived(&rig, &case, known));
        tally.case(&case.name, result.map(drop).and(aside).and(arrived));
    }
    println!("H14-H20 sequences of the corpus: {:?}; {} known differences", began.elapsed(), KNOWN.len());
    tally.end(240);
}
