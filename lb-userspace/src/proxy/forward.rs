//! A request to an origin: which endpoint, over which connection, and what if it fails.
//!
//! A request is sent again only where that cannot do anything twice (I59): to another endpoint
//! when nothing of it can have arrived, or when its method may be repeated, no byte of an
//! answer came, and all of its body is still there. An idle connection that turns out to be
//! dead is no fault of its endpoint, which is asked again over a new one.

use crate::model::routes::Protocol;
use crate::proxy::account::Account;
use crate::proxy::balance;
use crate::proxy::body::{AnswerBody, Http1Body, Http2Body};
use crate::proxy::conn::{Conn, Tunnel};
use crate::proxy::error::Refusal;
use crate::proxy::headers::{self, Rewrite};
use crate::proxy::silence::Silence;
use crate::proxy::table::{Endpoint, InFlight, PoolState};
use crate::proxy::upload::{Fault, Source, Upload};
use crate::proxy::upstream::{Cause, Failure, Http1, Http2};
use http::header::UPGRADE;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// A request that was found fit to be forwarded.
pub(super) struct Job<'a> {
    pub(super) conn: &'a Rc<Conn>,
    pub(super) account: &'a Account,
    pub(super) parts: &'a Parts,
    pub(super) authority: &'a HeaderValue,
    pub(super) pool: &'a PoolState,
    pub(super) source: Option<Rc<Source>>,
    /// What the client wants to upgrade to.
    pub(super) upgrade: Option<&'a HeaderValue>,
    /// How often it may have arrived somewhere.
    pub(super) sent: Cell<u32>,
}

/// Why there is no answer of an origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Failed {
    Refused(Refusal),
    /// The client is gone, or its body is no message: there is nobody to answer.
    Abandoned,
}

/// What to do after a failure.
enum Next {
    SameEndpoint,
    OtherEndpoint,
}

/// Returns the origin's answer.
pub(super) async fn forward(job: Job<'_>) -> Result<Response<AnswerBody>, Failed> {
    let worker = &job.conn.worker;
    let limits = &worker.shared.settings.upstream;
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut refusal = Refusal::NoEndpoint;
    for _ in 0..limits.tries.max(1) {
        let now = worker.deadlines.now();
        let chosen = balance::choose(&job.pool.endpoints, &tried, now, |below| worker.random_below(below));
        let Some(endpoint) = chosen else { break };
        match job.attempt(endpoint).await {
            Ok(response) => return Ok(response),
            Err((failure, _)) if !job.may_be_sent_again(failure) => return Err(job.told(failure)),
            Err((failure, _)) => {
                let unreached = failure.cause != Cause::Broken && !failure.sent;
                if unreached && endpoint.refused(worker.deadlines.now(), limits.eject) {
                    worker.recorder.ejected();
                }
                refusal = refusal_of(failure);
                tried.push(endpoint.address);
            }
        }
    }
    Err(Failed::Refused(refusal))
}

fn refusal_of(failure: Failure) -> Refusal {
    match failure.cause {
        Cause::Refused => Refusal::Unreachable,
        Cause::Broken => Refusal::BadAnswer,
        Cause::TimedOut => Refusal::OriginTooSlow,
    }
}

impl Job<'_> {
    async fn attempt(&self, endpoint: &Arc<Endpoint>) -> Result<Response<AnswerBody>, (Failure, Next)> {
        loop {
            self.account.attempt_begins();
            let in_flight = endpoint.begin();
            let result = match self.pool.protocol {
                Protocol::Http1 => self.over_http1(endpoint, in_flight).await,
                Protocol::H2c => self.over_http2(endpoint, in_flight).await,
            };
            if result.as_ref().is_err_and(|(failure, _)| failure.sent) {
                self.sent.set(self.sent.get() + 1);
            }
            match result {
                Err((failure, Next::SameEndpoint)) if self.may_be_sent_again(failure) => {}
                result => return result,
            }
        }
    }

    async fn over_http1(
        &self,
        endpoint: &Arc<Endpoint>,
        in_flight: InFlight,
    ) -> Result<Response<AnswerBody>, (Failure, Next)> {
        let (worker, address) = (&self.conn.worker, endpoint.address);
        let probe = self.source.is_some() || !is_repeatable(&self.parts.method);
        let idle = worker.idle.take(address, probe);
        let (mut connection, connect) = match idle {
            Some(connection) => (connection, None),
            None => {
                let begun = Instant::now();
                let connected = Http1::connect(worker, address).await;
                (self.connected(endpoint, connected)?, Some(begun.elapsed()))
            }
        };
        let is_fresh = connect.is_some();
        let request = self.request(address, true);
        let (source, room) = (self.source.as_deref(), self.conn.room());
        let answered = connection.exchange(request, source, self.upgrade.is_some(), room).await;
        let status = answered.as_ref().ok().map(Response::status);
        self.account.attempted(address, connect, status);
        if let Some(reason) = connection.fault() {
            worker.recorder.refused(reason);
        }
        let response = match answered {
            Ok(response) => response,
            Err(failure) if is_fresh || failure.cause != Cause::Broken => {
                return Err((failure, Next::OtherEndpoint));
            }
            Err(failure) => {
                // One that was dead says something of the others; one that was broken off because
                // of the client, or in the middle of an answer, does not.
                if !failure.answered && self.source.as_ref().is_none_or(|source| source.fault().is_none()) {
                    worker.idle.forget(address);
                }
                return Err((failure, Next::SameEndpoint));
            }
        };
        let (head, incoming) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let websocket =
                self.upgrade.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
            return Ok(self.switched(&head.headers, Tunnel { connection, in_flight, websocket }));
        }
        let body = AnswerBody::http1(Http1Body {
            incoming,
            connection: Some(connection),
            worker: Rc::clone(worker),
            source: self.source.clone(),
            _in_flight: in_flight,
        });
        Ok(answer(head.status, head.headers, body))
    }

    /// Says what came of connecting.
    fn connected<T>(&self, endpoint: &Endpoint, connected: Result<T, Failure>) -> Result<T, (Failure, Next)> {
        match connected {
            Ok(connection) => {
                endpoint.connected();
                Ok(connection)
            }
            Err(failure) => {
                self.account.attempted(endpoint.address, None, None);
                Err((failure, Next::OtherEndpoint))
            }
        }
    }

    /// The answer to an upgrade that the origin agreed to: behind it, the connection is a
    /// tunnel (H8).
    fn switched(&self, received: &HeaderMap, tunnel: Tunnel) -> Response<AnswerBody> {
        let protocol = received.get(UPGRADE).or(self.upgrade).cloned();
        let mut response = answer(StatusCode::SWITCHING_PROTOCOLS, received.clone(), AnswerBody::empty());
        let fields = response.headers_mut();
        fields.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            fields.insert(UPGRADE, protocol);
        }
        self.conn.will_tunnel(tunnel);
        response
    }

    async fn over_http2(
        &self,
        endpoint: &Arc<Endpoint>,
        in_flight: InFlight,
    ) -> Result<Response<AnswerBody>, (Failure, Next)> {
        let (worker, address) = (&self.conn.worker, endpoint.address);
        let now = worker.deadlines.now();
        let (mut connection, connect) = match worker.idle.shared(address, now) {
            Some(connection) => (connection, None),
            None => {
                let begun = Instant::now();
                let connected = Http2::connect(worker, address).await;
                let connection = self.connected(endpoint, connected)?;
                worker.idle.share(address, connection.clone(), now);
                (connection, Some(begun.elapsed()))
            }
        };
        let is_fresh = connect.is_some();
        let stream = connection.begin();
        let silence = Silence::new(worker, worker.shared.settings.upstream.read);
        let request = self.request(address, false);
        let answered = connection.exchange(request, self.source.as_deref(), &silence).await;
        let status = answered.as_ref().ok().map(Response::status);
        self.account.attempted(address, connect, status);
        let response = match answered {
            Ok(response) => response,
            Err(failure) => {
                let is_usable = connection.is_usable();
                // Where nothing came, nothing may ever come: the next request is not to find out.
                if !is_usable || failure.cause == Cause::TimedOut {
                    worker.idle.unshare(address, &connection);
                }
                let next = if is_fresh || is_usable { Next::OtherEndpoint } else { Next::SameEndpoint };
                return Err((failure, next));
            }
        };
        let (head, incoming) = response.into_parts();
        let source = self.source.clone();
        let body = AnswerBody::http2(Http2Body {
            incoming,
            silence,
            source,
            _stream: stream,
            _in_flight: in_flight,
        });
        Ok(answer(head.status, head.headers, body))
    }

    /// The request as the origin gets it, made anew from what was received (H2).
    fn request(&self, address: SocketAddr, http1: bool) -> Request<Upload> {
        // HTTP/1.0 may name no host; an empty one is read in many ways.
        let unnamed = self.authority.is_empty().then(|| HeaderValue::try_from(address.to_string()).ok());
        let authority = unnamed.flatten();
        let authority = authority.as_ref().unwrap_or(self.authority);
        let rewrite = Rewrite {
            conn: self.conn,
            authority,
            upgrade: self.upgrade,
            request_id: &self.account.request_id,
            body: self.source.as_ref().map(|source| source.length()),
            http1,
        };
        let mut request = Request::new(Upload::new(self.source.clone()));
        *request.method_mut() = self.parts.method.clone();
        *request.headers_mut() = headers::upstream(&self.parts.headers, &rewrite);
        *request.version_mut() = if http1 { Version::HTTP_11 } else { Version::HTTP_2 };
        let target = self.parts.uri.path_and_query().cloned();
        let target = match target {
            None => PathAndQuery::from_static("/"),
            // An absolute target may have a query and no path; its text has the slash, which
            // HTTP/2 would leave out.
            Some(target) if target.as_str().starts_with('?') => {
                PathAndQuery::try_from(target.to_string()).unwrap_or(target)
            }
            Some(target) => target,
        };
        *request.uri_mut() = if http1 {
            Uri::from(target)
        } else {
            let uri = Uri::builder().scheme("http").authority(authority.as_bytes()).path_and_query(target);
            uri.build().unwrap_or_default()
        };
        request
    }

    fn may_be_sent_again(&self, failure: Failure) -> bool {
        let whole = self.source.as_ref().is_none_or(|source| source.is_untouched());
        let tries = self.conn.worker.shared.settings.upstream.tries.max(1);
        let again = is_repeatable(&self.parts.method) && self.sent.get() < tries;
        whole && !failure.answered && (!failure.sent || again)
    }

    /// What the client is told about a failure; a fault of its own body comes first.
    fn told(&self, failure: Failure) -> Failed {
        match self.source.as_ref().and_then(|source| source.fault()) {
            Some(Fault::Refused(refusal)) => Failed::Refused(refusal),
            Some(Fault::Broken) => Failed::Abandoned,
            None => Failed::Refused(refusal_of(failure)),
        }
    }
}

/// Methods that may be sent twice; all but those that nginx holds back, too (I59).
fn is_repeatable(method: &Method) -> bool {
    *method != Method::POST && *method != Method::PATCH && method.as_str() != "LOCK"
}

fn answer(status: StatusCode, mut fields: HeaderMap, body: AnswerBody) -> Response<AnswerBody> {
    headers::downstream(&mut fields);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}
