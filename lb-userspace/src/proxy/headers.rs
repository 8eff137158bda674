//! Which fields go to the origin and which come back.
//!
//! A request's fields are always written anew from what was received (H2, I46, I47): what is
//! about one hop only is left out (H34), what says who the client is is set here and never
//! believed unless the peer is trusted (H33), names with `_` are left out since origins read
//! them as `-` (H10), and so are trailers' names with `"`, which the HTTP library lets pass.

use crate::proxy::conn::Conn;
use crate::proxy::engine::{Scheme, Settings};
use crate::proxy::error::SERVER_NAME;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, HOST,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SERVER, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::IpAddr;

/// Names in the `Connection` fields of a request.
const NOMINATED_LIMIT: usize = 32;
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_SCHEME: HeaderName = HeaderName::from_static("x-forwarded-scheme");
const ORIGINAL_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-original-forwarded-for");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SCHEME: HeaderName = HeaderName::from_static("x-scheme");
/// The longest request id of a client that is kept.
const REQUEST_ID_LIMIT: usize = 128;

/// What a request's new fields are made of.
pub(super) struct Rewrite<'a> {
    pub(super) conn: &'a Conn,
    /// Goes to the origin unchanged (I47).
    pub(super) authority: &'a HeaderValue,
    /// The protocol to be upgraded to, where that is asked for.
    pub(super) upgrade: Option<&'a HeaderValue>,
    pub(super) request_id: &'a HeaderValue,
    /// The body, if there is one, and the length that its head says.
    pub(super) body: Option<Option<u64>>,
    /// HTTP/1.1 upstream.
    pub(super) http1: bool,
}

/// Who sent a request, as far as it can be known.
pub(super) struct Origin {
    pub(super) address: HeaderValue,
    pub(super) scheme: Scheme,
}

/// Returns the fields that the origin gets.
pub(super) fn upstream(received: &HeaderMap, rewrite: &Rewrite<'_>) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(received.len() + 12);
    if rewrite.http1 {
        fields.insert(HOST, rewrite.authority.clone());
    }
    let nominated = nominated(received);
    let mut cookies = 0;
    for (name, value) in received {
        let replaced = is_replaced(name) && !(rewrite.conn.trusted && is_passed_on(name));
        if replaced || (!nominated.is_empty() && nominated.contains(name)) {
            continue;
        }
        if *name == COOKIE {
            cookies += 1;
            if cookies > 1 {
                continue;
            }
        }
        fields.append(name.clone(), value.clone());
    }
    if cookies > 1 {
        // HTTP/2 clients may send a crumb a field, RFC 9113 section 8.2.3.
        let crumbs: Vec<&[u8]> = received.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            fields.insert(COOKIE, whole);
        }
    }
    if received.get(TE).is_some_and(wants_trailers) {
        fields.insert(TE, HeaderValue::from_static("trailers"));
    }
    match rewrite.body {
        // A zero that was said is said again; other lengths are the body's to say.
        None if received.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"0") => {
            fields.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        // hyper sends no body of unknown length with GET or HEAD unless the head says so. And
        // one that came over HTTP/2 with a length of zero and no end yet may turn out not to be
        // empty: a head that says zero would make a whole request of it (H14).
        Some(None | Some(0)) if rewrite.http1 => {
            fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        None | Some(_) => {}
    }
    match rewrite.upgrade {
        Some(protocol) if rewrite.http1 => {
            fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            fields.insert(UPGRADE, protocol.clone());
        }
        Some(_) | None => {}
    }
    forwarded(received, rewrite, &mut fields);
    fields
}

/// Sets who the client is and what it asked for (I46).
fn forwarded(received: &HeaderMap, rewrite: &Rewrite<'_>, fields: &mut HeaderMap) {
    let conn = rewrite.conn;
    let settings = &conn.worker.shared.settings;
    let origin = origin(received, conn);
    let scheme = HeaderValue::from_static(origin.scheme.name());
    let believed = |name: &HeaderName| received.get(name).filter(|_| conn.trusted).cloned();
    let port = match origin.scheme {
        Scheme::Http => HeaderValue::from_static("80"),
        Scheme::Https if settings.https_port == 443 => HeaderValue::from_static("443"),
        Scheme::Https => HeaderValue::from(settings.https_port),
    };
    fields.insert(REQUEST_ID, rewrite.request_id.clone());
    fields.insert(REAL_IP, origin.address.clone());
    fields.insert(FORWARDED_FOR, origin.address);
    let host = believed(&FORWARDED_HOST).unwrap_or_else(|| rewrite.authority.clone());
    fields.insert(FORWARDED_HOST, host);
    fields.insert(FORWARDED_PORT, believed(&FORWARDED_PORT).unwrap_or(port));
    fields.insert(FORWARDED_PROTO, scheme.clone());
    fields.insert(FORWARDED_SCHEME, scheme.clone());
    fields.insert(SCHEME, scheme);
    if let Some(original) = received.get(FORWARDED_FOR) {
        fields.insert(ORIGINAL_FORWARDED_FOR, original.clone());
    }
}

/// Returns who sent a request and over what: the peer, or, where the peer is trusted, the
/// rightmost address that is not (I46).
pub(super) fn origin(received: &HeaderMap, conn: &Conn) -> Origin {
    let settings = &conn.worker.shared.settings;
    let direct = || Origin { address: conn.peer_text.clone(), scheme: conn.scheme };
    if !conn.trusted {
        return direct();
    }
    let mut origin = direct();
    if let Some(address) = rightmost_untrusted(received, settings) {
        origin.address = HeaderValue::try_from(address.to_string()).unwrap_or(origin.address);
    }
    match received.get(FORWARDED_PROTO).map(HeaderValue::as_bytes) {
        Some(b"https") => origin.scheme = Scheme::Https,
        Some(b"http") => origin.scheme = Scheme::Http,
        Some(_) | None => {}
    }
    origin
}

/// Returns the address of who sent a request.
pub(super) fn client(received: &HeaderMap, conn: &Conn) -> IpAddr {
    let believed =
        if conn.trusted { rightmost_untrusted(received, &conn.worker.shared.settings) } else { None };
    believed.unwrap_or(conn.peer.ip()).to_canonical()
}

/// The list is read from the right: everything left of the first address that is not trusted
/// was written by somebody who is not. What is no address ends it.
fn rightmost_untrusted(received: &HeaderMap, settings: &Settings) -> Option<IpAddr> {
    let mut last = None;
    for field in received.get_all(FORWARDED_FOR).iter().rev() {
        for item in field.to_str().ok()?.rsplit(',') {
            let Ok(address) = item.trim().parse::<IpAddr>() else { return last };
            let address = address.to_canonical();
            last = Some(address);
            if !settings.trusts(address) {
                return last;
            }
        }
    }
    last
}

/// Keeps an id that is one line of visible characters, or makes one.
pub(super) fn request_id(received: &HeaderMap, conn: &Conn) -> HeaderValue {
    if let Some(id) = received.get(REQUEST_ID) {
        let bytes = id.as_bytes();
        if (1..=REQUEST_ID_LIMIT).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic) {
            return id.clone();
        }
    }
    let digit = |nibble: u64| b"0123456789abcdef"[usize::try_from(nibble & 15).unwrap_or(0)];
    let (high, low) = (conn.worker.random(), conn.worker.random());
    let mut text = [0_u8; 32];
    for (at, byte) in text.iter_mut().enumerate() {
        let word = if at < 16 { high } else { low };
        *byte = digit(word >> (60 - 4 * (at % 16)));
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
}

/// Tells whether `Connection` names more than any client has to say: each name is looked for
/// among all the fields (H25).
pub(super) fn nominates_too_many(fields: &HeaderMap) -> bool {
    let commas = |value: &HeaderValue| memchr::memchr_iter(b',', value.as_bytes()).count();
    fields.get_all(CONNECTION).iter().map(|value| commas(value) + 1).sum::<usize>() > NOMINATED_LIMIT
}

/// Fields that a `Connection` field names: they are for this hop only (H34).
fn nominated(fields: &HeaderMap) -> Vec<HeaderName> {
    let mut names = Vec::new();
    for value in fields.get_all(CONNECTION) {
        for token in value.as_bytes().split(|byte| *byte == b',') {
            let token = token.trim_ascii();
            let usual = [&b"close"[..], b"keep-alive", b"upgrade", b"te", b""];
            if usual.iter().any(|usual| token.eq_ignore_ascii_case(usual)) {
                continue;
            }
            names.extend(HeaderName::from_bytes(token));
        }
    }
    names
}

fn wants_trailers(te: &HeaderValue) -> bool {
    te.as_bytes()
        .split(|byte| *byte == b',')
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Fields of one hop, whichever way they go.
fn is_hop(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == TE
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Fields of a request that are not copied: those of one hop, those that are set anew, and
/// those that nobody but a proxy may set.
fn is_replaced(name: &HeaderName) -> bool {
    let text = name.as_str();
    let by_name = match text.as_bytes().first() {
        Some(b'c') => matches!(text, "content-length" | "connection"),
        Some(b'e') => text == "expect",
        Some(b'f') => text == "forwarded",
        Some(b'h') => matches!(text, "host" | "http2-settings"),
        Some(b'k') => text == "keep-alive",
        Some(b'p') => matches!(text, "proxy" | "proxy-connection"),
        Some(b's') => text.starts_with("ssl-client-"),
        Some(b't') => matches!(text, "te" | "transfer-encoding"),
        Some(b'u') => text == "upgrade",
        Some(b'x') => {
            text.starts_with("x-forwarded-")
                || text.starts_with("x-original-forwarded-")
                || matches!(text, "x-real-ip" | "x-request-id" | "x-scheme")
        }
        Some(_) | None => false,
    };
    by_name || text.bytes().any(|byte| byte == b'_' || byte == b'"')
}

/// What a trusted proxy in front says of the client beyond what is set here, as the prefix that
/// it took off the path (I46).
fn is_passed_on(name: &HeaderName) -> bool {
    let set = [FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PORT, FORWARDED_PROTO, FORWARDED_SCHEME];
    name.as_str().starts_with("x-forwarded-") && !name.as_str().contains('_') && !set.contains(name)
}

/// Makes an origin's fields those of the answer: without the ones of its hop, in our name.
pub(super) fn downstream(fields: &mut HeaderMap) {
    for name in nominated(fields) {
        fields.remove(name);
    }
    for name in [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        fields.remove(name);
    }
    fields.remove("keep-alive");
    fields.remove("proxy-connection");
    fields.insert(SERVER, SERVER_NAME);
}

/// Leaves out of trailers what frames, routes or authenticates, and whatever else only means
/// something in a head (H5, RFC 9110 section 6.5.1).
pub(super) fn trailers(fields: HeaderMap) -> HeaderMap {
    let forbidden = |name: &HeaderName| {
        is_hop(name)
            || is_replaced(name)
            || [
                AUTHORIZATION,
                CONTENT_ENCODING,
                CONTENT_RANGE,
                CONTENT_TYPE,
                COOKIE,
                PROXY_AUTHENTICATE,
                PROXY_AUTHORIZATION,
                SET_COOKIE,
                TRAILER,
            ]
            .contains(name)
    };
    if !fields.keys().any(forbidden) {
        return fields;
    }
    let mut kept = HeaderMap::new();
    for (name, value) in &fields {
        if !forbidden(name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}
