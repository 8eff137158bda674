//! Reads what hostile HTTP/2 clients send, from the corpus, and turns it into frames.

use super::corpus::{Case, unescape};
use anyhow::{Context, Result, bail, ensure};
use std::ops::ControlFlow;

/// One step of a client.
#[derive(Clone, Debug)]
pub enum Step {
    Frame {
        kind: u8,
        flags: u8,
        stream: Stream,
        payload: Payload,
    },
    /// Waits for the end of a stream's answer.
    Await(Stream),
    /// Instead of the preface.
    Raw(Vec<u8>),
    Repeat(usize, Vec<Self>),
}

/// Which stream a step is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    Number(u32),
    /// The next odd one.
    Next,
    /// The last one named.
    Same,
    /// Each of the last so many.
    Last(u32),
}

#[derive(Clone, Debug)]
pub enum Payload {
    Bytes(Vec<u8>),
    /// PRIORITY: depends on a stream, with a weight.
    Priority(Stream, u8),
    /// A head, of any length: sent as HEADERS and CONTINUATION.
    Head(Vec<u8>),
}

/// What a client does next, its streams numbered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// Bytes to send: one frame, or a head.
    Send(&'a [u8]),
    Await(u32),
    /// A repetition begins, on the outermost level: so many were sent before.
    Round(usize),
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// What fits into a frame.
const FRAME: usize = 16_384;

/// Reads the steps of a case.
///
/// # Errors
/// At a line that is none.
pub fn steps(case: &Case) -> Result<Vec<Step>> {
    let mut lines = case.lines.iter().map(String::as_str);
    let steps = block(&mut lines).with_context(|| case.name.clone())?;
    ensure!(lines.next().is_none(), "{}: a block ends that never began", case.name);
    Ok(steps)
}

fn block(lines: &mut dyn Iterator<Item = &str>) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    while let Some(line) = lines.next() {
        match line.split_once(' ') {
            _ if line == "}" => break,
            Some(("x", rest)) => {
                let count = rest.strip_suffix(" {").context("no block")?.parse()?;
                steps.push(Step::Repeat(count, block(lines)?));
            }
            Some(("+", field)) => add_field(&mut steps, 1, field)?,
            Some(("+*", rest)) => {
                let (count, field) = rest.split_once(' ').context("no field")?;
                add_field(&mut steps, count.parse()?, field)?;
            }
            _ => steps.push(step(line).with_context(|| line.to_owned())?),
        }
    }
    Ok(steps)
}

fn add_field(steps: &mut [Step], count: usize, field: &str) -> Result<()> {
    let Some(Step::Frame { payload: Payload::Head(block), .. }) = steps.last_mut() else {
        bail!("a field without a head")
    };
    // A pseudo-header field begins with a colon; an empty name is followed by one and a space.
    let pseudo = field.starts_with(':') && field != ":" && !field.starts_with(": ");
    let colon =
        field.char_indices().skip(usize::from(pseudo)).find(|(_, c)| *c == ':').context("no colon")?.0;
    let (name, value) = (unescape(&field[..colon])?, &field[colon + 1..]);
    let value = unescape(value.strip_prefix(' ').unwrap_or(value))?;
    for _ in 0..count {
        // Literal, never indexed, a new name, no Huffman code (RFC 7541 6.2.3).
        block.push(0x10);
        for string in [&name, &value] {
            length(block, string.len());
            block.extend_from_slice(string);
        }
    }
    Ok(())
}

/// An integer with a prefix of seven bits (RFC 7541 5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        block.push(length as u8);
        return;
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

fn stream(word: &str) -> Result<Stream> {
    Ok(match word {
        "next" => Stream::Next,
        "same" => Stream::Same,
        _ => match word.strip_prefix("last-") {
            Some(count) => Stream::Last(count.parse()?),
            None => Stream::Number(word.parse()?),
        },
    })
}

fn step(line: &str) -> Result<Step> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut words = rest.splitn(2, ' ');
    let mut first = || words.next().context("a word is missing");
    let frame = |kind, flags, stream, payload| Step::Frame { kind, flags, stream, payload };
    // `[end] text`
    let ending = |rest: &str, word: &str| match rest.strip_prefix(word) {
        Some(rest) if rest.is_empty() || rest.starts_with(' ') => {
            (true, rest.strip_prefix(' ').unwrap_or_default().to_owned())
        }
        Some(_) | None => (false, rest.to_owned()),
    };
    Ok(match verb {
        "HEADERS" => {
            let at = stream(first()?)?;
            let (end, _) = ending(words.next().unwrap_or_default(), "end");
            frame(1, if end { END_STREAM } else { 0 }, at, Payload::Head(Vec::new()))
        }
        "DATA" => {
            let at = stream(first()?)?;
            let (end, text) = ending(words.next().unwrap_or_default(), "end");
            frame(0, u8::from(end), at, Payload::Bytes(unescape(&text)?))
        }
        "BLOCK" => {
            let at = stream(first()?)?;
            let (end, text) = ending(words.next().unwrap_or_default(), "end-stream");
            frame(1, u8::from(end), at, Payload::Bytes(unescape(&text)?))
        }
        "CONTINUATION" => {
            let at = stream(first()?)?;
            let (end, text) = ending(words.next().unwrap_or_default(), "end");
            frame(9, if end { END_HEADERS } else { 0 }, at, Payload::Bytes(unescape(&text)?))
        }
        "RST" => {
            let at = stream(first()?)?;
            let code: u32 = first()?.parse()?;
            frame(3, 0, at, Payload::Bytes(code.to_be_bytes().to_vec()))
        }
        "WINDOW" => {
            let at = stream(first()?)?;
            let increment: u32 = first()?.parse()?;
            frame(8, 0, at, Payload::Bytes(increment.to_be_bytes().to_vec()))
        }
        "PING" => frame(6, u8::from(rest == "ACK"), Stream::Number(0), Payload::Bytes(vec![0; 8])),
        "SETTINGS" => {
            let mut payload = Vec::new();
            for pair in rest.split_whitespace().filter(|word| *word != "ACK") {
                let (id, value) = pair.split_once('=').context("no value")?;
                payload.extend(id.parse::<u16>()?.to_be_bytes());
                payload.extend(value.parse::<u32>()?.to_be_bytes());
            }
            frame(4, u8::from(rest == "ACK"), Stream::Number(0), Payload::Bytes(payload))
        }
        "PRIORITY" => {
            let at = stream(first()?)?;
            let (on, weight) = first()?.split_once(' ').context("no weight")?;
            let on = stream(on.strip_prefix("on=").context("no stream")?)?;
            frame(
                2,
                0,
                at,
                Payload::Priority(on, weight.strip_prefix("weight=").context("no weight")?.parse()?),
            )
        }
        "FRAME" => {
            let mut words = rest.splitn(4, ' ');
            let mut number = || words.next().context("a number is missing");
            let (kind, flags, at) = (number()?.parse()?, number()?.parse()?, stream(number()?)?);
            frame(kind, flags, at, Payload::Bytes(unescape(words.next().unwrap_or_default())?))
        }
        "AWAIT" => Step::Await(stream(rest)?),
        "RAW" => Step::Raw(unescape(rest)?),
        _ => bail!("no such step"),
    })
}

/// Numbers streams while a client's steps are taken.
#[derive(Clone, Debug)]
pub struct Player {
    next: u32,
    same: u32,
    depth: usize,
}

impl Default for Player {
    fn default() -> Self {
        Self { next: 1, same: 0, depth: 0 }
    }
}

impl Player {
    fn number(&mut self, stream: Stream) -> u32 {
        match stream {
            // The connection is no stream that one would come back to.
            Stream::Number(0) => return 0,
            Stream::Number(number) => self.same = number,
            Stream::Next => {
                self.same = self.next;
                self.next += 2;
            }
            Stream::Same | Stream::Last(_) => {}
        }
        self.same
    }

    /// Takes the steps until `each` has enough.
    pub fn play(
        &mut self,
        steps: &[Step],
        each: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut room = Vec::new();
        for step in steps {
            match step {
                Step::Raw(bytes) => each(Event::Send(bytes))?,
                Step::Await(stream) => each(Event::Await(self.number(*stream)))?,
                Step::Repeat(count, inner) => {
                    for round in 0..*count {
                        if self.depth == 0 {
                            each(Event::Round(round))?;
                        }
                        self.depth += 1;
                        let flow = self.play(inner, each);
                        self.depth -= 1;
                        flow?;
                    }
                }
                Step::Frame { kind, flags, stream: Stream::Last(count), payload } => {
                    let newest = self.next.saturating_sub(2);
                    for back in 0..*count {
                        room.clear();
                        self.encode(*kind, *flags, newest.saturating_sub(2 * back), payload, &mut room);
                        each(Event::Send(&room))?;
                    }
                }
                Step::Frame { kind, flags, stream, payload } => {
                    room.clear();
                    let number = self.number(*stream);
                    self.encode(*kind, *flags, number, payload, &mut room);
                    each(Event::Send(&room))?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn encode(&mut self, kind: u8, flags: u8, stream: u32, payload: &Payload, out: &mut Vec<u8>) {
        match payload {
            Payload::Bytes(bytes) => frame(kind, flags, stream, bytes, out),
            Payload::Priority(on, weight) => {
                let on = if *on == Stream::Same { stream } else { self.number(*on) };
                self.same = stream;
                frame(kind, flags, stream, &[&on.to_be_bytes()[..], &[*weight]].concat(), out);
            }
            Payload::Head(block) => {
                let mut pieces = block.chunks(FRAME).peekable();
                let mut kind = kind;
                let mut flags = flags;
                while let Some(piece) = pieces.next() {
                    let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
                    frame(kind, flags | last, stream, piece, out);
                    (kind, flags) = (9, 0);
                }
            }
        }
    }
}

/// Writes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::super::{HTTP2, corpus};
    use super::*;
    use std::time::Duration;
    use weir::proxy::judge::h2::{Frames, PREFACE, Ruling};

    /// How many rounds went on before the books alone ended the connection. A server that
    /// answers each request at once, and resets what it is told to, is made up.
    fn ended(case: &Case, server_resets: bool) -> Result<Option<usize>> {
        let mut frames = Frames::default();
        let mut waiting = PREFACE.to_vec();
        frame(4, 0, 0, &[], &mut waiting);
        let (mut rounds, mut over) = (0, None);
        let mut reset = Vec::new();
        let mut take = |event: Event<'_>| {
            match event {
                Event::Round(round) => rounds = round,
                Event::Await(stream) => {
                    let mut answer = Vec::new();
                    frame(1, END_HEADERS | END_STREAM, stream, &[0x88], &mut answer);
                    frames.server(&answer);
                }
                Event::Send(bytes) => {
                    waiting.extend_from_slice(bytes);
                    loop {
                        match frames.client(&waiting, Duration::ZERO) {
                            Ruling::Pass(count) => drop(waiting.drain(..count)),
                            Ruling::More => break,
                            Ruling::End(_) => {
                                over = Some(rounds);
                                return ControlFlow::Break(());
                            }
                        }
                    }
                    // Whatever follows a request's head on its stream makes this server reset it.
                    if server_resets && bytes.get(3).is_some_and(|kind| *kind != 1) {
                        reset.clear();
                        let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
                        frame(3, 0, stream, &[0, 0, 0, 1], &mut reset);
                        frames.server(&reset);
                    }
                }
            }
            ControlFlow::Continue(())
        };
        let _flow = Player::default().play(&steps(case)?, &mut take);
        Ok(over)
    }

    #[test]
    fn every_case_has_steps_and_there_are_enough() -> Result<()> {
        let cases = corpus::read(HTTP2)?;
        for case in &cases {
            ensure!(!steps(case)?.is_empty() && !case.expect.is_empty(), "{}", case.name);
        }
        let hostile = cases.iter().filter(|case| !["serve", "alive"].contains(&case.verdict())).count();
        assert!(hostile >= 100, "{hostile} hostile cases");
        Ok(())
    }

    #[test]
    fn floods_are_ended_in_time_and_honest_clients_live() -> Result<()> {
        for case in corpus::read(HTTP2)? {
            let limit = case.expect.iter().find_map(|line| line.strip_prefix("ended-by "));
            let alive = case.verdict() == "alive";
            if limit.is_none() && !alive
                || case.name == "made-reset-length-mismatch"
                || case.name == "made-reset-second-head"
            {
                continue;
            }
            // The download's end is the server's part, and has a test of its own.
            if case.name == "dribbled-download" {
                continue;
            }
            let rounds = ended(&case, case.name.starts_with("made-reset"))?;
            match limit {
                Some(limit) => ensure!(
                    rounds.is_some_and(|rounds| rounds <= limit.parse().unwrap_or(0)),
                    "{}: {rounds:?}",
                    case.name
                ),
                None => ensure!(rounds.is_none(), "{}: ended after {rounds:?}", case.name),
            }
        }
        Ok(())
    }
}
