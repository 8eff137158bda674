//! Packets in pieces (S71, H46): only the first fragment has ports. What became of it is
//! remembered, and those that follow go the same way, or nowhere if it was refused.
//!
//! What is remembered is bounded, and forgets what was used least recently. Nothing but the
//! first one's ports decides where fragments go, so that one which overlaps another, or is
//! forged, reaches no other backend. Identifications come round soon between two busy hosts: a
//! first fragment that is none of ours clears what an earlier packet of the same name left.

use super::{Network, NoRoute, Scratch, Tables, Verdict, is_icmp, ticks, unserved};
use crate::abi::{DropReason, FlowFlags, FragmentFlags, NodeFlags, PassReason, Proto, timeout};
use crate::packet::{Fragment, Packet, Parsed, rewrite_later};

/// Where fragments pass. A packet may pass both hooks of one node, under one name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Ingress,
    Egress,
}

/// Remembers where a first fragment went that was translated as the flow in hand says: to
/// [`Scratch::new`]; or that it got no further (`refused`).
#[inline(always)]
pub(super) fn translated<T: Tables>(
    tables: &T,
    parsed: &Parsed,
    scratch: &mut Scratch,
    side: Side,
    refused: bool,
) {
    if parsed.fragment != Fragment::First {
        return;
    }
    name(scratch, side);
    let Scratch { own, new, fragment, follow, .. } = scratch;
    let mut flags = FragmentFlags::default();
    if refused {
        flags = FragmentFlags::REFUSED;
    }
    if own.flow.flags.has(FlowFlags::REPLY) {
        flags = flags.with(FragmentFlags::REPLY);
    }
    if own.flow.flags.has(FlowFlags::SNAT) {
        flags = flags.with(FragmentFlags::ROUTED);
    }
    follow.source = new.source;
    follow.destination = new.destination;
    follow.seen = ticks(tables);
    follow.flags = flags;
    tables.put_fragments(fragment, follow);
}

/// Remembers a first fragment that was refused; of one that is none of ours forgets what an
/// earlier packet of the same name left.
#[inline(always)]
pub(super) fn untranslated<T: Tables>(
    tables: &T,
    parsed: &Parsed,
    scratch: &mut Scratch,
    side: Side,
    refused: bool,
) {
    if parsed.fragment != Fragment::First {
        return;
    }
    name(scratch, side);
    let Scratch { fragment, follow, .. } = scratch;
    if refused {
        follow.seen = ticks(tables);
        follow.flags = FragmentFlags::REFUSED;
        tables.put_fragments(fragment, follow);
    } else {
        tables.delete_fragments(fragment);
    }
}

/// Writes what all fragments of the packet in hand have in common; its identification is there.
#[inline(always)]
fn name(scratch: &mut Scratch, side: Side) {
    let Scratch { own, fragment, .. } = scratch;
    fragment.source = own.key.source;
    fragment.destination = own.key.destination;
    // Behind an IPv6 fragment header may come another one first, and only in the first piece.
    fragment.proto = if own.key.source.is_v4() { own.key.proto } else { Proto(0) };
    fragment.leaving = u8::from(side == Side::Egress);
}

/// Finds what became of the first fragment of the packet in hand.
#[inline(always)]
fn find<T: Tables>(tables: &T, scratch: &mut Scratch, side: Side) -> bool {
    name(scratch, side);
    let Scratch { fragment, follow, .. } = scratch;
    tables.fragments(fragment, follow) && ticks(tables).since(follow.seen) <= timeout::FRAGMENTS
}

/// A fragment without ports, as it arrives.
#[inline(always)]
pub(super) fn ingress<P: Packet, T: Tables, N: Network>(
    packet: &mut P,
    parsed: &Parsed,
    tables: &T,
    network: &N,
    scratch: &mut Scratch,
) -> Verdict {
    if !find(tables, scratch, Side::Ingress) {
        return alone(tables, scratch);
    }
    let Scratch { own, follow, .. } = scratch;
    if follow.flags.has(FragmentFlags::REFUSED) {
        return Verdict::Drop(DropReason::RefusedFragment);
    }
    let reason = if follow.flags.has(FragmentFlags::REPLY) { PassReason::Reply } else { PassReason::Forward };
    if !follow.flags.has(FragmentFlags::ROUTED) {
        return turned(packet, parsed, scratch, false, Verdict::Pass(reason));
    }
    if parsed.ttl <= 1 {
        return Verdict::Drop(DropReason::TtlExceeded);
    }
    let route = match network.route(&follow.source, &follow.destination, own.key.proto) {
        Ok(route) => route,
        Err(NoRoute::Unreachable) => return Verdict::Drop(DropReason::NoRoute),
        Err(NoRoute::TooBig) => return Verdict::Drop(DropReason::FragmentationNeeded),
    };
    turned(packet, parsed, scratch, true, Verdict::Redirect(reason, route))
}

/// One whose first one has not been seen. Where only Services are it can be for nobody else, and
/// the stack would send it back to where it came from (S78); an address of the node also has
/// sockets of the host.
#[inline(always)]
fn alone<T: Tables>(tables: &T, scratch: &Scratch) -> Verdict {
    let key = &scratch.own.key;
    if key.destination.is_loopback() {
        return Verdict::Drop(DropReason::Loopback);
    }
    // What netfilter translates since before Weir came, it also puts together.
    if !is_icmp(key.proto)
        && !tables.node().flags.has(NodeFlags::FOREIGN)
        && unserved(tables, &key.destination).is_some()
    {
        return Verdict::Drop(DropReason::LostFragment);
    }
    Verdict::Pass(PassReason::Fragment)
}

/// A fragment without ports, as it leaves.
#[inline(always)]
pub(super) fn egress<P: Packet, T: Tables>(
    packet: &mut P,
    parsed: &Parsed,
    tables: &T,
    scratch: &mut Scratch,
) -> Verdict {
    if !find(tables, scratch, Side::Egress) {
        return Verdict::Pass(PassReason::Fragment);
    }
    if scratch.follow.flags.has(FragmentFlags::REFUSED) {
        return Verdict::Drop(DropReason::RefusedFragment);
    }
    turned(packet, parsed, scratch, false, Verdict::Pass(PassReason::Reply))
}

#[inline(always)]
fn turned<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    scratch: &Scratch,
    hop: bool,
    verdict: Verdict,
) -> Verdict {
    let Scratch { own, follow, .. } = scratch;
    let (old, new) = ((&own.key.source, &own.key.destination), (&follow.source, &follow.destination));
    match rewrite_later(packet, parsed.l3, old, new, hop) {
        Some(()) => verdict,
        None => Verdict::Drop(DropReason::RewriteFailed),
    }
}
