//! A client that sends bytes as they are and reads answers only as far as it must.

use anyhow::{Context, Result};
use rustls::{ClientConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How a raw exchange ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The other side closed in an orderly way.
    Closed,
    /// The other side reset the connection.
    Reset,
    /// Still open when time was up.
    Open,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub end: End,
    pub took: Duration,
}

impl Answer {
    /// Status codes of the answers, 1xx left out; found by the status lines alone, so bodies
    /// must not hold any.
    pub fn statuses(&self) -> Vec<u16> {
        let text = String::from_utf8_lossy(&self.bytes);
        let lines = text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12));
        lines.filter_map(|code| code.parse().ok()).filter(|code| *code >= 200).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Sends bytes in one piece and reads until the end or until time is up.
///
/// # Errors
/// When nobody listens.
pub fn exchange(to: SocketAddr, bytes: &[u8], patience: Duration) -> Result<Answer> {
    let mut stream = connect(to)?;
    // A server that refuses early may close before it has read all: what it said still counts.
    let _sent = stream.write_all(bytes);
    Ok(read_to_end(&mut stream, patience))
}

/// # Errors
/// When nobody listens.
pub fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))
        .with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// A connection as bytes: TCP, or TLS over it.
pub trait Wire: Read + Write {
    fn socket(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Wire for StreamOwned<ClientConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

/// Reads until the end, a reset, or until nothing ended it for that long.
pub fn read_to_end(stream: &mut (impl Wire + ?Sized), patience: Duration) -> Answer {
    let began = Instant::now();
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    let end = loop {
        let left = patience.saturating_sub(began.elapsed());
        if left.is_zero() || stream.socket().set_read_timeout(Some(left)).is_err() {
            break End::Open;
        }
        match stream.read(&mut buffer) {
            Ok(0) => break End::Closed,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if is_timeout(&error) => break End::Open,
            Err(_) => break End::Reset,
        }
    };
    Answer { bytes, end, took: began.elapsed() }
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
