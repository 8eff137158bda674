//! The client's side: thousands of questions at once from one namespace, and what became of
//! each.
//!
//! Told apart are an answer (by whom, to which address, under whose name), a refusal, and
//! silence. A call that fails with EPERM counts as silence: it is what the sender learns of a
//! packet that was dropped on its way out, and what else is dropped it learns by waiting.

use crate::clients::{Identity, any};
use crate::servers::WHO;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

/// Questions that are open at the same time.
const AT_ONCE: usize = 400;
/// A datagram that meets an unresolved neighbour may be lost: it is sent again, once.
const AGAIN: Duration = Duration::from_millis(700);

/// How it is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum How {
    Tcp,
    /// connect() and send().
    UdpConnected,
    /// sendto().
    Udp,
}

/// One question, to be put several times.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Probe {
    pub how: How,
    pub to: SocketAddr,
    pub tries: u16,
    pub patience_ms: u64,
}

/// What became of one try.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Fate {
    Answered {
        by: String,
        /// The client's address as the server saw it.
        seen: IpAddr,
        /// The answer came in the name of who was asked.
        named: bool,
    },
    Refused,
    Silent,
    Failed(String),
}

/// What became of all tries.
pub type Fates = BTreeSet<Fate>;

/// Puts all questions, each as often as it says.
pub(crate) async fn put(probes: Vec<Probe>) -> Vec<Fates> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = Vec::with_capacity(probes.len());
    for probe in probes {
        let tries: Vec<_> = (0..probe.tries)
            .map(|_| {
                let room = Arc::clone(&room);
                tokio::spawn(async move {
                    let Ok(_place) = room.acquire().await else { return Fate::Failed("closed".into()) };
                    put_one(probe).await
                })
            })
            .collect();
        asked.push(tries);
    }
    let mut all = Vec::with_capacity(asked.len());
    for tries in asked {
        let mut fates = Fates::new();
        for one in tries {
            fates.insert(one.await.unwrap_or_else(|error| Fate::Failed(error.to_string())));
        }
        all.push(fates);
    }
    all
}

async fn put_one(probe: Probe) -> Fate {
    let end = Instant::now() + Duration::from_millis(probe.patience_ms);
    let answered = match probe.how {
        How::Tcp => by_tcp(probe.to, end).await,
        How::UdpConnected | How::Udp => by_udp(probe, end).await,
    };
    match answered {
        Ok((identity, named)) => Fate::Answered { by: identity.pod, seen: identity.peer.ip(), named },
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Fate::Refused,
            Some(libc::EPERM | libc::EACCES | libc::ETIMEDOUT) => Fate::Silent,
            _ if error.kind() == io::ErrorKind::TimedOut => Fate::Silent,
            _ => Fate::Failed(error.to_string()),
        },
    }
}

async fn by_tcp(to: SocketAddr, end: Instant) -> io::Result<(Identity, bool)> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Ends by RST: nothing waits for minutes afterwards.
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    let stream = timeout_at(end, socket.connect(to)).await??;
    let named = stream.peer_addr()? == to;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    match timeout_at(end, stream.read_line(&mut line)).await {
        Ok(done) => done.map_err(after)?,
        Err(_) => return Err(io::Error::other("connected, and silence")),
    };
    Ok((serde_json::from_str(&line)?, named))
}

/// An error of a connection that was open is no refusal to open it.
fn after(error: io::Error) -> io::Error {
    io::Error::other(format!("connected, then {error}"))
}

async fn by_udp(probe: Probe, end: Instant) -> io::Result<(Identity, bool)> {
    let to = probe.to;
    let socket = datagram_socket(to)?;
    if probe.how == How::UdpConnected {
        socket.connect(to).await?;
    }
    let mut said = send(&socket, &probe).await;
    let mut again = Instant::now() + AGAIN;
    let mut buffer = [0; 1024];
    loop {
        if said.as_ref().is_err_and(refused) {
            return said.and(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        let until = end.min(again);
        match timeout_at(until, socket.recv_from(&mut buffer)).await {
            Ok(Ok((length, from))) => {
                return Ok((serde_json::from_slice(&buffer[..length])?, from == to));
            }
            Ok(Err(error)) if refused(&error) => return Err(error),
            // Of an earlier datagram; the next one tells.
            Ok(Err(_)) => sleep(Duration::from_millis(20)).await,
            Err(_) if until == end => return said.and(Err(io::ErrorKind::TimedOut.into())),
            Err(_) => {
                said = send(&socket, &probe).await;
                again = end;
            }
        }
    }
}

/// Sends the question. What it fails with may be followed by the reason, which counts more.
async fn send(socket: &UdpSocket, probe: &Probe) -> io::Result<()> {
    let sent = match probe.how {
        How::UdpConnected => socket.send(WHO).await,
        How::Tcp | How::Udp => socket.send_to(WHO, probe.to).await,
    };
    sent.map(drop)
}

fn refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNREFUSED)
}

/// A socket that is told of ICMP errors, connected or not.
fn datagram_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    let on = true;
    if to.is_ipv4() {
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4RecvErr, &on)?;
    } else {
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6RecvErr, &on)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&any(to, 0).into())?;
    UdpSocket::from_std(socket.into())
}
