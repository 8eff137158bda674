//! ICMP errors: the packet that one is about, and both packets' translation (RFC 792, RFC 4443).
//!
//! An error quotes the beginning of a packet as its sender met it. Where that packet had been
//! translated, the error means nothing to whoever sent the original: addresses and ports are
//! turned inside and outside, with every checksum that is there (S70).

use super::parse::{QuotedPorts, quoted_v4, quoted_v6};
use super::rewrite::addresses;
use super::{Delta, Packet, Parsed};
use crate::abi::{Addr, FlowKey, Proto};

/// Length of an ICMP header: the quote follows.
const ICMP_HEADER: usize = 8;

/// Where the quoted headers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quoted {
    pub l3: usize,
    pub l4: usize,
}

/// Reads what an ICMP error is about into `tuple`; `None` when the packet is no error, or is about
/// no TCP or UDP packet whose ports it quotes.
#[inline(always)]
pub fn quoted<P: Packet>(packet: &P, parsed: &Parsed, v4: bool, tuple: &mut FlowKey) -> Option<Quoted> {
    let [kind, _]: [u8; 2] = packet.load(parsed.l4)?;
    let l3 = parsed.l4 + ICMP_HEADER;
    // Unreachable and too big, time exceeded, parameter problem. A redirect is for this hop alone.
    let QuotedPorts { l4, ports, proto } = if v4 {
        if kind != 3 && kind != 11 && kind != 12 {
            return None;
        }
        quoted_v4(packet, l3, tuple)?
    } else {
        if kind == 0 || kind > 4 {
            return None;
        }
        quoted_v6(packet, l3, tuple)?
    };
    tuple.proto = proto;
    let [source, destination] = ports;
    tuple.source_port = source;
    tuple.destination_port = destination;
    Some(Quoted { l3, l4 })
}

/// What an error's own addresses become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    pub source: Addr,
    pub destination: Addr,
}

/// Turns an error and what it quotes. Sums are corrected by the difference, those of the quote
/// too, as far as it goes.
///
/// `None` when the frame refused a write; it must then be dropped.
#[inline(always)]
pub fn rewrite_error<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    at: &Quoted,
    outer: (&FlowKey, &Ends),
    inner: (&FlowKey, &FlowKey),
    hop: bool,
) -> Option<()> {
    let (old, new) = inner;
    let v4 = old.source.is_v4();
    let quoted =
        addresses(packet, at.l3, (&old.source, &old.destination), (&new.source, &new.destination), false)?;
    let mut transport = Delta::NONE
        .half(old.source_port.wire(), new.source_port.wire())
        .half(old.destination_port.wire(), new.destination_port.wire());
    packet.store(at.l4, &[new.source_port.wire(), new.destination_port.wire()])?;
    // The quoted packet's own sum, where it is quoted at all.
    let udp = old.proto == Proto::UDP;
    let sum = at.l4 + if udp { 6 } else { 16 };
    if let Some(check) = packet.load::<u16>(sum)
        && !(udp && check == 0)
    {
        let corrected = quoted.and(transport).apply(check);
        let corrected = if udp && corrected == 0 { 0xffff } else { corrected };
        packet.store(sum, &corrected)?;
        transport = transport.half(check, corrected);
    }
    // An IPv4 header sums up to the same after its own sum was corrected.
    let fields = if v4 { transport } else { transport.and(quoted) };
    let (from, to) = outer;
    let ends =
        addresses(packet, parsed.l3, (&from.source, &from.destination), (&to.source, &to.destination), hop)?;
    // ICMPv6 sums up addresses, ICMP does not.
    let pseudo = if v4 { Delta::NONE } else { ends };
    packet.correct(parsed.l4 + 2, pseudo, fields, false)
}
