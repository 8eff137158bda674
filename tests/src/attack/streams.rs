//! An origin that speaks HTTP/2 over plain TCP and sends every message back, as a gRPC server
//! with a bidirectional stream does: trailers at the end.

use anyhow::Result;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};

/// Serves a listening socket in a thread that ends with the test process.
///
/// # Errors
/// When the socket cannot be used.
pub fn serve(listener: TcpListener) -> Result<SocketAddr> {
    let addr = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(echo));
                tokio::spawn(connection);
            }
        });
    });
    Ok(addr)
}

type Echo = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, hyper::Error>;

async fn echo(request: Request<Incoming>) -> Result<Response<Echo>, Infallible> {
    let (parts, body) = request.into_parts();
    // What the request's body ends with is no trailer of the answer.
    let data = futures_util::stream::unfold(Some(body), |body| async {
        let mut body = body?;
        loop {
            match body.frame().await {
                Some(Ok(frame)) if frame.is_data() => return Some((Ok(frame), Some(body))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some((Err(error), None)),
                None => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    return Some((Ok(Frame::trailers(trailers)), None));
                }
            }
        }
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(data)));
    if let Some(kind) = parts.headers.get("content-type") {
        response.headers_mut().insert("content-type", kind.clone());
    }
    Ok(response)
}
