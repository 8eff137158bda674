//! Socket-level translation memory: datagram sockets and names of peers.

use super::{Addr, BackendId, Be16, Proto};
use bytemuck::{Pod, Zeroable};

/// One remote end of one socket, either as the program knows it (frontend) or as the
/// packets carry it (backend).
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

const _: () = assert!(size_of::<SocketKey>() == 32);
const _: () = assert!(size_of::<SocketPeer>() == 24);
