//! Flows that netfilter translates since before Weir came, and that it goes on translating
//! (S82): their packets pass untouched, and none of their tuples is given to another flow.
//!
//! Asked of packets without a flow of ours only, and only while there are such flows.

use super::{Tables, ticks};
use crate::abi::{FlowKey, Foreign, ForeignFlags, NodeFlags, Proto};
use crate::packet::Parsed;

/// Whether a packet that we know no flow of belongs to one of netfilter's. A SYN opens a new
/// one, unless netfilter awaits the answer to the same.
#[inline(always)]
pub(super) fn carries<T: Tables>(tables: &T, parsed: &Parsed, tuple: &FlowKey) -> bool {
    let flags = tables.node().flags;
    if !flags.has(NodeFlags::FOREIGN) {
        return false;
    }
    let opens = parsed.tcp.opens();
    if flags.has(NodeFlags::HOLD) && tuple.proto == Proto::TCP && !opens {
        return true;
    }
    match alive(tables, tuple) {
        Some(foreign) => !opens || foreign.flags.has(ForeignFlags::OPENING),
        None => false,
    }
}

/// Whether replies with this tuple would be netfilter's.
#[inline(always)]
pub(super) fn owns<T: Tables>(tables: &T, reply: &FlowKey) -> bool {
    tables.node().flags.has(NodeFlags::FOREIGN) && alive(tables, reply).is_some()
}

/// Whether a UDP socket that sends with this tuple, its source unspecified, has a flow of
/// netfilter's; `host`: it is a program's of the host itself.
#[inline(always)]
pub(super) fn holds_socket<T: Tables>(tables: &T, tuple: &FlowKey, host: bool) -> bool {
    let whose = if host { ForeignFlags::HOST } else { ForeignFlags::POD };
    tables.node().flags.has(NodeFlags::FOREIGN)
        && alive(tables, tuple).is_some_and(|foreign| foreign.flags.has(whose))
}

#[inline(always)]
fn alive<T: Tables>(tables: &T, tuple: &FlowKey) -> Option<Foreign> {
    let foreign = tables.foreign(tuple)?;
    if ticks(tables).0 <= foreign.until.0 { Some(foreign) } else { None }
}
