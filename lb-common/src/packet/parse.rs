//! From bytes to a flow's tuple, or the reason why not.
//!
//! Every length is checked against the frame's real one before anything behind it is read.
//! A frame whose fields contradict each other is left to the stack, never rewritten (H44,
//! H45).

use super::Packet;
use crate::abi::{Addr, Be16, FlowKey, PassReason, Proto};
use bytemuck::{Pod, Zeroable};

/// TCP flag bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;

    /// Opens a connection: SYN alone.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    #[inline(always)]
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }
}

/// Whether the packet is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    Whole,
    /// Carries the ports; others follow.
    First,
    /// Has no ports; those of its tuple mean nothing.
    Later,
}

/// A TCP or UDP packet, or a piece of any, as far as the path needs it beside its tuple.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the transport header.
    pub l4: usize,
    pub fragment: Fragment,
    /// Zero for UDP.
    pub tcp: TcpFlags,
    /// TCP sequence and acknowledgement numbers in host order.
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Hop limit.
    pub ttl: u8,
    /// IPv4 with options, which a generated error does not repeat.
    pub options: bool,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_len: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    proto: u8,
    check: u16,
    source: u32,
    destination: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Ipv6 {
    version_class: u32,
    payload_len: u16,
    next: u8,
    hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Tcp {
    source_port: u16,
    destination_port: u16,
    sequence: u32,
    acknowledgement: u32,
    offset: u8,
    flags: u8,
    window: u16,
}

const ETHERTYPE_V4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_V6: u16 = 0x86dd_u16.to_be();
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const V6_HEADER: usize = 40;
/// The extension header of fragments, which has one length.
const FRAGMENT: u8 = 44;
const FRAGMENT_HEADER: usize = 8;
/// Extension headers that are walked, and how far: more than any host sends, and a bound
/// that the verifier can see.
const MAX_EXTENSIONS: usize = 6;
const MAX_EXTENSION_BYTES: usize = 256;

/// What the network header says beside the addresses.
struct Network {
    proto: u8,
    ttl: u8,
    l4: usize,
    /// End of the IP packet; the frame may be longer (padding).
    end: usize,
    more_fragments: bool,
    later_fragment: bool,
    options: bool,
}

/// Reads the headers of a frame, its tuple into `tuple` (whose padding is zero and stays so), and
/// of a fragment the identification into `id`: what all fragments of its packet have in common.
///
/// # Errors
/// The reason to leave the frame to the stack; `tuple` is then of no use.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, tuple: &mut FlowKey, id: &mut u32) -> Result<Parsed, PassReason> {
    let l3 = packet.link_header();
    let v4 = if l3 == 0 {
        match packet.load::<[u8; 2]>(0) {
            Some([first, _]) if first >> 4 == 4 => true,
            Some([first, _]) if first >> 4 == 6 => false,
            _ => return Err(PassReason::NotIp),
        }
    } else {
        match packet.load::<u16>(l3 - 2) {
            Some(ETHERTYPE_V4) => true,
            Some(ETHERTYPE_V6) => false,
            _ => return Err(PassReason::NotIp),
        }
    };
    let network = if v4 { ipv4(packet, l3, tuple, id)? } else { ipv6(packet, l3, tuple, id)? };
    let (l4, end) = (network.l4, network.end);
    tuple.proto = Proto(network.proto);
    let mut parsed = Parsed {
        l3,
        l4,
        fragment: if network.more_fragments { Fragment::First } else { Fragment::Whole },
        tcp: TcpFlags(0),
        sequence: 0,
        acknowledgement: 0,
        ttl: network.ttl,
        options: network.options,
    };
    if network.later_fragment {
        parsed.fragment = Fragment::Later;
        tuple.source_port = Be16::from_wire(0);
        tuple.destination_port = Be16::from_wire(0);
        return Ok(parsed);
    }
    match Proto(network.proto) {
        Proto::TCP => {
            if l4 + TCP_HEADER > end {
                return Err(PassReason::Malformed);
            }
            let tcp: Tcp = packet.load(l4).ok_or(PassReason::Malformed)?;
            let header = ((tcp.offset >> 4) as usize) * 4;
            if header < TCP_HEADER || (l4 + header > end && !network.more_fragments) {
                return Err(PassReason::Malformed);
            }
            tuple.source_port = Be16::from_wire(tcp.source_port);
            tuple.destination_port = Be16::from_wire(tcp.destination_port);
            parsed.tcp = TcpFlags(tcp.flags);
            parsed.sequence = u32::from_be(tcp.sequence);
            parsed.acknowledgement = u32::from_be(tcp.acknowledgement);
        }
        Proto::UDP => {
            if l4 + UDP_HEADER > end {
                return Err(PassReason::Malformed);
            }
            let udp: [u16; 4] = packet.load(l4).ok_or(PassReason::Malformed)?;
            let [source_port, destination_port, length, _] = udp;
            let length = u16::from_be(length) as usize;
            // Length 0 is a jumbogram or a big GSO frame (RFC 2675); a first fragment
            // carries only part of its datagram.
            let fits = l4 + length <= end || network.more_fragments;
            if (length < UDP_HEADER || !fits) && !(length == 0 && end - l4 > 0xffff) {
                return Err(PassReason::Malformed);
            }
            tuple.source_port = Be16::from_wire(source_port);
            tuple.destination_port = Be16::from_wire(destination_port);
        }
        // Looked at for the packet that an error quotes, without ports of their own.
        Proto::ICMP | Proto::ICMPV6
            if v4 == (network.proto == Proto::ICMP.0)
                && !network.more_fragments
                && l4 + UDP_HEADER <= end =>
        {
            tuple.source_port = Be16::from_wire(0);
            tuple.destination_port = Be16::from_wire(0);
        }
        _ => return Err(PassReason::OtherProtocol),
    }
    Ok(parsed)
}

/// What an ICMP error quotes of a transport header.
pub(super) struct QuotedPorts {
    pub(super) l4: usize,
    pub(super) ports: [Be16; 2],
    pub(super) proto: Proto,
}

/// Reads the IPv4 header that an error quotes at `l3`. The quote ends early: of its lengths
/// nothing is believed.
#[inline(always)]
pub(super) fn quoted_v4<P: Packet>(packet: &P, l3: usize, tuple: &mut FlowKey) -> Option<QuotedPorts> {
    let ip: Ipv4 = packet.load(l3)?;
    let header = ((ip.version_ihl & 0xf) as usize) * 4;
    let later = u16::from_be(ip.fragment) & 0x1fff != 0;
    if ip.version_ihl >> 4 != 4 || header < 20 || later {
        return None;
    }
    tuple.source = Addr::from_v4_word(ip.source);
    tuple.destination = Addr::from_v4_word(ip.destination);
    ports(packet, l3 + header, ip.proto)
}

/// The same of an IPv6 header without extensions, but for that of a first fragment: "too big" is
/// about fragments as well.
#[inline(always)]
pub(super) fn quoted_v6<P: Packet>(packet: &P, l3: usize, tuple: &mut FlowKey) -> Option<QuotedPorts> {
    let ip: Ipv6 = packet.load(l3)?;
    tuple.source = Addr(ip.source);
    tuple.destination = Addr(ip.destination);
    if u32::from_be(ip.version_class) >> 28 != 6 || tuple.source.is_v4() || tuple.destination.is_v4() {
        return None;
    }
    if ip.next != FRAGMENT {
        return ports(packet, l3 + V6_HEADER, ip.next);
    }
    let [next, _, high, low]: [u8; 4] = packet.load(l3 + V6_HEADER)?;
    if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
        return None;
    }
    ports(packet, l3 + V6_HEADER + FRAGMENT_HEADER, next)
}

#[inline(always)]
fn ports<P: Packet>(packet: &P, l4: usize, proto: u8) -> Option<QuotedPorts> {
    let proto = Proto(proto);
    if proto != Proto::TCP && proto != Proto::UDP {
        return None;
    }
    let [source, destination]: [u16; 2] = packet.load(l4)?;
    Some(QuotedPorts { l4, ports: [Be16::from_wire(source), Be16::from_wire(destination)], proto })
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, l3: usize, tuple: &mut FlowKey, id: &mut u32) -> Result<Network, PassReason> {
    let ip: Ipv4 = packet.load(l3).ok_or(PassReason::Malformed)?;
    let header = ((ip.version_ihl & 0xf) as usize) * 4;
    let available = packet.len() - l3;
    let total = match u16::from_be(ip.total_len) as usize {
        // A GSO frame above 64 KiB (BIG TCP) carries 0 here.
        0 if available > 0xffff => available,
        total => total,
    };
    if ip.version_ihl >> 4 != 4 || header < 20 || total < header || total > available {
        return Err(PassReason::Malformed);
    }
    let fragment = u16::from_be(ip.fragment);
    if fragment & 0x3fff != 0 {
        *id = ip.id.into();
    }
    tuple.source = Addr::from_v4_word(ip.source);
    tuple.destination = Addr::from_v4_word(ip.destination);
    Ok(Network {
        proto: ip.proto,
        ttl: ip.ttl,
        l4: l3 + header,
        end: l3 + total,
        more_fragments: fragment & 0x2000 != 0,
        later_fragment: fragment & 0x1fff != 0,
        options: header > 20,
    })
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, l3: usize, tuple: &mut FlowKey, id: &mut u32) -> Result<Network, PassReason> {
    let ip: Ipv6 = packet.load(l3).ok_or(PassReason::Malformed)?;
    let available = packet.len() - l3;
    let total = match u16::from_be(ip.payload_len) as usize {
        // A jumbogram or a GSO frame above 64 KiB carries 0 here.
        0 if available > 0xffff + V6_HEADER => available,
        payload => payload + V6_HEADER,
    };
    if u32::from_be(ip.version_class) >> 28 != 6 || total > available {
        return Err(PassReason::Malformed);
    }
    let mut next = ip.next;
    let mut skip = 0usize;
    let (mut more_fragments, mut later_fragment) = (false, false);
    for _ in 0..MAX_EXTENSIONS {
        // Hop-by-hop, routing, fragment, destination options; anything else ends the walk.
        if next != 0 && next != 43 && next != FRAGMENT && next != 60 {
            break;
        }
        let at = l3 + V6_HEADER + skip;
        if at + 8 > l3 + total {
            return Err(PassReason::Malformed);
        }
        let head: [u8; 4] = packet.load(at).ok_or(PassReason::Malformed)?;
        let [following, length, high, low] = head;
        if next == FRAGMENT {
            let fragment = u16::from_be_bytes([high, low]);
            *id = packet.load(at + 4).ok_or(PassReason::Malformed)?;
            skip += FRAGMENT_HEADER;
            if fragment & 0xfff8 != 0 {
                // What follows is no header.
                later_fragment = true;
                next = following;
                break;
            }
            more_fragments |= fragment & 1 != 0;
        } else {
            // Segments left: the destination is a stop on the way, and the checksum covers
            // another (RFC 8200 4.4, 8.1).
            if next == 43 && low != 0 {
                return Err(PassReason::OtherProtocol);
            }
            skip += 8 + (length as usize) * 8;
        }
        if skip > MAX_EXTENSION_BYTES {
            return Err(PassReason::Malformed);
        }
        next = following;
    }
    tuple.source = Addr(ip.source);
    tuple.destination = Addr(ip.destination);
    // On the wire the mapped form is no IPv4 address and must not pass for one.
    if tuple.source.is_v4() || tuple.destination.is_v4() {
        return Err(PassReason::Malformed);
    }
    Ok(Network {
        proto: next,
        ttl: ip.hops,
        l4: l3 + V6_HEADER + skip,
        end: l3 + total,
        more_fragments,
        later_fragment,
        options: skip > 0,
    })
}
