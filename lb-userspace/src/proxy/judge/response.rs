//! Judges the bytes that an HTTP/1 origin answers with (H11, H12).
//!
//! It has to be told of each request, because that decides what an answer may be: one to HEAD
//! has no body whatever it says, a 101 belongs to an upgrade that was asked for, and bytes
//! that no request is waiting for are nobody's: the connection is then never used again, so
//! that no client is given the answer to another's request. What is refused here becomes a 502,
//! or breaks off an answer whose head has gone on.

use super::chunked::{Chunks, Progress, Side};
use super::lines::Lines;
use super::{ANSWER_HEAD_LIMIT, FIELD_COUNT, Framing, Reason, Verdict, table};

/// The most interim answers to one request.
const INTERIMS: u32 = 16;

/// What an answer depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Question {
    /// The request is a HEAD.
    pub head: bool,
    /// The request asks for an upgrade, and 101 is an answer to it.
    pub upgrade: bool,
}

/// The judge of one connection to an origin.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    state: State,
    question: Question,
    lines: Lines,
    head: Head,
    /// Interim answers to this request and their bytes.
    interims: u32,
    interim_bytes: usize,
    /// Whether the head of the final answer went on.
    begun: bool,
}

#[derive(Clone, Debug, Default)]
enum State {
    /// No answer is owed.
    #[default]
    Idle,
    StatusLine,
    Fields,
    Length(u64),
    Chunked(Box<Chunks>),
    /// Until the origin closes.
    Close,
    Tunnel,
    Refused(Reason),
}

#[derive(Clone, Copy, Debug, Default)]
struct Head {
    status: u16,
    old: bool,
    fields: usize,
    length: Option<u64>,
    encoded: bool,
}

impl Answers {
    /// Tells that a request is on its way: an answer is owed now.
    pub fn ask(&mut self, question: Question) {
        if self.is_idle() {
            *self = Self { state: State::StatusLine, question, ..Self::default() };
        } else if !matches!(self.state, State::Refused(_)) {
            // Two requests at once on one connection would share an answer.
            self.state = State::Refused(Reason::Leftover);
        }
    }

    /// Judges what has come and not gone on yet; as with
    /// [`Requests::judge`](super::request::Requests::judge).
    pub fn judge(&mut self, bytes: &[u8]) -> Verdict {
        loop {
            match &mut self.state {
                State::Refused(reason) => return Verdict::Refuse(*reason),
                _ if bytes.is_empty() => return Verdict::More,
                State::Idle => self.state = State::Refused(Reason::Leftover),
                State::Close | State::Tunnel => return Verdict::Pass(bytes.len()),
                State::Length(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    self.passed_unseen(here as u64);
                    return Verdict::Pass(here);
                }
                State::Chunked(chunks) => match chunks.take(bytes) {
                    Progress::Open => return Verdict::Pass(bytes.len()),
                    Progress::Ended(end) => {
                        self.state = State::Idle;
                        return Verdict::Pass(end);
                    }
                    Progress::Refused(reason) => self.state = State::Refused(reason),
                },
                State::StatusLine | State::Fields => match self.head(bytes) {
                    Ok(Some(end)) => return Verdict::Pass(end),
                    Ok(None) => return Verdict::More,
                    Err(reason) => self.state = State::Refused(reason),
                },
            }
        }
    }

    /// How many of the next bytes need not be shown.
    #[must_use]
    pub const fn unseen(&self) -> u64 {
        match self.state {
            State::Length(left) => left,
            State::Close | State::Tunnel => u64::MAX,
            State::Idle | State::StatusLine | State::Fields | State::Chunked(_) | State::Refused(_) => 0,
        }
    }

    /// Tells that so many bytes, at most [`Self::unseen`], went on without being shown.
    pub fn passed_unseen(&mut self, count: u64) {
        if let State::Length(left) = &mut self.state {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.state = State::Idle;
            }
        }
    }

    /// Tells whether the connection may carry another request: no answer is owed, and nothing
    /// came that nobody asked for.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Tells whether an answer is whole when the origin closes now.
    #[must_use]
    pub const fn may_end(&self) -> bool {
        matches!(self.state, State::Idle | State::Close | State::Tunnel)
    }

    /// Tells whether the head of the final answer has gone on: too late for a 502.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.begun
    }

    /// The framing of what follows the head.
    #[must_use]
    pub const fn framing(&self) -> Framing {
        match self.state {
            State::Length(left) => Framing::Length(left),
            State::Chunked(_) => Framing::Chunked,
            State::Close | State::Tunnel => Framing::Close,
            State::Idle | State::StatusLine | State::Fields | State::Refused(_) => Framing::Length(0),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Reason> {
        while let Some((line, end)) = self.lines.next(bytes) {
            if self.interim_bytes + end > ANSWER_HEAD_LIMIT {
                return Err(Reason::HeadTooLong);
            }
            let Some(line) = line.strip_suffix(b"\r\n") else { return Err(Reason::BareLf) };
            if matches!(self.state, State::StatusLine) {
                self.head.status_line(line)?;
                self.state = State::Fields;
            } else if line.is_empty() {
                self.lines = Lines::default();
                let head = std::mem::take(&mut self.head);
                self.finish(head, end)?;
                return Ok(Some(end));
            } else {
                self.head.field(line)?;
            }
        }
        let too_long = self.interim_bytes + bytes.len() > ANSWER_HEAD_LIMIT;
        if too_long { Err(Reason::HeadTooLong) } else { Ok(None) }
    }

    /// What the head says, and what follows it (RFC 9112 6.3).
    fn finish(&mut self, head: Head, length: usize) -> Result<(), Reason> {
        match (head.encoded, head.length) {
            (true, Some(_)) => return Err(Reason::LengthAndEncoding),
            (true, None) if head.old => return Err(Reason::OldEncoding),
            _ => {}
        }
        if head.status == 101 {
            if !self.question.upgrade || head.old {
                return Err(Reason::Unasked);
            }
            (self.state, self.begun) = (State::Tunnel, true);
            return Ok(());
        }
        if head.status < 200 {
            self.interims += 1;
            self.interim_bytes += length;
            self.state = State::StatusLine;
            return if self.interims > INTERIMS { Err(Reason::Interims) } else { Ok(()) };
        }
        self.begun = true;
        self.state = match (head.encoded, head.length) {
            _ if self.question.head || matches!(head.status, 204 | 304) => State::Idle,
            (true, _) => State::Chunked(Box::new(Chunks::new(Side::Answer))),
            (false, Some(0)) => State::Idle,
            (false, Some(length)) => State::Length(length),
            (false, None) => State::Close,
        };
        Ok(())
    }
}

impl Head {
    fn status_line(&mut self, line: &[u8]) -> Result<(), Reason> {
        table::check_value(line)?;
        self.old = match line.get(..9) {
            Some(b"HTTP/1.1 ") => false,
            Some(b"HTTP/1.0 ") => true,
            Some(_) | None => return Err(Reason::StatusLine),
        };
        let (status, reason) =
            line.get(9..).and_then(|rest| rest.split_at_checked(3)).ok_or(Reason::StatusLine)?;
        // Without a reason phrase some origins leave out the space before it, too.
        if !matches!(reason.first(), None | Some(b' ')) {
            return Err(Reason::StatusLine);
        }
        let number = table::length(status).and_then(|number| u16::try_from(number).ok());
        self.status = number.filter(|number| (100..600).contains(number)).ok_or(Reason::StatusLine)?;
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Reason> {
        let (name, value) = table::field(line)?;
        self.fields += 1;
        if self.fields > FIELD_COUNT {
            return Err(Reason::TooManyFields);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = table::length(value).ok_or(Reason::ContentLength)?;
            if self.length.replace(length).is_some() {
                return Err(Reason::ContentLengthTwice);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if std::mem::replace(&mut self.encoded, true) {
                return Err(Reason::TransferEncodingTwice);
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Reason::TransferEncoding);
            }
        }
        Ok(())
    }
}
