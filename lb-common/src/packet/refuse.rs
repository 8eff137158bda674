//! Answers a packet so that its sender sees ECONNREFUSED at once (S35): a SYN with a RST,
//! all else with ICMP "port unreachable" (RFC 792, RFC 4443 3.1).
//!
//! A SYN is not answered with ICMP although kube-proxy does so: an error that arrives while
//! connect() still holds the socket, as it can between a pod and its node, is only noted by
//! Linux, and the client waits a second for its next try.

use super::{Delta, Fragment, Packet, Parsed, TcpFlags, checksum::fold};
use crate::abi::{FlowKey, Proto};

/// The frame is now an answer to its sender, to go out where it came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answered;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
/// What is repeated of the transport header. The whole TCP header, because the kernel does
/// not cut a frame whose checksum is still to be filled in (CHECKSUM_PARTIAL) before that.
const TCP_QUOTE: usize = 20;
const UDP_QUOTE: usize = 8;
const ICMP_HEADER: usize = 8;

/// Turns the frame into the answer. The sender of the answer is the address that refused.
///
/// `None` when the frame cannot be reshaped, or has IP options or extension headers: it is
/// then dropped, as it would be anyway.
#[inline(always)]
pub fn refuse<P: Packet>(packet: &mut P, parsed: &Parsed, tuple: &FlowKey) -> Option<Answered> {
    // A RST made of a fragment would be one, too, and never be put together.
    if parsed.tcp.opens() && parsed.fragment == Fragment::Whole {
        return reset(packet, parsed, tuple);
    }
    if parsed.options {
        return None;
    }
    let l3 = parsed.l3;
    let quote = if tuple.proto == Proto::TCP { TCP_QUOTE } else { UDP_QUOTE };
    let v4 = tuple.source.is_v4();
    let ip = if v4 { V4_HEADER } else { V6_HEADER };
    packet.reshape(l3 + ip + quote, l3, ip + ICMP_HEADER)?;
    swap_link_addresses(packet)?;
    let inner = l3 + ip + ICMP_HEADER;
    let payload = ip + quote;
    // The quoted transport header is summed by length, so that every read is of constant size.
    let transport: [u32; 2] = packet.load(inner + ip)?;
    let mut quoted = words(&transport);
    if quote == TCP_QUOTE {
        let rest: [u32; 3] = packet.load(inner + ip + UDP_QUOTE)?;
        quoted += words(&rest);
    }
    if v4 {
        let header: [u32; 5] = packet.load(inner)?;
        quoted += words(&header);
        let kind = u32::from_be_bytes([3, 3, 0, 0]).to_be();
        let check = !fold(quoted + u64::from(kind));
        let icmp = u32::from_be_bytes([3, 3, 0, 0]).to_be() | with_check(check);
        packet.store(l3 + ip, &[icmp, 0])?;
        let [_, _, _, source, destination] = header;
        let first = u32::from_be_bytes([0x45, 0, 0, (V4_HEADER + ICMP_HEADER + payload) as u8]).to_be();
        let hop = u32::from_be_bytes([HOPS, Proto::ICMP.0, 0, 0]).to_be();
        let sum = words(&[first, 0, hop, destination, source]);
        let hop = hop | with_check(!fold(sum));
        packet.store(l3, &[first, 0, hop, destination, source])?;
    } else {
        let head: [u32; 2] = packet.load(inner)?;
        let addresses: [u32; 8] = packet.load(inner + 8)?;
        let length = (ICMP_HEADER + payload) as u32;
        let kind = u32::from_be_bytes([1, 4, 0, 0]).to_be();
        // Pseudo-header: both addresses, length, next header 58.
        let pseudo = words(&addresses) + words(&[length.to_be(), u32::from(Proto::ICMPV6.0).to_be()]);
        quoted += words(&head) + words(&addresses);
        let check = !fold(quoted + pseudo + u64::from(kind));
        packet.store(l3 + ip, &[kind | with_check(check), 0])?;
        let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
        let [a, b] = (length as u16).to_be_bytes();
        packet.store(l3, &[0x60, 0, 0, 0, a, b, Proto::ICMPV6.0, HOPS])?;
        packet.store(l3 + 8, &[d0, d1, d2, d3, s0, s1, s2, s3])?;
    }
    Some(Answered)
}

/// Turns a SYN into the RST that a closed port would answer (RFC 9293 3.10.7.1). Its options
/// stay, so that no byte moves and every checksum is corrected by what changed.
#[inline(always)]
fn reset<P: Packet>(packet: &mut P, parsed: &Parsed, tuple: &FlowKey) -> Option<Answered> {
    swap_link_addresses(packet)?;
    let l3 = parsed.l3;
    if tuple.source.is_v4() {
        let [ttl_proto, check]: [u16; 2] = packet.load(l3 + 8)?;
        let new = u16::from_ne_bytes([HOPS, Proto::TCP.0]);
        let check = Delta::NONE.half(ttl_proto, new).apply(check);
        packet.store(l3 + 8, &[new, check])?;
        packet.store(l3 + 12, &[tuple.destination.v4_word(), tuple.source.v4_word()])?;
    } else {
        let [next, _]: [u8; 2] = packet.load(l3 + 6)?;
        packet.store(l3 + 6, &[next, HOPS])?;
        packet.store(l3 + 8, &tuple.destination)?;
        packet.store(l3 + 24, &tuple.source)?;
    }
    let l4 = parsed.l4;
    let [sequence, acknowledgement]: [u32; 2] = packet.load(l4 + 4)?;
    let [offset_flags, window]: [u16; 2] = packet.load(l4 + 12)?;
    let [offset, _] = offset_flags.to_ne_bytes();
    let new_flags = u16::from_ne_bytes([offset & 0xf0, TcpFlags::RST | TcpFlags::ACK]);
    let new_acknowledgement = parsed.sequence.wrapping_add(1).to_be();
    // The ports change places, as the addresses did: neither changes the sum.
    let fields = Delta::NONE
        .word(sequence, 0)
        .word(acknowledgement, new_acknowledgement)
        .half(offset_flags, new_flags)
        .half(window, 0);
    packet.correct(l4 + 16, Delta::NONE, fields, false)?;
    packet.store(l4, &[tuple.destination_port.wire(), tuple.source_port.wire()])?;
    packet.store(l4 + 4, &[0, new_acknowledgement])?;
    packet.store(l4 + 12, &[new_flags, 0])?;
    Some(Answered)
}

/// Hop limit of what is sent from here.
const HOPS: u8 = 64;

/// Sends the frame back where it came from.
#[inline(always)]
fn swap_link_addresses<P: Packet>(packet: &mut P) -> Option<()> {
    if packet.link_header() == 0 {
        return Some(());
    }
    let [d0, d1, d2, s0, s1, s2]: [u16; 6] = packet.load(0)?;
    packet.store(0, &[s0, s1, s2, d0, d1, d2])
}

/// A checksum as the last two of four bytes in memory.
#[inline(always)]
const fn with_check(check: u16) -> u32 {
    if cfg!(target_endian = "little") { (check as u32) << 16 } else { check as u32 }
}

#[inline(always)]
fn words<const N: usize>(words: &[u32; N]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum
}
