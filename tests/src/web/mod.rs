//! HTTP and HTTPS as the lab's clients speak it: one request with everything that can be told
//! about its answer, and loads that never retry.
//!
//! The clients run in helper processes, as all clients of the lab do; hyper and rustls do the
//! work, so that a fault of the proxy's own reading and writing cannot hide in its client.

mod client;
mod load;
mod server;
mod socket;
pub(crate) mod tls;

pub(crate) use client::fetch;
pub(crate) use load::start;
pub(crate) use server::{Sign, answer};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// How an HTTP message travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Version {
    /// HTTP/1.1.
    One,
    /// HTTP/2; over TLS agreed on by ALPN.
    Two,
    /// HTTP/1.1 that turns into a WebSocket: one text frame there and back.
    WebSocket,
    /// HTTP/1.1 over TLS without ALPN, the request in the same packet as the end of the
    /// handshake.
    Early,
}

/// A request, and the connection that it goes over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fetch {
    pub to: SocketAddr,
    /// None: plain HTTP.
    pub tls: Option<Tls>,
    pub version: Version,
    pub method: String,
    /// `Host`, or `:authority`.
    pub host: String,
    /// Path and query, as they are to be on the wire.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub timeout_ms: u64,
}

/// The TLS side of a client.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tls {
    /// The server name to ask for; none: no SNI is sent.
    pub name: Option<String>,
    /// Certificates that the server's must be signed by, as PEM. None: any is taken, and told.
    pub roots: Option<String>,
}

impl Fetch {
    /// A GET over plain HTTP/1.1.
    pub fn http(to: SocketAddr, host: &str, target: &str) -> Self {
        Self {
            to,
            tls: None,
            version: Version::One,
            method: "GET".into(),
            host: host.into(),
            target: target.into(),
            headers: Vec::new(),
            body: String::new(),
            timeout_ms: 5_000,
        }
    }

    /// A GET over TLS, HTTP/1.1, with the host as server name.
    pub fn https(to: SocketAddr, host: &str, target: &str) -> Self {
        let tls = Tls { name: Some(host.into()), roots: None };
        Self { tls: Some(tls), ..Self::http(to, host, target) }
    }

    /// The server's certificate must be signed by one of these and name the host.
    #[must_use]
    pub fn trusting(mut self, roots: &str) -> Self {
        self.tls.get_or_insert_default().roots = Some(roots.into());
        self
    }

    #[must_use]
    pub fn over(self, version: Version) -> Self {
        Self { version, ..self }
    }

    #[must_use]
    pub fn method(self, method: &str) -> Self {
        Self { method: method.into(), ..self }
    }

    #[must_use]
    pub fn body(self, body: &str) -> Self {
        Self { body: body.into(), ..self }
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// What came of a request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Fetched {
    /// None when there was no answer.
    pub status: Option<u16>,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub version: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// The certificate that the server showed.
    pub certificate: Option<Shown>,
    /// What ALPN agreed on.
    pub alpn: Option<String>,
    pub error: Option<String>,
    pub elapsed_us: u64,
}

/// A certificate, by what tells it from others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// DNS names of the subject.
    pub names: Vec<String>,
    /// Serial number, in hex.
    pub serial: String,
}

impl Fetched {
    /// What the pod behind it saw, if a pod's server answered.
    pub fn seen(&self) -> Option<Seen> {
        serde_json::from_str(&self.body).ok()
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }
}

/// A request as a pod's server saw it. The field names are those that the upstream
/// conformance suite reads, with the lab's own beside them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    pub pod: String,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub method: String,
    pub path: String,
    pub host: String,
    pub proto: String,
    /// Names in the spelling `X-Forwarded-For`.
    pub headers: BTreeMap<String, Vec<String>>,
    /// Length of the body.
    pub length: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// Requests at a steady pace until they are stopped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traffic {
    pub fetch: Fetch,
    /// Connections that stay: each sends one request after the other. Zero: every request
    /// has a new connection.
    pub lasting: u32,
    /// Between two requests, of each connection or of all new ones.
    pub interval_ms: u64,
}

/// What became of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TrafficReport {
    pub started: u64,
    /// Answered by a pod's server with 200 (or in frames, on a WebSocket).
    pub answered: u64,
    /// Anything else, by reason; a lasting connection that ends counts as well.
    pub failed: BTreeMap<String, u64>,
    pub slowest_us: u64,
    /// Answered or not, they took longer than [`LATE_US`](crate::wire::LATE_US).
    pub late: u64,
    /// Requests by pod.
    pub pods: BTreeMap<String, u64>,
    /// By serial number of the certificate that a new connection was shown: connections,
    /// and when the last of them was begun (monotonic clock).
    pub certificates: BTreeMap<String, (u64, u64)>,
}
