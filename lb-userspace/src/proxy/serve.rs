//! One request: from its head to an answer's head.
//!
//! The order of the checks is the order of this file: what the judge says, the method, the
//! host, the route on which all readings of the path agree (H32), the redirect to HTTPS, the
//! body's size; then it is forwarded.

use crate::model::routes::{Action, Protocol, Target};
use crate::proxy::account::Account;
use crate::proxy::body::AnswerBody;
use crate::proxy::conn::Conn;
use crate::proxy::deadline::Deadline;
use crate::proxy::engine::Scheme;
use crate::proxy::error::{self, Refusal};
use crate::proxy::forward::{self, Failed, Job};
use crate::proxy::judge::io::Turn;
use crate::proxy::judge::{FIELD_COUNT, HEAD_LIMIT, Reason, TARGET_LIMIT};
use crate::proxy::matcher::{self, Indexed};
use crate::proxy::upload::{Cut, Source};
use crate::proxy::{headers, judge, target};
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// Answers a request. An error makes hyper break the connection or stream off.
pub(super) async fn serve(conn: Rc<Conn>, request: Request<Incoming>) -> Result<Response<AnswerBody>, Cut> {
    if conn.has_left() {
        return Err(Cut);
    }
    let open = conn.begin();
    let (parts, body) = request.into_parts();
    let account = Account::new(open, parts);
    let turn = match conn.ledger.get().map(|ledger| ledger.begin()) {
        None => None,
        Some(Ok(turn)) => Some(turn),
        Some(Err(reason)) => {
            account.is_judged();
            let refusal = judged(&conn, reason);
            account.refused(refusal);
            conn.will_linger();
            return Ok(finish(account, refusal.answer(false), None));
        }
    };
    let grpc = error::is_grpc(&account.parts.headers);
    let source = Source::new(body, &conn);
    if let Some(source) = &source {
        account.has_body(source);
    }
    let refusal = match answer(&account, source.clone(), grpc).await {
        Ok(response) => {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                turn.into_iter().for_each(Turn::upgraded);
            }
            return Ok(finish(account, response, source.as_deref()));
        }
        Err(Failed::Refused(refusal)) => refusal,
        // A body that the judge refused still gets its answer.
        Err(Failed::Abandoned) => judged(&conn, turn.as_ref().and_then(Turn::refusal).ok_or(Cut)?),
    };
    account.refused(refusal);
    Ok(finish(account, refusal.answer(grpc), source.as_deref()))
}

/// What the judge of raw bytes has refused.
fn judged(conn: &Conn, reason: Reason) -> Refusal {
    conn.worker.recorder.refused(reason.label());
    Refusal::Judged(StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::BAD_REQUEST))
}

/// Makes an answer this connection's. Over HTTP/1, one that comes before all of its request is
/// the last: nobody may read the rest, whoever it is that answers (RFC 9112 section 9.6).
fn finish(
    account: Box<Account>,
    mut response: Response<AnswerBody>,
    source: Option<&Source>,
) -> Response<AnswerBody> {
    let conn = account.conn();
    let is_early = source.is_some_and(|source| !source.is_whole());
    if conn.is_h2() {
        response.headers_mut().remove(CONNECTION);
    } else if response.status() != StatusCode::SWITCHING_PROTOCOLS && (is_early || conn.is_last()) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if is_early && !conn.is_h2() {
        conn.will_linger();
    }
    account.answered(response.status());
    response.body_mut().keep(account);
    response
}

async fn answer(
    account: &Account,
    source: Option<Rc<Source>>,
    grpc: bool,
) -> Result<Response<AnswerBody>, Failed> {
    let (conn, parts) = (account.conn(), &account.parts);
    if parts.method == Method::CONNECT {
        return Err(Failed::Refused(Refusal::Method));
    }
    if headers::nominates_too_many(&parts.headers) {
        return Err(Failed::Refused(Refusal::BadRequest));
    }
    if conn.is_h2() {
        check_head(parts).map_err(|reason| Failed::Refused(judged(conn, reason)))?;
    }
    let authority = authority(conn, parts)?;
    let name = matcher::host_name(authority.to_str().unwrap_or_default());
    if conn.tls.get().is_some_and(|facts| !name.is_empty() && !facts.covers(&name)) {
        return Err(Failed::Refused(Refusal::Misdirected));
    }
    let table = conn.worker.table();
    let host = matcher::virtual_host(&*table, &name).ok_or(Failed::Refused(Refusal::NoRoute))?;
    let action = route(conn, host, parts)?;
    account.routed(action);
    if let Some(response) = https_redirect(conn, parts, action, &name) {
        account.redirected();
        return Ok(response);
    }
    let pool = match &action.target {
        Target::Pool(key) => table.pool(key).ok_or(Failed::Refused(Refusal::NoEndpoint))?,
        Target::Unavailable(_) => return Err(Failed::Refused(Refusal::NoEndpoint)),
    };
    check_length(conn, parts)?;
    if let Some(source) = source.as_ref().filter(|_| grpc && conn.is_h2()) {
        // A content type alone is anybody's word: such streams need HTTP/2 on both sides.
        if pool.protocol == Protocol::H2c {
            source.is_stream();
        }
    }
    let total = if grpc { grpc_timeout(conn, &parts.headers) } else { None };
    let upgrade = if source.is_none() { wanted_upgrade(conn, parts) } else { None };
    let job = Job { conn, account, parts, authority: &authority, pool, source, upgrade, sent: Cell::new(0) };
    let Some(total) = total else { return forward::forward(job).await };
    let mut forwarding = pin!(forward::forward(job));
    let response = poll_fn(|cx| match forwarding.as_mut().poll(cx) {
        Poll::Pending if total.poll(cx) => Poll::Ready(Err(Failed::Refused(Refusal::OriginTooSlow))),
        polled @ (Poll::Ready(_) | Poll::Pending) => polled,
    })
    .await;
    response.map(|mut response| {
        response.body_mut().limit(total);
        response
    })
}

/// Holds what came over HTTP/2 to what HTTP/1 heads are held to by the judge of their bytes, so
/// that an origin gets nothing that it would not get otherwise (H8, H14, H22, I57).
fn check_head(parts: &Parts) -> Result<(), Reason> {
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    if target.len() > TARGET_LIMIT {
        return Err(Reason::TargetTooLong);
    }
    if !target.starts_with('/') && target != "*" {
        return Err(Reason::Target);
    }
    // Cookies come in crumbs, and go on as one field.
    let crumbs = parts.headers.get_all(COOKIE).iter().count().saturating_sub(1);
    if parts.headers.len() - crumbs > FIELD_COUNT {
        return Err(Reason::TooManyFields);
    }
    let fields: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if target.len() + fields > HEAD_LIMIT {
        return Err(Reason::HeadTooLong);
    }
    let mut expected = parts.headers.get_all(EXPECT).iter();
    match (expected.next(), expected.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(()),
        (Some(_), _) => Err(Reason::Expect),
    }
}

/// The host and port that the request is for: the target's, if it has one, else the field's
/// (H9). Over HTTP/2 both must say the same (H14).
fn authority(conn: &Conn, parts: &Parts) -> Result<HeaderValue, Failed> {
    let bad = Failed::Refused(Refusal::BadRequest);
    let field = parts.headers.get(HOST);
    if conn.is_h2() && !is_sound(parts) {
        return Err(bad);
    }
    let Some(authority) = parts.uri.authority() else {
        return match field {
            Some(host) if conn.is_h2() && !judge::is_authority(host.as_bytes()) => Err(bad),
            Some(host) => Ok(host.clone()),
            None if parts.version == Version::HTTP_10 => Ok(HeaderValue::from_static("")),
            None => Err(bad),
        };
    };
    if conn.is_h2() {
        let is_same =
            |host: &HeaderValue| host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
        if !field.is_none_or(is_same) || !judge::is_authority(authority.as_str().as_bytes()) {
            return Err(bad);
        }
    }
    HeaderValue::from_str(authority.as_str()).map_err(|_| bad)
}

/// What the HTTP library lets pass and RFC 9113 calls malformed: two Host fields, a `"` in a
/// name (section 8.2.1), a scheme without a letter (H14).
fn is_sound(parts: &Parts) -> bool {
    parts.headers.get_all(HOST).iter().nth(1).is_none()
        && parts.uri.scheme_str() != Some("")
        && !parts.headers.keys().any(|name| name.as_str().contains('"'))
}

/// The route on which all readings of the path agree (H32).
fn route<'a>(conn: &Conn, host: &'a Indexed, parts: &Parts) -> Result<&'a Action, Failed> {
    let path = parts.uri.path();
    let select = |path: &[u8]| matcher::action(host, path).map(|matched| matched.rule);
    if path == "*" {
        if parts.method != Method::OPTIONS {
            return Err(Failed::Refused(Refusal::BadRequest));
        }
        // OPTIONS of the whole server belongs to no path: the host's default, if it has one.
        return host.default.as_ref().ok_or(Failed::Refused(Refusal::NoRoute));
    }
    let rule = target::agree(path.as_bytes(), select).map_err(|reason| {
        conn.worker.recorder.refused(reason.label());
        Failed::Refused(Refusal::BadPath)
    })?;
    let action = match rule {
        None => None,
        Some(None) => host.default.as_ref(),
        Some(Some(at)) => host.rules.get(at).map(|rule| &rule.action),
    };
    action.ok_or(Failed::Refused(Refusal::NoRoute))
}

/// The answer that sends a plain request to HTTPS (I39). Certificate authorities ask over
/// HTTP, and are answered there (I38).
fn https_redirect(conn: &Conn, parts: &Parts, action: &Action, name: &str) -> Option<Response<AnswerBody>> {
    let status = action.https_redirect.and_then(|status| StatusCode::from_u16(status).ok())?;
    if is_challenge(parts.uri.path())
        || name.is_empty()
        || headers::origin(&parts.headers, conn).scheme == Scheme::Https
    {
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

/// Tells whether this is a certificate authority's question (RFC 8555 section 8.3): one token
/// of base64url behind the prefix, so that no reading of the path leads anywhere else (H32).
fn is_challenge(path: &str) -> bool {
    let token = path.strip_prefix("/.well-known/acme-challenge/").unwrap_or_default().as_bytes();
    !token.is_empty() && token.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
}

/// A body that says that it is too large is refused before any of it is read (I57). HTTP/1
/// lengths are judged on the raw bytes; HTTP/2 must not say two.
fn check_length(conn: &Conn, parts: &Parts) -> Result<(), Failed> {
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(()) };
    let digits = length.as_bytes().iter().all(u8::is_ascii_digit);
    let length = length.to_str().ok().filter(|_| digits && lengths.next().is_none());
    let length = length.and_then(|length| length.parse::<u64>().ok());
    let length = length.ok_or(Failed::Refused(Refusal::BadRequest))?;
    let limit = conn.worker.shared.settings.client.body_size;
    if limit != 0 && length > limit { Err(Failed::Refused(Refusal::BodyTooLarge)) } else { Ok(()) }
}

/// The protocol that the client asks to switch to, where that may be (H8, H35): HTTP/1.1, no
/// body, and not another HTTP or TLS, in which requests would pass by the router. The method is
/// the protocol's own affair (I50), and WebSocket's is GET.
fn wanted_upgrade<'a>(conn: &Conn, parts: &'a Parts) -> Option<&'a HeaderValue> {
    if conn.is_h2() || parts.version != Version::HTTP_11 {
        return None;
    }
    let mut fields = parts.headers.get_all(UPGRADE).iter();
    let protocol = fields.next().filter(|_| fields.next().is_none())?;
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(byte);
    let is_sound = !protocol.is_empty() && protocol.as_bytes().iter().all(is_token);
    let asked = parts.headers.get_all(CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    let is_websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    let low = protocol.as_bytes().to_ascii_lowercase();
    let carries_requests =
        [&b"h2"[..], b"h3", b"http", b"tls", b"ssl"].iter().any(|one| low.starts_with(one));
    let may = is_sound && asked && !carries_requests;
    let is_get = parts.method == Method::GET;
    (may && (!is_websocket || (is_get && is_handshake(&parts.headers)))).then_some(protocol)
}

/// RFC 6455 section 4.2.1: version 13 and a key of 16 bytes in base64.
fn is_handshake(headers: &HeaderMap) -> bool {
    let mut keys = headers.get_all("sec-websocket-key").iter();
    let mut versions = headers.get_all("sec-websocket-version").iter();
    let is_key = |key: &HeaderValue| match key.as_bytes() {
        [text @ .., b'=', b'='] => {
            text.len() == 22 && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte))
        }
        _ => false,
    };
    keys.next().is_some_and(is_key)
        && keys.next().is_none()
        && versions.next().is_some_and(|version| version.as_bytes() == b"13")
        && versions.next().is_none()
}

/// A gRPC client's own deadline: at most 8 digits and a unit.
fn grpc_timeout(conn: &Conn, headers: &HeaderMap) -> Option<Deadline> {
    let (unit, digits) = headers.get("grpc-timeout")?.as_bytes().split_last()?;
    if digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let time = match unit {
        b'H' => Duration::from_secs(count.saturating_mul(3600)),
        b'M' => Duration::from_secs(count.saturating_mul(60)),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    };
    let deadline = conn.worker.deadlines.add();
    deadline.set(time);
    Some(deadline)
}
