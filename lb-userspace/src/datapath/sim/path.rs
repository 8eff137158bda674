//! The simulator as the packet path's tables, network and sockets.
//!
//! Flow memory behaves like the maps: the confirmed one refuses when it is full, the transient
//! one lets its least recently used entry go.

use super::Sim;
use lb_common::abi::{
    Addr, Affinity, AffinityKey, Backend, BackendId, Be16, Device, Flow, FlowKey, Foreign, FragmentKey,
    Fragments, Frontend, FrontendKey, Held, NetnsKey, NodeAddress, NodeConfig, NodeFlags, Peer, PortRange,
    PrefixSet, Proto, Reason, ServiceCounters, ServiceId, Settings, SettingsFlags, SocketKey, SocketPeer,
    capacity,
};
use lb_common::path::socket::Sockets;
use lb_common::path::{Network, NoRoute, Place, Route, ServiceCount, Tables};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// What the packet path reads and writes beside the tables, and the world that it asks about.
#[derive(Clone, Debug)]
pub struct Memory {
    pub settings: Settings,
    pub nanos: Cell<u64>,
    /// State of the random numbers: a test that sets it knows what comes.
    pub chance: Cell<u32>,
    pub flows: RefCell<BTreeMap<FlowKey, Flow>>,
    /// With the count of uses at its last use.
    pub transient: RefCell<BTreeMap<FlowKey, (u64, Flow)>>,
    uses: Cell<u64>,
    pub foreign: BTreeMap<FlowKey, Foreign>,
    pub fragments: RefCell<BTreeMap<FragmentKey, Fragments>>,
    pub affinity: RefCell<BTreeMap<AffinityKey, Affinity>>,
    pub datagrams: RefCell<BTreeMap<SocketKey, SocketPeer>>,
    /// Addresses learnt for pods.
    pub pods: RefCell<BTreeMap<NetnsKey, Addr>>,
    pub counters: RefCell<Vec<u64>>,
    pub services: RefCell<BTreeMap<ServiceId, ServiceCounters>>,
    /// Routes by destination; others take `default_route`.
    pub routes: BTreeMap<Addr, Result<Route, NoRoute>>,
    pub default_route: Result<Route, NoRoute>,
    /// Tuples that a socket of the host receives.
    pub host_sockets: BTreeSet<FlowKey>,
    /// Whom the socket that sends the next packet is connected to.
    pub sender: Cell<Option<Peer>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            settings: Settings {
                host_netns_cookie: 1,
                flags: SettingsFlags::default(),
                hash_seed: 0,
                snat: [PortRange { first: 10_000, last: 29_999 }, PortRange { first: 61_000, last: 65_535 }],
                earlier: PortRange::EMPTY,
                pad: 0,
            },
            nanos: Cell::new(1 << 40),
            chance: Cell::new(0x9e37_79b9),
            flows: RefCell::default(),
            transient: RefCell::default(),
            uses: Cell::new(0),
            foreign: BTreeMap::new(),
            fragments: RefCell::default(),
            affinity: RefCell::default(),
            datagrams: RefCell::default(),
            pods: RefCell::default(),
            counters: RefCell::new(vec![0; Reason::COUNT as usize]),
            services: RefCell::default(),
            routes: BTreeMap::new(),
            default_route: Err(NoRoute::Unreachable),
            host_sockets: BTreeSet::new(),
            sender: Cell::new(None),
        }
    }
}

impl Memory {
    pub fn advance_seconds(&self, seconds: u64) {
        self.nanos.set(self.nanos.get() + seconds * 1_000_000_000);
    }

    fn use_now(&self) -> u64 {
        self.uses.set(self.uses.get() + 1);
        self.uses.get()
    }
}

impl Tables for Sim {
    fn settings(&self) -> Settings {
        self.memory.settings
    }

    fn node(&self) -> NodeConfig {
        let nothing = NodeConfig {
            v4: Addr::ANY_V4,
            v6: Addr::ANY_V6,
            node_ports: PortRange::EMPTY,
            flags: NodeFlags(0),
        };
        self.node.as_ref().map_or(nothing, |node| node.config)
    }

    fn node_address(&self, addr: &Addr) -> Option<NodeAddress> {
        self.node.as_ref()?.addresses.get(addr).copied()
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.node.as_ref()?.devices.get(&ifindex).copied()
    }

    fn frontend(&self, key: &FrontendKey, into: &mut Frontend) -> bool {
        self.frontends.get(key).inspect(|frontend| *into = **frontend).is_some()
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.backends.get(&id).copied()
    }

    fn slot(&self, block: u32, index: u32) -> Option<BackendId> {
        (block < self.capacity.table_blocks).then(|| self.id_at(block, index))
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.memory.affinity.borrow().get(key).copied()
    }

    fn put_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.memory.affinity.borrow_mut().insert(*key, *value);
    }

    fn held(&self, set: PrefixSet, addr: &Addr) -> Option<Held> {
        // A prefix sorts by its length.
        let longest = self.prefixes.iter().rev().find(|(prefix, _)| prefix.contains(set, addr));
        longest.map(|(_, held)| *held)
    }

    fn flow(&self, place: Place, key: &FlowKey, into: &mut Flow) -> bool {
        match place {
            Place::Confirmed => self.memory.flows.borrow().get(key).inspect(|flow| *into = **flow).is_some(),
            Place::Transient => match self.memory.transient.borrow_mut().get_mut(key) {
                Some((used, flow)) => {
                    *used = self.memory.use_now();
                    *into = *flow;
                    true
                }
                None => false,
            },
        }
    }

    fn put_flow(&self, place: Place, key: &FlowKey, flow: &Flow, new_only: bool) -> bool {
        match place {
            Place::Confirmed => {
                let mut flows = self.memory.flows.borrow_mut();
                let known = flows.contains_key(key);
                if (known && new_only) || (!known && flows.len() >= self.capacity.flows as usize) {
                    return false;
                }
                flows.insert(*key, *flow);
            }
            Place::Transient => {
                let mut transient = self.memory.transient.borrow_mut();
                let known = transient.contains_key(key);
                if known && new_only {
                    return false;
                }
                if !known && transient.len() >= self.capacity.transient as usize {
                    let oldest = transient.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
                    match oldest {
                        Some(oldest) => transient.remove(&oldest),
                        None => return false,
                    };
                }
                transient.insert(*key, (self.memory.use_now(), *flow));
            }
        }
        true
    }

    fn delete_flow(&self, place: Place, key: &FlowKey) {
        match place {
            Place::Confirmed => {
                self.memory.flows.borrow_mut().remove(key);
            }
            Place::Transient => {
                self.memory.transient.borrow_mut().remove(key);
            }
        }
    }

    fn touch_flow(&self, place: Place, key: &FlowKey, flow: &Flow) {
        let touch = |entry: &mut Flow| {
            (entry.seen, entry.flags, entry.expected_ack) = (flow.seen, flow.flags, flow.expected_ack);
        };
        match place {
            Place::Confirmed => self.memory.flows.borrow_mut().get_mut(key).into_iter().for_each(touch),
            Place::Transient => {
                self.memory
                    .transient
                    .borrow_mut()
                    .get_mut(key)
                    .map(|(_, flow)| flow)
                    .into_iter()
                    .for_each(touch);
            }
        }
    }

    fn foreign(&self, tuple: &FlowKey) -> Option<Foreign> {
        self.memory.foreign.get(tuple).copied()
    }

    fn fragments(&self, key: &FragmentKey, into: &mut Fragments) -> bool {
        self.memory.fragments.borrow().get(key).inspect(|fragments| *into = **fragments).is_some()
    }

    fn put_fragments(&self, key: &FragmentKey, value: &Fragments) {
        let mut fragments = self.memory.fragments.borrow_mut();
        if fragments.len() >= capacity::FRAGMENTS && !fragments.contains_key(key) {
            let oldest = fragments.iter().min_by_key(|(_, value)| value.seen).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                fragments.remove(&oldest);
            }
        }
        fragments.insert(*key, *value);
    }

    fn delete_fragments(&self, key: &FragmentKey) {
        self.memory.fragments.borrow_mut().remove(key);
    }

    fn nanos(&self) -> u64 {
        self.memory.nanos.get()
    }

    /// Xorshift (Marsaglia, 2003).
    fn random(&self) -> u32 {
        let mut x = self.memory.chance.get().max(1);
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.memory.chance.set(x);
        x
    }

    fn count(&self, slot: u32) {
        if let Some(count) = self.memory.counters.borrow_mut().get_mut(slot as usize) {
            *count += 1;
        }
    }

    fn count_service(&self, service: ServiceId, what: ServiceCount) {
        let mut services = self.memory.services.borrow_mut();
        let counters = services.entry(service).or_default();
        *match what {
            ServiceCount::PacketFlow => &mut counters.packet_flows,
            ServiceCount::SocketFlow => &mut counters.socket_flows,
            ServiceCount::NoEndpoint => &mut counters.no_endpoint,
            ServiceCount::Dropped => &mut counters.dropped,
        } += 1;
    }
}

impl Network for Sim {
    fn route(&self, _: &Addr, destination: &Addr, _: Proto) -> Result<Route, NoRoute> {
        self.memory.routes.get(destination).copied().unwrap_or(self.memory.default_route)
    }

    fn socket_owns(&self, tuple: &FlowKey) -> bool {
        self.memory.host_sockets.contains(tuple)
    }

    fn socket_expects(&self, tuple: &FlowKey) -> bool {
        self.memory.host_sockets.contains(tuple)
    }

    fn sender(&self) -> Option<Peer> {
        self.memory.sender.get()
    }
}

/// A socket of a program on the simulated node.
#[derive(Debug)]
pub struct Socket<'a> {
    pub sim: &'a Sim,
    pub cookie: u64,
    /// 1 is the host's network namespace.
    pub netns: u64,
    pub port: u16,
    pub peer: Cell<Option<Peer>>,
}

impl Sockets for Socket<'_> {
    fn cookie(&self) -> u64 {
        self.cookie
    }

    fn netns(&self) -> u64 {
        self.netns
    }

    fn pod(&self, key: &NetnsKey) -> Option<Addr> {
        self.sim.memory.pods.borrow().get(key).copied()
    }

    fn put_pod(&self, key: &NetnsKey, addr: &Addr) {
        self.sim.memory.pods.borrow_mut().insert(*key, *addr);
    }

    fn peer(&self) -> Option<Peer> {
        self.peer.get()
    }

    fn put_peer(&self, peer: &Peer) {
        self.peer.set(Some(*peer));
    }

    fn local_port(&self) -> Be16 {
        Be16::new(self.port)
    }

    fn datagram(&self, key: &SocketKey) -> Option<SocketPeer> {
        self.sim.memory.datagrams.borrow().get(key).copied()
    }

    fn put_datagram(&self, key: &SocketKey, value: &SocketPeer) -> bool {
        self.sim.memory.datagrams.borrow_mut().insert(*key, *value);
        true
    }
}
