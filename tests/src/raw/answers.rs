//! Runs the origins' answers of the corpus through their judge, in every split.

use super::corpus::{Case, show};
use anyhow::{Context, Result, bail, ensure};
use weir::proxy::judge::response::{Answers, Question};
use weir::proxy::judge::{Reason, Verdict};

/// The request that a case answers.
///
/// # Errors
/// When it names none.
pub fn question(case: &Case) -> Result<Question> {
    Ok(match case.expect.first().map(String::as_str) {
        Some("? GET") => Question::default(),
        Some("? HEAD") => Question { head: true, ..Question::default() },
        Some("? UPGRADE") => Question { upgrade: true, ..Question::default() },
        other => bail!("{}: {other:?} is no question", case.name),
    })
}

/// What became of an origin's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What went on.
    pub passed: Vec<u8>,
    pub refused: Option<Reason>,
    /// Whether the final answer's head went on.
    pub begun: bool,
    /// Whether the answer is whole when the origin closes then.
    pub whole: bool,
    /// Whether nothing is owed any more.
    pub idle: bool,
}

/// Shows the pieces to a judge, one after the other.
#[must_use]
pub fn judge<'a>(question: Question, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let (mut answers, mut waiting, mut passed) = (Answers::default(), Vec::new(), Vec::new());
    answers.ask(question);
    let (mut refused, mut whole) = (None, false);
    for piece in pieces {
        waiting.extend_from_slice(piece);
        let verdict = loop {
            match answers.judge(&waiting) {
                Verdict::Pass(count) => passed.extend(waiting.drain(..count)),
                verdict @ (Verdict::More | Verdict::Refuse(_)) => break verdict,
            }
            whole = answers.may_end();
        };
        if let Verdict::Refuse(reason) = verdict {
            refused = Some(reason);
            break;
        }
    }
    Outcome { passed, refused, begun: answers.has_begun(), whole, idle: answers.is_idle() }
}

/// The verdict as the corpus writes it.
#[must_use]
pub fn verdict(outcome: &Outcome) -> String {
    match outcome.refused {
        Some(Reason::Leftover) if outcome.begun => "close".to_owned(),
        Some(reason) if outcome.begun => format!("abort {}", reason.label()),
        Some(reason) => format!("bad-gateway {}", reason.label()),
        None if outcome.idle => "keep".to_owned(),
        None if outcome.whole => "close".to_owned(),
        None => "short".to_owned(),
    }
}

/// Checks one outcome against what the case says.
///
/// # Errors
/// When they differ.
pub fn check(case: &Case, outcome: &Outcome) -> Result<()> {
    let verdict = verdict(outcome);
    ensure!(verdict == case.verdict(), "{}: {verdict}, not {}", case.name, case.verdict());
    let seen = case.marked("= ")?;
    let status = final_status(&outcome.passed).filter(|_| outcome.begun);
    let expected = seen.first().and_then(|seen| seen.get(..3));
    ensure!(
        status.as_deref() == expected,
        "{}: status {}, not {}",
        case.name,
        show(status.as_deref().unwrap_or(b"none")),
        show(expected.unwrap_or(b"none")),
    );
    Ok(())
}

/// The status of the last head among these bytes, interim ones passed over.
fn final_status(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = bytes;
    loop {
        let status = rest.get(9..12)?;
        if status.first() != Some(&b'1') || status == b"101" {
            return Some(status.to_vec());
        }
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n")?;
        rest = &rest[end + 4..];
    }
}

/// Shows a case whole, split at every place, and byte by byte.
///
/// # Errors
/// At the first split that says something else than the case.
pub fn run(case: &Case) -> Result<()> {
    let (question, bytes) = (question(case)?, &case.bytes[..]);
    check(case, &judge(question, [bytes]))?;
    let step = (bytes.len() / 500).max(1);
    for at in (0..=bytes.len()).step_by(step) {
        let (first, second) = bytes.split_at(at);
        check(case, &judge(question, [first, second])).with_context(|| format!("split at {at}"))?;
    }
    check(case, &judge(question, bytes.iter().map(std::slice::from_ref))).context("byte by byte")
}

#[cfg(test)]
mod tests {
    use super::super::{ANSWERS, corpus};
    use super::*;

    #[test]
    fn every_answer_of_the_corpus_is_judged_as_it_says_in_every_split() -> Result<()> {
        let cases = corpus::read(ANSWERS)?;
        cases.iter().try_for_each(run)?;
        let hostile = cases
            .iter()
            .filter(|case| {
                case.verdict() != "keep" && (case.verdict() != "close" || case.name.starts_with("leftover"))
            })
            .count();
        assert!(hostile >= 60, "{hostile} hostile answers");
        Ok(())
    }

    #[test]
    fn an_answer_that_nobody_asked_for_is_refused() {
        let mut answers = Answers::default();
        assert_eq!(answers.judge(b"H"), Verdict::Refuse(Reason::Leftover));
        answers.ask(Question::default());
        assert_eq!(answers.judge(b"HTTP/1.1 200 OK\r\n"), Verdict::Refuse(Reason::Leftover));
    }
}
