//! Backends: one endpoint of one Service port.

use super::{Addr, Be16, Proto, ServiceId};
use bytemuck::{Pod, Zeroable};

/// Index into the backends map. 0 is never given out, so that a zeroed table slot names
/// nobody. An id is used again only after a pause, and a stale one is harmless: a UDP flow
/// compares Service and address as well, and affinity the Service and the set; so an affinity
/// whose id was given to another endpoint of the same Service means that one from then on.
pub type BackendId = u32;

/// An endpoint of one Service port. Endpoints shared by two Services are two backends.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Backend {
    pub addr: Addr,
    pub service: ServiceId,
    pub port: Be16,
    pub proto: Proto,
    pub flags: BackendFlags,
}

/// Bits of [`Backend::flags`]; none set means that the id is free.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct BackendFlags(pub u8);

impl BackendFlags {
    /// In the Service's `inside` set: a remembered client may go on using it (S32).
    pub const INSIDE: Self = Self(1);
    /// In the Service's `outside` set of external frontends (S32).
    pub const OUTSIDE: Self = Self(1 << 1);
    /// Still serving: open UDP flows stay on it (S60).
    pub const SERVING: Self = Self(1 << 2);
    /// On this node (S7): reached through the stack, client address kept.
    pub const LOCAL: Self = Self(1 << 3);
    /// In the set of the ClusterIP frontend, where its policy differs from the external one.
    pub const CLUSTER: Self = Self(1 << 4);
}

super::bits!(BackendFlags);

const _: () = assert!(size_of::<Backend>() == 24);
