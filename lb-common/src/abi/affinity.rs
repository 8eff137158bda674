//! Session affinity: which backend a client last used (S31 to S33).

use super::{Addr, BackendId, ServiceId};
use bytemuck::{Pod, Zeroable};

/// A client of one Service port. `client` is its address; a pod whose address the socket
/// hooks have not learnt yet is named by its network namespace instead ([`AffinityKey::netns`]).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
pub struct AffinityKey {
    pub client: Addr,
    pub service: ServiceId,
}

impl AffinityKey {
    /// The stand-in address of a network namespace: in `100::/64`, the discard prefix
    /// (RFC 6666), which no packet carries as its source.
    #[inline(always)]
    pub const fn netns(cookie: u64) -> Addr {
        Addr([0x0100_0000_u32.to_be(), 0, (cookie >> 32) as u32, cookie as u32])
    }
}

/// A network namespace and a family: what its pod's address is learnt for (S33).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
pub struct NetnsKey {
    pub cookie: u64,
    /// 4 or 6.
    pub family: u32,
    pub pad: u32,
}

impl NetnsKey {
    #[inline(always)]
    pub const fn new(cookie: u64, v4: bool) -> Self {
        Self { cookie, family: if v4 { 4 } else { 6 }, pad: 0 }
    }
}

/// The remembered backend and when a flow was last sent to it (ns, monotonic clock).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Affinity {
    pub backend: BackendId,
    pub pad: u32,
    pub seen_nanos: u64,
}

const _: () = assert!(size_of::<AffinityKey>() == 20);
const _: () = assert!(size_of::<Affinity>() == 16);
const _: () = assert!(size_of::<NetnsKey>() == 16);
