//! Refusals and failures as answers: what the proxy itself says.
//!
//! Every one has a status, a reason for metrics and log, and for gRPC clients a `grpc-status`
//! (I52). The body says no more than the status: what is behind the proxy is nobody's business.

use crate::proxy::body::AnswerBody;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, SERVER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

/// The name in `Server`.
pub(super) const SERVER_NAME: HeaderValue = HeaderValue::from_static("weir");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Why a request is answered by the proxy itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Refusal {
    /// The judge of raw bytes refused the head: its status.
    Judged(StatusCode),
    /// Not a valid request, or an ambiguous one.
    BadRequest,
    /// Raw and decoded path are not the same route, or the path cannot be decoded (H32).
    BadPath,
    /// CONNECT is for proxies of another kind (I50).
    Method,
    /// The request's body or head came too slowly.
    TooSlow,
    /// The body is over the limit (I57).
    BodyTooLarge,
    /// The name is not one that the connection's certificate is for (I34).
    Misdirected,
    NoRoute,
    /// The route leads to no usable endpoint (I15).
    NoEndpoint,
    /// The origin could not be connected to.
    Unreachable,
    /// The origin closed early, or answered what is no valid HTTP (H11).
    BadAnswer,
    /// The origin did not connect or answer in time (I58).
    OriginTooSlow,
}

impl Refusal {
    /// The label of each, in metrics and log.
    pub(super) const LABELS: [&'static str; 12] = [
        "judged",
        "bad_request",
        "bad_path",
        "method",
        "too_slow",
        "body_too_large",
        "misdirected",
        "no_route",
        "no_endpoint",
        "unreachable",
        "bad_answer",
        "origin_too_slow",
    ];

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Judged(status) => status,
            Self::BadRequest | Self::BadPath => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoEndpoint => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unreachable | Self::BadAnswer => StatusCode::BAD_GATEWAY,
            Self::OriginTooSlow => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// In metrics and log.
    pub(super) fn label(self) -> &'static str {
        let at = match self {
            Self::Judged(_) => 0,
            Self::BadRequest => 1,
            Self::BadPath => 2,
            Self::Method => 3,
            Self::TooSlow => 4,
            Self::BodyTooLarge => 5,
            Self::Misdirected => 6,
            Self::NoRoute => 7,
            Self::NoEndpoint => 8,
            Self::Unreachable => 9,
            Self::BadAnswer => 10,
            Self::OriginTooSlow => 11,
        };
        Self::LABELS[at]
    }

    /// Tells whether nothing more is read from an HTTP/1 connection: where the request ends is
    /// not known, or not worth waiting for.
    pub(super) fn closes(self) -> bool {
        matches!(self, Self::Judged(_) | Self::BadRequest | Self::Method | Self::TooSlow | Self::BodyTooLarge)
    }

    /// The code that a gRPC client gets (I52).
    fn grpc_status(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Judged(_) | Self::BadRequest | Self::BadPath | Self::Method | Self::Misdirected => "13",
            Self::TooSlow | Self::OriginTooSlow => "4",
            Self::BodyTooLarge => "8",
            Self::NoRoute => "12",
            Self::NoEndpoint | Self::Unreachable | Self::BadAnswer => "14",
        })
    }

    /// Returns the answer. `grpc`: the client speaks gRPC, and reads status from trailers, here
    /// in the form of an answer that is nothing but trailers.
    pub(super) fn answer(self, grpc: bool) -> Response<AnswerBody> {
        let status = self.status();
        if grpc {
            let mut response = Response::new(AnswerBody::empty());
            let headers = response.headers_mut();
            headers.insert(SERVER, SERVER_NAME);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, self.grpc_status());
            headers.insert(GRPC_MESSAGE, HeaderValue::from_static(self.label()));
            return response;
        }
        let mut response = text(status);
        if self.closes() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self == Self::Method {
            let allowed = "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH, TRACE";
            response.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

/// A redirect to another place (I39).
pub(super) fn redirect(status: StatusCode, location: HeaderValue) -> Response<AnswerBody> {
    let mut response = text(status);
    response.headers_mut().insert(LOCATION, location);
    response
}

/// A status and its name as text. `Date` is added by the HTTP side (I48).
fn text(status: StatusCode) -> Response<AnswerBody> {
    let name = status.canonical_reason().unwrap_or("refused");
    let text = Bytes::from(format!("{} {name}\n", status.as_str()));
    let length = text.len();
    let mut response = Response::new(AnswerBody::text(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(SERVER, SERVER_NAME);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// Tells whether a request is gRPC, by its content type.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        kind.as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
    })
}
