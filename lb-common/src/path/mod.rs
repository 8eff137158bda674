//! The order of a packet's decision, written out once for tc, XDP and the simulator.
//!
//! **Ingress** (a packet arrives from the network or from a pod): is it a reply to a source
//! port of ours? Then it is turned. Else, is it addressed to a frontend? Then its flow is
//! known, or a backend is chosen. Else it is none of our business. **Egress** (a packet
//! leaves towards a client): a reply of a known flow is turned.
//!
//! So netfilter sees only translated tuples, in both directions, and the CNI's rules and
//! policies hold; only flows that we gave a source of ours bypass it, in both directions.

mod error;
mod flows;
mod foreign;
mod forward;
mod fragment;
mod orphan;
mod reply;
mod select;
pub mod socket;

pub use flows::Place;
pub use select::{Choice, flow_hash, split};

use crate::abi::{
    Addr, Affinity, AffinityKey, Backend, BackendId, Be16, Device, DropReason, Flow, FlowKey, Foreign,
    FragmentKey, Fragments, Frontend, FrontendFlags, FrontendKey, Held, NodeAddress, NodeConfig, PassReason,
    Peer, PrefixSet, Proto, Reason, ServiceId, Settings, Ticks, prefix_set,
};
use crate::packet::{Answered, Fragment, Packet, Parsed, TcpFlags, parse, refuse};
use bytemuck::{Pod, Zeroable};
use fragment::Side;

/// A flow entry in working memory.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Entry {
    pub key: FlowKey,
    pub flow: Flow,
}

/// Working memory of one packet, kept outside of the stack, which has 512 bytes in the
/// kernel. Its content before a run means nothing, except that padding is zero.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Debug, Zeroable, Pod)]
pub struct Scratch {
    /// The packet's tuple, and the entry found for it or made for it.
    pub own: Entry,
    /// The entry of the other direction.
    pub pair: Entry,
    /// An entry that is in the way, and its pair.
    pub rival: Entry,
    pub rival_pair: Entry,
    /// What the tuple becomes.
    pub new: FlowKey,
    pub frontend: Frontend,
    /// A fragment's packet, and what became of its first one.
    pub fragment: FragmentKey,
    pub follow: Fragments,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::zeroed()
    }
}

/// Where a packet came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A pod or a process of this node.
    Inside,
    /// The network.
    Outside,
}

/// Which counter of a Service a packet adds to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceCount {
    PacketFlow,
    SocketFlow,
    NoEndpoint,
    Dropped,
}

/// The tables, as the path reads and writes them. Values are copies: nothing refers into a
/// map. Writers on other CPUs may win; each comment says why either outcome is right.
pub trait Tables {
    fn settings(&self) -> Settings;
    fn node(&self) -> NodeConfig;
    fn node_address(&self, addr: &Addr) -> Option<NodeAddress>;
    fn device(&self, ifindex: u32) -> Option<Device>;
    /// Copies a frontend to `into`; false when there is none.
    fn frontend(&self, key: &FrontendKey, into: &mut Frontend) -> bool;
    fn backend(&self, id: BackendId) -> Option<Backend>;
    /// Entry `index` of the table that starts at `block`.
    fn slot(&self, block: u32, index: u32) -> Option<BackendId>;
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    fn put_affinity(&self, key: &AffinityKey, value: &Affinity);
    /// What the longest prefix of a set that holds an address says of it.
    fn held(&self, set: PrefixSet, addr: &Addr) -> Option<Held>;

    /// Copies a flow in one of the two places to `into`; false when it is not there.
    fn flow(&self, place: Place, key: &FlowKey, into: &mut Flow) -> bool;
    /// Stores a flow; `new_only` refuses to overwrite. False when it was not stored.
    fn put_flow(&self, place: Place, key: &FlowKey, flow: &Flow, new_only: bool) -> bool;
    fn delete_flow(&self, place: Place, key: &FlowKey);
    /// Writes the fields that packets change (`seen`, `flags`, `expected_ack`) of an entry
    /// that was just read. Last writer wins: a lost `seen` costs a second of lifetime, and a
    /// lost FIN leaves the flow to its timeout.
    fn touch_flow(&self, place: Place, key: &FlowKey, flow: &Flow);

    /// What is known of a flow of netfilter's, by the tuple of one of its directions.
    fn foreign(&self, tuple: &FlowKey) -> Option<Foreign>;

    /// Copies to `into` what became of a packet's first fragment; false when that is not known.
    fn fragments(&self, key: &FragmentKey, into: &mut Fragments) -> bool;
    fn put_fragments(&self, key: &FragmentKey, value: &Fragments);
    fn delete_fragments(&self, key: &FragmentKey);

    /// Monotonic time; coarse is fine (a few ms).
    fn nanos(&self) -> u64;
    fn random(&self) -> u32;
    fn count(&self, slot: u32);
    fn count_service(&self, service: ServiceId, what: ServiceCount);
}

/// A way to a neighbour, as the kernel's routing table has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    pub ifindex: u32,
    /// The gateway, or the destination itself.
    pub next_hop: Addr,
}

/// Why there is no way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRoute {
    Unreachable,
    TooBig,
}

/// What the path asks of the kernel about a packet in hand.
pub trait Network {
    /// The route of a packet from `source` to `destination`.
    ///
    /// # Errors
    /// When there is none, or the packet does not fit through it.
    fn route(&self, source: &Addr, destination: &Addr, proto: Proto) -> Result<Route, NoRoute>;

    /// Whether a host socket would receive packets with this tuple: such a source port is
    /// not ours to use (S48).
    fn socket_owns(&self, tuple: &FlowKey) -> bool;

    /// Whether a *connected* host socket waits for packets with this tuple.
    fn socket_expects(&self, tuple: &FlowKey) -> bool;

    /// Both names of the peer of the socket that sent the packet in hand, if that is a socket of
    /// this node which was translated at connect().
    fn sender(&self) -> Option<Peer>;
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// On through the stack, translated or untouched.
    Pass(PassReason),
    /// Translated, and past the stack to this neighbour.
    Redirect(PassReason, Route),
    /// Turned into a refusal (RST or ICMP error): out where it came in.
    Answer(DropReason),
    Drop(DropReason),
}

impl Verdict {
    /// Whether the packet goes no further.
    #[inline(always)]
    const fn refuses(self) -> bool {
        matches!(self, Self::Answer(_) | Self::Drop(_))
    }

    /// Its counter.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        match self {
            Self::Pass(reason) | Self::Redirect(reason, _) => reason.slot(),
            Self::Answer(reason) | Self::Drop(reason) => reason.slot(),
        }
    }
}

/// What a decision about a packet asks for next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Translate it as the flow in [`Scratch::own`] says.
    Deliver(PassReason),
    Done(Verdict),
}

/// A packet arrives.
#[inline(always)]
pub fn ingress<P: Packet, T: Tables, N: Network>(
    packet: &mut P,
    tables: &T,
    network: &N,
    scratch: &mut Scratch,
    from: Origin,
) -> Verdict {
    let parsed = match parse(packet, &mut scratch.own.key, &mut scratch.fragment.id) {
        Ok(parsed) => parsed,
        Err(reason) => return Verdict::Pass(reason),
    };
    if parsed.fragment == Fragment::Later {
        return fragment::ingress(packet, &parsed, tables, network, scratch);
    }
    if is_icmp(scratch.own.key.proto) {
        return error::ingress(packet, &parsed, tables, network, scratch);
    }
    if scratch.own.key.destination.is_loopback() {
        return Verdict::Drop(DropReason::Loopback);
    }
    // Replies first: a frontend may have a port of the range that their flows were given.
    let step =
        if is_ours(tables, scratch.own.key.destination_port) && reply::ingress(&parsed, tables, scratch) {
            Step::Deliver(PassReason::Reply)
        } else if find_frontend(tables, &scratch.own.key, &mut scratch.frontend)
            || (from == Origin::Inside
                && orphan::find_frontend(tables, network, &scratch.own.key, &mut scratch.frontend))
        {
            forward::ingress(packet, &parsed, tables, network, scratch, from)
        } else if let Some(reason) = unserved(tables, &scratch.own.key.destination) {
            if foreign::carries(tables, &parsed, &scratch.own.key) {
                Step::Done(Verdict::Pass(PassReason::Foreign))
            } else {
                Step::Done(refused(packet, &parsed, &scratch.own.key, reason))
            }
        } else {
            Step::Done(Verdict::Pass(PassReason::NoService))
        };
    match step {
        Step::Deliver(reason) => {
            let verdict = forward::deliver(packet, &parsed, network, scratch, reason);
            fragment::translated(tables, &parsed, scratch, Side::Ingress, verdict.refuses());
            verdict
        }
        Step::Done(verdict) => {
            if parsed.tcp.opens() && verdict == Verdict::Pass(PassReason::NoService) {
                flows::forget_closed_reply(
                    tables,
                    &scratch.own.key,
                    &mut scratch.rival,
                    &mut scratch.rival_pair,
                );
            }
            fragment::untranslated(tables, &parsed, scratch, Side::Ingress, verdict.refuses());
            verdict
        }
    }
}

/// A packet leaves.
#[inline(always)]
pub fn egress<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Verdict {
    match parse(packet, &mut scratch.own.key, &mut scratch.fragment.id) {
        Ok(parsed) if parsed.fragment == Fragment::Later => {
            fragment::egress(packet, &parsed, tables, scratch)
        }
        Ok(parsed) if is_icmp(scratch.own.key.proto) => error::egress(packet, &parsed, tables, scratch),
        Ok(parsed) => reply::egress(packet, &parsed, tables, scratch),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// A packet arrives at a device that runs XDP: packets of known flows with a source of ours
/// are finished here; all others are left, untouched, to the socket-buffer hook, which runs
/// [`ingress`] on the same tables.
#[inline(always)]
pub fn early<P: Packet, T: Tables, N: Network>(
    packet: &mut P,
    tables: &T,
    network: &N,
    scratch: &mut Scratch,
) -> Verdict {
    let parsed = match parse(packet, &mut scratch.own.key, &mut scratch.fragment.id) {
        Ok(parsed) => parsed,
        Err(reason) => return Verdict::Pass(reason),
    };
    // What is in pieces is seen whole by one hook, in the order in which it came.
    if parsed.fragment != Fragment::Whole {
        return Verdict::Pass(PassReason::LeftToTc);
    }
    if is_icmp(scratch.own.key.proto) {
        return Verdict::Pass(PassReason::OtherProtocol);
    }
    let reply = if is_ours(tables, scratch.own.key.destination_port) {
        reply::early(packet, &parsed, tables, network, scratch)
    } else {
        None
    };
    let verdict = match reply {
        None if find_frontend(tables, &scratch.own.key, &mut scratch.frontend) => {
            forward::early(packet, &parsed, tables, network, scratch)
        }
        reply => reply,
    };
    verdict.unwrap_or(Verdict::Pass(PassReason::LeftToTc))
}

#[inline(always)]
fn is_icmp(proto: Proto) -> bool {
    proto == Proto::ICMP || proto == Proto::ICMPV6
}

/// The frontend that a packet is addressed to: by its own address and port, or on one of this
/// node's addresses a node port.
#[inline(always)]
fn find_frontend<T: Tables>(tables: &T, tuple: &FlowKey, into: &mut Frontend) -> bool {
    lookup_frontend(tables, &tuple.destination, tuple.destination_port, tuple.proto, into)
}

/// [`find_frontend`] for an address that is not part of a packet.
#[inline(always)]
pub fn lookup_frontend<T: Tables>(
    tables: &T,
    addr: &Addr,
    port: Be16,
    proto: Proto,
    into: &mut Frontend,
) -> bool {
    let mut key = FrontendKey::new(*addr, port, proto);
    let found = tables.frontend(&key, into);
    // A retired frontend is there for its open flows only and hides no node port.
    if found && !into.flags.has(FrontendFlags::RETIRED) {
        return true;
    }
    if !tables.node().node_ports.contains(port) {
        return found;
    }
    match tables.node_address(addr) {
        Some(NodeAddress { node_port: 1 }) => {
            key.addr = addr.family().any();
            tables.frontend(&key, into) || found
        }
        _ => found,
    }
}

/// Why an address without a frontend for a packet takes none, if so: it is a ClusterIP, or is one
/// of those that nobody has (S38). An address of this node is its own affair, whichever range it
/// is from: a cache of names may sit there.
#[inline(always)]
fn unserved<T: Tables>(tables: &T, addr: &Addr) -> Option<DropReason> {
    match tables.held(prefix_set::services(addr), addr) {
        None | Some(Held::FOREIGN) => None,
        Some(_) if tables.node_address(addr).is_some() => None,
        Some(Held::TAKEN) => Some(DropReason::UndefinedPort),
        Some(_) => Some(DropReason::Unallocated),
    }
}

/// What becomes of such a packet. One that is itself an answer gets none.
#[inline(always)]
fn refused<P: Packet>(packet: &mut P, parsed: &Parsed, tuple: &FlowKey, reason: DropReason) -> Verdict {
    if reason == DropReason::UndefinedPort && !parsed.tcp.has(TcpFlags::RST) {
        answer(packet, parsed, tuple, reason)
    } else {
        Verdict::Drop(reason)
    }
}

/// Whether a port is one that translated flows are, or were, given as their source.
#[inline(always)]
fn is_ours<T: Tables>(tables: &T, port: Be16) -> bool {
    let settings = tables.settings();
    let [low, high] = settings.snat;
    low.contains(port) || high.contains(port) || settings.earlier.contains(port)
}

/// Refuses a packet: an answer where one can be made, else silence.
#[inline(always)]
fn answer<P: Packet>(packet: &mut P, parsed: &Parsed, tuple: &FlowKey, reason: DropReason) -> Verdict {
    match refuse(packet, parsed, tuple) {
        Some(Answered) => Verdict::Answer(reason),
        None => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn note<T: Tables>(tables: &T, reason: Reason) {
    tables.count(reason.slot());
}

#[inline(always)]
fn ticks<T: Tables>(tables: &T) -> Ticks {
    Ticks::from_nanos(tables.nanos())
}
