//! Follows a chunked body to its end and says what is wrong with it (H3 to H5, I55).
//!
//! Strict where RFC 9112 7.1 leaves room: a size is hex digits alone, every line ends in CRLF,
//! extensions are short and few, trailers are field lines that frame, route and authenticate
//! nothing. Chunk data is counted, never looked at. The bytes stay as they are; extensions are
//! dropped by the library, which decodes the body anyway.

use super::{Reason, table};

/// The longest extensions of one chunk (I55).
const EXTENSION: usize = 256;
/// The extensions of a body, all together (H4).
const EXTENSIONS: usize = 16 * 1024;
/// The trailers of a body, all together (H5).
const TRAILERS: usize = 8 * 1024;
/// The most trailer fields.
const TRAILER_COUNT: usize = 64;
/// Hex digits of 2^63 - 1 at most; leading zeros count.
const SIZE_DIGITS: u8 = 16;

/// How far a body has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// All bytes are of the body, and there is more of it.
    Open,
    /// The body ends with this many of the bytes.
    Ended(usize),
    /// It can never be a good one.
    Refused(Reason),
}

/// Whose body it is: what a trailer may be named differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Of a request: no name that frames, routes or authenticates.
    Request,
    /// Of an answer: no name that frames. The others are for the forwarder to drop.
    Answer,
}

/// The judge of one chunked body.
#[derive(Clone, Debug)]
pub struct Chunks {
    side: Side,
    state: State,
    /// What the chunk still lacks, or its size so far.
    left: u64,
    /// Bytes of extensions so far.
    extensions: usize,
    /// Bytes and fields of trailers so far.
    trailers: usize,
    trailer_count: usize,
    /// The trailer line so far.
    line: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// So many digits of a size.
    Size(u8),
    /// So many bytes of the chunk's extensions; whether a name has begun.
    Extension(usize, bool),
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
    Refused(Reason),
    Ended,
}

impl Chunks {
    #[must_use]
    pub const fn new(side: Side) -> Self {
        Self {
            side,
            state: State::Size(0),
            left: 0,
            extensions: 0,
            trailers: 0,
            trailer_count: 0,
            line: Vec::new(),
        }
    }

    /// Takes the next bytes of the body, split anyhow.
    pub fn take(&mut self, bytes: &[u8]) -> Progress {
        let mut at = 0;
        loop {
            match self.state {
                State::Ended => return Progress::Ended(at),
                State::Refused(reason) => return Progress::Refused(reason),
                _ if at >= bytes.len() => return Progress::Open,
                State::Data => {
                    let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    at += here;
                    self.left -= here as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                }
                State::Trailer => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let here = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
                    at += here;
                    self.state =
                        self.trailer(rest.get(..here).unwrap_or_default()).unwrap_or_else(State::Refused);
                }
                State::Size(_) | State::Extension(..) | State::SizeLf | State::DataCr | State::DataLf => {
                    if let Some(byte) = bytes.get(at) {
                        at += 1;
                        self.state = self.step(*byte).unwrap_or_else(State::Refused);
                    }
                }
            }
        }
    }

    /// Around the data: one byte at a time, a few for each chunk.
    fn step(&mut self, byte: u8) -> Result<State, Reason> {
        match self.state {
            State::Size(digits) => match (byte, char::from(byte).to_digit(16)) {
                (_, Some(digit)) if digits < SIZE_DIGITS && self.left < 1 << 59 => {
                    self.left = self.left << 4 | u64::from(digit);
                    Ok(State::Size(digits + 1))
                }
                (b'\r', _) if digits > 0 => Ok(State::SizeLf),
                (b';', _) if digits > 0 => self.extension(0, false),
                (b'\n', _) if digits > 0 => Err(Reason::BareLf),
                (b' ' | b'\t', _) if digits > 0 => Err(Reason::ChunkLine),
                _ => Err(Reason::ChunkSize),
            },
            State::Extension(count, named) => match byte {
                // A semicolon alone is no extension.
                b'\r' if !named => Err(Reason::ChunkLine),
                b'\r' => Ok(State::SizeLf),
                b'\n' => Err(Reason::BareLf),
                b' ' | b'\t' => self.extension(count, named),
                _ if !named && !table::is_token(&[byte]) => Err(Reason::ChunkLine),
                _ if table::is_value_byte(byte) => self.extension(count, true),
                _ => Err(Reason::Control),
            },
            State::SizeLf => match byte {
                b'\n' if self.left == 0 => Ok(State::Trailer),
                b'\n' => Ok(State::Data),
                _ => Err(Reason::BareCr),
            },
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Size(0)),
            State::DataCr | State::DataLf => Err(Reason::ChunkEnd),
            state @ (State::Data | State::Trailer | State::Refused(_) | State::Ended) => Ok(state),
        }
    }

    fn extension(&mut self, count: usize, named: bool) -> Result<State, Reason> {
        self.extensions += 1;
        if count >= EXTENSION || self.extensions > EXTENSIONS {
            return Err(Reason::ChunkExtension);
        }
        Ok(State::Extension(count + 1, named))
    }

    /// Takes a trailer line, or a part of one.
    fn trailer(&mut self, part: &[u8]) -> Result<State, Reason> {
        self.trailers += part.len();
        if self.trailers > TRAILERS {
            return Err(Reason::TrailersTooLong);
        }
        let whole = part.last() == Some(&b'\n');
        if !whole || !self.line.is_empty() {
            self.line.extend_from_slice(part);
        }
        if !whole {
            return Ok(State::Trailer);
        }
        let line = if self.line.is_empty() { part } else { &self.line };
        let Some(line) = line.strip_suffix(b"\r\n") else { return Err(Reason::BareLf) };
        if line.is_empty() {
            return Ok(State::Ended);
        }
        let (name, _) = table::field(line)?;
        let wrong = match self.side {
            Side::Request => is_unfit_trailer(name),
            Side::Answer => is_framing(name),
        };
        if wrong {
            return Err(Reason::TrailerName);
        }
        self.trailer_count += 1;
        if self.trailer_count > TRAILER_COUNT {
            return Err(Reason::TrailersTooLong);
        }
        self.line.clear();
        Ok(State::Trailer)
    }
}

const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What routes, authenticates or conditions a request, or says where it came from.
const UNFIT: [&str; 24] = [
    "authorization",
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "max-forwards",
    "pragma",
    "proxy-authorization",
    "range",
    "set-cookie",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
];

/// Tells whether a field of this name says how messages are framed or connections used.
#[must_use]
pub fn is_framing(name: &[u8]) -> bool {
    FRAMING.iter().any(|framing| framing.as_bytes().eq_ignore_ascii_case(name))
}

/// Tells whether a name has no place among trailers (RFC 9110 6.5.1): it frames, routes or
/// authenticates. In requests they are refused; in answers the forwarder drops them.
#[must_use]
pub fn is_unfit_trailer(name: &[u8]) -> bool {
    is_framing(name) || UNFIT.iter().any(|unfit| unfit.as_bytes().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a body shown whole; every split says the same.
    fn judged(body: &[u8]) -> Progress {
        let whole = Chunks::new(Side::Request).take(body);
        for at in 0..=body.len() {
            let (first, second) = body.split_at(at);
            let mut chunks = Chunks::new(Side::Request);
            let split = match chunks.take(first) {
                Progress::Open => match chunks.take(second) {
                    Progress::Ended(end) => Progress::Ended(at + end),
                    other @ (Progress::Open | Progress::Refused(_)) => other,
                },
                other @ (Progress::Ended(_) | Progress::Refused(_)) => other,
            };
            assert_eq!(split, whole, "split at {at}: {:?}", String::from_utf8_lossy(body));
        }
        whole
    }

    #[test]
    fn good_bodies_end_where_they_end() {
        for (body, end) in [
            ("0\r\n\r\nGET", 5),
            ("5\r\nhello\r\n0\r\n\r\n", 15),
            ("A\r\n0123456789\r\n00\r\n\r\n", 21),
            ("1;name=value\r\nx\r\n0;last\r\n\r\n", 27),
            ("1\r\nx\r\n0\r\nChecksum: abc\r\nX: y\r\n\r\nrest", 32),
        ] {
            assert_eq!(judged(body.as_bytes()), Progress::Ended(end), "{body:?}");
        }
    }

    #[test]
    fn sizes_lines_and_data_that_lie_are_refused() {
        for (body, reason) in [
            ("\r\n", Reason::ChunkSize),
            ("+5\r\nhello", Reason::ChunkSize),
            ("-1\r\n", Reason::ChunkSize),
            ("0x5\r\nhello", Reason::ChunkSize),
            ("5g\r\n", Reason::ChunkSize),
            ("5 \r\nhello", Reason::ChunkLine),
            ("5;\r\nhello", Reason::ChunkLine),
            (" 5\r\nhello", Reason::ChunkSize),
            ("ffffffffffffffff\r\n", Reason::ChunkSize),
            ("8000000000000000\r\n", Reason::ChunkSize),
            ("00000000000000005\r\n", Reason::ChunkSize),
            ("5\nhello\r\n0\r\n\r\n", Reason::BareLf),
            ("5\rhello", Reason::BareCr),
            ("5\r\nhello\n0\r\n\r\n", Reason::ChunkEnd),
            ("5\r\nhelloX\r\n", Reason::ChunkEnd),
            ("5;a\nhello", Reason::BareLf),
            ("5;a\rb\r\nhello", Reason::BareCr),
            ("5;a=\0\r\nhello", Reason::Control),
            ("0\r\n\n", Reason::BareLf),
            ("0\r\nContent-Length: 5\r\n\r\n", Reason::TrailerName),
            ("0\r\nauthorization: x\r\n\r\n", Reason::TrailerName),
            ("0\r\nX : y\r\n\r\n", Reason::SpaceBeforeColon),
            ("0\r\nX: y\r\n z\r\n\r\n", Reason::Fold),
            ("0\r\nX: y\n\r\n", Reason::BareLf),
            ("0\r\njunk\r\n\r\n", Reason::NoColon),
        ] {
            assert_eq!(judged(body.as_bytes()), Progress::Refused(reason), "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let take = |body: &str| Chunks::new(Side::Request).take(body.as_bytes());
        let extension = |length: usize| format!("1;{}\r\nx\r\n", "e".repeat(length - 1));
        assert_eq!(take(&extension(EXTENSION)), Progress::Open);
        assert_eq!(take(&extension(EXTENSION + 1)), Progress::Refused(Reason::ChunkExtension));
        assert_eq!(take(&extension(EXTENSION).repeat(EXTENSIONS / EXTENSION)), Progress::Open);
        let many = extension(EXTENSION).repeat(EXTENSIONS / EXTENSION + 1);
        assert_eq!(take(&many), Progress::Refused(Reason::ChunkExtension));
        let long = format!("0\r\nX: {}", "y".repeat(TRAILERS));
        assert_eq!(take(&long), Progress::Refused(Reason::TrailersTooLong));
        let many = format!("0\r\n{}", "X: y\r\n".repeat(TRAILER_COUNT + 1));
        assert_eq!(take(&many), Progress::Refused(Reason::TrailersTooLong));
    }

    #[test]
    fn answers_may_carry_trailers_that_requests_may_not() {
        let body = b"0\r\nSet-Cookie: a=b\r\n\r\n";
        assert_eq!(Chunks::new(Side::Answer).take(body), Progress::Ended(body.len()));
        assert_eq!(judged(body), Progress::Refused(Reason::TrailerName));
    }
}
