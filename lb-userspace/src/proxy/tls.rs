//! TLS towards clients: which certificate a name is served with, and how a handshake goes.
//!
//! A connection's ClientHello is read first, within bounds; its server name selects a
//! [certificate](certificates), and only then does that certificate's own configuration take
//! over. So every certificate has a resumption domain of its own, and what is removed is
//! removed with its tickets (H30). TLS 1.2 and 1.3 with ECDHE and AEAD suites, extended master
//! secret required, no renegotiation, no compression, no early data (H27, I33). Nothing here
//! reads a Secret or judges a certificate: that is the model's.

mod certificates;
mod crypto;
mod hello;
mod tickets;

#[cfg(test)]
pub(super) mod tests;

pub use certificates::{Certificates, Expiry, Identity};
pub use crypto::provider;

use hello::{Fault, Guard};
use rustls::{AlertDescription, HandshakeKind, ProtocolVersion};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::LazyConfigAcceptor;
pub use tokio_rustls::server::TlsStream;

/// What becomes of a handshake whose server name no certificate is for, or that names none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UnknownName {
    /// Served with the default certificate (I30).
    #[default]
    Default,
    /// Refused with `unrecognized_name`.
    Refuse,
}

/// How handshakes are treated.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// From the first byte awaited to the last one of the handshake. A removed certificate's
    /// key is held by nothing but handshakes under way, so this bounds that too (H30).
    pub timeout: Duration,
    /// From the first byte of the ClientHello to its last: one that says more of its length
    /// than it has is not waited for any longer (H29).
    pub hello: Duration,
    pub unknown_name: UnknownName,
    /// Bytes of plaintext and of ciphertext that may wait for a slow reader, each.
    pub buffer: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(8),
            hello: Duration::from_millis(2_500),
            unknown_name: UnknownName::default(),
            buffer: 32 << 10,
        }
    }
}

/// What a client and the proxy agreed to speak inside of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alpn {
    Http1,
    H2,
    /// The client offered no list: HTTP/1.1, or HTTP/2 by its preface.
    None,
}

/// The version of TLS that a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Version {
    Tls12,
    Tls13,
}

impl Version {
    /// As nginx's `$ssl_protocol` spells it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        }
    }
}

/// What is known of a connection after its handshake. Holds no key.
#[derive(Clone)]
pub struct Facts {
    /// The server name that the client asked for: lower case, no trailing dot.
    pub sni: Option<Box<str>>,
    /// Whose certificate was served.
    pub served: Arc<Identity>,
    /// Nothing else was for that name: the default certificate was served.
    pub by_default: bool,
    pub version: Version,
    pub alpn: Alpn,
    pub resumed: bool,
    certificates: Arc<Certificates>,
}

impl Facts {
    /// Says whether a request for `host` may come over this connection; otherwise its answer
    /// is 421 (I34, RFC 9110 section 15.5.20).
    ///
    /// `host` is lower case, without port and trailing dot. It may where the name is the one
    /// of the handshake, where the certificate that a handshake for it would get now is of
    /// the same Secret, and where it has none of its own and the served certificate names it.
    /// A connection that was served by default chose no certificate by name, so it is for
    /// every host: load balancers in front send no name, or one of their own.
    pub fn covers(&self, host: &str) -> bool {
        if self.by_default || self.sni.as_deref() == Some(host) {
            return true;
        }
        self.certificates.is_of(host, &self.served.secret).unwrap_or_else(|| self.served.names(host))
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts")
            .field("sni", &self.sni)
            .field("served", &self.served.secret)
            .field("version", &self.version)
            .field("alpn", &self.alpn)
            .finish_non_exhaustive()
    }
}

/// Why a handshake came to nothing. The client was told by an alert where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Not finished in time.
    #[error("the handshake took too long")]
    Timeout,
    /// The client went away.
    #[error("the connection was closed during the handshake")]
    Closed,
    /// More than 16 KiB of ClientHello, or that in absurdly many records (H29).
    #[error("the ClientHello is too large")]
    HelloTooLarge,
    /// A request without TLS; it was answered with 400.
    #[error("a plain HTTP request came to the HTTPS port")]
    PlainHttp,
    /// There is no certificate for the name: refused as told, or there is no default yet.
    #[error("there is no certificate for the server name")]
    UnknownName,
    /// The client broke the protocol, or has nothing in common with us.
    #[error("{0}")]
    Tls(rustls::Error),
    #[error("{0}")]
    Io(io::Error),
}

impl Refused {
    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::HelloTooLarge => "hello_too_large",
            Self::PlainHttp => "plain_http",
            Self::UnknownName => "unknown_name",
            Self::Tls(rustls::Error::PeerIncompatible(_)) => "incompatible",
            Self::Tls(rustls::Error::AlertReceived(_)) => "client_alert",
            Self::Tls(_) => "malformed",
            Self::Io(_) => "io",
        }
    }

    /// Every label, for metrics.
    pub const LABELS: [&'static str; 9] = [
        "timeout",
        "closed",
        "hello_too_large",
        "plain_http",
        "unknown_name",
        "incompatible",
        "client_alert",
        "malformed",
        "io",
    ];
}

/// Handshakes of a listener. Clones share their certificates.
#[derive(Clone)]
pub struct Acceptor {
    certificates: Arc<Certificates>,
    options: Options,
}

impl Acceptor {
    pub fn new(certificates: Arc<Certificates>, options: Options) -> Self {
        Self { certificates, options }
    }

    /// Does a connection's handshake.
    ///
    /// # Errors
    ///
    /// With what was wrong, after the client has been told by an alert; there is nothing left
    /// to do with the connection.
    pub async fn accept<IO>(&self, io: IO) -> Result<(TlsStream<IO>, Facts), Refused>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        // On the heap, so that a connection's task does not keep its room for ever.
        let handshake = Box::pin(self.handshake(io));
        match tokio::time::timeout(self.options.timeout, handshake).await {
            Ok(done) => done,
            Err(_elapsed) => Err(Refused::Timeout),
        }
    }

    async fn handshake<IO>(&self, io: IO) -> Result<(TlsStream<IO>, Facts), Refused>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut lazy =
            LazyConfigAcceptor::new(rustls::server::Acceptor::default(), Guard::new(io, self.options.hello));
        let start = match (&mut lazy).await {
            Ok(start) => start,
            Err(error) => return Err(refuse_hello(lazy.take_io(), error).await),
        };
        let sni: Option<Box<str>> = start.client_hello().server_name().map(|name| undotted(name).into());
        let mut io = start.io.into_inner();
        let Some(chosen) = self.certificates.choose(sni.as_deref(), self.options.unknown_name) else {
            send_alert(&mut io, AlertDescription::UnrecognisedName).await;
            return Err(Refused::UnknownName);
        };
        let buffer = self.options.buffer;
        let accept = tokio_rustls::StartHandshake::from_parts(start.accepted, io)
            .into_stream_with(chosen.config, |session| session.set_buffer_limit(Some(buffer)));
        let stream = accept.await.map_err(from_io)?;
        let session = stream.get_ref().1;
        let facts = Facts {
            sni,
            served: chosen.identity,
            by_default: chosen.by_default,
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => Version::Tls12,
                _ => Version::Tls13,
            },
            alpn: match session.alpn_protocol() {
                Some(b"h2") => Alpn::H2,
                Some(_) => Alpn::Http1,
                None => Alpn::None,
            },
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            certificates: Arc::clone(&self.certificates),
        };
        Ok((stream, facts))
    }
}

/// Tells the client what is wrong with its first bytes, where rustls has not done so.
async fn refuse_hello<IO>(io: Option<Guard<IO>>, error: io::Error) -> Refused
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>()).copied() else {
        return from_io(error);
    };
    let mut io = io.map(Guard::into_inner);
    match fault {
        Fault::TooLarge => {
            if let Some(io) = &mut io {
                send_alert(io, AlertDescription::DecodeError).await;
            }
            Refused::HelloTooLarge
        }
        Fault::PlainHttp => {
            if let Some(io) = &mut io {
                // The client may be gone, which is no concern of ours.
                let _told = io.write_all(PLAIN_HTTP).await;
                let _told = io.shutdown().await;
            }
            Refused::PlainHttp
        }
        Fault::Slow => Refused::Timeout,
    }
}

/// What a client hears that speaks HTTP where TLS is spoken.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain\r\ncontent-length: 42\r\nconnection: close\r\n\r\n\
    This port speaks HTTPS; use https:// here\n";

/// Sends a fatal alert in the clear: an answer to a ClientHello.
async fn send_alert<IO: AsyncWrite + Unpin>(io: &mut IO, alert: AlertDescription) {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    let record = [ALERT, 3, 3, 0, 2, FATAL, u8::from(alert)];
    // The client may be gone, which is no concern of ours.
    let _told = io.write_all(&record).await;
    let _told = io.shutdown().await;
}

fn from_io(error: io::Error) -> Refused {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return Refused::Tls(tls.clone());
    }
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    if matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe) {
        Refused::Closed
    } else {
        Refused::Io(error)
    }
}

/// A server name without the dot of the root, which some clients send.
fn undotted(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// What a wildcard for `host` would have after its `*.`.
fn one_label_up(host: &str) -> Option<&str> {
    let (label, parent) = host.split_once('.')?;
    (!label.is_empty() && !parent.is_empty()).then_some(parent)
}

/// Says whether a name of a certificate is for `host` (RFC 6125: a wildcard is one label).
fn name_covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => one_label_up(host) == Some(parent),
        None => name == host,
    }
}
