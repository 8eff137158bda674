//! What the supervisor and the processes that it starts say to each other, one packet each,
//! with a descriptor beside it where one is handed over.
//!
//! Packets are JSON, so that a supervisor and a process of another build understand what they
//! share and pass over the rest. The socket is the process's standard input: nobody can guess
//! it, and nothing else inherits it.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The longest packet.
const LONGEST: usize = 32 << 10;

pub use crate::proxy::settings::Scheme;

/// A listening socket, by what it was asked to be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ListenerName {
    pub scheme: Scheme,
    /// As configured: port 0 is any port.
    pub address: SocketAddr,
    /// Tells listeners of the same scheme and address apart.
    #[serde(default)]
    pub number: u32,
}

/// From the supervisor.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// To a proxy, with the socket: accept from it.
    Listen(ListenerName),
    /// To agent and proxy, with one end of a stream each: be linked. `number`, `pid`: the proxy's.
    Link { number: u64, pid: u32 },
    /// To a proxy, with the socket that the next supervisor asks for listeners: answer it
    /// should the supervisor be gone.
    HandOver,
    /// To a proxy: take no more connections, end when those that are open have ended.
    Drain,
    /// To a proxy: end now.
    End,
    /// To the agent: how things stand.
    Status(Status),
}

/// To the supervisor.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Comes first: what it speaks with its peers, and of a proxy what it can see.
    Hello {
        protocol: u64,
        version: String,
        #[serde(default)]
        view: View,
    },
    /// An agent holds the node and does its work.
    Up,
    /// A proxy has a table and accepts connections.
    Ready,
    /// A proxy's link is over, and no other has come since.
    Unlinked,
}

/// Between supervisors.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Succession {
    /// The new one asks for the listeners.
    Ask { version: String },
    /// One of them, with its socket.
    Listener(ListenerName),
    /// There are no more.
    Those,
    /// The new one accepts connections: drain.
    Done,
}

/// What the agent tells about its surroundings.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub listeners: Vec<ListenerStatus>,
    pub proxies: Vec<ProxyStatus>,
    /// Times that a process ended unasked.
    pub agent_restarts: u64,
    pub proxy_restarts: u64,
    /// What is wrong with the processes, if anything.
    pub trouble: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub name: ListenerName,
    /// Where it listens.
    pub bound: Option<SocketAddr>,
    /// Why it does not.
    pub error: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyStatus {
    pub number: u64,
    pub pid: u32,
    pub state: ProxyState,
    #[serde(default)]
    pub view: View,
}

/// What a process can see of the file system.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// It did not say: no proxy, or of another build.
    #[default]
    Untold,
    /// Nothing but what it needs; the version of Landlock that keeps it so.
    Confined { landlock: u32 },
    /// Whatever its user can; why.
    Open { reason: String },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyState {
    /// Not accepting yet.
    Starting,
    Serving,
    /// Not accepting any more.
    Draining,
}

/// One end of a control socket.
#[derive(Debug)]
pub struct Control {
    /// Of packets, not a stream: only its readiness is asked of this type.
    socket: UnixStream,
}

/// Two ends that belong together.
///
/// # Errors
/// When no more descriptors are to be had.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

impl Control {
    /// Takes a socket into use.
    ///
    /// # Errors
    /// When it cannot be watched.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixStream::from_std(socket)? })
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// When the other side is gone, or the message too long.
    pub async fn send(&self, message: &impl Serialize, handed: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
        if bytes.len() > LONGEST {
            return Err(io::Error::other(format!("a message of {} bytes", bytes.len())));
        }
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            if let Some(handed) = &handed {
                // There is room for exactly one.
                let _pushed = beside.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(handed)));
            }
            sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
            Ok(())
        };
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    /// The next packet that is understood; `None` when the other side is gone. A call that is
    /// dropped loses nothing.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn recv<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        loop {
            let receive = || receive(&self.socket);
            let (bytes, handed) = match self.socket.async_io(Interest::READABLE, receive).await {
                // The other side ended with packets of ours unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                received => received?,
            };
            if bytes.is_empty() {
                return Ok(None);
            }
            match serde_json::from_slice(&bytes) {
                Ok(message) => return Ok(Some((message, handed))),
                Err(error) => tracing::debug!(%error, "a message of another version is passed over"),
            }
        }
    }
}

fn receive(socket: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, flags)?;
    let mut handed = None;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            handed = descriptors.last();
        }
    }
    bytes.truncate(received.bytes);
    Ok((bytes, handed))
}

/// The control socket that this process was started with. Its standard input is empty then.
///
/// # Errors
/// When it was started by something else.
pub fn inherited() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    match rustix::net::sockopt::socket_type(stdin.as_fd()) {
        Ok(SocketType::SEQPACKET) => {}
        _ => return Err(io::Error::other("--role: for processes that weir run starts itself")),
    }
    let socket = stdin.as_fd().try_clone_to_owned()?;
    let nothing = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::net::TcpListener;

    fn ends() -> (Control, Control) {
        let (one, other) = pair().unwrap();
        (Control::new(one).unwrap(), Control::new(other).unwrap())
    }

    #[tokio::test]
    async fn a_socket_is_handed_over_beside_its_message() {
        let (near, far) = ends();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let order = Order::Listen(ListenerName { scheme: Scheme::Https, address, number: 0 });
        near.send(&order, Some(listener.as_fd())).await.unwrap();
        near.send(&Order::Drain, None).await.unwrap();
        let (got, handed) = far.recv::<Order>().await.unwrap().unwrap();
        assert_eq!(got, order);
        assert_eq!(TcpListener::from(handed.unwrap()).local_addr().unwrap(), address);
        let (got, handed) = far.recv::<Order>().await.unwrap().unwrap();
        assert_eq!((got, handed.is_none()), (Order::Drain, true));
    }

    #[tokio::test]
    async fn what_another_version_says_is_passed_over() {
        let (near, far) = ends();
        near.send(&serde_json::json!({ "dance": { "tempo": 3 } }), None).await.unwrap();
        near.send(&serde_json::json!("sing"), None).await.unwrap();
        near.send(&serde_json::json!({ "link": { "number": 1, "pid": 2, "colour": "red" } }), None)
            .await
            .unwrap();
        let (got, _) = far.recv::<Order>().await.unwrap().unwrap();
        assert_eq!(got, Order::Link { number: 1, pid: 2 });
    }

    #[tokio::test]
    async fn the_end_of_the_other_side_is_seen_and_a_long_message_is_refused() {
        let (near, far) = ends();
        near.send(&Order::End, None).await.unwrap();
        assert!(near.send(&"x".repeat(LONGEST), None).await.is_err());
        drop(near);
        assert_eq!(far.recv::<Order>().await.unwrap().unwrap().0, Order::End);
        assert!(far.recv::<Order>().await.unwrap().is_none());
        let gone = far.send(&Report::Ready, None).await.unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }
}
