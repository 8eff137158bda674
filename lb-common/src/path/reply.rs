//! Backend to client.

use super::fragment::{self, Side};
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
    let place = match flows::find(tables, &scratch.own.key, &mut scratch.own.flow) {
        Some(place) if keeps_its_client(scratch.own.flow.flags) => place,
        _ => {
            fragment::untranslated(tables, parsed, scratch, Side::Egress, false);
            return Verdict::Pass(PassReason::NoService);
        }
    };
    let Scratch { own, pair, new, .. } = scratch;
    flows::seen(tables, &own.key, parsed, place, &mut own.flow, pair);
    new.set_translated(&own.flow, own.key.proto);
    let change = Rewrite { from: &own.key, to: new, hop: false };
    let verdict = forward::rewritten(packet, parsed, change, Verdict::Pass(PassReason::Reply));
    fragment::translated(tables, parsed, scratch, Side::Egress, verdict.refuses());
    verdict
}

/// Whether an entry turns what leaves.
#[inline(always)]
const fn keeps_its_client(flags: FlowFlags) -> bool {
    flags.has(FlowFlags::REPLY) && !flags.has(FlowFlags::SNAT)
}
