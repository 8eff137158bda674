//! Fuzzers of the judges: cases of the corpus, changed in a few places, shown whole and in
//! pieces, and judged a second time by something simpler.
//!
//! Everything comes from a seed; an input that fails is made shorter as long as it still
//! fails, and told as the corpus writes it.

use super::corpus::{self, show};
use super::requests::whole_messages;
use super::{ANSWERS, PATHS, REQUESTS, answers, hello, http2, paths, requests};
use crate::packets::fuzz::Chance;
use anyhow::{Context, Result, bail, ensure};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use weir::proxy::judge::Reason;
use weir::proxy::judge::chunked::{Chunks, Progress, Side};
use weir::proxy::judge::h2::{Abuse, Frames, PREFACE, Ruling};
use weir::proxy::judge::request::Place;
use weir::proxy::judge::response::Question;

/// What a fuzzer can be called for.
pub const NAMES: [&str; 6] = ["judge", "chunked", "response", "h2-frames", "target", "hello"];

/// A fuzzer: inputs to begin with, pieces to put into them, and the check.
#[derive(Debug)]
pub struct Fuzzer {
    seeds: Vec<Vec<u8>>,
    words: &'static [&'static [u8]],
    check: fn(&[u8], &mut Chance) -> Result<()>,
}

const HTTP: [&[u8]; 46] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b": ",
    b"\0",
    b"\x7f",
    b"\xff",
    b",",
    b";",
    b"#",
    b"?",
    b"/",
    b"*",
    b"Host: a\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"chunked",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\n",
    b"Upgrade: h2c\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204 X\r\n",
    b"GET / HTTP/1.1\r\n",
    b"POST /x HTTP/1.0\r\n",
    b"GET /2 HTTP/1.1\r\nHost: b\r\n\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"5;a=b\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"ffffffffffffffff",
    b"0x",
    b"+",
    b"-",
    b"18446744073709551616",
    b"http://",
    b"[::1]",
    b"X: y\r\n",
];
const PATH: [&[u8]; 34] = [
    b"/",
    b"//",
    b".",
    b"..",
    b"/..",
    b"/../",
    b"/./",
    b";",
    b"..;",
    b";x",
    b"\\",
    b"%2f",
    b"%2F",
    b"%5c",
    b"%2e",
    b"%2e%2e",
    b"%3b",
    b"%3f",
    b"%23",
    b"%00",
    b"%",
    b"%25",
    b"%252e",
    b"%252f",
    b"%c0%ae",
    b"%c0%af",
    b"%ef%bc%8f",
    b"admin",
    b"public",
    b"%61dmin",
    b"/admin",
    b"/public",
    b"exact",
    b"%zz",
];
const FRAME_WORDS: [&[u8]; 16] = [
    b"\0\0\0\0\x01\0\0\0\x01",
    b"\0\0\x01\x01\x05\0\0\0\x01\x82",
    b"\0\0\x01\x01\0\0\0\0\x03\x82",
    b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
    b"\0\0\0\x04\0\0\0\0\0",
    b"\0\0\0\x04\x01\0\0\0\0",
    b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0",
    b"\0\0\x08\x06\0\0\0\0\0pingping",
    b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01",
    b"\0\0\0\x09\0\0\0\0\x01",
    b"\0\0\x01\x09\x04\0\0\0\x01\x84",
    b"\0\0\x05\x02\0\0\0\0\x03\0\0\0\0\x10",
    b"\0\0\x03\0\x08\0\0\0\x01\x02\0\0",
    b"\0\0\x04\x01\x04\0\0\0\x05\x20\x20\x20\x82",
    b"\xff\xff\xff",
    b"\x7f\xff\xff\xff",
];

const HELLO: [&[u8]; 16] = [
    b"\0",
    b"\xff",
    b"\x16\x03\x01\0\x01\x01",
    b"\x16\x03\x03\0\0",
    b"\x15\x03\x03\0\x02\x01\0",
    b"\x14\x03\x03\0\x01\x01",
    b"\x01\0\0\x26",
    b"\0\0\0\x0e\0\x0c\0\0\x09a.example",
    b"\0\0\0\0",
    b"\0\x2b\0\x03\x02\x03\x03",
    b"\0\x17\0\0",
    b"a.example",
    b"c.b.example",
    b".",
    b"\x03\x03",
    b"GET / HTTP/1.1\r\n\r\n",
];

impl Fuzzer {
    /// The fuzzer of this name.
    ///
    /// # Errors
    /// When there is none, or the corpus cannot be read.
    pub fn new(name: &str) -> Result<Self> {
        let short = |bytes: &Vec<u8>| bytes.len() < 600;
        let requests = || -> Result<Vec<Vec<u8>>> {
            let mut all = Vec::new();
            for (_, text) in REQUESTS {
                all.extend(corpus::read(text)?.into_iter().map(|case| case.bytes));
            }
            Ok(all)
        };
        Ok(match name {
            "judge" => Self {
                seeds: requests()?.into_iter().filter(short).collect(),
                words: &HTTP,
                check: check_request,
            },
            "chunked" => {
                // What follows the heads of the cases: bodies, most of them chunked.
                let body = |bytes: Vec<u8>| {
                    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
                    bytes.get(end + 4..).filter(|body| !body.is_empty()).map(<[u8]>::to_vec)
                };
                let seeds = requests()?.into_iter().filter_map(body).filter(short).collect();
                Self { seeds, words: &HTTP, check: check_chunks }
            }
            "response" => {
                let seeds = corpus::read(ANSWERS)?.into_iter().map(|case| case.bytes).filter(short).collect();
                Self { seeds, words: &HTTP, check: check_answer }
            }
            "h2-frames" => {
                let all = FRAME_WORDS.concat();
                let mut seeds: Vec<_> = FRAME_WORDS.iter().map(|word| word.repeat(4)).collect();
                seeds.push(all);
                Self { seeds, words: &FRAME_WORDS, check: check_frames }
            }
            "target" => {
                let seeds = paths::read(PATHS)?
                    .into_iter()
                    .map(|row| row.path)
                    .filter(|path| path.len() < 60)
                    .collect();
                Self { seeds, words: &PATH, check: check_path }
            }
            "hello" => Self { seeds: hello::seeds(), words: &HELLO, check: check_hello },
            _ => bail!("no fuzzer {name}; there are {}", NAMES.join(", ")),
        })
    }

    /// Runs the inputs of seeds `first..first + count`.
    ///
    /// # Errors
    /// At the first input that fails, or panics.
    pub fn run(&self, first: u64, count: u64) -> Result<()> {
        let mut input = Vec::new();
        for seed in first..first.saturating_add(count) {
            let mut chance = Chance::new(seed);
            self.make(&mut chance, &mut input);
            if let Err(error) = self.attempt(&input, seed) {
                let shorter = self.shrink(input, seed);
                bail!("seed {seed}: {error:#}\nenough: {}", show(&shorter));
            }
        }
        Ok(())
    }

    fn attempt(&self, input: &[u8], seed: u64) -> Result<()> {
        let mut chance = Chance::new(!seed);
        catch_unwind(AssertUnwindSafe(|| (self.check)(input, &mut chance)))
            .unwrap_or_else(|_| bail!("panicked"))
    }

    fn make(&self, chance: &mut Chance, input: &mut Vec<u8>) {
        input.clear();
        let draw = |chance: &mut Chance, of: usize| (chance.draw() % of.max(1) as u64) as usize;
        if let Some(seed) = self.seeds.get(draw(chance, self.seeds.len())) {
            input.extend_from_slice(seed);
        }
        for _ in 0..draw(chance, 5) {
            let at = draw(chance, input.len() + 1);
            let word = self.words.get(draw(chance, self.words.len())).copied().unwrap_or_default();
            let length = draw(chance, 8).min(input.len() - at);
            match draw(chance, 8) {
                0 | 1 => drop(input.splice(at..at, word.iter().copied())),
                2 => drop(input.splice(at..at + length, word.iter().copied())),
                3 => drop(input.drain(at..at + length)),
                4 => {
                    if let Some(byte) = input.get_mut(at) {
                        *byte ^= 1 << (chance.draw() % 8);
                    }
                }
                5 => input.truncate(at),
                6 => {
                    let piece = input.get(at..at + length).unwrap_or_default().to_vec();
                    let to = draw(chance, input.len() + 1);
                    drop(input.splice(to..to, piece));
                }
                _ => {
                    let other =
                        self.seeds.get(draw(chance, self.seeds.len())).map(Vec::as_slice).unwrap_or_default();
                    let from = draw(chance, other.len() + 1);
                    input.truncate(at);
                    input.extend_from_slice(other.get(from..).unwrap_or_default());
                }
            }
        }
        input.truncate(4096);
    }

    fn shrink(&self, mut input: Vec<u8>, seed: u64) -> Vec<u8> {
        let mut size = input.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at + size <= input.len() {
                let mut fewer = input.clone();
                fewer.drain(at..at + size);
                if self.attempt(&fewer, seed).is_err() { input = fewer } else { at += size }
            }
            size /= 2;
        }
        input
    }
}

/// Three pieces, split anywhere.
fn pieces<'a>(input: &'a [u8], chance: &mut Chance) -> [&'a [u8]; 3] {
    let mut cut = || (chance.draw() % (input.len() as u64 + 1)) as usize;
    let (a, b) = (cut(), cut());
    let (first, second) = (a.min(b), a.max(b));
    [&input[..first], &input[first..second], &input[second..]]
}

fn check_request(input: &[u8], chance: &mut Chance) -> Result<()> {
    let whole = requests::judge([input]);
    let split = requests::judge(pieces(input, chance));
    ensure!(
        (whole.refused, whole.heads, whole.place) == (split.refused, split.heads, split.place),
        "whole: {whole:?}, split: {split:?}"
    );
    let messages = whole_messages(&whole.passed);
    ensure!(messages == whole_messages(&split.passed), "other messages when split");
    // The simple parser finds as many messages as heads went on: framing agrees.
    let open = u64::from(
        whole.place == Place::Body || whole.refused.is_some() && messages.len() as u64 != whole.heads,
    );
    ensure!(
        messages.len() as u64 + open == whole.heads,
        "{} messages of {} heads",
        messages.len(),
        whole.heads
    );
    heads(&whole.passed, messages.len())
}

/// Each head that went on is strict, by the rules written down once more, and hyper's parser
/// finds the same in it.
fn heads(passed: &[u8], count: usize) -> Result<()> {
    let mut rest = passed;
    for _ in 0..count {
        while let Some(after) = rest.strip_prefix(b"\r\n") {
            rest = after;
        }
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut fields);
        let httparse::Status::Complete(end) = request.parse(rest)? else {
            bail!("a head that is not whole went on")
        };
        let head = rest.get(..end).context("no head")?;
        let text = head.strip_suffix(b"\r\n\r\n").context("no end of a head")?;
        ensure!(head.windows(4).position(|window| window == b"\r\n\r\n") == Some(end - 4), "another end");
        let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
        for (number, line) in lines.iter().enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            ensure!(
                !line.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f),
                "control byte"
            );
            ensure!(number == 0 || !line.starts_with(b" ") && !line.starts_with(b"\t"), "fold");
        }
        ensure!(request.headers.len() == lines.len() - 1, "other fields");
        let named = |name: &str| {
            request
                .headers
                .iter()
                .filter(|field| field.name.eq_ignore_ascii_case(name))
                .map(|field| field.value)
                .collect::<Vec<_>>()
        };
        let (hosts, lengths, codings) = (named("host"), named("content-length"), named("transfer-encoding"));
        ensure!(hosts.len() == 1 || hosts.is_empty() && request.version == Some(0), "hosts");
        ensure!(lengths.len() + codings.len() <= 1, "lengths and codings");
        ensure!(
            codings
                .iter()
                .all(|coding| coding.eq_ignore_ascii_case(b"chunked") && request.version == Some(1)),
            "coding"
        );
        ensure!(
            lengths.iter().all(|length| length.iter().all(u8::is_ascii_digit) && !length.is_empty()),
            "length"
        );
        let target = request.path.context("no target")?;
        ensure!(http::Uri::try_from(target).is_ok() && !target.contains('#'), "target");
        // Where a body ends the other parser has said; heads behind one are left to other inputs.
        if !lengths.is_empty() && lengths != [b"0"] || !codings.is_empty() {
            return Ok(());
        }
        rest = rest.get(end..).unwrap_or_default();
    }
    Ok(())
}

fn check_chunks(input: &[u8], chance: &mut Chance) -> Result<()> {
    let whole = Chunks::new(Side::Request).take(input);
    let (mut chunks, mut before, mut split) = (Chunks::new(Side::Request), 0, Progress::Open);
    for piece in pieces(input, chance) {
        split = match chunks.take(piece) {
            Progress::Open => Progress::Open,
            Progress::Ended(end) => Progress::Ended(before + end),
            Progress::Refused(reason) => Progress::Refused(reason),
        };
        before += piece.len();
        if split != Progress::Open {
            break;
        }
    }
    ensure!(whole == split, "whole: {whole:?}, split: {split:?}");
    let simple = simple_chunks(input);
    let same = match whole {
        Progress::Open => simple == Some(Ok(None)),
        Progress::Ended(end) => simple == Some(Ok(Some(end))),
        // Limits of number and length are known to the judge alone.
        Progress::Refused(Reason::TrailersTooLong | Reason::ChunkExtension) => true,
        Progress::Refused(_) => !matches!(simple, Some(Ok(Some(_)))),
    };
    ensure!(same, "{whole:?}, but simply {simple:?}");
    Ok(())
}

/// A chunked body by the letter of RFC 9112 7.1, made narrower: where it ends, that it has not
/// ended, or that it is wrong. `None`: too early to say what is wrong.
fn simple_chunks(body: &[u8]) -> Option<Result<Option<usize>, ()>> {
    let line_at = |at: usize| -> Option<(&[u8], usize)> {
        let end = body.get(at..)?.iter().position(|byte| *byte == b'\n')?;
        Some((&body[at..at + end], at + end + 1))
    };
    let mut at = 0;
    loop {
        let Some((line, next)) = line_at(at) else { return unfinished(&body[at..]) };
        let Some(line) = line.strip_suffix(b"\r") else { return Some(Err(())) };
        let (digits, extension) = match line.iter().position(|byte| *byte == b';') {
            Some(at) => (&line[..at], Some(&line[at + 1..])),
            None => (line, None),
        };
        let good = !digits.is_empty() && digits.len() <= 16 && digits.iter().all(u8::is_ascii_hexdigit);
        let size = std::str::from_utf8(digits)
            .ok()
            .filter(|_| good)
            .and_then(|digits| i64::from_str_radix(digits, 16).ok());
        let Some(size) = size.and_then(|size| usize::try_from(size).ok()) else { return Some(Err(())) };
        if let Some(extension) = extension {
            let named = extension.iter().find(|byte| !matches!(byte, b' ' | b'\t'));
            let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
            let clean = extension.iter().all(|byte| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f);
            if !named.is_some_and(token) || !clean || extension.len() > 255 {
                return Some(Err(()));
            }
        }
        at = next;
        if size == 0 {
            break;
        }
        let Some(end) = at.checked_add(size).filter(|end| end + 2 <= body.len()) else {
            // The data, or its line end, has not all come; half of the line end can be wrong.
            let half = at.checked_add(size).and_then(|end| body.get(end));
            return if half.is_some_and(|byte| *byte != b'\r') { Some(Err(())) } else { Some(Ok(None)) };
        };
        if &body[end..end + 2] != b"\r\n" {
            return Some(Err(()));
        }
        at = end + 2;
    }
    loop {
        let Some((line, next)) = line_at(at) else { return Some(Ok(None)) };
        let Some(line) = line.strip_suffix(b"\r") else { return Some(Err(())) };
        at = next;
        if line.is_empty() {
            return Some(Ok(Some(at)));
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Some(Err(())) };
        let name = &line[..colon];
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let clean = line.iter().all(|byte| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f);
        if name.is_empty()
            || !name.iter().all(token)
            || !clean
            || weir::proxy::judge::chunked::is_unfit_trailer(name)
        {
            return Some(Err(()));
        }
    }
}

/// A chunk-size line without its end: it may still become a good one, or never.
fn unfinished(line: &[u8]) -> Option<Result<Option<usize>, ()>> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let open = match line.get(digits) {
        None => digits <= 16,
        Some(b'\r') => digits > 0 && line.len() == digits + 1,
        // Of an extension everything is said once its line is whole.
        Some(b';') => return if digits > 0 { extension_so_far(&line[digits + 1..]) } else { None },
        Some(_) => false,
    };
    let value = std::str::from_utf8(&line[..digits])
        .ok()
        .map(|digits| digits.is_empty() || i64::from_str_radix(digits, 16).is_ok());
    if open && digits <= 16 && value == Some(true) { Some(Ok(None)) } else { None }
}

fn extension_so_far(extension: &[u8]) -> Option<Result<Option<usize>, ()>> {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let text = extension.strip_suffix(b"\r").unwrap_or(extension);
    let named = text.iter().find(|byte| !matches!(byte, b' ' | b'\t'));
    let clean = text.iter().all(|byte| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f);
    let ended = text.len() < extension.len();
    let good = clean && text.len() <= 255 && named.map_or(!ended, token);
    if good { Some(Ok(None)) } else { None }
}

fn check_answer(input: &[u8], chance: &mut Chance) -> Result<()> {
    let question = match chance.draw() % 3 {
        0 => Question { head: true, ..Question::default() },
        1 => Question { upgrade: true, ..Question::default() },
        _ => Question::default(),
    };
    let whole = answers::judge(question, [input]);
    let split = answers::judge(question, pieces(input, chance));
    ensure!(
        (answers::verdict(&whole), whole.begun) == (answers::verdict(&split), split.begun),
        "whole: {whole:?}, split: {split:?}"
    );
    // Heads that went on are strict, and hyper's parser reads the last of them as final.
    let mut rest = &whole.passed[..];
    while !rest.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut answer = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(end) = answer.parse(rest)? else {
            bail!("a head that is not whole went on")
        };
        let code = answer.code.context("no status")?;
        let named =
            |name: &str| answer.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
        ensure!((100..600).contains(&code), "status");
        ensure!(named("content-length") + named("transfer-encoding") <= 1, "lengths and codings");
        ensure!(code != 101 || question.upgrade, "101 went on unasked");
        if code >= 200 || code == 101 {
            ensure!(whole.begun, "a final head went on unnoticed");
            if question.head || code == 204 || code == 304 {
                ensure!(rest.len() == end, "a body went on that is none");
            }
            break;
        }
        rest = rest.get(end..).unwrap_or_default();
    }
    Ok(())
}

fn check_frames(input: &[u8], chance: &mut Chance) -> Result<()> {
    // The frames many times over, so that budgets come to an end.
    let times = 1 + (chance.draw() % 40) as usize;
    let bytes = [PREFACE, &input.repeat(times)].concat();
    let show_all = |pieces: &[&[u8]]| -> Result<(usize, Option<Abuse>)> {
        let (mut frames, mut waiting, mut went) = (Frames::default(), Vec::new(), 0);
        for piece in pieces {
            waiting.extend_from_slice(piece);
            loop {
                match frames.client(&waiting, Duration::ZERO) {
                    Ruling::Pass(0) => bail!("nothing went on"),
                    Ruling::Pass(count) => {
                        went += count;
                        waiting.drain(..count);
                    }
                    Ruling::More => break,
                    Ruling::End(abuse) => return Ok((went, Some(abuse))),
                }
            }
            ensure!(waiting.len() < 9, "{} bytes wait", waiting.len());
        }
        Ok((went, None))
    };
    let whole = show_all(&[&bytes])?;
    let split = show_all(&pieces(&bytes, chance))?;
    ensure!(whole == split, "whole: {whole:?}, split: {split:?}");
    // What went on before an end is whole frames.
    if whole.1.is_some() && whole.0 >= PREFACE.len() {
        let mut at = PREFACE.len();
        while at < whole.0 {
            let header = bytes.get(at..at + 9).context("half a frame went on")?;
            at += 9 + (usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]));
        }
        ensure!(at == whole.0, "ended within a frame");
    }
    // What the server writes is read the same in any pieces, too.
    let (mut one, mut many) = (Frames::default(), Frames::default());
    one.server(input);
    pieces(input, chance).iter().for_each(|piece| many.server(piece));
    let mut ping = PREFACE.to_vec();
    http2::frame(3, 0, 1, &[0; 4], &mut ping);
    ensure!(
        one.client(&ping, Duration::ZERO) == many.client(&ping, Duration::ZERO),
        "the server's frames differ"
    );
    Ok(())
}

fn check_hello(input: &[u8], chance: &mut Chance) -> Result<()> {
    hello::check(input, &pieces(input, chance))
}

fn check_path(input: &[u8], _chance: &mut Chance) -> Result<()> {
    let verdict = paths::verdict(input);
    let Some(name) = verdict.strip_prefix("route ") else { return Ok(()) };
    let mut astray = None;
    if input.len() <= 48 {
        paths::origins(input, |path| {
            if paths::route(path) != name && astray.is_none() {
                astray = Some(path.to_vec());
            }
        });
    }
    ensure!(astray.is_none(), "routed to {name}; an origin sees {}", show(&astray.unwrap_or_default()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bounded run of each; `cargo xtask fuzz NAME` runs them for long.
    #[test]
    fn judges_withstand_changed_cases() -> Result<()> {
        for name in NAMES {
            let count = if ["target", "hello"].contains(&name) { 5_000 } else { 20_000 };
            Fuzzer::new(name)?.run(1 << 40, count).with_context(|| name.to_owned())?;
        }
        Ok(())
    }
}
