//! Runs the requests of the corpus through the judge, in every split, and reads what it let
//! through with a small parser of its own, which takes strict messages for granted.

use super::corpus::{Case, show};
use anyhow::{Context, Result, ensure};
use weir::proxy::judge::request::{Place, Requests};
use weir::proxy::judge::{Reason, Verdict};

/// What became of a client's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What went on.
    pub passed: Vec<u8>,
    pub refused: Option<Reason>,
    /// Heads that went on.
    pub heads: u64,
    pub place: Place,
}

/// Shows the pieces to a judge, one after the other. Every upgrade is declined.
#[must_use]
pub fn judge<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let (mut requests, mut waiting, mut passed) = (Requests::default(), Vec::new(), Vec::new());
    let mut refused = None;
    for piece in pieces {
        waiting.extend_from_slice(piece);
        loop {
            if requests.place() == Place::Asked {
                requests.decide(false);
            }
            match requests.judge(&waiting) {
                Verdict::Pass(count) => passed.extend(waiting.drain(..count)),
                Verdict::More if requests.place() == Place::Asked => {}
                Verdict::More => break,
                Verdict::Refuse(reason) => {
                    refused = Some(reason);
                    break;
                }
            }
        }
        if refused.is_some() {
            break;
        }
    }
    Outcome { passed, refused, heads: requests.heads(), place: requests.place() }
}

/// Messages as `method target body`, as the corpus writes them; only whole ones.
#[must_use]
pub fn whole_messages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut messages, mut rest) = (Vec::new(), bytes);
    while let Some((message, after)) = first_message(rest) {
        messages.push(message);
        rest = after;
    }
    messages
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn first_message(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    let end = find(bytes, b"\r\n\r\n")?;
    let (head, mut rest) = (&bytes[..end], &bytes[end + 4..]);
    let mut lines = head.split(|byte| *byte == b'\n');
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let mut message = [words.next()?, b" ", words.next()?].concat();
    let (mut length, mut chunked) = (0, false);
    for line in lines {
        let line = line.to_ascii_lowercase();
        if let Some(value) = line.strip_prefix(b"content-length:") {
            length = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
        }
        chunked |= line.starts_with(b"transfer-encoding:");
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let end = find(rest, b"\r\n")?;
            let digits = rest[..end].split(|byte| *byte == b';').next()?;
            let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
            rest = &rest[end + 2..];
            if size == 0 {
                break;
            }
            body.extend_from_slice(rest.get(..size)?);
            rest = rest.get(size + 2..)?;
        }
        while let Some(end) = find(rest, b"\r\n") {
            rest = &rest[end + 2..];
            if end == 0 {
                return Some((joined(message, &body), rest));
            }
        }
        return None;
    }
    body.extend_from_slice(rest.get(..length)?);
    rest = &rest[length..];
    message = joined(message, &body);
    Some((message, rest))
}

/// Puts a body behind a method and a target.
#[must_use]
pub fn joined(mut message: Vec<u8>, body: &[u8]) -> Vec<u8> {
    if !body.is_empty() {
        message.push(b' ');
        message.extend_from_slice(body);
    }
    message
}

/// Checks one outcome against what the case says.
///
/// # Errors
/// When they differ.
pub fn check(case: &Case, outcome: &Outcome) -> Result<()> {
    let verdict = match outcome.refused {
        Some(reason) => format!("refuse {}", reason.label()),
        None if outcome.place == Place::Between => "pass".to_owned(),
        None => "wait".to_owned(),
    };
    ensure!(verdict == case.verdict(), "{}: {verdict}, not {}", case.name, case.verdict());
    let (messages, expected) = (whole_messages(&outcome.passed), case.marked("> ")?);
    ensure!(
        messages == expected,
        "{}: {} went on, not {}",
        case.name,
        show(&messages.join(&b'|')),
        show(&expected.join(&b'|')),
    );
    Ok(())
}

/// Shows a case whole, in two pieces split at every place, and byte by byte; the very long
/// ones are split at some places only.
///
/// # Errors
/// At the first split that says something else than the case.
pub fn run(case: &Case) -> Result<usize> {
    let bytes = &case.bytes[..];
    let whole = judge([bytes]);
    check(case, &whole)?;
    let step = (bytes.len() / 500).max(1);
    let places = (0..=bytes.len()).step_by(step);
    let mut splits = 0;
    for at in places {
        let (first, second) = bytes.split_at(at);
        check(case, &judge([first, second])).with_context(|| format!("split at {at}"))?;
        splits += 1;
    }
    check(case, &judge(bytes.iter().map(std::slice::from_ref))).context("byte by byte")?;
    Ok(splits + 2)
}

#[cfg(test)]
mod tests {
    use super::super::{REQUESTS, corpus};
    use super::*;

    #[test]
    fn every_request_of_the_corpus_is_judged_as_it_says_in_every_split() -> Result<()> {
        let (mut hostile, mut valid) = (0, 0);
        for (file, text) in REQUESTS {
            for case in corpus::read(text)? {
                run(&case).with_context(|| file.to_owned())?;
                if case.verdict().starts_with("refuse") { hostile += 1 } else { valid += 1 }
            }
        }
        assert!(hostile >= 300, "{hostile} hostile requests");
        assert!(valid >= 60, "{valid} valid requests");
        Ok(())
    }

    #[test]
    fn every_reason_for_which_a_request_is_refused_has_a_case() -> Result<()> {
        let mut named = std::collections::BTreeSet::new();
        for (_, text) in REQUESTS {
            for case in corpus::read(text)? {
                named.extend(case.verdict().strip_prefix("refuse ").map(str::to_owned));
            }
        }
        let missing: Vec<_> = Reason::ALL
            .iter()
            .filter(|reason| reason.status() != 502 && !named.contains(reason.label()))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
        Ok(())
    }
}
