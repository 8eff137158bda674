//! One request: from its head to an answer's head.
//!
//! The order of the checks is the order of this file: what the judge says, the method, the
//! host, the route on which all readings of the path agree (H32), the redirect to HTTPS, the
//! body's size; then it is forwarded.

use crate::model::routes::{Action, Target};
use crate::proxy::body::AnswerBody;
use crate::proxy::conn::Conn;
use crate::proxy::engine::Scheme;
use crate::proxy::error::{self, Refusal};
use crate::proxy::matcher;
use http::header::{CONNECTION, HOST};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::rc::Rc;

/// Answers a request. The connection's own error handling is left for what the client is to
/// see as an abort.
pub(super) async fn serve(
    conn: Rc<Conn>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let open = conn.begin();
    let (parts, _body) = request.into_parts();
    let mut response = match route(&conn, &parts) {
        Ok(response) => response,
        Err(refusal) => refusal.answer(error::is_grpc(&parts.headers)),
    };
    if conn.is_last() && !conn.is_h2() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.body_mut().keep(open);
    Ok(response)
}

fn route(conn: &Conn, parts: &Parts) -> Result<Response<AnswerBody>, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::Method);
    }
    let authority = authority(parts)?;
    let name = matcher::host_name(authority);
    let table = conn.worker.table();
    let host = matcher::virtual_host(&*table, &name).ok_or(Refusal::NoRoute)?;
    let matched = matcher::action(host, parts.uri.path().as_bytes()).ok_or(Refusal::NoRoute)?;
    if let Some(response) = https_redirect(conn, parts, matched.action, &name) {
        return Ok(response);
    }
    match &matched.action.target {
        Target::Pool(_) | Target::Unavailable(_) => Err(Refusal::NoEndpoint),
    }
}

/// The host and port that the request is for: the target's, if it has one (H9).
fn authority(parts: &Parts) -> Result<&str, Refusal> {
    if let Some(authority) = parts.uri.authority() {
        return Ok(authority.as_str());
    }
    match parts.headers.get(HOST) {
        Some(host) => host.to_str().map_err(|_| Refusal::BadRequest),
        None => Ok(""),
    }
}

/// The answer that sends a plain request to HTTPS (I39). Certificate authorities ask over
/// HTTP, and are answered there (I38).
fn https_redirect(conn: &Conn, parts: &Parts, action: &Action, name: &str) -> Option<Response<AnswerBody>> {
    let status = action.https_redirect.and_then(|status| StatusCode::from_u16(status).ok())?;
    let exempt = parts.uri.path().starts_with("/.well-known/acme-challenge/");
    if conn.scheme == Scheme::Https || exempt || name.is_empty() {
        return None;
    }
    let port = match conn.worker.shared.settings.https_port {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let location = HeaderValue::try_from(format!("https://{name}{port}{target}")).ok()?;
    Some(error::redirect(status, location))
}
