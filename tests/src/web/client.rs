//! One request, and the connection for it.

use super::{Fetch, Fetched, Shown, Version, socket, tls};
use crate::clients::micros;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest answer that is read.
const LONGEST: usize = 1 << 20;
/// What a WebSocket is asked to send back.
const WORDS: &str = "as I said";

/// Sends one request over a connection of its own.
pub(crate) async fn fetch(fetch: &Fetch) -> Fetched {
    let start = Instant::now();
    let mut told = Told::default();
    let done = async {
        if fetch.version == Version::Early {
            return early(fetch, &mut told).await;
        }
        let mut session = Session::open(fetch, &mut told).await?;
        session.send(fetch).await
    };
    let done = match timeout(Duration::from_millis(fetch.timeout_ms), done).await {
        Ok(done) => done,
        Err(_) => Err(anyhow::anyhow!("no answer in time")),
    };
    let mut fetched =
        done.unwrap_or_else(|error| Fetched { error: Some(format!("{error:#}")), ..Fetched::default() });
    fetched.certificate = told.certificate;
    fetched.alpn = told.alpn;
    fetched.elapsed_us = micros(start);
    fetched
}

/// What is known of a connection even when it fails later.
#[derive(Default)]
pub(super) struct Told {
    pub(super) certificate: Option<Shown>,
    alpn: Option<String>,
}

/// An open connection.
pub(super) enum Session {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
    /// The sender, until the connection has turned into a WebSocket.
    Socket(Option<http1::SendRequest<Full<Bytes>>>, Option<TokioIo<Upgraded>>),
}

impl Session {
    pub(super) async fn open(fetch: &Fetch, told: &mut Told) -> Result<Self> {
        let stream = TcpStream::connect(fetch.to).await.context("connect")?;
        stream.set_nodelay(true)?;
        let Some(tls) = &fetch.tls else { return Self::speak(fetch.version, stream).await };
        let stream = tls::connect(tls, fetch.version, stream, &[]).await?;
        told.certificate = Some(tls::shown(&stream)?);
        told.alpn = tls::alpn(&stream);
        Self::speak(fetch.version, stream).await
    }

    async fn speak<S>(version: Version, stream: S) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(stream);
        // What ends a connection is told by the request that meets it.
        Ok(match version {
            Version::One => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection);
                Self::One(sender)
            }
            Version::Early => bail!("a request of its own each"),
            Version::WebSocket => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection.with_upgrades());
                Self::Socket(Some(sender), None)
            }
            Version::Two => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Self::Two(sender)
            }
        })
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn send(&mut self, fetch: &Fetch) -> Result<Fetched> {
        match self {
            Self::One(sender) => {
                sender.ready().await.context("connection closed")?;
                read(sender.send_request(request(fetch)?).await?).await
            }
            Self::Two(sender) => {
                sender.ready().await.context("connection closed")?;
                read(sender.send_request(request(fetch)?).await?).await
            }
            Self::Socket(sender, upgraded) => {
                let mut fetched = Fetched::default();
                if let Some(mut sender) = sender.take() {
                    sender.ready().await.context("connection closed")?;
                    let response = sender.send_request(request(fetch)?).await?;
                    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                        return read(response).await;
                    }
                    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
                    ensure!(accept.is_some_and(|accept| accept == socket::ACCEPT), "accepted: {accept:?}");
                    fetched = told(&response);
                    *upgraded = Some(TokioIo::new(hyper::upgrade::on(response).await?));
                }
                let stream = upgraded.as_mut().context("no WebSocket")?;
                socket::say(stream, WORDS).await?;
                match socket::hear(stream).await? {
                    Ok(words) => ensure!(words == WORDS, "echoed {words:?}"),
                    Err(code) => bail!("WebSocket closed with {code}"),
                }
                fetched.status = Some(StatusCode::SWITCHING_PROTOCOLS.as_u16());
                fetched.body = WORDS.into();
                Ok(fetched)
            }
        }
    }
}

/// A GET whose bytes are written before the handshake is over. The answer is read as it comes.
async fn early(fetch: &Fetch, told: &mut Told) -> Result<Fetched> {
    let tls = fetch.tls.as_ref().context("without TLS nothing is early")?;
    let stream = TcpStream::connect(fetch.to).await.context("connect")?;
    stream.set_nodelay(true)?;
    let head = format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", fetch.target, fetch.host);
    let mut stream = tls::connect(tls, fetch.version, stream, head.as_bytes()).await?;
    told.certificate = Some(tls::shown(&stream)?);
    told.alpn = tls::alpn(&stream);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let mut lines = head.lines();
    let mut status = lines.next().unwrap_or_default().split(' ');
    Ok(Fetched {
        version: status.next().unwrap_or_default().into(),
        status: status.next().and_then(|code| code.parse().ok()),
        headers: lines
            .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.into(), value.into())))
            .collect(),
        body: body.into(),
        ..Fetched::default()
    })
}

fn request(fetch: &Fetch) -> Result<Request<Full<Bytes>>> {
    let scheme = if fetch.tls.is_some() { "https" } else { "http" };
    let mut builder = Request::builder().method(fetch.method.as_str());
    builder = match fetch.version {
        Version::One | Version::Early => builder.uri(&fetch.target).header(header::HOST, &fetch.host),
        Version::Two => builder.uri(format!("{scheme}://{}{}", fetch.host, fetch.target)),
        Version::WebSocket => builder
            .uri(&fetch.target)
            .header(header::HOST, &fetch.host)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, socket::KEY),
    };
    for (name, value) in &fetch.headers {
        builder = builder.header(name, value);
    }
    Ok(builder.body(Full::from(fetch.body.clone()))?)
}

/// All of an answer but its body.
fn told(response: &Response<Incoming>) -> Fetched {
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    Fetched {
        status: Some(response.status().as_u16()),
        version: format!("{:?}", response.version()),
        headers: headers.collect(),
        ..Fetched::default()
    }
}

async fn read(response: Response<Incoming>) -> Result<Fetched> {
    let mut fetched = told(&response);
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("body: {error}"))?.to_bytes();
    fetched.body = String::from_utf8_lossy(&body).into_owned();
    Ok(fetched)
}
