//! What the engine is told once, at its start: limits, times, whom to trust.
//!
//! Every number that a client or an origin could drive up has its bound here. The defaults are
//! the ones of the specification (H15 to H25, I53, I57, I58); a test that wants to see a limit
//! work sets a smaller one.

use crate::proxy::{access_log, tls};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What a listening socket speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// HTTP/1 and, with prior knowledge, HTTP/2 over plain TCP.
    Http,
    /// TLS; HTTP/2 or HTTP/1.1 by ALPN.
    Https,
}

impl Scheme {
    /// As it stands in front of a URL and in `X-Forwarded-Proto`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that a URL leaves out.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// All that the engine is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Threads that serve; each with its own connections and its own pools of upstreams.
    pub workers: usize,
    pub client: ClientLimits,
    pub upstream: UpstreamLimits,
    pub tls: tls::Options,
    pub access_log: access_log::Target,
    pub access_log_format: access_log::Format,
    /// Folder of the control group whose limit of memory is minded (H26); none: none is.
    pub memory: Option<PathBuf>,
    /// Name of the node, for the metrics that carry it.
    pub node: String,
    /// Peers whose forwarded headers are believed (I46, H33).
    pub trusted: Vec<IpNet>,
    /// The port that a redirect to HTTPS names; 443 is left out of the URL.
    pub https_port: u16,
}

/// Limits on what clients do.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Connections of one worker; more are closed as soon as they are accepted.
    pub connections: usize,
    /// How long a connection may be idle between requests, or silent after it was opened. Below
    /// the 75 s of I58, because H24 wants the idle ended within 65 s.
    pub idle: Duration,
    /// From the first byte of a request's head to its last; a TLS handshake has as long.
    pub head: Duration,
    /// The longest silence within a body, and the longest time a write may stand still.
    pub stall: Duration,
    /// From the end of a head to the end of its body.
    pub body: Duration,
    /// The least bytes per second of a body, once `rate_grace` is used up (H24).
    pub rate: u32,
    pub rate_grace: Duration,
    /// Requests of one connection; the last is answered with `Connection: close` or GOAWAY.
    pub requests: u32,
    /// Largest request body in bytes; 0: no limit (I57).
    pub body_size: u64,
    /// HTTP/2 streams served at once on one connection (H20).
    pub streams: u32,
}

/// Limits on what origins do.
#[derive(Clone, Debug)]
pub struct UpstreamLimits {
    pub connect: Duration,
    /// Between two reads, before the head or within the body of an answer; also the idle limit
    /// of an upgraded connection.
    pub read: Duration,
    /// Between two writes of a request.
    pub send: Duration,
    /// Endpoints that one request is tried at, and the most times that it is sent at all (I59).
    pub tries: u32,
    /// Idle connections of one worker.
    pub idle_connections: usize,
    pub idle: Duration,
    /// Requests of one upstream connection.
    pub requests: u32,
    /// How long an endpoint is left out after it refused a connection; doubles with each
    /// refusal in a row, up to 32 times that.
    pub eject: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            client: ClientLimits::default(),
            upstream: UpstreamLimits::default(),
            tls: tls::Options::default(),
            access_log: access_log::Target::default(),
            access_log_format: access_log::Format::default(),
            memory: None,
            node: String::new(),
            trusted: Vec::new(),
            https_port: 443,
        }
    }
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            idle: Duration::from_secs(60),
            head: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            body: Duration::from_secs(3600),
            rate: 240,
            rate_grace: Duration::from_secs(5),
            requests: 1000,
            body_size: 1 << 20,
            streams: 100,
        }
    }
}

impl Default for UpstreamLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            read: Duration::from_secs(60),
            send: Duration::from_secs(60),
            tries: 3,
            idle_connections: 320,
            idle: Duration::from_secs(60),
            requests: 10_000,
            eject: Duration::from_secs(1),
        }
    }
}

impl Settings {
    /// Tells whether forwarded headers of this peer are believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted.iter().any(|net| net.contains(&peer))
    }
}
