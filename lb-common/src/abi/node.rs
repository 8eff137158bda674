//! What the data path knows about its node: settings fixed at load, and live facts.

use super::{Addr, Be16};
use bytemuck::{Pod, Zeroable};

/// A closed range of ports in host order; empty when `first` is above `last`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub const EMPTY: Self = Self { first: 1, last: 0 };

    #[inline(always)]
    pub const fn contains(self, port: Be16) -> bool {
        let port = port.get();
        self.first <= port && port <= self.last
    }

    /// Number of ports in the range.
    #[inline(always)]
    pub const fn len(self) -> u32 {
        if self.first > self.last { 0 } else { self.last as u32 - self.first as u32 + 1 }
    }

    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Constants of one load of the programs (`.rodata`, frozen): the verifier prunes what
/// they switch off.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Settings {
    /// Cookie of the host's network namespace, to tell host sockets from pods'.
    pub host_netns_cookie: u64,
    pub flags: SettingsFlags,
    /// Seed of the flow hash: the same on all nodes (decision 6).
    pub hash_seed: u32,
    /// Source ports that translated flows use, `--snat-port-range`.
    pub snat: [PortRange; 2],
    /// Holds the source ports of flows that were translated when `snat` was another range.
    pub earlier: PortRange,
    pub pad: u32,
}

/// Bits of [`Settings::flags`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct SettingsFlags(pub u32);

impl SettingsFlags {
    /// aya-log lines are emitted (`--bpf-log`).
    pub const LOG: Self = Self(1);
    /// The kernel has `bpf_set_retval` (5.18), so a refused connect says ECONNREFUSED.
    pub const SET_RETVAL: Self = Self(1 << 1);
    /// `bpf_l4_csum_replace` knows `BPF_F_IPV6` (6.16 and stable kernels of that time).
    pub const CSUM_IPV6: Self = Self(1 << 2);
    /// All traffic to ClusterIPs is masqueraded (`--masquerade-all`, S43).
    pub const MASQUERADE_ALL: Self = Self(1 << 3);
    /// Traffic to ClusterIPs from others than pods is masqueraded (`--cluster-cidr`, S43).
    pub const CLUSTER_CIDR: Self = Self(1 << 4);
    /// Sockets of the host alone are translated, pods' packets on their way (`--socket-lb host`).
    pub const HOST_SOCKETS: Self = Self(1 << 5);
}

super::bits!(SettingsFlags);

/// Live facts about the node, written by the agent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct NodeConfig {
    /// The node's primary address of each family; unspecified where it has none. What a
    /// host-network client counts as (S33).
    pub v4: Addr,
    pub v6: Addr,
    /// Smallest range that holds every programmed node port: a quick no for the rest.
    pub node_ports: PortRange,
    pub flags: NodeFlags,
}

/// Bits of [`NodeConfig::flags`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct NodeFlags(pub u32);

impl NodeFlags {
    /// netfilter translates flows of ours since before Weir: they are in
    /// [`FOREIGN`](super::map::FOREIGN) and left to it (S82).
    pub const FOREIGN: Self = Self(1);
    /// That map may lack some yet: every TCP packet in mid-flow whose flow is not known is left
    /// to netfilter.
    pub const HOLD: Self = Self(1 << 1);
}

super::bits!(NodeFlags);

/// An address of this node, as found in its local routing table.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct NodeAddress {
    /// 1: node ports answer on it (`--nodeport-addresses`).
    pub node_port: u32,
}

/// A network device, by interface index.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Device {
    /// Address that flows leaving over this device are masqueraded to; unspecified: the
    /// node's primary one.
    pub v4: Addr,
    pub v6: Addr,
}

const _: () = assert!(size_of::<Settings>() == 32);
const _: () = assert!(size_of::<NodeConfig>() == 40);
const _: () = assert!(size_of::<Device>() == 32);
