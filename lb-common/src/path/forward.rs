//! Client to backend.

use super::{
    Entry, Network, NoRoute, Origin, Place, Scratch, ServiceCount, Step, Tables, Verdict, answer, flows,
    foreign, note,
    select::{Choice, flow_hash, select, table_for},
    ticks,
};
use crate::abi::{
    Addr, BackendFlags, Be16, DropReason, Flow, FlowFlags, FlowKey, Frontend, FrontendFlags, PassReason,
    PortRange, Proto, Reason, SettingsFlags, prefix_set,
};
use crate::packet::{Packet, Parsed, Rewrite, TcpFlags, rewrite};

/// Source ports tried before a new flow is refused.
const PORT_TRIES: u32 = 16;

/// A packet for a frontend.
#[inline(always)]
pub(super) fn ingress<P: Packet, T: Tables, N: Network>(
    packet: &mut P,
    parsed: &Parsed,
    tables: &T,
    network: &N,
    scratch: &mut Scratch,
    from: Origin,
) -> Step {
    match known(parsed, tables, scratch, from) {
        Known::Yes => return Step::Deliver(PassReason::Forward),
        Known::WithoutRoom => {
            tables.count_service(scratch.own.flow.service, ServiceCount::Dropped);
            return Step::Done(Verdict::Drop(DropReason::ConntrackFull));
        }
        Known::No => {}
    }
    let (service, flags) = (scratch.frontend.service, scratch.frontend.flags);
    if flags.has(FrontendFlags::RETIRED) || belongs_to_host(parsed, network, &scratch.own.key, flags) {
        return Step::Done(Verdict::Pass(PassReason::NoService));
    }
    if foreign::carries(tables, parsed, &scratch.own.key) {
        return Step::Done(Verdict::Pass(PassReason::Foreign));
    }
    // Whoever has a flow goes on: ranges are asked about new ones, as netfilter's state is (S51).
    if flags.has(FrontendFlags::SOURCE_RANGES) && tables.held(service, &scratch.own.key.source).is_none() {
        tables.count_service(service, ServiceCount::Dropped);
        return Step::Done(Verdict::Drop(DropReason::SourceRange));
    }
    match open(tables, network, scratch, from) {
        None => {
            tables.count_service(service, ServiceCount::PacketFlow);
            Step::Deliver(PassReason::NewFlow)
        }
        Some(DropReason::NoEndpoint) => {
            tables.count_service(service, ServiceCount::NoEndpoint);
            Step::Done(answer(packet, parsed, &scratch.own.key, DropReason::NoEndpoint))
        }
        Some(DropReason::NoLocalEndpoint) => {
            tables.count_service(service, ServiceCount::NoEndpoint);
            Step::Done(Verdict::Drop(DropReason::NoLocalEndpoint))
        }
        Some(reason) => {
            tables.count_service(service, ServiceCount::Dropped);
            Step::Done(Verdict::Drop(reason))
        }
    }
}

/// Whether a packet without a flow opens none: a RST or SYN-ACK never does, and what a
/// connected socket of the host waits for is its own although its port is a node port's (S20).
#[inline(always)]
fn belongs_to_host<N: Network>(parsed: &Parsed, network: &N, tuple: &FlowKey, flags: FrontendFlags) -> bool {
    let tcp = parsed.tcp;
    if tcp.has(TcpFlags::RST) || tcp.has(TcpFlags::SYN | TcpFlags::ACK) {
        return true;
    }
    !tcp.opens() && flags.has(FrontendFlags::NODE_PORT) && network.socket_expects(tuple)
}

/// What is known of a packet's flow.
enum Known {
    /// Nothing, or it is over, or has lost its backend: it was forgotten, a new one is opened.
    No,
    Yes,
    /// It is new, and the map that it would be confirmed in is full.
    WithoutRoom,
}

/// Finds the packet's flow and brings it up to date.
#[inline(always)]
fn known<T: Tables>(parsed: &Parsed, tables: &T, scratch: &mut Scratch, from: Origin) -> Known {
    let Scratch { own, pair, frontend, .. } = scratch;
    let Some(place) = flows::find(tables, &own.key, &mut own.flow) else { return Known::No };
    if own.flow.flags.has(FlowFlags::REPLY) {
        return Known::No;
    }
    let proto = own.key.proto;
    let renewable = proto == Proto::UDP || parsed.tcp.opens();
    if renewable {
        let moved = orphaned(tables, frontend, &own.flow, from);
        if moved || flows::over(tables, proto, &own.flow, place, pair) {
            flows::forget(tables, &own.key, place, &own.flow, &mut pair.key);
            if moved {
                note(tables, Reason::Moved);
            }
            return Known::No;
        }
    }
    if flows::seen(tables, &own.key, parsed, place, &mut own.flow, pair) {
        Known::Yes
    } else {
        Known::WithoutRoom
    }
}

/// Whether a flow has lost its backend, or its frontend belongs to another Service now, while
/// there are backends to be had. Asked of UDP packets (S60) and of SYNs (S68) only: open TCP
/// flows stay, their backend drains (S65).
#[inline(always)]
fn orphaned<T: Tables>(tables: &T, frontend: &Frontend, flow: &Flow, from: Origin) -> bool {
    if table_for(frontend, from).count == 0 {
        return false;
    }
    if flow.service != frontend.service {
        return true;
    }
    match tables.backend(flow.backend) {
        Some(backend) => {
            backend.service != flow.service
                || backend.addr != flow.destination
                || backend.port != flow.destination_port
                || !backend.flags.has(BackendFlags::SERVING)
        }
        None => true,
    }
}

/// The same where a packet is either finished or left alone: known flows with a source of
/// ours whose neighbour is known too.
#[inline(always)]
pub(super) fn early<P: Packet, T: Tables, N: Network>(
    packet: &mut P,
    parsed: &Parsed,
    tables: &T,
    network: &N,
    scratch: &mut Scratch,
) -> Option<Verdict> {
    let Scratch { own, pair, frontend, .. } = scratch;
    let proto = own.key.proto;
    if parsed.tcp.opens()
        || !tables.flow(Place::Confirmed, &own.key, &mut own.flow)
        || own.flow.flags.has(FlowFlags::REPLY)
        || !own.flow.flags.has(FlowFlags::SNAT)
        || (proto == Proto::UDP && orphaned(tables, frontend, &own.flow, Origin::Outside))
        || flows::over(tables, proto, &own.flow, Place::Confirmed, pair)
    {
        return None;
    }
    finish(packet, parsed, tables, network, scratch, PassReason::Forward)
}

/// Translates and sends a packet of the confirmed flow in hand, if its neighbour is known;
/// else leaves it untouched.
#[inline(always)]
pub(super) fn finish<P: Packet, T: Tables, N: Network>(
    packet: &mut P,
    parsed: &Parsed,
    tables: &T,
    network: &N,
    scratch: &mut Scratch,
    reason: PassReason,
) -> Option<Verdict> {
    let Scratch { own, pair, new, .. } = scratch;
    if parsed.ttl <= 1 {
        return None;
    }
    new.set_translated(&own.flow, own.key.proto);
    let route = network.route(&new.source, &new.destination, new.proto).ok()?;
    flows::seen(tables, &own.key, parsed, Place::Confirmed, &mut own.flow, pair);
    let change = Rewrite { from: &own.key, to: new, hop: true };
    Some(rewritten(packet, parsed, change, Verdict::Redirect(reason, route)))
}

/// Rewrites the packet of the flow in hand and sends it on: through the stack, or past it for
/// flows that carry a source of ours, which the stack would take for forged.
#[inline(always)]
pub(super) fn deliver<P: Packet, N: Network>(
    packet: &mut P,
    parsed: &Parsed,
    network: &N,
    scratch: &mut Scratch,
    reason: PassReason,
) -> Verdict {
    let Scratch { own, new, .. } = scratch;
    new.set_translated(&own.flow, own.key.proto);
    if !own.flow.flags.has(FlowFlags::SNAT) {
        let change = Rewrite { from: &own.key, to: new, hop: false };
        return rewritten(packet, parsed, change, Verdict::Pass(reason));
    }
    if parsed.ttl <= 1 {
        return Verdict::Drop(DropReason::TtlExceeded);
    }
    // The way is asked for before anything is written: a packet with a source of ours could
    // not be given back to the stack.
    let route = match network.route(&new.source, &new.destination, new.proto) {
        Ok(route) => route,
        Err(NoRoute::Unreachable) => return Verdict::Drop(DropReason::NoRoute),
        Err(NoRoute::TooBig) => return Verdict::Drop(DropReason::FragmentationNeeded),
    };
    let change = Rewrite { from: &own.key, to: new, hop: true };
    rewritten(packet, parsed, change, Verdict::Redirect(reason, route))
}

/// Rewrites a packet, which then goes the way that `verdict` says.
#[inline(always)]
pub(super) fn rewritten<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    change: Rewrite<'_>,
    verdict: Verdict,
) -> Verdict {
    match rewrite(packet, parsed, change) {
        Some(()) => verdict,
        None => Verdict::Drop(DropReason::RewriteFailed),
    }
}

/// Chooses a backend for a new flow and remembers both directions. `None` when that is done.
#[inline(always)]
fn open<T: Tables, N: Network>(
    tables: &T,
    network: &N,
    scratch: &mut Scratch,
    from: Origin,
) -> Option<DropReason> {
    let Scratch { own, pair, rival, rival_pair, new, frontend, .. } = scratch;
    if table_for(frontend, from).count == 0 {
        let drops = match from {
            Origin::Inside => FrontendFlags::INSIDE_DROPS,
            Origin::Outside => FrontendFlags::OUTSIDE_DROPS,
        };
        return Some(if frontend.flags.has(drops) {
            DropReason::NoLocalEndpoint
        } else {
            DropReason::NoEndpoint
        });
    }
    let settings = tables.settings();
    let hash = flow_hash(&own.key, settings.hash_seed);
    let Some(Choice { id, backend }) = select(tables, frontend, from, &own.key.source, hash, true) else {
        return Some(DropReason::StaleTable);
    };
    if backend.addr.is_loopback() {
        return Some(DropReason::Loopback);
    }
    let local = backend.flags.has(BackendFlags::LOCAL);
    let hairpin = backend.addr == own.key.source;
    // Packets for the node itself leave by no device: netfilter masquerades none of them either.
    let snat =
        (hairpin || (from == Origin::Outside && !local) || masqueraded(tables, frontend, &own.key.source))
            && tables.node_address(&backend.addr).is_none();
    let mut flags = FlowFlags::default();
    if snat {
        flags = flags.with(FlowFlags::SNAT);
    }
    if from == Origin::Inside {
        flags = flags.with(FlowFlags::INSIDE);
    }
    if local {
        flags = flags.with(FlowFlags::LOCAL);
    }
    own.flow.source = own.key.source;
    own.flow.source_port = own.key.source_port;
    own.flow.destination = backend.addr;
    own.flow.destination_port = backend.port;
    own.flow.service = frontend.service;
    own.flow.backend = id;
    own.flow.seen = ticks(tables);
    own.flow.expected_ack = 0;
    own.flow.flags = flags.with(FlowFlags::SEEN);
    own.flow.pad = 0;
    if snat && let Some(reason) = masquerade(tables, network, own) {
        return Some(reason);
    }
    pair.key.set_pair(&own.flow, own.key.proto);
    pair.flow = own.flow;
    pair.flow.source = own.key.destination;
    pair.flow.source_port = own.key.destination_port;
    pair.flow.destination = own.key.source;
    pair.flow.destination_port = own.key.source_port;
    pair.flow.flags = flags.with(FlowFlags::REPLY);
    let [low, high] = settings.snat;
    let total = low.len() + high.len();
    // A client outside keeps its port as it keeps its address, unless another flow has it. One
    // inside gets another: it may use its own straight to the same backend, now or later. What
    // the loop asks for lies in memory: in registers it would be verified once for each way here.
    new.source_port = Be16::new(0);
    if !snat && from == Origin::Inside {
        new.source_port = own.key.source_port;
    }
    if snat || from == Origin::Inside {
        // First the port that this tuple stands for, which is the same again after flow memory
        // was lost. The backend was chosen by the upper half of the hash.
        pair.key.destination_port = nth_port(low, high, total, hash.rotate_left(16), own.flow.flags);
    }
    let (mut owned, mut tries) = (false, 0);
    while tries < PORT_TRIES && !owned {
        if tries > 0 {
            pair.key.destination_port = nth_port(low, high, total, tables.random(), own.flow.flags);
        }
        owned = pair.key.destination_port != new.source_port && claim(tables, pair, rival, rival_pair);
        if owned && own.flow.flags.has(FlowFlags::SNAT) && network.socket_owns(&pair.key) {
            tables.delete_flow(Place::Transient, &pair.key);
            owned = false;
        }
        tries += 1;
    }
    own.flow.source_port = pair.key.destination_port;
    if !owned {
        return Some(DropReason::SnatExhausted);
    }
    if !tables.put_flow(Place::Transient, &own.key, &own.flow, false) {
        tables.delete_flow(Place::Transient, &pair.key);
        return Some(DropReason::ConntrackFull);
    }
    None
}

/// Whether a flow takes this node's address although its reply would come back without that:
/// what the operator asks for ClusterIPs (S43) and for external frontends (S44).
#[inline(always)]
fn masqueraded<T: Tables>(tables: &T, frontend: &Frontend, source: &Addr) -> bool {
    let asked = tables.settings().flags;
    if !frontend.flags.has(FrontendFlags::CLUSTER_IP) {
        return frontend.flags.has(FrontendFlags::MASQUERADE);
    }
    asked.has(SettingsFlags::MASQUERADE_ALL)
        || (asked.has(SettingsFlags::CLUSTER_CIDR) && tables.held(prefix_set::pods(source), source).is_none())
}

/// Gives a flow the address of the device that it leaves by as its source.
#[inline(always)]
fn masquerade<T: Tables, N: Network>(tables: &T, network: &N, own: &mut Entry) -> Option<DropReason> {
    let route = match network.route(&own.key.source, &own.flow.destination, own.key.proto) {
        Ok(route) => route,
        Err(NoRoute::Unreachable) => return Some(DropReason::NoRoute),
        Err(NoRoute::TooBig) => return Some(DropReason::FragmentationNeeded),
    };
    own.flow.source = source_for(tables, route.ifindex, own.flow.destination.is_v4());
    if own.flow.source.is_unspecified() { Some(DropReason::NoRoute) } else { None }
}

#[inline(always)]
fn source_for<T: Tables>(tables: &T, ifindex: u32, v4: bool) -> Addr {
    if let Some(device) = tables.device(ifindex) {
        let addr = if v4 { device.v4 } else { device.v6 };
        if !addr.is_unspecified() {
            return addr;
        }
    }
    let node = tables.node();
    if v4 { node.v4 } else { node.v6 }
}

/// Takes a reply tuple for a new flow, if no living flow has it.
#[inline(always)]
fn claim<T: Tables>(tables: &T, pair: &Entry, rival: &mut Entry, rival_pair: &mut Entry) -> bool {
    if tables.flow(Place::Confirmed, &pair.key, &mut rival.flow) || foreign::owns(tables, &pair.key) {
        return false;
    }
    if !tables.flow(Place::Transient, &pair.key, &mut rival.flow) {
        return tables.put_flow(Place::Transient, &pair.key, &pair.flow, true);
    }
    // Our own flow's former entry (the same client and frontend), or one that is over.
    let own = rival.flow.destination == pair.flow.destination
        && rival.flow.destination_port == pair.flow.destination_port
        && rival.flow.source == pair.flow.source
        && rival.flow.source_port == pair.flow.source_port;
    if !own {
        if !flows::replaceable(tables, pair.key.proto, &rival.flow, rival_pair) {
            return false;
        }
        tables.delete_flow(Place::Transient, &rival_pair.key);
        note(tables, Reason::PortTakenOver);
    }
    tables.put_flow(Place::Transient, &pair.key, &pair.flow, false)
}

/// The port that a number out of all 32-bit ones stands for in the ranges taken together.
///
/// Every other port is for flows with this node's address, those between for flows that keep
/// their client's: netfilter may give the latter this node's address too, with the port that they
/// have, on their way out of the cluster (S48). Replies to both would then be one tuple.
#[inline(always)]
fn nth_port(low: PortRange, high: PortRange, total: u32, draw: u32, flags: FlowFlags) -> Be16 {
    let half = u64::from(total / 2);
    let between = if flags.has(FlowFlags::SNAT) || half == 0 { 0 } else { 1 };
    let n = ((u64::from(draw) * half) >> 32) as u32 * 2 + between;
    let port = if n < low.len() { u32::from(low.first) + n } else { u32::from(high.first) + (n - low.len()) };
    Be16::new(port as u16)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn masqueraded_flows_and_others_have_ports_of_their_own() {
        let ports = |low: PortRange, high: PortRange, flags| -> BTreeSet<u16> {
            let total = low.len() + high.len();
            (0..=u32::MAX).step_by(65_521).map(|draw| nth_port(low, high, total, draw, flags).get()).collect()
        };
        let range = |first, last| PortRange { first, last };
        for (low, high, count) in [
            (range(10_000, 10_099), range(61_000, 61_050), 75),
            (range(20_000, 20_001), PortRange::EMPTY, 1),
            (PortRange::EMPTY, range(61_000, 61_004), 2),
        ] {
            let [theirs, ours] = [FlowFlags::default(), FlowFlags::SNAT].map(|flags| ports(low, high, flags));
            assert_eq!((theirs.len(), ours.len()), (count, count));
            assert!(theirs.is_disjoint(&ours));
            let of_ranges = |port: &u16| low.contains(Be16::new(*port)) || high.contains(Be16::new(*port));
            assert!(theirs.iter().chain(&ours).all(of_ranges));
        }
        // One port is all that there is.
        let only = range(20_000, 20_000);
        assert_eq!(
            ports(only, PortRange::EMPTY, FlowFlags::default()),
            ports(only, PortRange::EMPTY, FlowFlags::SNAT)
        );
    }
}
