//! ICMP errors about translated packets, both ways (S70, H47): "too big" is how a sender learns
//! the path's MTU, and without it a connection through a node port stands still.
//!
//! An error is turned when the packet that it quotes belongs to a flow that is known, and when it
//! is addressed to whom that packet came from; all others, forged ones too, are left to the stack
//! untouched. It changes nothing in the flow.

use super::{Network, NoRoute, Scratch, Tables, Verdict, flows};
use crate::abi::{DropReason, FlowFlags, PassReason};
use crate::packet::{Ends, Packet, Parsed, Quoted, quoted, rewrite_error};

/// Which errors a hook turns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Ingress,
    Egress,
}

/// An ICMP packet, as it arrives.
#[inline(always)]
pub(super) fn ingress<P: Packet, T: Tables, N: Network>(
    packet: &mut P,
    parsed: &Parsed,
    tables: &T,
    network: &N,
    scratch: &mut Scratch,
) -> Verdict {
    let Some((at, ends)) = about(packet, parsed, tables, scratch, Side::Ingress) else {
        return Verdict::Pass(PassReason::OtherProtocol);
    };
    if !scratch.pair.flow.flags.has(FlowFlags::SNAT) {
        return turned(packet, parsed, &at, &ends, scratch, false, Verdict::Pass(PassReason::IcmpError));
    }
    // As with the flow's own packets: past the stack, which would take it for forged.
    if parsed.ttl <= 1 {
        return Verdict::Drop(DropReason::TtlExceeded);
    }
    let route = match network.route(&ends.source, &ends.destination, scratch.own.key.proto) {
        Ok(route) => route,
        Err(NoRoute::Unreachable) => return Verdict::Drop(DropReason::NoRoute),
        Err(NoRoute::TooBig) => return Verdict::Drop(DropReason::FragmentationNeeded),
    };
    let verdict = Verdict::Redirect(PassReason::IcmpError, route);
    turned(packet, parsed, &at, &ends, scratch, true, verdict)
}

/// An ICMP packet, as it leaves.
#[inline(always)]
pub(super) fn egress<P: Packet, T: Tables>(
    packet: &mut P,
    parsed: &Parsed,
    tables: &T,
    scratch: &mut Scratch,
) -> Verdict {
    match about(packet, parsed, tables, scratch, Side::Egress) {
        Some((at, ends)) => {
            turned(packet, parsed, &at, &ends, scratch, false, Verdict::Pass(PassReason::IcmpError))
        }
        None => Verdict::Pass(PassReason::OtherProtocol),
    }
}

/// The flow that an error is about, found in `pair`, the quoted tuple in `rival`, and what that
/// becomes in `new`.
#[inline(always)]
fn about<P: Packet, T: Tables>(
    packet: &P,
    parsed: &Parsed,
    tables: &T,
    scratch: &mut Scratch,
    side: Side,
) -> Option<(Quoted, Ends)> {
    let Scratch { own, pair, rival, new, .. } = scratch;
    let at = quoted(packet, parsed, own.key.source.is_v4(), &mut rival.key)?;
    // The packets that come back from where the quoted one went to.
    pair.key.source = rival.key.destination;
    pair.key.destination = rival.key.source;
    pair.key.source_port = rival.key.destination_port;
    pair.key.destination_port = rival.key.source_port;
    pair.key.proto = rival.key.proto;
    if own.key.destination != pair.key.destination {
        return None;
    }
    flows::find(tables, &pair.key, &mut pair.flow)?;
    let flags = pair.flow.flags;
    // A reply to a source that is not ours is turned as it leaves, and so is an error in its place.
    let leaves = flags.has(FlowFlags::REPLY) && !flags.has(FlowFlags::SNAT);
    if leaves != (side == Side::Egress) {
        return None;
    }
    new.source = pair.flow.destination;
    new.destination = pair.flow.source;
    new.source_port = pair.flow.destination_port;
    new.destination_port = pair.flow.source_port;
    new.proto = rival.key.proto;
    // A router on the way keeps its name, unless it would be a stranger beyond this node.
    let masked = flags.has(FlowFlags::REPLY) || flags.has(FlowFlags::SNAT);
    let source = if masked || own.key.source == pair.key.source { pair.flow.source } else { own.key.source };
    Some((at, Ends { source, destination: pair.flow.destination }))
}

#[inline(always)]
fn turned<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    at: &Quoted,
    ends: &Ends,
    scratch: &Scratch,
    hop: bool,
    verdict: Verdict,
) -> Verdict {
    let Scratch { own, rival, new, .. } = scratch;
    match rewrite_error(packet, parsed, at, (&own.key, ends), (&rival.key, new), hop) {
        Some(()) => verdict,
        None => Verdict::Drop(DropReason::RewriteFailed),
    }
}
