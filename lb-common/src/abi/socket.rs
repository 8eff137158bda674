//! Socket-level translation memory: who a socket talks to, under both names.

use super::{Addr, BackendId, Be16, Proto};
use bytemuck::{Pod, Zeroable};

/// One remote end of one unconnected datagram socket, or of a connected one of the host, either as the program knows it
/// (frontend) or as the packets carry it (backend).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
pub struct SocketKey {
    /// `bpf_get_socket_cookie`.
    pub cookie: u64,
    pub addr: Addr,
    pub port: Be16,
    pub proto: Proto,
    /// 0: `addr` is a frontend, the value its backend. 1: the other way round.
    pub reverse: u8,
    pub pad: u32,
}

/// The other name of a [`SocketKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct SocketPeer {
    pub addr: Addr,
    pub backend: BackendId,
    pub port: Be16,
    pub pad: u16,
}

/// Both names of a connected socket's peer, kept with the socket itself (socket storage),
/// so that it lives exactly as long and nothing can evict it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Peer {
    pub frontend: Addr,
    pub backend: Addr,
    pub frontend_port: Be16,
    pub backend_port: Be16,
    pub backend_id: BackendId,
}

const _: () = assert!(size_of::<SocketKey>() == 32);
const _: () = assert!(size_of::<SocketPeer>() == 24);
const _: () = assert!(size_of::<Peer>() == 40);
