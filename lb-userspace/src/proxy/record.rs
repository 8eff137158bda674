//! One request as metrics and access log see it: filled in once, when its answer has ended.

use crate::model::routes::PoolKey;
use crate::problem::ObjectKey;
use crate::proxy::tls::Version;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// A request that was answered, or whose client went away.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Who opened the connection.
    pub peer: SocketAddr,
    /// Who asked: the peer, or whom a trusted proxy named (I46).
    pub client: IpAddr,
    pub method: &'a str,
    /// As received.
    pub target: &'a str,
    /// As received; empty: there was none.
    pub host: &'a str,
    pub http: http::Version,
    /// `None`: plain HTTP.
    pub tls: Option<Version>,
    /// `Referer`, as received.
    pub referer: Option<&'a [u8]>,
    /// `User-Agent`, as received.
    pub user_agent: Option<&'a [u8]>,
    pub request_id: &'a str,
    /// What the client was answered; 499: it went away before.
    pub status: u16,
    /// Bytes of the request, head included.
    pub request_bytes: u64,
    /// Bytes of the answer's body that were sent.
    pub body_bytes: u64,
    /// From the first byte of the request to the last of the answer.
    pub took: Duration,
    /// `None`: no route was found, or none was looked for.
    pub route: Option<Route<'a>>,
    /// Origins that were tried, in order: all but the last are retries' causes.
    pub attempts: &'a [Attempt],
    /// Why the proxy answered itself.
    pub local: Option<&'static str>,
}

/// What a request was routed by.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    pub ingress: &'a Arc<ObjectKey>,
    /// `None`: answered without an origin, by a redirect for instance.
    pub pool: Option<&'a PoolKey>,
}

/// One try at an origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt {
    pub address: SocketAddr,
    /// `None`: over a connection that was open.
    pub connect: Option<Duration>,
    /// Until the head of the answer; `None`: it never came.
    pub header: Option<Duration>,
    /// Until the last byte of the answer, or the failure.
    pub response: Duration,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// `None`: there was no answer.
    pub status: Option<u16>,
}
