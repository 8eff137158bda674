//! Runs the HTTP/2 floods of the corpus against hyper's server with the books of frames in
//! front of it, over a pipe in memory, and counts how far each of them comes.

use super::corpus::Case;
use super::http2::{Event, Player, frame, steps};
use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir::proxy::judge::h2::{Abuse, PREFACE};
use weir::proxy::judge::io::frames::Counted;

/// What a flood came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Repetitions that were sent before the client saw the end.
    pub rounds: usize,
    /// Whether the server ended the connection.
    pub ended: bool,
    /// Why the books ended it, if they did.
    pub abuse: Option<Abuse>,
    /// Most requests that the service had at the same time.
    pub concurrent: usize,
}

/// What the client has seen of the server's frames.
#[derive(Debug, Default)]
struct Seen {
    whole: BTreeSet<u32>,
    ended: bool,
}

impl Seen {
    /// Takes the whole frames out of what was read.
    fn take(&mut self, bytes: &mut Vec<u8>) {
        let mut at = 0;
        while let Some(&[a, b, c, kind, flags, w, x, y, z]) = bytes.get(at..at + 9) {
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if bytes.len() < at + 9 + length {
                break;
            }
            match kind {
                0 | 1 if flags & 1 == 1 => drop(self.whole.insert(u32::from_be_bytes([w, x, y, z]))),
                3 => drop(self.whole.insert(u32::from_be_bytes([w, x, y, z]))),
                7 => self.ended = true,
                _ => {}
            }
            at += 9 + length;
        }
        bytes.drain(..at);
    }
}

/// Plays a case against a server whose service answers as soon as it has the body, or never.
///
/// # Errors
/// When the case has no steps, or the runtime cannot be made.
pub fn run(case: &Case, answers: bool) -> Result<Outcome> {
    let steps = steps(case)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (mut from, mut to) = tokio::io::split(client);
        let (io, ended) = Counted::new(server);
        let (now, most) = (Rc::new(Cell::new(0_usize)), Rc::new(Cell::new(0_usize)));
        let busy = (Rc::clone(&now), Rc::clone(&most));
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let guard = Busy::new(&busy.0, &busy.1);
            async move {
                if !answers {
                    std::future::pending::<()>().await;
                }
                // A body that is broken off has no answer that would matter.
                let _body = request.into_body().collect().await;
                drop(guard);
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
            }
        });
        let serving = tokio::task::spawn_local(async move {
            // How it ends is seen by the client.
            let _end = hyper::server::conn::http2::Builder::new(Local)
                .max_concurrent_streams(128)
                .serve_connection(TokioIo::new(io), service)
                .await;
        });
        let seen = Rc::new(RefCell::new(Seen::default()));
        let reading = tokio::task::spawn_local({
            let seen = Rc::clone(&seen);
            async move {
                let mut bytes = Vec::new();
                while from.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
                    seen.borrow_mut().take(&mut bytes);
                }
                seen.borrow_mut().ended = true;
            }
        });
        let raw = matches!(steps.first(), Some(super::http2::Step::Raw(_)));
        let mut begin = if raw { Vec::new() } else { PREFACE.to_vec() };
        if !raw {
            frame(4, 0, 0, &[], &mut begin);
        }
        let mut outcome = Outcome::default();
        // The steps are made by a thread of their own: what they hand out is awaited here.
        let (give, mut events) = tokio::sync::mpsc::channel(64);
        let play = std::thread::spawn(move || {
            let mut each = |event: Event<'_>| {
                let event = match event {
                    Event::Send(bytes) => Do::Send(bytes.to_vec()),
                    Event::Await(stream) => Do::Await(stream),
                    Event::Round(round) => Do::Round(round),
                };
                // The connection is over when nobody takes them any more.
                if give.blocking_send(event).is_ok() {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            };
            let _flow = Player::default().play(&steps, &mut each);
        });
        let mut alive = to.write_all(&begin).await.is_ok();
        while let Some(event) = events.recv().await.filter(|_| alive) {
            match event {
                Do::Round(round) => outcome.rounds = round,
                Do::Send(bytes) => alive = to.write_all(&bytes).await.is_ok(),
                Do::Await(stream) => {
                    while !seen.borrow().whole.contains(&stream) && !seen.borrow().ended {
                        tokio::task::yield_now().await;
                    }
                }
            }
            tokio::task::yield_now().await;
            alive &= !seen.borrow().ended;
        }
        drop(events);
        // What is on its way arrives; then a server that has nothing against it waits for more.
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        outcome.ended = seen.borrow().ended;
        outcome.abuse = ended.get().copied();
        outcome.concurrent = most.get();
        serving.abort();
        reading.abort();
        play.join().map_err(|_| anyhow::anyhow!("the steps panicked")).context(case.name.clone())?;
        Ok(outcome)
    })
}

enum Do {
    Send(Vec<u8>),
    Await(u32),
    Round(usize),
}

/// Counts a request for as long as the service has it.
struct Busy(Rc<Cell<usize>>);

impl Busy {
    fn new(now: &Rc<Cell<usize>>, most: &Cell<usize>) -> Self {
        now.set(now.get() + 1);
        most.set(most.get().max(now.get()));
        Self(Rc::clone(now))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[derive(Clone, Copy, Debug)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HTTP2, corpus};
    use super::*;
    use anyhow::ensure;

    #[test]
    fn hyper_behind_the_books_ends_floods_and_keeps_honest_clients() -> Result<()> {
        for case in corpus::read(HTTP2)? {
            let limit = |word: &str| {
                let line = case.expect.iter().find_map(|line| line.strip_prefix(word));
                line.map(str::parse::<usize>).transpose()
            };
            let (ended_by, concurrent) = (limit("ended-by ")?, limit("origin-concurrent ")?);
            let alive = case.verdict() == "alive";
            let ended = case.verdict() == "ended";
            // The origin's part of it is not here: a large answer.
            if case.name == "dribbled-download" || ended_by.is_none() && !alive && !ended {
                continue;
            }
            // A slow origin is what makes resets dear.
            let outcome = run(&case, concurrent.is_none())?;
            ensure!(outcome.ended != alive, "{}: {outcome:?}", case.name);
            ensure!(ended_by.is_none_or(|most| outcome.rounds <= most), "{}: {outcome:?}", case.name);
            ensure!(
                concurrent.is_none_or(|most| outcome.concurrent <= most.max(1)),
                "{}: {outcome:?}",
                case.name
            );
        }
        Ok(())
    }
}
