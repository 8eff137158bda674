//! Every map, and the path's tables over them.

use crate::count;
use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_fib_lookup};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use lb_common::abi::{
    Addr, Affinity, AffinityKey, Backend, BackendId, Device, Flow, FlowKey, Foreign, FragmentKey, Fragments,
    Frontend, FrontendKey, Held, NetnsKey, NodeAddress, NodeConfig, NodeFlags, Peer, PortRange, Prefix,
    PrefixSet, Reason, ServiceCounters, ServiceId, Settings, SettingsFlags, SocketKey, SocketPeer,
    TABLE_BLOCK, capacity,
};
use lb_common::path::{Place, Scratch, ServiceCount, Tables, split};

#[btf_map]
pub(crate) static FRONTENDS: HashMap<
    FrontendKey,
    Frontend,
    { capacity::FRONTENDS },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
#[btf_map]
pub(crate) static BACKENDS: Array<Backend, { capacity::BACKENDS }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
#[btf_map]
pub(crate) static TABLES: Array<
    [BackendId; TABLE_BLOCK],
    { capacity::TABLE_BLOCKS },
    { BPF_F_MMAPABLE as usize },
> = Array::new();
#[btf_map]
pub(crate) static FLOWS: HashMap<FlowKey, Flow, { capacity::FLOWS }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub(crate) static TRANSIENT: LruHashMap<FlowKey, Flow, { capacity::TRANSIENT }> = LruHashMap::new();
#[btf_map]
pub(crate) static FOREIGN: HashMap<FlowKey, Foreign, { capacity::FOREIGN }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, Fragments, { capacity::FRAGMENTS }> = LruHashMap::new();
#[btf_map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, Affinity, { capacity::AFFINITY }> = LruHashMap::new();
#[btf_map]
pub(crate) static NETNS: LruHashMap<NetnsKey, Addr, { capacity::NETNS }> = LruHashMap::new();
#[btf_map]
pub(crate) static SOCKETS: LruHashMap<SocketKey, SocketPeer, { capacity::SOCKETS }> = LruHashMap::new();
#[btf_map]
pub(crate) static PEERS: SkStorage<Peer> = SkStorage::new();
#[btf_map]
pub(crate) static NODE_ADDRESSES: HashMap<
    Addr,
    NodeAddress,
    { capacity::NODE_ADDRESSES },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
#[btf_map]
pub(crate) static DEVICES: HashMap<u32, Device, { capacity::DEVICES }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub(crate) static NODE: Array<NodeConfig, 1> = Array::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { Reason::COUNT as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static SERVICE_COUNTERS: Array<
    ServiceCounters,
    { capacity::SERVICES },
    { BPF_F_MMAPABLE as usize },
> = Array::new();

/// Keys are [`Prefix`]es: its length, and the rest of it by words.
#[btf_map]
pub(crate) static PREFIXES: LpmTrie<[u32; 5], Held, { capacity::PREFIXES }> = LpmTrie::new();

/// Copies a map value by words. A plain assignment becomes a call of the compiler's `memmove`,
/// which on this target goes byte by byte.
#[inline(always)]
fn copy<T: bytemuck::Pod>(from: &T, into: &mut T) {
    let (from, into) = (core::ptr::from_ref(from).cast::<u32>(), core::ptr::from_mut(into).cast::<u32>());
    for word in 0..size_of::<T>() / size_of::<u32>() {
        // SAFETY: both have the size of T, which is a multiple of four, and its alignment.
        unsafe { into.add(word).write(from.add(word).read_volatile()) };
    }
}

/// The question to the routing table: filled in field by field, since clearing it as a whole
/// would be a call as well.
#[btf_map]
pub(crate) static FIB: PerCpuArray<bpf_fib_lookup, 1> = PerCpuArray::new();

/// Working memory of the packet in hand. The packet hooks run with softirqs off, so that one
/// on each CPU is enough; socket hooks, which can be preempted, do not use it.
#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Constants of this load, overridden by the loader.
#[unsafe(no_mangle)]
static SETTINGS: Global<Settings> = Global::new(Settings {
    host_netns_cookie: 0,
    flags: SettingsFlags(0),
    hash_seed: 0,
    snat: [PortRange::EMPTY; 2],
    earlier: PortRange::EMPTY,
    pad: 0,
});

/// This CPU's working memory.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: only the packet program that runs on this CPU uses it, and calls this once.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// The maps as the path's tables.
pub(crate) struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn settings(&self) -> Settings {
        SETTINGS.load()
    }

    #[inline(always)]
    fn node(&self) -> NodeConfig {
        match NODE.get(0) {
            Some(node) => *node,
            None => NodeConfig {
                v4: Addr::ANY_V4,
                v6: Addr::ANY_V6,
                node_ports: PortRange::EMPTY,
                flags: NodeFlags(0),
            },
        }
    }

    #[inline(always)]
    fn node_address(&self, addr: &Addr) -> Option<NodeAddress> {
        // SAFETY: copied out at once, before any other helper runs.
        unsafe { NODE_ADDRESSES.get(addr).copied() }
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<Device> {
        // SAFETY: copied out at once.
        unsafe { DEVICES.get(ifindex).copied() }
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey, into: &mut Frontend) -> bool {
        // SAFETY: copied out at once; an update replaces the element, so no copy is torn.
        match unsafe { FRONTENDS.get(key) } {
            Some(frontend) => {
                copy(frontend, into);
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend> {
        let backend = *BACKENDS.get(id)?;
        // An array has every element; a free one has no flags and no address.
        if backend.service == 0 { None } else { Some(backend) }
    }

    #[inline(always)]
    fn slot(&self, block: u32, index: u32) -> Option<BackendId> {
        let (block, place) = split(block, index);
        let ids = TABLES.get(block)?;
        ids.get(place).copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: copied out at once.
        unsafe { AFFINITY.get(key).copied() }
    }

    #[inline(always)]
    fn put_affinity(&self, key: &AffinityKey, value: &Affinity) {
        // A client that cannot be remembered is served all the same.
        let _ = AFFINITY.insert(key, value, BPF_ANY.into());
    }

    #[inline(always)]
    fn held(&self, set: PrefixSet, addr: &Addr) -> Option<Held> {
        let Prefix { len, set, addr: Addr([a, b, c, d]) } = Prefix::of(set, *addr);
        PREFIXES.get(&Key::new(len, [set, a, b, c, d])).copied()
    }

    #[inline(always)]
    fn flow(&self, place: Place, key: &FlowKey, into: &mut Flow) -> bool {
        // SAFETY: copied out at once; a slot that is reused meanwhile gives a torn copy only
        // to a packet of a flow that is being forgotten.
        let found = unsafe {
            match place {
                Place::Confirmed => FLOWS.get(key),
                Place::Transient => TRANSIENT.get(key),
            }
        };
        match found {
            Some(flow) => {
                copy(flow, into);
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn put_flow(&self, place: Place, key: &FlowKey, flow: &Flow, new_only: bool) -> bool {
        let flags = if new_only { BPF_NOEXIST } else { BPF_ANY };
        match place {
            Place::Confirmed => FLOWS.insert(key, flow, flags.into()),
            Place::Transient => TRANSIENT.insert(key, flow, flags.into()),
        }
        .is_ok()
    }

    #[inline(always)]
    fn delete_flow(&self, place: Place, key: &FlowKey) {
        // Not there: another CPU was first.
        let _ = match place {
            Place::Confirmed => FLOWS.remove(key),
            Place::Transient => TRANSIENT.remove(key),
        };
    }

    #[inline(always)]
    fn touch_flow(&self, place: Place, key: &FlowKey, flow: &Flow) {
        let found = match place {
            Place::Confirmed => FLOWS.get_ptr_mut(key),
            Place::Transient => TRANSIENT.get_ptr_mut(key),
        };
        if let Some(entry) = found {
            // SAFETY: map memory stays mapped for the program's run; each field is written
            // by one aligned store, and the last writer wins.
            unsafe {
                (*entry).seen = flow.seen;
                (*entry).expected_ack = flow.expected_ack;
                (*entry).flags = flow.flags;
            }
        }
    }

    #[inline(always)]
    fn foreign(&self, tuple: &FlowKey) -> Option<Foreign> {
        // SAFETY: copied out at once.
        unsafe { FOREIGN.get(tuple).copied() }
    }

    #[inline(always)]
    fn fragments(&self, key: &FragmentKey, into: &mut Fragments) -> bool {
        // SAFETY: copied out at once; a slot that is reused meanwhile was about to be forgotten.
        match unsafe { FRAGMENTS.get(key) } {
            Some(fragments) => {
                copy(fragments, into);
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn put_fragments(&self, key: &FragmentKey, value: &Fragments) {
        // Those that follow one that cannot be remembered are left to the stack.
        let _ = FRAGMENTS.insert(key, value, BPF_ANY.into());
    }

    #[inline(always)]
    fn delete_fragments(&self, key: &FragmentKey) {
        // Not there: nothing of this packet was translated before.
        let _ = FRAGMENTS.remove(key);
    }

    #[inline(always)]
    fn nanos(&self) -> u64 {
        count::nanos()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        count::random()
    }

    #[inline(always)]
    fn count(&self, slot: u32) {
        count::add(slot);
    }

    #[inline(always)]
    fn count_service(&self, service: ServiceId, what: ServiceCount) {
        if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service) {
            // SAFETY: a live array element; only the address of a field is formed.
            let counter = unsafe {
                match what {
                    ServiceCount::PacketFlow => &raw mut (*counters).packet_flows,
                    ServiceCount::SocketFlow => &raw mut (*counters).socket_flows,
                    ServiceCount::NoEndpoint => &raw mut (*counters).no_endpoint,
                    ServiceCount::Dropped => &raw mut (*counters).dropped,
                }
            };
            count::add_shared(counter);
        }
    }
}
