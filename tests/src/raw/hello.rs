//! Fuzzes the beginning of TLS: ClientHellos, changed anywhere, go into the proxy's acceptor,
//! which must never panic, must say the same however they are split, and must answer with
//! the certificate that the hello's server name is for (H28, H30).
//!
//! The seeds are written by hand, so that one seed always makes the same bytes. What was
//! chosen is read from the answer: TLS 1.2 sends certificates in the clear.

use anyhow::{Context, Result, bail, ensure};
use rustls_pki_types::DnsName;
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weir::model::routes::{Certificate, HostPattern, Update};
use weir::problem::ObjectKey;
use weir::proxy::tls::{Acceptor, Certificates, Options, Refused};

/// Names that there are certificates for; the last is everybody else's.
const NAMES: [&str; 4] = ["a.example", "*.b.example", "c.b.example", "*"];

/// What clients are made of: names asked for.
const ASKED: [&str; 9] = [
    "a.example",
    "A.Example",
    "a.example.",
    "x.b.example",
    "c.b.example",
    "x.c.b.example",
    "b.example",
    "other.example",
    "",
];

/// The acceptor under test, and which leaf belongs to which name.
struct Server {
    acceptor: Acceptor,
    leaves: BTreeMap<Vec<u8>, &'static str>,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    fn new() -> Result<Self> {
        let certificates = Certificates::new()?;
        let (mut updates, mut leaves) = (Vec::new(), BTreeMap::new());
        for name in NAMES {
            let key = rcgen::KeyPair::generate()?;
            let san = if name == "*" { "ingress.local" } else { name };
            let leaf = rcgen::CertificateParams::new(vec![san.to_owned()])?.self_signed(&key)?;
            leaves.insert(leaf.der().to_vec(), name);
            let secret = ObjectKey::new("default", name);
            let certificate = Certificate {
                chain: vec![leaf.der().to_vec()],
                key: key.serialize_der().into(),
                names: vec![san.to_owned()],
                not_before: 0,
                not_after: i64::MAX,
            };
            updates.push(Update::Certificate(secret.clone(), Some(Arc::new(certificate))));
            let pattern = match name.strip_prefix("*.") {
                _ if name == "*" => HostPattern::Any,
                Some(parent) => HostPattern::Wildcard(parent.into()),
                None => HostPattern::Exact(name.into()),
            };
            updates.push(Update::Name(pattern, Some(secret)));
        }
        certificates.update(&updates, true);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        Ok(Self { acceptor: Acceptor::new(certificates, Options::default()), leaves, runtime })
    }

    /// Why the handshake came to nothing, and what was answered.
    fn answer(&self, pieces: &[&[u8]]) -> Result<(&'static str, Vec<u8>)> {
        let mut said = Vec::new();
        let io = Client { pieces: pieces.iter().map(|piece| piece.to_vec()).collect(), said: &mut said };
        match self.runtime.block_on(self.acceptor.accept(io)) {
            Ok(_) => bail!("a handshake without the client's part of it"),
            Err(error) => Ok((error.label(), said)),
        }
    }
}

/// A client that says its pieces, then nothing more, and keeps what it hears.
struct Client<'a> {
    pieces: std::collections::VecDeque<Vec<u8>>,
    said: &'a mut Vec<u8>,
}

impl AsyncRead for Client<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Task<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.pieces.front().is_some_and(Vec::is_empty) {
            self.pieces.pop_front();
        }
        if let Some(piece) = self.pieces.front_mut() {
            let count = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..count]);
            piece.drain(..count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().said.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// ClientHellos of both versions, for each of the names, in one record and in two.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for name in ASKED {
        for new in [false, true] {
            let hello = hello(name, new);
            seeds.push(record(&hello));
            let (first, second) = hello.split_at(hello.len() / 3);
            seeds.push([record(first), record(second)].concat());
        }
    }
    seeds
}

fn sized(width: usize, bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u32).to_be_bytes();
    [&length[4 - width..], bytes].concat()
}

fn record(bytes: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &sized(2, bytes)].concat()
}

fn extension(number: u16, body: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes()[..], &sized(2, body)].concat()
}

/// A ClientHello (RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2).
fn hello(name: &str, new: bool) -> Vec<u8> {
    let mut extensions = Vec::new();
    if !name.is_empty() {
        let entry = [&[0][..], &sized(2, name.as_bytes())].concat();
        extensions.extend(extension(0, &sized(2, &entry)));
    }
    extensions.extend(extension(23, &[]));
    extensions.extend(extension(0xff01, &[0]));
    extensions.extend(extension(10, &sized(2, &[0, 29, 0, 23])));
    extensions.extend(extension(11, &sized(1, &[0])));
    extensions.extend(extension(13, &sized(2, &[4, 3, 8, 4, 4, 1])));
    extensions.extend(extension(16, &sized(2, &[sized(1, b"h2"), sized(1, b"http/1.1")].concat())));
    if new {
        extensions.extend(extension(43, &sized(1, &[3, 4, 3, 3])));
        let share = [&[0, 29][..], &sized(2, &[9; 32])].concat();
        extensions.extend(extension(51, &sized(2, &share)));
        extensions.extend(extension(45, &sized(1, &[1])));
    }
    let suites: &[u8] = if new { &[0x13, 1, 0x13, 2, 0xc0, 0x2b] } else { &[0xc0, 0x2b, 0xc0, 0x2c] };
    let body = [
        &[3, 3][..],
        &[7; 32],
        &sized(1, &[5; 32]),
        &sized(2, suites),
        &sized(1, &[0]),
        &sized(2, &extensions),
    ]
    .concat();
    [&[1][..], &sized(3, &body)].concat()
}

/// Reads numbers and pieces one after the other.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, width: usize) -> Option<usize> {
        Some(self.take(width)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    fn sized(&mut self, width: usize) -> Option<Cursor<'a>> {
        let length = self.number(width)?;
        self.take(length).map(Cursor)
    }
}

/// The handshake messages of a flight: their type and body, as far as they are in the clear.
fn messages(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut records, mut joined) = (Cursor(bytes), Vec::new());
    while let Some(&[22, _, _]) = records.take(3) {
        let Some(record) = records.sized(2) else { break };
        joined.extend_from_slice(record.0);
    }
    let (mut cursor, mut found) = (Cursor(&joined), Vec::new());
    while let Some(kind) = cursor.number(1) {
        let Some(body) = cursor.sized(3) else { break };
        found.push((kind as u8, body.0.to_vec()));
    }
    found
}

/// The server name of a ClientHello that was taken; none: it has none that counts.
fn server_name(hello: &[u8]) -> Option<String> {
    let mut cursor = Cursor(hello);
    cursor.take(34)?;
    cursor.sized(1)?;
    cursor.sized(2)?;
    cursor.sized(1)?;
    let mut extensions = cursor.sized(2)?;
    while let Some(number) = extensions.number(2) {
        let mut body = extensions.sized(2)?;
        if number != 0 {
            continue;
        }
        let mut names = body.sized(2)?;
        while let Some(kind) = names.number(1) {
            let name = names.sized(2)?;
            if kind == 0 {
                let name = std::str::from_utf8(name.0).ok()?;
                return DnsName::try_from(name.to_owned())
                    .ok()
                    .map(|name| name.as_ref().to_ascii_lowercase());
            }
        }
    }
    None
}

/// Which of the names a hello is for, by a rule written down once more.
fn belongs_to(asked: Option<&str>) -> &'static str {
    let asked = asked.unwrap_or_default();
    match asked.strip_suffix('.').unwrap_or(asked) {
        "a.example" => "a.example",
        "c.b.example" => "c.b.example",
        name => match name.strip_suffix(".b.example") {
            Some(label) if !label.is_empty() && !label.contains('.') => "*.b.example",
            Some(_) | None => "*",
        },
    }
}

/// What is wrong in two ways may be refused for either, by what is seen of it at once.
fn class(label: &str) -> &str {
    if label == "hello_too_large" { "malformed" } else { label }
}

/// Checks one input.
///
/// # Errors
/// When the answer depends on the split, or is another name's certificate.
pub(super) fn check(input: &[u8], pieces: &[&[u8]]) -> Result<()> {
    thread_local! {
        static SERVER: std::cell::OnceCell<Server> = const { std::cell::OnceCell::new() };
    }
    SERVER.with(|cell| {
        if cell.get().is_none() {
            let _set_once = cell.set(Server::new()?);
        }
        let server = cell.get().context("no server")?;
        let (why, said) = server.answer(&[input])?;
        let (again, _) = server.answer(pieces)?;
        ensure!(class(why) == class(again), "{why} whole, {again} in pieces");
        ensure!(Refused::LABELS.contains(&why), "no label {why}");
        let flight = messages(&said);
        let Some((_, chain)) = flight.iter().find(|(kind, _)| *kind == 11) else { return Ok(()) };
        let mut chain = Cursor(chain);
        let leaf = chain.sized(3).and_then(|mut list| list.sized(3)).context("a chain without a leaf")?;
        let shown = server.leaves.get(leaf.0).context("a leaf of nobody's")?;
        let heard = messages(input);
        let (_, hello) = heard.first().context("an answer to no hello")?;
        let asked = server_name(hello);
        let own = belongs_to(asked.as_deref());
        ensure!(*shown == own, "{asked:?} was shown the certificate of {shown}, not of {own}");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unchanged hellos of TLS 1.2 are answered with each name's own certificate: the check
    /// has something to look at.
    #[test]
    fn every_name_is_shown_its_own_certificate() -> Result<()> {
        let server = Server::new()?;
        let mut shown = Vec::new();
        for name in ASKED {
            let (why, said) = server.answer(&[&record(&hello(name, false))])?;
            assert_eq!(why, "closed", "{name}");
            let flight = messages(&said);
            let (_, chain) = flight.iter().find(|(kind, _)| *kind == 11).context("no certificate")?;
            let leaf = Cursor(chain).sized(3).and_then(|mut list| list.sized(3)).context("no leaf")?;
            shown.push(*server.leaves.get(leaf.0).context("nobody's")?);
        }
        let [a, wild, c, rest] = NAMES;
        assert_eq!(shown, [a, a, a, wild, c, rest, rest, rest, rest]);
        for seed in seeds() {
            check(&seed, &[&seed[..7], &seed[7..]])?;
        }
        Ok(())
    }
}
