//! Layouts of every value that crosses the kernel boundary.
//!
//! Each type is `repr(C)`, [`bytemuck::Pod`], of asserted size and without implicit
//! padding: map keys are compared as bytes. Numbers in host order are plain integers;
//! what lies on the wire is a newtype ([`Addr`], [`Be16`]). A change of a size or a
//! meaning bumps [`ABI_VERSION`], which is part of the pin path, once a version has been
//! released.

/// What every set of bits can do.
macro_rules! bits {
    ($flags:ident) => {
        impl $flags {
            /// All bits of `other` are set.
            #[inline(always)]
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            #[inline(always)]
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    };
}
use bits;

mod affinity;
mod backend;
mod conntrack;
mod counters;
mod foreign;
mod fragment;
mod net;
mod node;
mod prefix;
mod service;
mod socket;

pub use affinity::{Affinity, AffinityKey, NetnsKey};
pub use backend::{Backend, BackendFlags, BackendId};
pub use conntrack::{Flow, FlowFlags, FlowKey, Ticks, timeout};
pub use counters::{DropReason, PassReason, Reason, ServiceCounters};
pub use foreign::{Foreign, ForeignFlags};
pub use fragment::{FragmentFlags, FragmentKey, Fragments};
pub use net::{Addr, Be16, Family, Proto};
pub use node::{Device, NodeAddress, NodeConfig, NodeFlags, PortRange, Settings, SettingsFlags};
pub use prefix::{Held, Prefix, PrefixSet, prefix_set};
pub use service::{Frontend, FrontendFlags, FrontendKey, ServiceId, Table};
pub use socket::{Peer, SocketKey, SocketPeer};

/// Version of the map layouts. Part of the pin path: agents of different layouts never
/// share a map.
pub const ABI_VERSION: u32 = 1;

/// Names of the maps, as both the eBPF object and the pin folder spell them.
pub mod map {
    /// [`super::FrontendKey`] → [`super::Frontend`].
    pub const FRONTENDS: &str = "FRONTENDS";
    /// [`super::BackendId`] → [`super::Backend`]; an mmappable array.
    pub const BACKENDS: &str = "BACKENDS";
    /// Block number → [`super::TABLE_BLOCK`] backend ids; an mmappable array.
    pub const TABLES: &str = "TABLES";
    /// [`super::FlowKey`] → [`super::Flow`]: confirmed flows, never evicted.
    pub const FLOWS: &str = "FLOWS";
    /// [`super::FlowKey`] → [`super::Flow`]: opening and closing flows, least recently used go first.
    pub const TRANSIENT: &str = "TRANSIENT";
    /// [`super::FlowKey`] → [`super::Foreign`]: flows that netfilter translates.
    pub const FOREIGN: &str = "FOREIGN";
    /// [`super::FragmentKey`] → [`super::Fragments`]: packets that are in pieces.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`super::AffinityKey`] → [`super::Affinity`].
    pub const AFFINITY: &str = "AFFINITY";
    /// [`super::NetnsKey`] → [`super::Addr`]: the pod's address, learnt from its connections.
    pub const NETNS: &str = "NETNS";
    /// [`super::SocketKey`] → [`super::SocketPeer`].
    pub const SOCKETS: &str = "SOCKETS";
    /// Connected socket → [`super::Peer`] (socket storage).
    pub const PEERS: &str = "PEERS";
    /// [`super::Addr`] → [`super::NodeAddress`]: addresses of this node, followed live.
    pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
    /// Interface index → [`super::Device`].
    pub const DEVICES: &str = "DEVICES";
    /// One [`super::NodeConfig`], changed while running.
    pub const NODE: &str = "NODE";
    /// Per-CPU `u64` by [`super::Reason::slot`].
    pub const COUNTERS: &str = "COUNTERS";
    /// [`super::ServiceId`] → [`super::ServiceCounters`]; an mmappable array.
    pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
    /// [`super::Prefix`] → [`super::Held`]: sets of addresses, looked up by the longest prefix.
    pub const PREFIXES: &str = "PREFIXES";
    /// Every map that outlives an agent.
    pub const PINNED: [&str; 17] = [
        FRONTENDS,
        BACKENDS,
        TABLES,
        FLOWS,
        TRANSIENT,
        FOREIGN,
        FRAGMENTS,
        AFFINITY,
        NETNS,
        SOCKETS,
        PEERS,
        NODE_ADDRESSES,
        DEVICES,
        NODE,
        COUNTERS,
        SERVICE_COUNTERS,
        PREFIXES,
    ];
}

/// Backend ids in one block of [`map::TABLES`]. A block is one array element, so that an
/// index into it needs no division and no bound that the verifier cannot see.
pub const TABLE_BLOCK: usize = 16;

/// Capacities that the object is built with; the agent overrides them at load.
pub mod capacity {
    pub const FRONTENDS: usize = 262_144;
    pub const BACKENDS: usize = 131_072;
    pub const TABLE_BLOCKS: usize = 262_144;
    pub const FLOWS: usize = 262_144;
    pub const TRANSIENT: usize = 65_536;
    pub const FOREIGN: usize = 262_144;
    pub const FRAGMENTS: usize = 8_192;
    pub const AFFINITY: usize = 65_536;
    pub const NETNS: usize = 4_096;
    pub const SOCKETS: usize = 65_536;
    pub const NODE_ADDRESSES: usize = 4_096;
    pub const DEVICES: usize = 4_096;
    pub const SERVICES: usize = 65_536;
    pub const PREFIXES: usize = 65_536;
}
