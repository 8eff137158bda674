//! Frontends: what clients address, and the backend tables behind it.

use super::{Addr, Be16, Proto};
use bytemuck::{Pod, Zeroable};

/// A Service port: all frontends of one (namespace, name, port, protocol) share it, and
/// with it their affinity memory (S31). 0 is never given out.
pub type ServiceId = u32;

/// What a client addresses. The unspecified address of a family ([`Addr::ANY_V4`],
/// [`Addr::ANY_V6`]) stands for every node-port address of this node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
pub struct FrontendKey {
    pub addr: Addr,
    pub port: Be16,
    pub proto: Proto,
    pub pad: u8,
}

impl FrontendKey {
    #[inline(always)]
    pub const fn new(addr: Addr, port: Be16, proto: Proto) -> Self {
        Self { addr, port, proto, pad: 0 }
    }
}

/// A run of backend ids in the tables map: `slots` holds `count` ids for a random choice,
/// `maglev` holds `maglev_len` ids for a choice by hash. Both are block numbers.
/// `count` 0 is a Service without a usable endpoint; `maglev_len` 0 means that a choice by
/// hash indexes the slots.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Table {
    pub slots: u32,
    pub count: u32,
    pub maglev: u32,
    pub maglev_len: u32,
}

/// How traffic to one frontend is treated.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Frontend {
    pub service: ServiceId,
    pub flags: FrontendFlags,
    /// Seconds that a client keeps its backend (S31); 0 without affinity.
    pub affinity_seconds: u32,
    pub pad: u32,
    /// Chosen from by clients on this node: pods and host.
    pub inside: Table,
    /// Chosen from by clients that arrive over the network.
    pub outside: Table,
}

/// Bits of [`Frontend::flags`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct FrontendFlags(pub u32);

impl FrontendFlags {
    /// A ClusterIP.
    pub const CLUSTER_IP: Self = Self(1);
    /// Answers on the node's own addresses (node port).
    pub const NODE_PORT: Self = Self(1 << 1);
    /// A load-balancer address or an externalIP.
    pub const EXTERNAL: Self = Self(1 << 2);
    /// The Service is gone: no new flow; open ones live on (S65) until the agent sees none.
    pub const RETIRED: Self = Self(1 << 3);
    /// An empty `inside` table drops instead of refusing (S37).
    pub const INSIDE_DROPS: Self = Self(1 << 4);
    /// An empty `outside` table drops instead of refusing (S37).
    pub const OUTSIDE_DROPS: Self = Self(1 << 5);
    /// Only clients out of the Service's set of [prefixes](super::Prefix) may use it (S51).
    pub const SOURCE_RANGES: Self = Self(1 << 6);
    /// Clients take this node's address on their way to endpoints that are not the node itself,
    /// wherever those are (`--masquerade-external`, S44).
    pub const MASQUERADE: Self = Self(1 << 7);
}

super::bits!(FrontendFlags);

const _: () = assert!(size_of::<FrontendKey>() == 20);
const _: () = assert!(size_of::<Frontend>() == 48);
