//! Where fragments without ports go: the way of the first one of their packet (S71).

use super::{Addr, Proto, Ticks};
use bytemuck::{Pod, Zeroable};

/// What the fragments of one packet have in common, as they arrive at a hook.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct FragmentKey {
    pub source: Addr,
    pub destination: Addr,
    /// Identification as on the wire, of 16 bits in IPv4.
    pub id: u32,
    /// In IPv4 a part of a packet's identity (RFC 791), in IPv6 zero.
    pub proto: Proto,
    /// 0: as they arrive. 1: as they leave. A packet may pass both hooks of one node.
    pub leaving: u8,
    pub pad: [u8; 2],
}

/// What became of the first one: the addresses that it was given.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Fragments {
    pub source: Addr,
    pub destination: Addr,
    /// When the first one passed.
    pub seen: Ticks,
    pub flags: FragmentFlags,
}

/// Bits of [`Fragments::flags`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct FragmentFlags(pub u32);

impl FragmentFlags {
    /// Sent past the stack, with a source of ours.
    pub const ROUTED: Self = Self(1);
    /// Backend to client.
    pub const REPLY: Self = Self(1 << 1);
    /// Refused or dropped; where it would have gone means nothing.
    pub const REFUSED: Self = Self(1 << 2);
}

super::bits!(FragmentFlags);

const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<Fragments>() == 40);
