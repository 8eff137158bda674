//! Clients that never retry: whatever fails is counted, with its reason.
//!
//! They do what the protocol says and no more: a connection is left after an answer with
//! `Connection: close` or after GOAWAY, and used otherwise.

use super::exchange::is_timeout;
use super::h2::{self, Connection, Outcome};
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest that any answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the clients of one kind saw.
#[derive(Default, Debug)]
pub struct Count {
    pub served: AtomicU64,
    /// Reasons, with the time since the epoch of the test.
    failed: Mutex<Vec<String>>,
    refused: AtomicU64,
}

impl Count {
    /// Reasons of what failed.
    pub fn failed(&self) -> Vec<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    fn take(&self, result: Result<()>) -> bool {
        match result {
            Ok(()) => {
                self.served.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(error) => {
                let text = format!("{error:#}");
                if text.contains("refused") {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                false
            }
        }
    }
}

/// Paces a loop until it is told to stop.
#[derive(Clone, Debug)]
pub struct Pace {
    pub stop: Arc<AtomicBool>,
    pub every: Duration,
    /// Before the first step.
    pub offset: Duration,
}

impl Pace {
    fn run(&self, mut step: impl FnMut()) {
        std::thread::sleep(self.offset);
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            step();
            next += self.every;
            let left = next.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                std::thread::sleep(left);
            }
        }
    }
}

/// Requests over HTTP/1.1, one connection kept as long as the server likes.
pub fn http1(pace: &Pace, count: &Count, host: &str, connect: impl Fn() -> Result<TcpStream>) {
    let mut connection: Option<TcpStream> = None;
    let mut number = 0_u64;
    pace.run(|| {
        number += 1;
        let mut once = || -> Result<()> {
            let mut stream = match connection.take() {
                Some(stream) => stream,
                None => connect()?,
            };
            let target = format!("/load/{number}");
            stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
            let (head, body) = read_answer(&mut stream)?;
            ensure!(head.starts_with("HTTP/1.1 200 "), "{}", head.lines().next().unwrap_or_default());
            ensure!(body.trim_end().ends_with(&target), "another's answer: {body:?}");
            if !head.to_ascii_lowercase().contains("connection: close") {
                connection = Some(stream);
            }
            Ok(())
        };
        let result = once();
        if !count.take(result) {
            connection = None;
        }
    });
}

/// An answer with a Content-Length.
fn read_answer(stream: &mut TcpStream) -> Result<(String, String)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            let length = length.with_context(|| format!("no length: {head:?}"))?;
            if bytes.len() >= at + 4 + length {
                return Ok((head, String::from_utf8_lossy(&bytes[at + 4..at + 4 + length]).into_owned()));
            }
        }
        match stream.read(&mut piece) {
            Ok(0) => bail!("closed after {} bytes of an answer", bytes.len()),
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(error) if is_timeout(&error) => bail!("no answer within {PATIENCE:?}"),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Requests over HTTP/2, one after the other on one connection.
pub fn http2(pace: &Pace, count: &Count, host: &str, connect: impl Fn() -> Result<Connection>) {
    let mut connection: Option<(Connection, u32)> = None;
    pace.run(|| {
        let mut once = || -> Result<()> {
            // A GOAWAY that is there already is heeded: the next request goes elsewhere.
            if connection.as_mut().is_some_and(|(known, _)| said_goaway(known)) {
                connection = None;
            }
            let (mut known, stream) = match connection.take() {
                Some(known) => known,
                None => (connect()?, 1),
            };
            known.request(stream, &h2::get(host, "/load"), true)?;
            // Room for the bodies of answers.
            known.send(&h2::frame(h2::WINDOW_UPDATE, 0, 0, &[0, 0, 4, 0]))?;
            match known.outcome_or_goaway(stream, PATIENCE) {
                (Outcome::Status(200, true), leave) => {
                    if !leave && stream < 1_000_000 {
                        connection = Some((known, stream + 2));
                    }
                    Ok(())
                }
                (other, _) => bail!("{other:?}"),
            }
        };
        let result = once();
        if !count.take(result) {
            connection = None;
        }
    });
}

fn said_goaway(connection: &mut Connection) -> bool {
    while let Some(frame) = connection.next(Duration::from_micros(50)) {
        if frame.kind == h2::GOAWAY {
            return true;
        }
    }
    connection.ended
}

/// A stream that carries small messages both ways for the whole time, as gRPC does.
pub fn streaming(pace: &Pace, count: &Count, host: &str, connect: impl Fn() -> Result<Connection>) {
    let open = || -> Result<Connection> {
        let mut connection = connect()?;
        let fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", host),
            (":path", "/stream/echo"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        connection.request(1, &fields, false)?;
        Ok(connection)
    };
    let mut connection = None;
    pace.run(|| {
        let mut once = || -> Result<()> {
            let mut known = match connection.take() {
                Some(known) => known,
                None => open()?,
            };
            let message = [0, 0, 0, 0, 4, b'p', b'i', b'n', b'g'];
            known.send(&h2::frame(h2::DATA, 0, 1, &message))?;
            let mut back = 0;
            while back < message.len() {
                let frame = known.next(PATIENCE).context("no message came back")?;
                match frame.kind {
                    h2::DATA if frame.stream == 1 && frame.flags & h2::END_STREAM == 0 => {
                        back += frame.payload.len();
                        let room = (frame.payload.len() as u32).to_be_bytes();
                        known.send(&h2::frame(h2::WINDOW_UPDATE, 0, 0, &room))?;
                        known.send(&h2::frame(h2::WINDOW_UPDATE, 0, 1, &room))?;
                    }
                    h2::DATA | h2::RST_STREAM => bail!("the stream was ended: {frame:?}"),
                    _ => {}
                }
            }
            connection = Some(known);
            Ok(())
        };
        let result = once();
        if !count.take(result) {
            connection = None;
        }
    });
}

/// Tunnels that each carry a message and its echo once a pace.
pub fn tunnels(
    pace: &Pace,
    count: &Count,
    host: &str,
    number: usize,
    connect: impl Fn() -> Result<TcpStream>,
) {
    let open = || -> Result<TcpStream> {
        let mut stream = connect()?;
        write!(
            stream,
            "GET /tunnel HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("no answer to an upgrade")?;
            head.extend(byte);
        }
        ensure!(head.starts_with(b"HTTP/1.1 101 "), "{:?}", String::from_utf8_lossy(&head));
        Ok(stream)
    };
    let mut streams: Vec<Option<TcpStream>> = (0..number).map(|_| None).collect();
    pace.run(|| {
        for slot in &mut streams {
            let once = |slot: &mut Option<TcpStream>| -> Result<()> {
                let mut stream = match slot.take() {
                    Some(stream) => stream,
                    None => open()?,
                };
                let message = *b"\x81\x84mask\x01\x02\x03\x04";
                stream.write_all(&message)?;
                let mut back = [0; 10];
                stream.read_exact(&mut back).context("no echo")?;
                ensure!(back == message, "another echo");
                *slot = Some(stream);
                Ok(())
            };
            let result = once(slot);
            if !count.take(result) {
                *slot = None;
            }
        }
    });
}
