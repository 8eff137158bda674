//! Handing the listening sockets to the next supervisor (I73, H58).
//!
//! Whoever holds them answers on a unix socket in the state folder: the supervisor, or its
//! proxy once the supervisor is gone. One asks at a time. It is given every listener, keeps
//! the connection, and says [`Done`](Succession::Done) when it accepts connections itself.

use crate::proxy::control::{Control, ListenerName, Succession};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use std::collections::hash_map::RandomState;
use std::fs::Permissions;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

/// How long a connection may say nothing before it asks.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest wait for a word of whoever holds the listeners; some silent ones may be before us.
const ANSWER: Duration = Duration::from_secs(10);
/// Pause after a failure that could come again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// What becomes known of the next supervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// It has the listeners and makes itself ready.
    Asked,
    /// It is gone without having become ready.
    Gone,
    /// It accepts connections. The last event.
    Done,
}

/// A listener and its socket.
pub type Offer = (ListenerName, TcpListener);

/// Where supervisors of a state folder meet.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("handover.sock")
}

/// A name beside a socket's path that nobody else uses, to be renamed onto it. A process number
/// would not do: Pods of one node that share the folder have the same ones.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let number = RandomState::new().build_hasher().finish() as u32;
    path.with_extension(format!("{number:08x}.sock"))
}

/// Takes the place of whoever answered at `path` before. Only the same user may connect.
///
/// # Errors
/// When the folder does not allow it, or the path is too long.
pub fn take(path: &Path) -> io::Result<OwnedFd> {
    let fresh = beside(path);
    let socket = packets()?;
    bind(&socket, &SocketAddrUnix::new(&fresh)?)?;
    // Nobody can connect before this, since nobody listens.
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    listen(&socket, 16)?;
    std::fs::rename(&fresh, path)?;
    Ok(socket)
}

fn packets() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Answers on `socket` until somebody has taken over.
///
/// # Errors
/// When the socket cannot be watched.
pub async fn answer(
    socket: OwnedFd,
    offered: impl Fn() -> Vec<Offer>,
    events: mpsc::Sender<Event>,
) -> io::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    loop {
        let successor = match listener.accept().await {
            Ok((stream, _)) => Control::new(stream.into_std()?.into()),
            Err(error) => Err(error),
        };
        match successor {
            Ok(successor) if attend(&successor, &offered, &events).await => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "the next supervisor cannot be heard");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Says whether this one has taken over.
async fn attend(
    successor: &Control,
    offered: &impl Fn() -> Vec<Offer>,
    events: &mpsc::Sender<Event>,
) -> bool {
    let mut asked = false;
    loop {
        let said = match tokio::time::timeout(PATIENCE, successor.recv::<Succession>()).await {
            Ok(said) => said,
            Err(_) if asked => continue,
            Err(_) => return false,
        };
        match said {
            Ok(Some((Succession::Ask { version }, _))) => {
                tracing::info!(version, "the next supervisor asks for the listeners");
                if hand_out(successor, offered()).await.is_err() {
                    break;
                }
                if !std::mem::replace(&mut asked, true) {
                    // Nobody hears it when this process is ending.
                    let _ending = events.send(Event::Asked).await;
                }
            }
            Ok(Some((Succession::Done, _))) => {
                let _ending = events.send(Event::Done).await;
                return true;
            }
            Ok(Some((Succession::Listener(_) | Succession::Those, _))) => {}
            Ok(None) | Err(_) => break,
        }
    }
    if asked {
        let _ending = events.send(Event::Gone).await;
    }
    false
}

async fn hand_out(successor: &Control, offers: Vec<Offer>) -> io::Result<()> {
    for (name, socket) in offers {
        successor.send(&Succession::Listener(name), Some(socket.as_fd())).await?;
    }
    successor.send(&Succession::Those, None).await
}

/// Asks whoever holds the listeners; `None`: nobody does.
///
/// # Errors
/// When somebody does and does not answer as it should.
pub async fn ask(path: &Path) -> io::Result<Option<(Control, Vec<Offer>)>> {
    let socket = packets()?;
    match connect(&socket, &SocketAddrUnix::new(path)?).map_err(io::Error::from) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let holder = Control::new(socket)?;
    holder.send(&Succession::Ask { version: env!("CARGO_PKG_VERSION").into() }, None).await?;
    let mut offers = Vec::new();
    loop {
        let said = tokio::time::timeout(ANSWER, holder.recv::<Succession>()).await;
        match said.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
            Some((Succession::Listener(name), Some(socket))) => {
                offers.push((name, TcpListener::from(socket)))
            }
            Some((Succession::Those, _)) => return Ok(Some((holder, offers))),
            Some(_) => {}
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::proxy::control::Scheme;

    fn offer() -> Offer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = ListenerName { scheme: Scheme::Http, address: "127.0.0.1:0".parse().unwrap(), number: 0 };
        (name, listener)
    }

    fn holder(path: &Path) -> (Offer, mpsc::Receiver<Event>) {
        let (name, listener) = offer();
        let (events, heard) = mpsc::channel(8);
        let socket = take(path).unwrap();
        let ours = listener.try_clone().unwrap();
        let told = name.clone();
        let offered = move || vec![(told.clone(), ours.try_clone().unwrap())];
        tokio::spawn(answer(socket, offered, events));
        ((name, listener), heard)
    }

    #[tokio::test]
    async fn the_next_one_gets_the_sockets_and_its_fate_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        assert!(ask(&path).await.unwrap().is_none(), "no file");
        let ((name, listener), mut heard) = holder(&path);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let (first, offers) = ask(&path).await.unwrap().unwrap();
        assert_eq!(offers[0].0, name);
        assert_eq!(offers[0].1.local_addr().unwrap(), listener.local_addr().unwrap());
        assert_eq!(heard.recv().await, Some(Event::Asked));
        drop(first);
        assert_eq!(heard.recv().await, Some(Event::Gone));

        let (second, _) = ask(&path).await.unwrap().unwrap();
        assert_eq!(heard.recv().await, Some(Event::Asked));
        second.send(&Succession::Done, None).await.unwrap();
        assert_eq!(heard.recv().await, Some(Event::Done));
        assert_eq!(heard.recv().await, None);
        assert!(ask(&path).await.unwrap().is_none(), "a stale file is nobody");
        let _takes_its_place = take(&path).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_holds_them_and_hangs_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let _hangs = take(&path).unwrap();
        assert_eq!(ask(&path).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn one_that_does_not_ask_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let (_offer, _heard) = holder(&path);
        let silent = packets().unwrap();
        connect(&silent, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let answered = tokio::time::timeout(3 * PATIENCE, ask(&path)).await.unwrap().unwrap();
        assert!(answered.is_some());
    }
}
