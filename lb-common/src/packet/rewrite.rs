//! The one function that changes a packet.

use super::{Delta, Packet, Parsed};
use crate::abi::{Addr, FlowKey, Proto};

/// What a packet was and becomes, and whether it is routed here (its hop limit falls) or
/// handed to the stack, which will do so itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite<'a> {
    pub from: &'a FlowKey,
    pub to: &'a FlowKey,
    pub hop: bool,
}

/// Writes the new addresses, ports and hop limit, and corrects every checksum by the
/// difference: a right sum stays right and a wrong one stays wrong (H45).
///
/// `None` when the frame refused a write; it must then be dropped.
#[inline(always)]
pub fn rewrite<P: Packet>(packet: &mut P, parsed: &Parsed, change: Rewrite<'_>) -> Option<()> {
    let (old, new) = (change.from, change.to);
    let ends = (&old.source, &old.destination);
    let addresses = addresses(packet, parsed.l3, ends, (&new.source, &new.destination), change.hop)?;
    let ports = Delta::NONE
        .half(old.source_port.wire(), new.source_port.wire())
        .half(old.destination_port.wire(), new.destination_port.wire());
    let udp = old.proto == Proto::UDP;
    let checksum = parsed.l4 + if udp { 6 } else { 16 };
    packet.correct(checksum, addresses, ports, udp)?;
    packet.store(parsed.l4, &[new.source_port.wire(), new.destination_port.wire()])
}

/// Writes the addresses, and hop limit, of a fragment that has no transport header.
#[inline(always)]
pub fn rewrite_later<P: Packet>(
    packet: &mut P,
    l3: usize,
    old: (&Addr, &Addr),
    new: (&Addr, &Addr),
    hop: bool,
) -> Option<()> {
    if old.0.is_v4() {
        // The header's sum makes up for all that changes in it.
        return addresses(packet, l3, old, new, hop).map(|_| ());
    }
    packet.store_uncovered(l3 + 8, new.0)?;
    packet.store_uncovered(l3 + 24, new.1)?;
    if hop {
        let [next, hops]: [u8; 2] = packet.load(l3 + 6)?;
        packet.store_uncovered(l3 + 6, &[next, hops.wrapping_sub(1)])?;
    }
    Some(())
}

/// Writes the addresses of the network header at `l3`, and its hop limit less one where it makes
/// a hop; an IPv4 header's own sum with them. Answers by how much the addresses differ.
#[inline(always)]
pub(super) fn addresses<P: Packet>(
    packet: &mut P,
    l3: usize,
    (old_source, old_destination): (&Addr, &Addr),
    (new_source, new_destination): (&Addr, &Addr),
    hop: bool,
) -> Option<Delta> {
    Some(if old_source.is_v4() {
        let at = l3 + 8;
        // ttl and protocol, checksum, source, destination.
        let [ttl_proto, check, ..]: [u16; 6] = packet.load(at)?;
        let [ttl, proto] = ttl_proto.to_ne_bytes();
        let new_ttl = if hop { ttl.wrapping_sub(1) } else { ttl };
        let new_ttl_proto = u16::from_ne_bytes([new_ttl, proto]);
        let addresses = Delta::NONE
            .word(old_source.v4_word(), new_source.v4_word())
            .word(old_destination.v4_word(), new_destination.v4_word());
        let check = addresses.half(ttl_proto, new_ttl_proto).apply(check);
        let first = u32::from(new_ttl_proto) << SHIFT_FIRST | u32::from(check) << SHIFT_SECOND;
        packet.store(at, &[first, new_source.v4_word(), new_destination.v4_word()])?;
        addresses
    } else {
        let mut addresses = Delta::NONE;
        let ([s0, s1, s2, s3], [t0, t1, t2, t3]) = (old_source.0, new_source.0);
        addresses = addresses.word(s0, t0).word(s1, t1).word(s2, t2).word(s3, t3);
        let ([d0, d1, d2, d3], [e0, e1, e2, e3]) = (old_destination.0, new_destination.0);
        addresses = addresses.word(d0, e0).word(d1, e1).word(d2, e2).word(d3, e3);
        if old_source != new_source {
            packet.store(l3 + 8, new_source)?;
        }
        if old_destination != new_destination {
            packet.store(l3 + 24, new_destination)?;
        }
        if hop {
            let [next, hops]: [u8; 2] = packet.load(l3 + 6)?;
            packet.store(l3 + 6, &[next, hops.wrapping_sub(1)])?;
        }
        addresses
    })
}

/// Where the first and the second 16-bit word of four bytes lie in a native integer.
const SHIFT_FIRST: u32 = if cfg!(target_endian = "little") { 0 } else { 16 };
const SHIFT_SECOND: u32 = 16 - SHIFT_FIRST;
