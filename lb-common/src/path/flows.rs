//! Flow memory in two places, so that a flood cannot evict what is established (H49, S69).
//!
//! A new flow is remembered in the *transient* map, where the least recently used entry goes
//! first. Once both sides have proved to be there (TCP: the client acknowledged the server's
//! SYN-ACK; UDP: a datagram after the reply), both its entries move to the *confirmed* map,
//! which evicts nothing. A closed flow moves back. So the confirmed map holds living flows
//! alone, even while no agent runs to sweep it.

use super::{Entry, Tables, note, ticks};
use crate::abi::{Flow, FlowFlags, FlowKey, Proto, Reason, timeout};
use crate::packet::{Parsed, TcpFlags};

/// How far beyond the server's SYN-ACK an acknowledgement may be to prove that its sender saw
/// it: the first one that passes here may not be the first one sent.
const ACK_WINDOW: u32 = 0xfff;

/// The map that holds an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Confirmed,
    Transient,
}

/// Looks in both places, the confirmed one first.
#[inline(always)]
pub(super) fn find<T: Tables>(tables: &T, key: &FlowKey, flow: &mut Flow) -> Option<Place> {
    if tables.flow(Place::Confirmed, key, flow) {
        Some(Place::Confirmed)
    } else if tables.flow(Place::Transient, key, flow) {
        Some(Place::Transient)
    } else {
        None
    }
}

/// Whether a flow is over: closed, or (UDP, which has no end) silent in both directions.
#[inline(always)]
pub(super) fn over<T: Tables>(tables: &T, proto: Proto, flow: &Flow, place: Place, pair: &mut Entry) -> bool {
    if proto == Proto::UDP {
        let now = ticks(tables);
        if now.since(flow.seen) <= timeout::UDP_UNREPLIED {
            return false;
        }
        pair.key.set_pair(flow, proto);
        if !tables.flow(place, &pair.key, &mut pair.flow) {
            return true;
        }
        let replied = pair.flow.flags.has(FlowFlags::SEEN);
        let limit = if replied { timeout::UDP } else { timeout::UDP_UNREPLIED };
        return now.since(flow.seen) > limit && now.since(pair.flow.seen) > limit;
    }
    if place == Place::Confirmed || flow.flags.has(FlowFlags::RST) {
        return flow.flags.has(FlowFlags::RST);
    }
    pair.key.set_pair(flow, proto);
    if !tables.flow(Place::Transient, &pair.key, &mut pair.flow) {
        return true;
    }
    let theirs = pair.flow.flags;
    theirs.has(FlowFlags::RST) || (theirs.has(FlowFlags::FIN) && flow.flags.has(FlowFlags::FIN))
}

/// Remembers that a packet of this direction passed, and moves the flow between its places.
/// False when the flow is to be confirmed for the first time and there is no room: the packet
/// must not pass, and a later one tries again (S69).
#[inline(always)]
pub(super) fn seen<T: Tables>(
    tables: &T,
    key: &FlowKey,
    parsed: &Parsed,
    place: Place,
    flow: &mut Flow,
    pair: &mut Entry,
) -> bool {
    let now = ticks(tables);
    let tcp = parsed.tcp;
    let mut flags = flow.flags.with(FlowFlags::SEEN);
    if tcp.has(TcpFlags::RST) {
        flags = flags.with(FlowFlags::RST);
    } else {
        // What follows a RST shows that it was not accepted (out of window, forged).
        flags = flags.without(FlowFlags::RST);
        if tcp.has(TcpFlags::FIN) {
            flags = flags.with(FlowFlags::FIN);
        }
    }
    let reply = flags.has(FlowFlags::REPLY);
    let mut expected_ack = flow.expected_ack;
    if reply && tcp.has(TcpFlags::SYN | TcpFlags::ACK) {
        flags = flags.with(FlowFlags::HANDSHAKE);
        expected_ack = parsed.sequence.wrapping_add(1);
    }
    if flags != flow.flags || now != flow.seen || expected_ack != flow.expected_ack {
        flow.flags = flags;
        flow.seen = now;
        flow.expected_ack = expected_ack;
        tables.touch_flow(place, key, flow);
    }
    let closing = tcp.0 & (TcpFlags::FIN | TcpFlags::RST) != 0;
    match place {
        Place::Transient => {
            // A TCP packet without ACK belongs to no open connection.
            let proves = key.proto == Proto::UDP || tcp.0 & (TcpFlags::SYN | TcpFlags::ACK) == TcpFlags::ACK;
            if !reply && !closing && proves {
                return confirm(tables, key, parsed, flow, pair);
            }
        }
        Place::Confirmed => {
            if closing {
                close(tables, key, flow, pair);
            }
        }
    }
    true
}

/// Moves a flow to the confirmed map once the other side has answered. For TCP the packet
/// must acknowledge the server's SYN-ACK, which who forges a source address cannot have seen.
/// False when a new flow finds no room. One that was confirmed before, and was closed by a RST
/// that its client did not accept, goes on where it is.
#[inline(always)]
fn confirm<T: Tables>(tables: &T, key: &FlowKey, parsed: &Parsed, flow: &mut Flow, pair: &mut Entry) -> bool {
    pair.key.set_pair(flow, key.proto);
    if !tables.flow(Place::Transient, &pair.key, &mut pair.flow) {
        return true;
    }
    let theirs = pair.flow.flags;
    // A server that answered with a RST has no connection: what forged packets drew from it
    // must not fill the map that evicts nothing.
    let over = theirs.has(FlowFlags::FIN) || theirs.has(FlowFlags::RST) || flow.flags.has(FlowFlags::FIN);
    if over || !theirs.has(FlowFlags::SEEN) {
        return true;
    }
    let beyond = parsed.acknowledgement.wrapping_sub(pair.flow.expected_ack);
    if theirs.has(FlowFlags::HANDSHAKE) && beyond > ACK_WINDOW {
        return true;
    }
    let open_before = flow.flags.has(FlowFlags::CONFIRMED);
    flow.flags = flow.flags.with(FlowFlags::CONFIRMED);
    pair.flow.flags = theirs.without(FlowFlags::HANDSHAKE);
    // Both or none: without the second entry the first must not stay.
    if !tables.put_flow(Place::Confirmed, &pair.key, &pair.flow, false) {
        note(tables, Reason::FlowsFull);
        return open_before;
    }
    if !tables.put_flow(Place::Confirmed, key, flow, false) {
        tables.delete_flow(Place::Confirmed, &pair.key);
        note(tables, Reason::FlowsFull);
        return open_before;
    }
    tables.delete_flow(Place::Transient, key);
    tables.delete_flow(Place::Transient, &pair.key);
    note(tables, Reason::Confirmed);
    true
}

/// Moves a flow back to the transient map after a RST, or after the second FIN. What still
/// follows (the last acknowledgement, retransmissions) finds it there.
#[inline(always)]
fn close<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow, pair: &mut Entry) {
    pair.key.set_pair(flow, key.proto);
    let paired = tables.flow(Place::Confirmed, &pair.key, &mut pair.flow);
    if !flow.flags.has(FlowFlags::RST) && paired && !pair.flow.flags.has(FlowFlags::FIN) {
        return;
    }
    // First remembered there, then forgotten here: no packet finds it in neither place.
    tables.put_flow(Place::Transient, key, flow, false);
    if paired {
        tables.put_flow(Place::Transient, &pair.key, &pair.flow, false);
    }
    tables.delete_flow(Place::Confirmed, key);
    tables.delete_flow(Place::Confirmed, &pair.key);
    note(tables, Reason::Closed);
}

/// Forgets both entries of a flow.
#[inline(always)]
pub(super) fn forget<T: Tables>(tables: &T, key: &FlowKey, place: Place, flow: &Flow, pair: &mut FlowKey) {
    pair.set_pair(flow, key.proto);
    tables.delete_flow(place, key);
    tables.delete_flow(place, pair);
}

/// A client opens a connection straight to an address that may be a backend: a *closed*
/// flow of a Service between the same ports must not turn its replies.
#[inline(always)]
pub(super) fn forget_closed_reply<T: Tables>(
    tables: &T,
    tuple: &FlowKey,
    reply: &mut Entry,
    pair: &mut Entry,
) {
    reply.key.source = tuple.destination;
    reply.key.destination = tuple.source;
    reply.key.source_port = tuple.destination_port;
    reply.key.destination_port = tuple.source_port;
    reply.key.proto = tuple.proto;
    if tables.flow(Place::Transient, &reply.key, &mut reply.flow)
        && reply.flow.flags.has(FlowFlags::REPLY)
        && replaceable(tables, tuple.proto, &reply.flow, pair)
    {
        forget(tables, &reply.key, Place::Transient, &reply.flow, &mut pair.key);
    }
}

/// Whether a transient reply entry may give way to a new flow: its flow was closed, or has
/// been silent since it was opened. Leaves the key of its pair in `pair`.
#[inline(always)]
pub(super) fn replaceable<T: Tables>(tables: &T, proto: Proto, reply: &Flow, pair: &mut Entry) -> bool {
    pair.key.set_pair(reply, proto);
    if reply.flags.has(FlowFlags::RST) || !tables.flow(Place::Transient, &pair.key, &mut pair.flow) {
        return true;
    }
    let theirs = pair.flow.flags;
    if theirs.has(FlowFlags::RST) || (theirs.has(FlowFlags::FIN) && reply.flags.has(FlowFlags::FIN)) {
        return true;
    }
    let now = ticks(tables);
    now.since(reply.seen) > timeout::UDP_UNREPLIED && now.since(pair.flow.seen) > timeout::UDP_UNREPLIED
}
