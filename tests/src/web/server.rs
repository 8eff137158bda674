//! What a pod's server says over HTTP: what it saw of the request, as JSON; or an echo over a
//! WebSocket. HTTP/1.1, and HTTP/2 without TLS for clients that begin with it.

use super::{Seen, socket};
use crate::servers::plain;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;

/// What a server says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sign {
    pub(crate) name: String,
    /// `namespace`, `ingress`, `service`: what a pod's environment says.
    pub(crate) about: BTreeMap<String, String>,
}

/// Serves one connection until it ends. What goes wrong with it is the client's to tell.
pub(crate) async fn answer(stream: TcpStream, peer: SocketAddr, sign: Arc<Sign>) {
    let Ok(local) = stream.local_addr() else { return };
    let (peer, local) = (plain(peer), plain(local));
    let mut opening = [0; 3];
    let prior_knowledge = stream.peek(&mut opening).await.is_ok() && opening == *b"PRI";
    let service = service_fn(move |request| {
        let sign = Arc::clone(&sign);
        async move {
            Ok::<_, Infallible>(if is_websocket(&request) {
                accept_websocket(request)
            } else {
                tell(request, peer, local, &sign).await
            })
        }
    });
    let stream = TokioIo::new(stream);
    // A client that goes away is no fault of the server.
    if prior_knowledge {
        let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await;
    } else {
        let _ = http1::Builder::new().serve_connection(stream, service).with_upgrades().await;
    }
}

async fn tell(
    request: Request<Incoming>,
    peer: SocketAddr,
    local: SocketAddr,
    sign: &Sign,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return status(StatusCode::BAD_REQUEST) };
    let host = head.headers.get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
    let host = host.or_else(|| head.uri.authority().map(|authority| authority.as_str().into()));
    let about = |what: &str| sign.about.get(what).cloned();
    let seen = Seen {
        pod: sign.name.clone(),
        peer,
        local,
        method: head.method.to_string(),
        path: head.uri.path_and_query().map_or_else(|| "/".into(), ToString::to_string),
        host: host.unwrap_or_default().into_owned(),
        proto: if head.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" }.into(),
        headers: spelled(&head.headers),
        length: body.to_bytes().len(),
        namespace: about("namespace"),
        ingress: about("ingress"),
        service: about("service"),
    };
    let Ok(mut text) = serde_json::to_string(&seen) else {
        return status(StatusCode::INTERNAL_SERVER_ERROR);
    };
    text.push('\n');
    let mut response = Response::new(Full::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// Header names as `X-Forwarded-For`; `Host` apart.
fn spelled(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut spelled: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if name == header::HOST {
            continue;
        }
        let words: Vec<String> = name.as_str().split('-').map(capitalised).collect();
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        spelled.entry(words.join("-")).or_default().push(value);
    }
    spelled
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn is_websocket(request: &Request<Incoming>) -> bool {
    let asked = request.headers().get(header::UPGRADE);
    asked.is_some_and(|asked| asked.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn accept_websocket(request: Request<Incoming>) -> Response<Full<Bytes>> {
    // The one key that the lab's clients send.
    if request.headers().get(header::SEC_WEBSOCKET_KEY).is_none_or(|key| key != socket::KEY) {
        return status(StatusCode::BAD_REQUEST);
    }
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            // It ends with the client.
            let _ = socket::echo(&mut TokioIo::new(upgraded)).await;
        }
    });
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
    for (name, value) in [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, socket::ACCEPT),
    ] {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_are_spelled_as_the_suite_reads_them() {
        let mut headers = HeaderMap::new();
        headers.append("user-agent", header::HeaderValue::from_static("a"));
        headers.append("x-id", header::HeaderValue::from_static("1"));
        headers.append("x-id", header::HeaderValue::from_static("2"));
        headers.append("host", header::HeaderValue::from_static("example.com"));
        let spelled = spelled(&headers);
        assert_eq!(spelled.keys().collect::<Vec<_>>(), ["User-Agent", "X-Id"]);
        assert_eq!(spelled["X-Id"], ["1", "2"]);
    }
}
