//! Translation at the socket, once per connection: connect(), sendmsg() and the two calls
//! that tell a program whom it talks to.
//!
//! A program on this node that connects to a frontend is connected straight to a backend;
//! no packet needs to be touched. Only this node's own addresses are node ports here:
//! another node decides about its own (S21).

use super::{Origin, ServiceCount, Tables, foreign, lookup_frontend, select::select, unserved};
use crate::abi::{
    Addr, AffinityKey, BackendFlags, BackendId, Be16, DropReason, FlowKey, Frontend, FrontendFlags, NetnsKey,
    PassReason, Peer, Proto, SettingsFlags, SocketKey, SocketPeer,
};

use bytemuck::Zeroable;

/// Memory that belongs to sockets.
pub trait Sockets {
    /// Cookie of the socket in hand.
    fn cookie(&self) -> u64;
    /// Cookie of its network namespace.
    fn netns(&self) -> u64;
    /// The address learnt for its pod.
    fn pod(&self, key: &NetnsKey) -> Option<Addr>;
    fn put_pod(&self, key: &NetnsKey, addr: &Addr);
    /// Both names of the connected socket's peer.
    fn peer(&self) -> Option<Peer>;
    fn put_peer(&self, peer: &Peer);
    /// The port that it sends from.
    fn local_port(&self) -> Be16;
    /// An unconnected socket's other name for an address.
    fn datagram(&self, key: &SocketKey) -> Option<SocketPeer>;
    fn put_datagram(&self, key: &SocketKey, value: &SocketPeer) -> bool;
}

/// An address and port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remote {
    pub addr: Addr,
    pub port: Be16,
}

/// What becomes of a call. The address that it is to have instead is left in the caller's
/// [`Remote`]: a value that only one of these had would be undefined with the others, and be read
/// from wherever the compiler likes, which the verifier refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// As the program asked.
    Untouched,
    /// To (or from) the other address.
    Translated,
    /// Fails with ECONNREFUSED.
    Refused,
    /// Fails with EPERM.
    Denied,
}

/// connect() of a TCP or UDP socket.
#[inline(always)]
pub fn connect<T: Tables, S: Sockets>(tables: &T, sockets: &S, to: &mut Remote, proto: Proto) -> Call {
    if left_to_packets(tables, sockets) {
        return Call::Untouched;
    }
    let frontend = match lookup(tables, *to, proto) {
        Some(frontend) => frontend,
        None => return without_frontend(tables, sockets, to),
    };
    if let Some(call) = fenced(tables, sockets, &frontend, to.addr.is_v4()) {
        return call;
    }
    match choose(tables, sockets, &frontend, to) {
        Ok((id, backend)) => {
            sockets.put_peer(&Peer {
                frontend: to.addr,
                backend: backend.addr,
                frontend_port: to.port,
                backend_port: backend.port,
                backend_id: id,
            });
            if proto == Proto::UDP && sockets.netns() == tables.settings().host_netns_cookie {
                // What an unconnected socket has as well: by this the agent finds the host's
                // sockets whose backend is gone (S64).
                let (cookie, pad) = (sockets.cookie(), 0);
                let Remote { addr, port } = backend;
                let key = SocketKey { cookie, addr, port, proto, reverse: 1, pad };
                sockets.put_datagram(&key, &SocketPeer { addr: to.addr, backend: id, port: to.port, pad: 0 });
            }
            *to = backend;
            Call::Translated
        }
        Err(call) => call,
    }
}

/// sendmsg() of an unconnected UDP socket: datagrams to one frontend stay on one backend as
/// long as it serves (S60, S61), also when the frontend is retired. A socket whose datagrams
/// netfilter translates since before Weir came goes on so (S82).
#[inline(always)]
pub fn sendmsg<T: Tables, S: Sockets>(tables: &T, sockets: &S, to: &mut Remote) -> Call {
    if left_to_packets(tables, sockets) {
        return Call::Untouched;
    }
    let mut frontend = Frontend::zeroed();
    if !lookup_frontend(tables, &to.addr, to.port, Proto::UDP, &mut frontend) {
        return without_frontend(tables, sockets, to);
    }
    let retired = frontend.flags.has(FrontendFlags::RETIRED);
    if !retired {
        let tuple = FlowKey {
            source: to.addr.family().any(),
            destination: to.addr,
            source_port: sockets.local_port(),
            destination_port: to.port,
            proto: Proto::UDP,
            pad: [0; 3],
        };
        if foreign::holds_socket(tables, &tuple, sockets.netns() == tables.settings().host_netns_cookie) {
            return Call::Untouched;
        }
        if let Some(call) = fenced(tables, sockets, &frontend, to.addr.is_v4()) {
            return call;
        }
    }
    let cookie = sockets.cookie();
    let mut key = SocketKey { cookie, addr: to.addr, port: to.port, proto: Proto::UDP, reverse: 0, pad: 0 };
    if let Some(known) = sockets.datagram(&key) {
        let serves = tables.backend(known.backend).is_some_and(|backend| {
            backend.service == frontend.service
                && backend.addr == known.addr
                && backend.port == known.port
                && backend.flags.has(BackendFlags::SERVING)
        });
        if serves || (frontend.inside.count == 0 && !retired) {
            *to = Remote { addr: known.addr, port: known.port };
            return Call::Translated;
        }
    }
    if retired {
        return without_frontend(tables, sockets, to);
    }
    let (id, backend) = match choose(tables, sockets, &frontend, to) {
        Ok(chosen) => chosen,
        Err(call) => return call,
    };
    sockets.put_datagram(&key, &SocketPeer { addr: backend.addr, backend: id, port: backend.port, pad: 0 });
    key.addr = backend.addr;
    key.port = backend.port;
    key.reverse = 1;
    sockets.put_datagram(&key, &SocketPeer { addr: to.addr, backend: id, port: to.port, pad: 0 });
    *to = backend;
    Call::Translated
}

/// The source of a received datagram, as the program should see it (S50).
#[inline(always)]
pub fn recvmsg<S: Sockets>(sockets: &S, from: &mut Remote) -> Call {
    if let Some(remote) = peer_name(sockets, from) {
        *from = remote;
        return Call::Translated;
    }
    let key = SocketKey {
        cookie: sockets.cookie(),
        addr: from.addr,
        port: from.port,
        proto: Proto::UDP,
        reverse: 1,
        pad: 0,
    };
    match sockets.datagram(&key) {
        Some(peer) => {
            *from = Remote { addr: peer.addr, port: peer.port };
            Call::Translated
        }
        None => Call::Untouched,
    }
}

/// The peer's name, as the program should see it.
#[inline(always)]
pub fn getpeername<S: Sockets>(sockets: &S, peer: &mut Remote) -> Call {
    match peer_name(sockets, peer) {
        Some(remote) => {
            *peer = remote;
            Call::Translated
        }
        None => Call::Untouched,
    }
}

#[inline(always)]
fn peer_name<S: Sockets>(sockets: &S, actual: &Remote) -> Option<Remote> {
    let peer = sockets.peer()?;
    // A datagram socket may have been connected elsewhere since.
    if peer.backend != actual.addr || peer.backend_port != actual.port {
        return None;
    }
    Some(Remote { addr: peer.frontend, port: peer.frontend_port })
}

/// Whether a pod's calls stay as they are, and what becomes of them is decided by packet.
#[inline(always)]
fn left_to_packets<T: Tables, S: Sockets>(tables: &T, sockets: &S) -> bool {
    let settings = tables.settings();
    settings.flags.has(SettingsFlags::HOST_SOCKETS) && sockets.netns() != settings.host_netns_cookie
}

#[inline(always)]
fn lookup<T: Tables>(tables: &T, to: Remote, proto: Proto) -> Option<Frontend> {
    let mut frontend = Frontend::zeroed();
    let found = lookup_frontend(tables, &to.addr, to.port, proto, &mut frontend);
    if !found || frontend.flags.has(FrontendFlags::RETIRED) { None } else { Some(frontend) }
}

/// What becomes of a call to an address that has no such frontend (S38). Packets of pods that go
/// to nobody are dropped on their way; those of the host meet no hook, so that its calls fail.
#[inline(always)]
fn without_frontend<T: Tables, S: Sockets>(tables: &T, sockets: &S, to: &Remote) -> Call {
    let Some(reason) = unserved(tables, &to.addr) else { return Call::Untouched };
    if reason == DropReason::UndefinedPort {
        tables.count(reason.slot());
        return Call::Refused;
    }
    if sockets.netns() != tables.settings().host_netns_cookie {
        return Call::Untouched;
    }
    tables.count(reason.slot());
    Call::Denied
}

/// What becomes of a call to a frontend with source ranges (S51), if that is decided by them; and
/// of one that has to leave with the node's address (S43, S44).
///
/// A pod's address is not known here for certain, so its packets are judged. What leaves the
/// host by itself meets no such hook: it counts as the node's primary address.
#[inline(always)]
fn fenced<T: Tables, S: Sockets>(tables: &T, sockets: &S, frontend: &Frontend, v4: bool) -> Option<Call> {
    let settings = tables.settings();
    let inside = sockets.netns() != settings.host_netns_cookie;
    // A socket keeps its own address, which nothing here could change.
    let masquerades = frontend.flags.has(FrontendFlags::MASQUERADE)
        || (settings.flags.has(SettingsFlags::MASQUERADE_ALL)
            && frontend.flags.has(FrontendFlags::CLUSTER_IP));
    if masquerades && inside {
        return Some(Call::Untouched);
    }
    if !frontend.flags.has(FrontendFlags::SOURCE_RANGES) {
        return None;
    }
    if inside {
        return Some(Call::Untouched);
    }
    let node = tables.node();
    if tables.held(frontend.service, if v4 { &node.v4 } else { &node.v6 }).is_some() {
        return None;
    }
    tables.count(DropReason::SourceRange.slot());
    tables.count_service(frontend.service, ServiceCount::Dropped);
    Some(Call::Denied)
}

#[inline(always)]
fn choose<T: Tables, S: Sockets>(
    tables: &T,
    sockets: &S,
    frontend: &Frontend,
    to: &Remote,
) -> Result<(BackendId, Remote), Call> {
    if frontend.inside.count == 0 {
        tables.count_service(frontend.service, ServiceCount::NoEndpoint);
        if frontend.flags.has(FrontendFlags::INSIDE_DROPS) {
            // No errno means "no answer": the packets go out untranslated and are dropped.
            tables.count(DropReason::NoLocalEndpoint.slot());
            return Err(Call::Untouched);
        }
        tables.count(DropReason::NoEndpoint.slot());
        return Err(Call::Refused);
    }
    let client = client(tables, sockets, to.addr.is_v4());
    match select(tables, frontend, Origin::Inside, &client, tables.random(), false) {
        Some(choice) => {
            tables.count(PassReason::Socket.slot());
            tables.count_service(frontend.service, ServiceCount::SocketFlow);
            Ok((choice.id, Remote { addr: choice.backend.addr, port: choice.backend.port }))
        }
        None => {
            tables.count(DropReason::StaleTable.slot());
            tables.count_service(frontend.service, ServiceCount::Dropped);
            Err(Call::Refused)
        }
    }
}

/// Whom a socket's owner counts as: a program of the host as the node, a pod as its address,
/// so that the packet path knows the same client (S33).
#[inline(always)]
fn client<T: Tables, S: Sockets>(tables: &T, sockets: &S, v4: bool) -> Addr {
    let netns = sockets.netns();
    if netns == tables.settings().host_netns_cookie {
        let node = tables.node();
        return if v4 { node.v4 } else { node.v6 };
    }
    match sockets.pod(&NetnsKey::new(netns, v4)) {
        Some(addr) => addr,
        None => AffinityKey::netns(netns),
    }
}

/// A TCP connection of a pod has got its source address: the first one tells the pod's
/// address, which connect() did not know, and what the pod was remembered for under its
/// namespace moves to it.
#[inline(always)]
pub fn connecting<T: Tables, S: Sockets>(tables: &T, sockets: &S, local: &Addr) {
    let netns = sockets.netns();
    let key = NetnsKey::new(netns, local.is_v4());
    if netns == tables.settings().host_netns_cookie || local.is_loopback() || sockets.pod(&key).is_some() {
        return;
    }
    sockets.put_pod(&key, local);
    let Some(backend) = sockets.peer().and_then(|peer| tables.backend(peer.backend_id)) else { return };
    let unnamed = AffinityKey { client: AffinityKey::netns(netns), service: backend.service };
    if let Some(affinity) = tables.affinity(&unnamed) {
        tables.put_affinity(&AffinityKey { client: *local, service: backend.service }, &affinity);
    }
}
