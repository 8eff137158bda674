//! Flow memory: one entry per direction, each holding what its packets become.
//!
//! An entry's key is the tuple as a packet of its direction arrives; its value is that
//! tuple after translation. So the key of the other direction is the translated tuple
//! reversed, and either entry finds the other.

use super::{Addr, BackendId, Be16, Proto, ServiceId};
use bytemuck::{Pod, Zeroable};

/// A flow's tuple as seen on one side of the translation.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct FlowKey {
    pub source: Addr,
    pub destination: Addr,
    pub source_port: Be16,
    pub destination_port: Be16,
    pub proto: Proto,
    pub pad: [u8; 3],
}

impl FlowKey {
    /// The tuple of the packets that come back.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            proto: self.proto,
            pad: [0; 3],
        }
    }

    /// Becomes the key of the entry that is the other direction of `flow`. The padding stays
    /// as it is: zero, as in every key.
    #[inline(always)]
    pub fn set_pair(&mut self, flow: &Flow, proto: Proto) {
        self.source = flow.destination;
        self.destination = flow.source;
        self.source_port = flow.destination_port;
        self.destination_port = flow.source_port;
        self.proto = proto;
    }

    /// Becomes the tuple that `flow`'s packets have after translation.
    #[inline(always)]
    pub fn set_translated(&mut self, flow: &Flow, proto: Proto) {
        self.source = flow.source;
        self.destination = flow.destination;
        self.source_port = flow.source_port;
        self.destination_port = flow.destination_port;
        self.proto = proto;
    }
}

/// What packets of one direction become, and the state of the flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Flow {
    pub source: Addr,
    pub destination: Addr,
    pub source_port: Be16,
    pub destination_port: Be16,
    pub service: ServiceId,
    pub backend: BackendId,
    /// When a packet of this direction was last seen.
    pub seen: Ticks,
    /// While [`FlowFlags::HANDSHAKE`] is set on a reply entry: the acknowledgement number
    /// (host order) that proves that the client saw the server's SYN-ACK.
    pub expected_ack: u32,
    pub flags: FlowFlags,
    pub pad: u16,
}

impl Flow {
    /// The key of the other direction's entry, given this one's protocol.
    #[inline(always)]
    pub fn pair(&self, proto: Proto) -> FlowKey {
        let mut key = FlowKey::default();
        key.set_pair(self, proto);
        key
    }
}

/// Bits of [`Flow::flags`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct FlowFlags(pub u16);

impl FlowFlags {
    /// Backend to client. Without it: client to backend.
    pub const REPLY: Self = Self(1);
    /// The flow has a source of ours (another node's backend, or hairpin): its replies come
    /// to this node and are turned on ingress. Without it they are turned on egress.
    pub const SNAT: Self = Self(1 << 1);
    /// This direction has been seen.
    pub const SEEN: Self = Self(1 << 2);
    /// This direction has sent its FIN.
    pub const FIN: Self = Self(1 << 3);
    /// A RST was seen; a packet that follows clears it.
    pub const RST: Self = Self(1 << 4);
    /// The SYN-ACK passed and its acknowledgement is awaited.
    pub const HANDSHAKE: Self = Self(1 << 5);
    /// The backend is on this node: packets go through the stack, not past it.
    pub const LOCAL: Self = Self(1 << 6);
    /// The client is on this node.
    pub const INSIDE: Self = Self(1 << 7);
    /// On the entry from client to backend: the flow is, or was, in the confirmed map.
    pub const CONFIRMED: Self = Self(1 << 8);

    #[inline(always)]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

super::bits!(FlowFlags);

/// Coarse monotonic time in units of 2^30 ns (1.07 s): wraps after 146 years.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Pod, Zeroable)]
pub struct Ticks(pub u32);

impl Ticks {
    #[inline(always)]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self((nanos >> 30) as u32)
    }

    /// Ticks in so many seconds, rounded up.
    pub const fn in_seconds(seconds: u64) -> u32 {
        (((seconds * 1_000_000_000) >> 30) + 1) as u32
    }

    /// How long ago `earlier` was; 0 when it is later, as it may be on another CPU.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Idle times after which a flow is over, in [`Ticks`] (netfilter's defaults, S67).
pub mod timeout {
    use super::Ticks;
    /// TCP, established.
    pub const TCP: u32 = Ticks::in_seconds(86_400);
    /// TCP with one FIN seen (kube-proxy's CLOSE_WAIT timeout).
    pub const TCP_HALF_CLOSED: u32 = Ticks::in_seconds(3_600);
    /// UDP with a reply.
    pub const UDP: u32 = Ticks::in_seconds(120);
    /// UDP without one.
    pub const UDP_UNREPLIED: u32 = Ticks::in_seconds(30);
    /// Fragments of one packet: as long as Linux waits for all of them in IPv4.
    pub const FRAGMENTS: u32 = Ticks::in_seconds(30);
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<Flow>() == 56);
