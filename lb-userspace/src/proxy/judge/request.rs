//! Judges the bytes that an HTTP/1 client sends (H1 to H10, H22, I55, I57).
//!
//! It finds where each message begins and ends, and lets a head go on only once every line of
//! it is strict; so what hyper then reads has one meaning, the one that was judged. A body's
//! bytes go on as they come. Field lines are looked at one by one as their ends arrive, so a
//! wrong one is refused at once and a head that dribbles in costs no more than a whole one.

use super::chunked::{Chunks, Progress, Side};
use super::lines::Lines;
use super::{FIELD_COUNT, Framing, HEAD_LIMIT, Reason, TARGET_LIMIT, Verdict, table};

/// The longest method; the registry's longest has 17 letters.
const METHOD_LIMIT: usize = 32;
/// Empty lines that are passed over before a request line (RFC 9112 2.2).
const EMPTY_LINES: u8 = 2;

/// The judge of one client connection.
#[derive(Clone, Debug)]
pub struct Requests {
    state: State,
    lines: Lines,
    head: Head,
    /// Heads that were let through.
    heads: u64,
}

#[derive(Clone, Debug)]
enum State {
    /// Before a request line, after so many empty ones.
    Begin(u8),
    Fields,
    Length(u64),
    Chunked(Box<Chunks>),
    /// After a request that asks for an upgrade: nobody has said yet what came of it.
    Asked,
    Tunnel,
    /// For a reason, in a body.
    Refused(Reason, bool),
}

/// What is known of a message's head so far.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    old: bool,
    hosts: bool,
    fields: usize,
    length: Option<u64>,
    encoded: bool,
    expects: bool,
    /// An Upgrade, and whether to anything but h2c.
    upgrade: bool,
    upgrade_beyond_h2c: bool,
}

/// Where in the conversation a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Between messages: nothing of the next head has come.
    Between,
    Head,
    Body,
    /// After a request for an upgrade.
    Asked,
    Tunnel,
    Refused,
}

impl Default for Requests {
    fn default() -> Self {
        Self { state: State::Begin(0), lines: Lines::default(), head: Head::default(), heads: 0 }
    }
}

impl Requests {
    /// Judges what has come and not gone on yet.
    ///
    /// After [`Verdict::More`] the same bytes are shown again with those that follow. A
    /// [`Verdict::Pass`] never reaches beyond one head or one body.
    pub fn judge(&mut self, bytes: &[u8]) -> Verdict {
        loop {
            match &mut self.state {
                State::Refused(reason, _) => return Verdict::Refuse(*reason),
                _ if bytes.is_empty() => return Verdict::More,
                State::Tunnel => return Verdict::Pass(bytes.len()),
                State::Asked => return Verdict::More,
                State::Length(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    self.passed_of_length(here as u64);
                    return Verdict::Pass(here);
                }
                State::Chunked(chunks) => match chunks.take(bytes) {
                    Progress::Open => return Verdict::Pass(bytes.len()),
                    Progress::Ended(end) => {
                        self.state = State::Begin(0);
                        return Verdict::Pass(end);
                    }
                    Progress::Refused(reason) => self.state = State::Refused(reason, true),
                },
                State::Begin(_) | State::Fields => match self.lines(bytes) {
                    Ok(Some(end)) => return Verdict::Pass(end),
                    Ok(None) => return Verdict::More,
                    Err(reason) => self.state = State::Refused(reason, false),
                },
            }
        }
    }

    /// How many of the next bytes are of a body of known length, and need not be shown.
    #[must_use]
    pub const fn unseen(&self) -> u64 {
        match self.state {
            State::Length(left) => left,
            State::Tunnel => u64::MAX,
            State::Begin(_) | State::Fields | State::Chunked(_) | State::Asked | State::Refused(..) => 0,
        }
    }

    /// Tells that so many bytes, at most [`Self::unseen`], went on without being shown.
    pub fn passed_unseen(&mut self, count: u64) {
        self.passed_of_length(count);
    }

    fn passed_of_length(&mut self, count: u64) {
        if let State::Length(left) = &mut self.state {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.state = State::Begin(0);
            }
        }
    }

    /// Says what came of an upgrade that was asked for: after a 101 the judge gets out of the
    /// way; after any other answer what follows is the next request (H8).
    pub fn decide(&mut self, tunnel: bool) {
        if matches!(self.state, State::Asked) {
            self.state = if tunnel { State::Tunnel } else { State::Begin(0) };
        }
    }

    #[must_use]
    pub const fn place(&self) -> Place {
        match self.state {
            State::Begin(_) if self.lines.is_new() => Place::Between,
            State::Begin(_) | State::Fields => Place::Head,
            State::Length(_) | State::Chunked(_) => Place::Body,
            State::Asked => Place::Asked,
            State::Tunnel => Place::Tunnel,
            State::Refused(..) => Place::Refused,
        }
    }

    /// How many heads were let through.
    #[must_use]
    pub const fn heads(&self) -> u64 {
        self.heads
    }

    /// Tells whether the refusal came in the body of a message whose head was let through.
    #[must_use]
    pub const fn refused_in_body(&self) -> bool {
        matches!(self.state, State::Refused(_, true))
    }

    /// The framing of the body that comes, when it has just begun.
    #[must_use]
    pub const fn framing(&self) -> Framing {
        match self.state {
            State::Length(left) => Framing::Length(left),
            State::Chunked(_) => Framing::Chunked,
            State::Begin(_) | State::Fields | State::Asked | State::Tunnel | State::Refused(..) => {
                Framing::Length(0)
            }
        }
    }

    /// Looks at the lines of a head that are new; its length when it is whole and good.
    fn lines(&mut self, bytes: &[u8]) -> Result<Option<usize>, Reason> {
        while let Some((line, end)) = self.lines.next(bytes) {
            // The same words for a line that comes whole as for one that comes in pieces.
            let piece = line.strip_suffix(b"\n").unwrap_or(line);
            if end > HEAD_LIMIT || self.is_long_request_line(piece) {
                return Err(self.too_long(line));
            }
            if self.take_line(line)? {
                self.lines = Lines::default();
                self.state = std::mem::take(&mut self.head).finish()?;
                self.heads += 1;
                return Ok(Some(end));
            }
        }
        self.check_unfinished(bytes)
    }

    /// A line whose end has not come can already be too long.
    fn check_unfinished(&self, bytes: &[u8]) -> Result<Option<usize>, Reason> {
        let line = self.lines.rest(bytes);
        if bytes.len() > HEAD_LIMIT || self.is_long_request_line(line) {
            Err(self.too_long(line))
        } else {
            Ok(None)
        }
    }

    fn is_long_request_line(&self, line: &[u8]) -> bool {
        let long = line.len() > METHOD_LIMIT + TARGET_LIMIT + 12 || has_long_method(line);
        long && matches!(self.state, State::Begin(_))
    }

    fn too_long(&self, line: &[u8]) -> Reason {
        let request_line = matches!(self.state, State::Begin(_));
        match () {
            () if request_line && has_long_method(line) => Reason::Method,
            () if request_line && line.len() > TARGET_LIMIT => Reason::TargetTooLong,
            () => Reason::HeadTooLong,
        }
    }

    /// Takes a line with its end; true when it is the empty one that ends the head.
    fn take_line(&mut self, line: &[u8]) -> Result<bool, Reason> {
        let Some(line) = line.strip_suffix(b"\r\n") else { return Err(Reason::BareLf) };
        if let State::Begin(empty) = &mut self.state {
            if !line.is_empty() {
                self.head.request_line(line)?;
                self.state = State::Fields;
                return Ok(false);
            }
            *empty += 1;
            return if *empty > EMPTY_LINES { Err(Reason::EmptyLines) } else { Ok(false) };
        }
        if line.is_empty() {
            return Ok(true);
        }
        let (name, value) = table::field(line)?;
        self.head.field(name, value, line)?;
        Ok(false)
    }
}

fn has_long_method(line: &[u8]) -> bool {
    line.get(..=METHOD_LIMIT).is_some_and(|begin| !begin.contains(&b' '))
}

impl Head {
    fn request_line(&mut self, line: &[u8]) -> Result<(), Reason> {
        table::check_value(line)?;
        let Some(first) = memchr::memchr(b' ', line) else { return Err(Reason::RequestLine) };
        let (method, rest) = line.split_at_checked(first).unwrap_or_default();
        let rest = rest.get(1..).unwrap_or_default();
        if !table::is_token(method) || method.len() > METHOD_LIMIT {
            return Err(Reason::Method);
        }
        let Some(last) = memchr::memchr(b' ', rest) else {
            return Err(if rest.len() > TARGET_LIMIT { Reason::TargetTooLong } else { Reason::RequestLine });
        };
        let (target, version) = rest.split_at_checked(last).unwrap_or_default();
        if target.len() > TARGET_LIMIT {
            return Err(Reason::TargetTooLong);
        }
        self.old = match version.get(1..).unwrap_or_default() {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => return Err(Reason::Version),
            _ => return Err(Reason::RequestLine),
        };
        if method == b"CONNECT" {
            return Err(Reason::Connect);
        }
        check_target(method, target)
    }

    fn field(&mut self, name: &[u8], value: &[u8], line: &[u8]) -> Result<(), Reason> {
        self.fields += 1;
        if self.fields > FIELD_COUNT {
            return Err(Reason::TooManyFields);
        }
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        match name.len() {
            4 if is(b"host") => {
                if std::mem::replace(&mut self.hosts, true) {
                    return Err(Reason::HostTwice);
                }
                if !table::is_authority(value) {
                    return Err(Reason::Host);
                }
            }
            6 if is(b"expect") => {
                let twice = std::mem::replace(&mut self.expects, true);
                if twice || !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Reason::Expect);
                }
            }
            7 if is(b"upgrade") => {
                self.upgrade = true;
                self.upgrade_beyond_h2c |= !value
                    .split(|byte| *byte == b',')
                    .all(|one| table::trim(one).eq_ignore_ascii_case(b"h2c"));
            }
            14 if is(b"content-length") => {
                let length = table::length(value).ok_or(Reason::ContentLength)?;
                if self.length.replace(length).is_some() {
                    return Err(Reason::ContentLengthTwice);
                }
            }
            17 if is(b"transfer-encoding") => {
                if std::mem::replace(&mut self.encoded, true) {
                    return Err(Reason::TransferEncodingTwice);
                }
                // A tab around the value is legal white space, and used to hide it.
                if !value.eq_ignore_ascii_case(b"chunked") || line.contains(&b'\t') {
                    return Err(Reason::TransferEncoding);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What the fields say together, and what follows them.
    fn finish(self) -> Result<State, Reason> {
        match (self.encoded, self.length) {
            (true, Some(_)) => return Err(Reason::LengthAndEncoding),
            (true, None) if self.old => return Err(Reason::OldEncoding),
            _ => {}
        }
        if !self.hosts && !self.old {
            return Err(Reason::HostMissing);
        }
        let length = self.length.unwrap_or(0);
        // What asks for h2c alone is served as it stands: no such upgrade is ever made (H8).
        let asks = self.upgrade && self.upgrade_beyond_h2c;
        if asks && (self.encoded || length > 0) {
            return Err(Reason::UpgradeWithBody);
        }
        Ok(match (self.encoded, length) {
            (true, _) => State::Chunked(Box::new(Chunks::new(Side::Request))),
            (false, 0) if asks && !self.old => State::Asked,
            (false, 0) => State::Begin(0),
            (false, length) => State::Length(length),
        })
    }
}

fn check_target(method: &[u8], target: &[u8]) -> Result<(), Reason> {
    if target.contains(&b'#') {
        return Err(Reason::Fragment);
    }
    if target == b"*" {
        return if method == b"OPTIONS" { Ok(()) } else { Err(Reason::Target) };
    }
    if target.first() == Some(&b'/') {
        return if table::is_path_and_query(target) { Ok(()) } else { Err(Reason::Target) };
    }
    let scheme = |scheme: &[u8]| {
        let (head, rest) = target.split_at_checked(scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let Some(rest) = scheme(b"http://").or_else(|| scheme(b"https://")) else { return Err(Reason::Target) };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'\\')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or_default();
    if !table::is_authority(authority) {
        return Err(Reason::Host);
    }
    let good = matches!(path.first(), None | Some(b'/' | b'?')) && table::is_path_and_query(path);
    if good { Ok(()) } else { Err(Reason::Target) }
}
