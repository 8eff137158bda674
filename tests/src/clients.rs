//! The clients: one question with everything that can be told about its answer.
//!
//! Plain blocking sockets, so that exactly the system calls that a hook sees are made.

use crate::netns::sys::monotonic_us;
use crate::servers::WHO;
use crate::wire::{Answer, Ask, Proto};
use serde::Deserialize;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// What a server says about itself.
#[derive(Deserialize)]
pub(crate) struct Identity {
    pub(crate) pod: String,
    pub(crate) peer: SocketAddr,
    pub(crate) local: Option<SocketAddr>,
}

/// Puts one question.
pub(crate) fn ask(ask: &Ask) -> Answer {
    let mut answer = Answer { started_us: monotonic_us(), ..Answer::default() };
    let start = Instant::now();
    let result = match ask.proto {
        Proto::Tcp => ask_tcp(ask, &mut answer),
        Proto::Udp => ask_udp(ask, &mut answer),
    };
    answer.elapsed_us = micros(start);
    match result {
        Ok(identity) => {
            answer.seen = Some(identity.peer);
            answer.server = identity.local;
            answer.pod = Some(identity.pod);
        }
        Err(error) => {
            answer.errno = error.raw_os_error();
            answer.error = Some(error.to_string());
        }
    }
    answer
}

fn ask_tcp(ask: &Ask, answer: &mut Answer) -> io::Result<Identity> {
    let timeout = Duration::from_millis(ask.timeout_ms);
    let mut stream = if ask.from_port == 0 {
        TcpStream::connect_timeout(&ask.to, timeout)?
    } else {
        connect_from(ask, timeout)?
    };
    stream.set_read_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    answer.local = Some(stream.local_addr()?);
    answer.peer = Some(stream.peer_addr()?);
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", ask.to).as_bytes())?;
    let mut buffer = [0; 4096];
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
        if let Some(at) = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n")
            && buffer[..filled].ends_with(b"}\n")
        {
            return Ok(serde_json::from_slice(&buffer[at + 4..filled])?);
        }
    }
}

/// A connect from a chosen source port, which std cannot do.
fn connect_from(ask: &Ask, timeout: Duration) -> io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stream = runtime.block_on(async {
        let socket = match ask.to {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(any(ask.to, ask.from_port))?;
        let connected = tokio::time::timeout(timeout, socket.connect(ask.to)).await;
        connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??.into_std()
    })?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Any address of the family of `to`.
pub(crate) fn any(to: SocketAddr, port: u16) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

fn ask_udp(ask: &Ask, answer: &mut Answer) -> io::Result<Identity> {
    let deadline = Instant::now() + Duration::from_millis(ask.timeout_ms);
    let socket = UdpSocket::bind(any(ask.to, ask.from_port))?;
    if ask.connected {
        socket.connect(ask.to)?;
        answer.peer = Some(socket.peer_addr()?);
    }
    let mut buffer = [0; 4096];
    // Only the first datagram may be lost to an unresolved neighbour's short queue: asked
    // again within the deadline, as any UDP client does.
    loop {
        if ask.connected {
            socket.send(WHO)?;
        } else {
            socket.send_to(WHO, ask.to)?;
        }
        answer.local = socket.local_addr().ok();
        let left = deadline.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.clamp(Duration::from_millis(1), Duration::from_millis(500))))?;
        let received = if ask.connected {
            socket.recv(&mut buffer).map(|length| (length, None))
        } else {
            socket.recv_from(&mut buffer).map(|(length, from)| (length, Some(from)))
        };
        match received {
            Ok((length, from)) => {
                answer.peer = from.or(answer.peer);
                let identity = serde_json::from_slice(&buffer[..length])?;
                if ask.large > 0 {
                    echo(&socket, ask, deadline)?;
                }
                return Ok(identity);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Has a large datagram sent back, behind the pod's name. It is sent once: a lost fragment is a
/// failure.
fn echo(socket: &UdpSocket, ask: &Ask, deadline: Instant) -> io::Result<()> {
    let sent: Vec<u8> = (0..ask.large).map(|n| n as u8).collect();
    if ask.connected { socket.send(&sent) } else { socket.send_to(&sent, ask.to) }?;
    let left = deadline.saturating_duration_since(Instant::now());
    socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    let mut buffer = vec![0; 65_536];
    loop {
        let length = socket.recv(&mut buffer)?;
        if buffer[..length].ends_with(&sent) {
            return Ok(());
        }
        // A late answer to a question that was repeated.
        if !buffer[..length].starts_with(b"{") {
            return Err(io::Error::other(format!("{length} bytes that are not what was sent")));
        }
    }
}

pub(crate) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
