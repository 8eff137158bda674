//! Ends connected UDP sockets of the host whose backend is gone (S64).
//!
//! Such a socket was translated at connect() and goes on sending to the old backend. A pod's
//! datagrams are moved as they pass (`lb_common::path`); those of the host meet no hook in front of
//! their route. So its sockets are looked through, on a thread of their own, after backends changed:
//! one whose backend serves no more, while its Service has another, gets ECONNABORTED and no peer,
//! and its program connects anew. connect() kept both names of the peer under the socket's cookie,
//! so that no other socket is touched; sockets beyond that map's size are left as they are.

mod wire;

use super::hash::Hash;
use super::sys;
use lb_common::abi::{
    Backend, BackendFlags, Frontend, FrontendFlags, FrontendKey, Proto, SocketKey, SocketPeer,
};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Changes come in bursts, and each look goes over all UDP sockets of the host.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause after a long look is so many times as long: 5 % of one CPU, but
const SHARE: u32 = 20;
/// never longer, so that sockets are ended within a second or two of a change (H55).
const LONGEST: Duration = Duration::from_millis(500);

/// What the thread did since it was last asked.
#[derive(Debug, Default)]
pub(super) struct Ended {
    sockets: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Ended {
    /// Sockets that were ended since the last call, and what went wrong at the last look.
    pub(super) fn take(&self) -> (u64, Option<String>) {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.sockets.swap(0, Ordering::Relaxed), failure)
    }
}

/// The way to the thread, which ends with it.
#[derive(Debug)]
pub(super) struct Sockets {
    wake: SyncSender<()>,
    pub(super) ended: Arc<Ended>,
}

impl Sockets {
    /// Starts the thread.
    pub(super) fn spawn(tables: SocketTables) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let ended: Arc<Ended> = Arc::default();
        let shared = Arc::clone(&ended);
        let run = move || run(&tables, &woken, &shared);
        std::thread::Builder::new().name("sockets".into()).spawn(run)?;
        Ok(Self { wake, ended })
    }

    /// Says that a UDP backend came, went or changed.
    pub(super) fn changed(&self) {
        // Full: it was woken already and has not begun.
        let _ = self.wake.try_send(());
    }
}

fn run(tables: &SocketTables, woken: &Receiver<()>, ended: &Ended) {
    while woken.recv().is_ok() {
        std::thread::sleep(PAUSE);
        // Before the look: what changes during it asks for another one.
        while woken.try_recv().is_ok() {}
        let began = std::time::Instant::now();
        let result = end_orphans(tables, ended);
        let failure = result.err().map(|error| error.to_string());
        *ended.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        std::thread::sleep((began.elapsed() * SHARE).min(LONGEST));
    }
}

fn end_orphans(tables: &SocketTables, ended: &Ended) -> io::Result<()> {
    let mut channel = wire::Channel::open()?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (id, key) in channel.connected(family as u8)? {
            if tables.orphaned(&key) && channel.destroy(family as u8, &id)? {
                ended.sockets.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// What the thread reads of the maps.
pub(super) struct SocketTables {
    pub(super) frontends: Hash<FrontendKey, Frontend>,
    pub(super) backends: sys::Mapped<Backend>,
    pub(super) peers: Hash<SocketKey, SocketPeer>,
}

impl SocketTables {
    /// Whether a socket was translated to this backend, which serves no more, and there is another.
    fn orphaned(&self, actual: &SocketKey) -> bool {
        let Some(peer) = self.peers.get(actual) else { return false };
        let backend = self.backends.get(peer.backend as usize);
        if backend.is_some_and(|backend| serves(&backend, actual)) {
            return false;
        }
        let key = FrontendKey::new(peer.addr, peer.port, Proto::UDP);
        let any = FrontendKey { addr: peer.addr.family().any(), ..key };
        let found = self.frontends.get(&key).filter(|own| !own.flags.has(FrontendFlags::RETIRED));
        found.or_else(|| self.frontends.get(&any)).is_some_and(|frontend| frontend.inside.count != 0)
    }
}

/// Whether this is the backend that a socket is connected to, and it serves.
fn serves(backend: &Backend, actual: &SocketKey) -> bool {
    backend.addr == actual.addr && backend.port == actual.port && backend.flags.has(BackendFlags::SERVING)
}
