//! What hyper makes of the corpus, with the judges in front of it and without: over a pipe in
//! memory, with a service that notes each whole request, as a forwarder would send it on.

use super::corpus::Case;
use super::requests::joined;
use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use weir::proxy::judge::io::origin::Origin;
use weir::proxy::judge::io::{Judged, Ledger};
use weir::proxy::judge::response::Question;

/// What came of a client's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests that were forwarded whole, as the corpus writes them.
    pub forwarded: Vec<Vec<u8>>,
    /// Requests whose heads were forwarded.
    pub begun: usize,
    /// Statuses that the client was answered with.
    pub statuses: Vec<u16>,
}

/// What the client may be answered with by the judge, if it stands there.
type Bench = Option<Arc<Ledger>>;

async fn serve(
    request: Request<Incoming>,
    seen: &Mutex<Seen>,
    bench: &Bench,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let note = |note: &dyn Fn(&mut Seen)| note(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
    let answer = |status: u16| {
        let mut answer = Response::new(Empty::new());
        *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Ok(answer)
    };
    let turn = match bench.as_ref().map(Ledger::begin).transpose() {
        Ok(turn) => turn,
        Err(reason) => return answer(reason.status()),
    };
    note(&|seen| seen.begun += 1);
    let target = request.uri().to_string();
    let message = [request.method().as_str(), " ", &target].concat().into_bytes();
    match request.into_body().collect().await {
        Ok(body) => {
            let message = joined(message, &body.to_bytes());
            note(&|seen| seen.forwarded.push(message.clone()));
            answer(200)
        }
        Err(_) => answer(turn.and_then(|turn| turn.refusal()).map_or(400, |reason| reason.status())),
    }
}

async fn connection<IO>(io: IO, seen: &Mutex<Seen>, bench: Bench)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| serve(request, seen, &bench));
    // How a connection ends is no part of what is looked at.
    let _end = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(io), service)
        .await;
}

/// Sends a client's bytes, in pieces of at most `piece` bytes, to hyper, and closes.
///
/// # Errors
/// When the runtime cannot be made.
pub fn run(bytes: &[u8], piece: usize, judged: bool) -> Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let seen = Mutex::new(Seen::default());
        let (client, server) = tokio::io::duplex(piece);
        let (mut from, mut to) = tokio::io::split(client);
        let send = async {
            // The server may be gone before all is sent.
            let _sent = to.write_all(bytes).await;
            let _closed = to.shutdown().await;
        };
        let mut answers = Vec::new();
        let receive = async {
            let _end = from.read_to_end(&mut answers).await;
        };
        let serve = async {
            if judged {
                let (io, ledger) = Judged::new(server);
                connection(io, &seen, Some(ledger)).await;
            } else {
                connection(server, &seen, None).await;
            }
        };
        tokio::join!(send, receive, serve);
        let mut seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&answers);
        let statuses =
            text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok());
        seen.statuses = statuses.filter(|status| *status != 100).collect();
        Ok(seen)
    })
}

/// What a client of an origin gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Got {
    pub status: Option<u16>,
    /// The body, if it came whole.
    pub body: Option<Vec<u8>>,
    pub reusable: bool,
}

/// Sends one request, over hyper's client and the judge, to an origin that answers with these
/// bytes and closes.
///
/// # Errors
/// When the runtime cannot be made, or hyper refuses the connection.
pub fn ask(question: Question, bytes: &[u8]) -> Result<Got> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let (near, mut far) = tokio::io::duplex(1 << 17);
        let (io, owed) = Origin::new(near);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        let mut request = Request::new(Empty::<Bytes>::new());
        request.headers_mut().insert("host", "a.example".try_into()?);
        if question.head {
            *request.method_mut() = http::Method::HEAD;
        }
        let answer = async move {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") && far.read_buf(&mut seen).await.is_ok_and(|count| count > 0) {
            }
            // The client may refuse the answer before all of it is sent.
            let _sent = far.write_all(bytes).await;
        };
        owed.ask(question);
        let talk = async {
            let mut got = Got::default();
            let Ok(answer) = sender.send_request(request).await else { return got };
            got.status = Some(answer.status().as_u16());
            got.body = answer.into_body().collect().await.ok().map(|body| body.to_bytes().to_vec());
            got.reusable = owed.is_reusable();
            got
        };
        let ((), _end, got) = tokio::join!(answer, connection.with_upgrades(), talk);
        Ok(got)
    })
}

/// The messages that a case lets through, with targets as the library writes them: what is
/// absolute loses its capitals, and gets the `/` that it left out.
///
/// # Errors
/// When the case is not written as it should be.
pub fn expected(case: &Case) -> Result<Vec<Vec<u8>>> {
    let written = |message: Vec<u8>| {
        let words: Vec<&[u8]> = message.splitn(3, |byte| *byte == b' ').collect();
        let &[method, target, ref body @ ..] = &words[..] else { return message };
        let Ok(uri) = http::Uri::try_from(target) else { return message.clone() };
        let head = [method, b" ", uri.to_string().as_bytes()].concat();
        joined(head, body.first().copied().unwrap_or_default())
    };
    Ok(case.marked("> ")?.into_iter().map(written).collect())
}

/// What a file of the corpus came to, without the judge and with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub hostile: usize,
    /// Hostile messages of which at least the head was forwarded.
    pub bare: usize,
    /// Those that were forwarded whole, or made others of.
    pub bare_whole: usize,
    /// Hostile messages that were forwarded whole in spite of the judge.
    pub judged_whole: usize,
    pub valid: usize,
    /// Valid messages that did not arrive as they should.
    pub bare_lost: usize,
    pub judged_lost: usize,
}

/// Runs the cases both ways.
///
/// # Errors
/// When a case cannot be read.
pub fn tally(cases: &[Case]) -> Result<Tally> {
    let mut tally = Tally::default();
    for case in cases {
        let expected = expected(case)?;
        let bare = run(&case.bytes, 1 << 16, false).with_context(|| case.name.clone())?;
        let judged = run(&case.bytes, 1 << 16, true).with_context(|| case.name.clone())?;
        if case.verdict().starts_with("refuse") {
            tally.hostile += 1;
            tally.bare += usize::from(bare.begun > expected.len());
            tally.bare_whole += usize::from(bare.forwarded != expected);
            tally.judged_whole += usize::from(judged.forwarded != expected);
        } else {
            tally.valid += 1;
            tally.bare_lost += usize::from(bare.forwarded != expected);
            tally.judged_lost += usize::from(judged.forwarded != expected);
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::super::{REQUESTS, corpus};
    use super::*;
    use anyhow::ensure;
    use weir::proxy::judge::Reason;

    /// What hyper hands to a service is what the judge let through, and nothing of a message
    /// that was refused; and the refusal is answered, once, in its place.
    #[test]
    fn behind_the_judge_hyper_forwards_what_the_corpus_says_and_nothing_else() -> Result<()> {
        for (_, text) in REQUESTS {
            for case in corpus::read(text)?.iter().filter(|case| case.bytes.len() < 200_000) {
                for piece in
                    [1 << 16, 7, 1].into_iter().filter(|piece| case.bytes.len() < 4_000 || *piece > 7)
                {
                    let seen = run(&case.bytes, piece, true)?;
                    let expected = expected(case)?;
                    ensure!(seen.forwarded == expected, "{} by {piece}: {seen:?}", case.name);
                    let reason = case.verdict().strip_prefix("refuse ");
                    let reason =
                        reason.and_then(|label| Reason::ALL.iter().find(|reason| reason.label() == label));
                    let status = reason.map(|reason| reason.status());
                    let answers = expected.iter().map(|_| 200).chain(status).collect::<Vec<u16>>();
                    let enough = case.verdict() == "wait" || seen.statuses == answers;
                    ensure!(enough, "{} by {piece}: {:?}, not {answers:?}", case.name, seen.statuses);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn an_origins_client_gets_what_the_corpus_says() -> Result<()> {
        for case in corpus::read(super::super::ANSWERS)? {
            let question = super::super::answers::question(&case)?;
            let got = ask(question, &case.bytes)?;
            let seen = case.marked("= ")?;
            let status = seen.first().map(|seen| String::from_utf8_lossy(&seen[..3]).parse()).transpose()?;
            ensure!(got.status == status, "{}: {got:?}, not {status:?}", case.name);
            let whole = matches!(case.verdict(), "keep" | "close");
            ensure!(status == Some(101) || got.body.is_some() == whole, "{}: {got:?}", case.name);
            if let Some(body) = got.body.filter(|_| whole && status != Some(101)) {
                let expected = seen.first().and_then(|seen| seen.get(4..)).unwrap_or_default();
                ensure!(body == expected, "{}: {}", case.name, corpus::show(&body));
                ensure!(
                    got.reusable == (case.verdict() == "keep"),
                    "{}: reusable {}",
                    case.name,
                    got.reusable
                );
            }
        }
        Ok(())
    }

    #[test]
    fn a_tunnel_begins_with_the_bytes_that_came_before_the_101() -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let (io, ledger) = Judged::new(server);
            let (tell, told) = tokio::sync::oneshot::channel();
            let tell = Mutex::new(Some(tell));
            let service = service_fn(|mut request: Request<Incoming>| {
                let turn = ledger.begin().unwrap_or_else(|reason| panic!("{reason:?}"));
                let upgrade = hyper::upgrade::on(&mut request);
                let tell = tell.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(tell) = tell {
                    let _sent = tell.send(upgrade);
                }
                turn.upgraded();
                let answer =
                    Response::builder().status(101).header("upgrade", "x").body(Empty::<Bytes>::new());
                async { answer }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(io), service)
                .with_upgrades();
            let tunnel = async {
                let mut io = TokioIo::new(told.await?.await?);
                let mut early = [0; 9];
                io.read_exact(&mut early).await?;
                io.write_all(b"late").await?;
                anyhow::Ok(early)
            };
            client
                .write_all(
                    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n\x00early\n\r\n",
                )
                .await?;
            let (_end, early) = tokio::join!(connection, tunnel);
            assert_eq!(&early?, b"\x00early\n\r\n");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await?;
            assert!(answer.starts_with(b"HTTP/1.1 101") && answer.ends_with(b"late"));
            Ok(())
        })
    }

    #[test]
    fn a_flood_ends_in_goaway() -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            let (client, server) = tokio::io::duplex(1 << 16);
            let (mut from, mut to) = tokio::io::split(client);
            let (io, ended) = weir::proxy::judge::io::frames::Counted::new(server);
            let service = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) });
            let connection =
                hyper::server::conn::http2::Builder::new(Local).serve_connection(TokioIo::new(io), service);
            let mut bytes = weir::proxy::judge::h2::PREFACE.to_vec();
            super::super::http2::frame(4, 0, 0, &[], &mut bytes);
            (0..20_000).for_each(|_| super::super::http2::frame(6, 0, 0, &[7; 8], &mut bytes));
            let send = async {
                let _sent = to.write_all(&bytes).await;
            };
            let mut answer = Vec::new();
            let receive = from.read_to_end(&mut answer);
            let (_end, (), read) = tokio::join!(connection, send, receive);
            read?;
            assert_eq!(ended.get(), Some(&weir::proxy::judge::h2::Abuse::Control));
            let mut kinds = Vec::new();
            let mut rest = &answer[..];
            while let [_, b, c, kind, ..] = rest {
                kinds.push(*kind);
                rest = rest.get(9 + (usize::from(*b) << 8 | usize::from(*c))..).unwrap_or_default();
            }
            let pongs = kinds.iter().filter(|kind| **kind == 6).count();
            assert!(kinds.contains(&7) && pongs < 10_000, "{pongs} answers to pings");
            Ok(())
        })
    }

    /// Runs what a connection spawns on its own task's thread.
    #[derive(Clone, Copy, Debug)]
    struct Local;

    impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Local {
        fn execute(&self, future: F) {
            tokio::spawn(future);
        }
    }

    #[test]
    fn hyper_alone_would_forward_what_the_judge_refuses() -> Result<()> {
        let (_, framing) = REQUESTS[0];
        let tally = tally(&corpus::read(framing)?)?;
        assert_eq!(tally.judged_whole, 0);
        assert!(tally.bare_whole > 0, "{tally:?}");
        Ok(())
    }
}
