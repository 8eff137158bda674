//! HTTP/2 by hand: frames as bytes, header blocks without a table, so that every malformed
//! thing can be said (RFC 9113, RFC 7541).

use super::exchange::is_timeout;
use crate::web::tls::any;
use anyhow::{Context, Result, bail};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame as it arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// What became of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Answered with this status; whether the stream ended in an orderly way.
    Status(u16, bool),
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection was ended with this code.
    Goaway(u32),
    /// The connection was closed without a word.
    Closed,
    /// Nothing, until time was up.
    Silent,
}

impl Outcome {
    /// Whether the request was not served: refused, reset, or the connection ended.
    pub fn refused(&self) -> bool {
        match self {
            Self::Status(code, _) => *code >= 400,
            Self::Reset(_) | Self::Goaway(_) | Self::Closed => true,
            Self::Silent => false,
        }
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header field, literally and without a table (RFC 7541 section 6.2.2).
pub fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![0];
    string(&mut bytes, name.as_ref());
    string(&mut bytes, value.as_ref());
    bytes
}

/// A header field that enters the dynamic table (section 6.2.1).
pub fn indexed_field(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x40];
    string(&mut bytes, name.as_bytes());
    string(&mut bytes, value);
    bytes
}

fn string(bytes: &mut Vec<u8>, text: &[u8]) {
    integer(bytes, 0, 7, text.len());
    bytes.extend(text);
}

/// An integer with a prefix of so many bits (section 5.1).
fn integer(bytes: &mut Vec<u8>, first: u8, bits: u32, value: usize) {
    let most = (1_usize << bits) - 1;
    if value < most {
        bytes.push(first | value as u8);
        return;
    }
    bytes.push(first | most as u8);
    let mut left = value - most;
    while left >= 128 {
        bytes.push((left % 128) as u8 | 128);
        left /= 128;
    }
    bytes.push(left as u8);
}

/// A header block of fields.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// A request without oddities.
pub fn get<'a>(host: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", path)]
}

/// A connection over TLS with ALPN h2.
#[derive(Debug)]
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
    /// Reading met the end.
    pub ended: bool,
    /// GOAWAY came.
    leave: bool,
}

impl Connection {
    /// Connects; sends the preface, and settings that forbid the other side a header table.
    ///
    /// # Errors
    /// When TLS or ALPN fails.
    pub fn open(tcp: TcpStream, name: &str) -> Result<Self> {
        let mut connection = Self::bare(tcp, name)?;
        connection.send(PREFACE)?;
        // SETTINGS_HEADER_TABLE_SIZE = 0: statuses can be read without keeping a table.
        connection.send(&frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]))?;
        Ok(connection)
    }

    /// Only TLS: no preface yet.
    ///
    /// # Errors
    /// When TLS or ALPN fails.
    pub fn bare(tcp: TcpStream, name: &str) -> Result<Self> {
        let mut stream = tls(tcp, name, &[b"h2"])?;
        if stream.conn.alpn_protocol() != Some(b"h2") {
            bail!("h2 was not agreed on: {:?}", stream.conn.alpn_protocol());
        }
        stream.flush()?;
        Ok(Self { stream, buffer: Vec::new(), ended: false, leave: false })
    }

    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Sends a request's head.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn request(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) -> io::Result<()> {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.send(&frame(HEADERS, flags, stream, &block(fields)))
    }

    /// The next frame, if one comes in time. SETTINGS and PING are acknowledged on the way.
    pub fn next(&mut self, patience: Duration) -> Option<Frame> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(frame) = self.cut() {
                match (frame.kind, frame.flags & ACK) {
                    (SETTINGS, 0) => drop(self.send(&self::frame(SETTINGS, ACK, 0, &[]))),
                    (PING, 0) => drop(self.send(&self::frame(PING, ACK, 0, &frame.payload))),
                    _ => {}
                }
                return Some(frame);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.ended || left.is_zero() {
                return None;
            }
            let mut piece = [0; 16 * 1024];
            if self.stream.sock.set_read_timeout(Some(left)).is_err() {
                return None;
            }
            match self.stream.read(&mut piece) {
                Ok(0) => self.ended = true,
                Ok(count) => self.buffer.extend_from_slice(&piece[..count]),
                Err(error) if is_timeout(&error) => {}
                Err(_) => self.ended = true,
            }
        }
    }

    /// Waits for what becomes of a stream.
    pub fn outcome(&mut self, stream: u32, patience: Duration) -> Outcome {
        let deadline = Instant::now() + patience;
        let mut status = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(frame) = self.next(left) else {
                return match status {
                    Some(code) => Outcome::Status(code, false),
                    None if self.ended => Outcome::Closed,
                    None => Outcome::Silent,
                };
            };
            self.leave |= frame.kind == GOAWAY;
            match frame.kind {
                HEADERS if frame.stream == stream => {
                    let code = status_of(&frame.payload).filter(|code| *code >= 200);
                    status = status.or(code);
                }
                RST_STREAM if frame.stream == stream => {
                    // An answer and NO_ERROR: the body was not wanted.
                    return match (status, code(&frame.payload, 0)) {
                        (Some(code), 0) => Outcome::Status(code, true),
                        (Some(code), _) => Outcome::Status(code, false),
                        (None, reason) => Outcome::Reset(reason),
                    };
                }
                GOAWAY
                    if code(&frame.payload, 4) != 0
                        || status.is_none() && stream > code(&frame.payload, 0) =>
                {
                    return Outcome::Goaway(code(&frame.payload, 4));
                }
                _ => {}
            }
            if let (Some(code), HEADERS | DATA) = (status, frame.kind)
                && frame.stream == stream
                && frame.flags & END_STREAM != 0
            {
                return Outcome::Status(code, true);
            }
        }
    }

    /// As [`Self::outcome`]; says too whether a graceful GOAWAY came, one that lets the stream
    /// go on: no further request belongs on this connection.
    pub fn outcome_or_goaway(&mut self, stream: u32, patience: Duration) -> (Outcome, bool) {
        self.leave = false;
        let outcome = self.outcome(stream, patience);
        (outcome, self.leave)
    }

    /// Takes a whole frame out of what has been read.
    fn cut(&mut self) -> Option<Frame> {
        let head: [u8; 9] = self.buffer.get(..9)?.try_into().ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = self.buffer.get(9..9 + length)?.to_vec();
        self.buffer.drain(..9 + length);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }
}

/// The error code in a payload, at an offset.
pub fn code(payload: &[u8], at: usize) -> u32 {
    payload.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// `:status` of a header block made without a dynamic table: it comes first (RFC 9113
/// section 8.3), after table size updates.
pub fn status_of(block: &[u8]) -> Option<u16> {
    let mut block = block;
    while let [first, rest @ ..] = block
        && first & 0xe0 == 0x20
    {
        // A size update of zero, or one that is longer than a byte: skip its tail.
        block = if first & 0x1f == 0x1f { skip_integer(rest) } else { rest };
    }
    let (first, rest) = block.split_first()?;
    match first {
        0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500].get(usize::from(first - 0x88)).copied(),
        // A literal value for the name of a static entry of `:status`.
        0x08..=0x0e | 0x18 | 0x48..=0x4e => {
            let (length, text) = rest.split_first()?;
            let text = text.get(..usize::from(length & 0x7f))?;
            if length & 0x80 == 0 { String::from_utf8_lossy(text).parse().ok() } else { huffman_digits(text) }
        }
        _ => None,
    }
}

fn skip_integer(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0).map_or(bytes.len(), |at| at + 1);
    &bytes[end..]
}

/// Three digits in the Huffman code of RFC 7541 appendix B: 0 to 2 have five bits, 3 to 9 six.
fn huffman_digits(bytes: &[u8]) -> Option<u16> {
    let bits: Vec<u16> =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1))).collect();
    let take = |at: usize, count: usize| -> Option<u16> {
        Some(bits.get(at..at + count)?.iter().fold(0, |sum, bit| sum << 1 | bit))
    };
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let five = take(at, 5)?;
        let digit = if five <= 2 {
            at += 5;
            five
        } else {
            let six = take(at, 6)?;
            at += 6;
            six.checked_sub(0b011001)?.checked_add(3)?
        };
        number = number * 10 + digit;
    }
    Some(number)
}

/// A TLS client that takes any certificate.
///
/// # Errors
/// When the handshake fails.
pub fn tls(
    mut tcp: TcpStream,
    name: &str,
    alpn: &[&[u8]],
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut config = any(rustls::DEFAULT_VERSIONS)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned())?)?;
    tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp).context("TLS handshake")?;
    }
    Ok(StreamOwned::new(connection, tcp))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_from_every_form() {
        assert_eq!(status_of(&[0x88]), Some(200));
        assert_eq!(status_of(&[0x20, 0x8d]), Some(404));
        assert_eq!(status_of(b"\x08\x03421"), Some(421));
        // RFC 7541 appendix C.6.1: 302, Huffman.
        assert_eq!(status_of(&[0x48, 0x82, 0x64, 0x02]), Some(302));
        assert_eq!(status_of(&[]), None);
    }

    #[test]
    fn integers_are_coded_as_in_the_examples() {
        let mut bytes = Vec::new();
        integer(&mut bytes, 0, 5, 1337);
        assert_eq!(bytes, [31, 154, 10]);
        let coded = field("a", vec![b'x'; 200]);
        assert_eq!(coded[..5], [0, 1, b'a', 127, 73]);
        assert_eq!(coded.len(), 205);
    }

    #[test]
    fn frames_are_length_kind_flags_stream() {
        assert_eq!(frame(PING, ACK, 0, &[7; 8])[..9], [0, 0, 8, 6, 1, 0, 0, 0, 0]);
        assert_eq!(get("a", "/").first().unwrap(), &(":method", "GET"));
    }
}
