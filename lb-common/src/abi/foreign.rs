//! Flows that netfilter translates since before Weir came: kube-proxy's (S82).
//!
//! The key is the tuple as a packet of either direction arrives. A key whose source is the
//! unspecified address of its family stands for the UDP socket that sends from this port,
//! whatever its address: what is known of it in `sendmsg()`.

use super::Ticks;
use bytemuck::{Pod, Zeroable};

/// What is known of such a flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Pod, Zeroable)]
pub struct Foreign {
    /// Later than this netfilter may have forgotten it, and its packets are nobody's.
    pub until: Ticks,
    pub flags: ForeignFlags,
}

/// Bits of [`Foreign::flags`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Pod, Zeroable)]
pub struct ForeignFlags(pub u32);

impl ForeignFlags {
    /// No answer was seen yet: the SYN may come again.
    pub const OPENING: Self = Self(1);
    /// Some such flow is a program's of the host itself.
    pub const HOST: Self = Self(1 << 1);
    /// Some such flow is not.
    pub const POD: Self = Self(1 << 2);
}

super::bits!(ForeignFlags);

const _: () = assert!(size_of::<Foreign>() == 8);
