//! Backend to client.

use super::{Network, Place, Scratch, Tables, Verdict, flows, forward};
use crate::abi::{FlowFlags, PassReason};
use crate::packet::{Packet, Parsed, Rewrite};

/// Finds the flow of a reply to a source of ours, as it arrives. False when there is none.
#[inline(always)]
pub(super) fn ingress<T: Tables>(parsed: &Parsed, tables: &T, scratch: &mut Scratch) -> bool {
    let Scratch { own, pair, .. } = scratch;
    let Some(place) = flows::find(tables, &own.key, &mut own.flow) else { return false };
    if !own.flow.flags.has(FlowFlags::REPLY.with(FlowFlags::SNAT)) {
        return false;
    }
    flows::seen(tables, &own.key, parsed, place, &mut own.flow, pair);
    true
}

/// The same where a packet is either finished or left alone.
#[inline(always)]
pub(super) fn early<P: Packet, T: Tables, N: Network>(
    packet: &mut P,
    parsed: &Parsed,
    tables: &T,
    network: &N,
    scratch: &mut Scratch,
) -> Option<Verdict> {
    let known = tables.flow(Place::Confirmed, &scratch.own.key, &mut scratch.own.flow);
    if !known || !scratch.own.flow.flags.has(FlowFlags::REPLY.with(FlowFlags::SNAT)) {
        return None;
    }
    forward::finish(packet, parsed, tables, network, scratch, PassReason::Reply)
}

/// A reply that keeps the client's address, as it leaves towards the client.
#[inline(always)]
pub(super) fn egress<P: Packet, T: Tables>(
    packet: &mut P,
    parsed: &Parsed,
    tables: &T,
    scratch: &mut Scratch,
) -> Verdict {
    let Scratch { own, pair, new, .. } = scratch;
    let Some(place) = flows::find(tables, &own.key, &mut own.flow) else {
        return Verdict::Pass(PassReason::NoService);
    };
    if !own.flow.flags.has(FlowFlags::REPLY) || own.flow.flags.has(FlowFlags::SNAT) {
        return Verdict::Pass(PassReason::NoService);
    }
    flows::seen(tables, &own.key, parsed, place, &mut own.flow, pair);
    new.set_translated(&own.flow, own.key.proto);
    let change = Rewrite { from: &own.key, to: new, hop: false };
    forward::rewritten(packet, parsed, change, Verdict::Pass(PassReason::Reply))
}
