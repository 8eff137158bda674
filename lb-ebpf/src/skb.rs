//! Socket buffers: tc ingress and egress.

use crate::maps;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_FRAG_NEEDED,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_adj_room_mode, bpf_fib_lookup as FibParams,
    bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1, bpf_sock, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_sk_lookup_tcp,
    bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get, bpf_skb_adjust_room, bpf_skb_change_tail,
    bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use core::mem::{MaybeUninit, size_of};
use lb_common::abi::{Addr, FlowKey, Peer, Proto, SettingsFlags};
use lb_common::packet::{Delta, Packet};
use lb_common::path::{Network, NoRoute, Route, Tables};

/// `BPF_F_IPV6`: the checksum's addresses have no IP header sum beside them (kernel 6.16).
const BPF_F_IPV6: u64 = 128;
/// Socket states of `enum` in `linux/tcp.h`: no peer yet, no peer.
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A frame in a socket buffer. Values are read and written by helpers, which see data that
/// is not linear and keep the offload's state right.
pub(crate) struct Skb<const L2: usize> {
    skb: *mut __sk_buff,
}

impl<const L2: usize> Skb<L2> {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb }
    }
}

impl<const L2: usize> Packet for Skb<L2> {
    #[inline(always)]
    fn link_header(&self) -> usize {
        L2
    }

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).len as usize }
    }

    #[inline(always)]
    fn load<T: bytemuck::Pod>(&self, offset: usize) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes all of `value` or fails; every bit pattern is a T.
        unsafe {
            let failed = bpf_skb_load_bytes(
                self.skb.cast(),
                offset as u32,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            );
            if failed == 0 { Some(value.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn store<T: bytemuck::Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        self.write(offset, value, 0)
    }

    #[inline(always)]
    fn store_uncovered<T: bytemuck::Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        // The sum that a network card made of the whole packet is kept right.
        self.write(offset, value, BPF_F_RECOMPUTE_CSUM.into())
    }

    #[inline(always)]
    fn correct(&mut self, offset: usize, pseudo: Delta, fields: Delta, udp: bool) -> Option<()> {
        let udp = if udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let v6 = if maps::KernelTables.settings().flags.has(SettingsFlags::CSUM_IPV6) && self.is_v6() {
            BPF_F_IPV6
        } else {
            0
        };
        // SAFETY: the helper checks the offset. `from` 0 and no size: `to` is a difference.
        unsafe {
            let flags = u64::from(BPF_F_PSEUDO_HDR) | udp | v6;
            if bpf_l4_csum_replace(self.skb, offset as u32, 0, pseudo.get().into(), flags) != 0 {
                return None;
            }
            if fields.get() != 0
                && bpf_l4_csum_replace(self.skb, offset as u32, 0, fields.get().into(), udp) != 0
            {
                return None;
            }
        }
        Some(())
    }

    #[inline(always)]
    fn reshape(&mut self, len: usize, _offset: usize, gap: usize) -> Option<()> {
        // SAFETY: both helpers check their arguments; the gap opens behind the link-layer
        // header, which is `_offset`.
        unsafe {
            if bpf_skb_change_tail(self.skb, len as u32, 0) != 0 {
                return None;
            }
            if bpf_skb_adjust_room(self.skb, gap as i32, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, 0) != 0 {
                return None;
            }
        }
        Some(())
    }
}

impl<const L2: usize> Skb<L2> {
    #[inline(always)]
    fn write<T: bytemuck::Pod>(&mut self, offset: usize, value: &T, flags: u64) -> Option<()> {
        let value = core::ptr::from_ref(value).cast();
        // SAFETY: the helper reads `value` and checks the offset.
        let failed =
            unsafe { bpf_skb_store_bytes(self.skb, offset as u32, value, size_of::<T>() as u32, flags) };
        if failed == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn is_v6(&self) -> bool {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).protocol == u32::from(0x86dd_u16.to_be()) }
    }
}

/// Routes and host sockets, as seen from the device that the packet came in by.
pub(crate) struct SkbNetwork {
    skb: *mut __sk_buff,
}

impl SkbNetwork {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb }
    }
}

impl Network for SkbNetwork {
    #[inline(always)]
    fn route(&self, source: &Addr, destination: &Addr, proto: Proto) -> Result<Route, NoRoute> {
        // SAFETY: the context outlives the program's run.
        let ifindex = unsafe { (*self.skb).ifindex };
        let (params, code) =
            fib(self.skb.cast(), ifindex, source, destination, proto, 0).ok_or(NoRoute::Unreachable)?;
        match code {
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
                Ok(Route { ifindex: params.ifindex, next_hop: next_hop(params) })
            }
            BPF_FIB_LKUP_RET_FRAG_NEEDED => Err(NoRoute::TooBig),
            _ => Err(NoRoute::Unreachable),
        }
    }

    #[inline(always)]
    fn socket_owns(&self, tuple: &FlowKey) -> bool {
        self.socket(tuple, false)
    }

    #[inline(always)]
    fn socket_expects(&self, tuple: &FlowKey) -> bool {
        self.socket(tuple, true)
    }

    #[inline(always)]
    fn sender(&self) -> Option<Peer> {
        let map = core::ptr::from_ref(&maps::PEERS).cast_mut().cast();
        // SAFETY: the context outlives the program's run; the packet holds its sender, and the
        // sender its storage, whose content is plain data.
        unsafe {
            let socket = (*self.skb).__bindgen_anon_2.sk;
            if socket.is_null() {
                return None;
            }
            bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0).cast::<Peer>().as_ref().copied()
        }
    }
}

impl SkbNetwork {
    /// Whether the current network namespace has a socket for this tuple; `connected`: one
    /// that has a peer.
    #[inline(always)]
    fn socket(&self, tuple: &FlowKey, connected: bool) -> bool {
        // One query each: a union of both would be half undefined, which the verifier sees.
        if tuple.destination.is_v4() {
            let query = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: tuple.source.v4_word(),
                daddr: tuple.destination.v4_word(),
                sport: tuple.source_port.wire(),
                dport: tuple.destination_port.wire(),
            };
            self.find_socket(query, tuple.proto, connected)
        } else {
            let query = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr: tuple.source.0,
                daddr: tuple.destination.0,
                sport: tuple.source_port.wire(),
                dport: tuple.destination_port.wire(),
            };
            self.find_socket(query, tuple.proto, connected)
        }
    }

    #[inline(always)]
    fn find_socket<Q>(&self, mut query: Q, proto: Proto, connected: bool) -> bool {
        // Every negative number means the current network namespace.
        let netns = u64::MAX;
        let (query, size) = ((&raw mut query).cast(), size_of::<Q>() as u32);
        // SAFETY: the query is one of the two forms of bpf_sock_tuple, told apart by its size;
        // a socket found is released.
        unsafe {
            let socket: *mut bpf_sock = if proto == Proto::TCP {
                bpf_sk_lookup_tcp(self.skb.cast(), query, size, netns, 0).cast()
            } else {
                bpf_sk_lookup_udp(self.skb.cast(), query, size, netns, 0).cast()
            };
            if socket.is_null() {
                return false;
            }
            // A UDP socket with a peer is "established" too.
            let state = (*socket).state;
            bpf_sk_release(socket.cast());
            !connected || (state != TCP_LISTEN && state != TCP_CLOSE)
        }
    }
}

/// Asks the kernel's routing table. Shared with XDP. `length` of the IP packet is compared with
/// the way's MTU; 0 has the kernel look at the socket buffer. `None` only without the map.
#[inline(always)]
pub(crate) fn fib(
    ctx: *mut core::ffi::c_void,
    ifindex: u32,
    source: &Addr,
    destination: &Addr,
    proto: Proto,
    length: u16,
) -> Option<(&'static FibParams, u32)> {
    let params = maps::FIB.get_ptr_mut(0)?;
    // SAFETY: this CPU's element; packet programs do not interrupt each other on it. What the
    // helper wrote last time (lengths, metric) is cleared; ports and the rest stay zero.
    unsafe {
        (*params).l4_protocol = proto.0;
        (*params).__bindgen_anon_1.tot_len = length;
        (*params).__bindgen_anon_2.flowinfo = 0;
        (*params).ifindex = ifindex;
        if destination.is_v4() {
            (*params).family = AF_INET;
            (*params).__bindgen_anon_3.ipv4_src = source.v4_word();
            (*params).__bindgen_anon_4.ipv4_dst = destination.v4_word();
        } else {
            (*params).family = AF_INET6;
            (*params).__bindgen_anon_3.ipv6_src = source.0;
            (*params).__bindgen_anon_4.ipv6_dst = destination.0;
        }
        let code = bpf_fib_lookup(ctx, params, size_of::<FibParams>() as i32, 0);
        Some((&*params, code as u32))
    }
}

/// The gateway that a lookup wrote in place of the destination.
#[inline(always)]
pub(crate) fn next_hop(params: &FibParams) -> Addr {
    // SAFETY: reading a union of integers.
    unsafe {
        if params.family == AF_INET {
            Addr::from_v4_word(params.__bindgen_anon_4.ipv4_dst)
        } else {
            Addr(params.__bindgen_anon_4.ipv6_dst)
        }
    }
}

/// Sends the packet to a neighbour, whose link-layer address the kernel finds or asks for.
#[inline(always)]
pub(crate) fn redirect(route: &Route) -> i32 {
    let hop = &route.next_hop;
    let (nh_family, ipv6_nh) =
        if hop.is_v4() { (AF_INET.into(), [hop.v4_word(), 0, 0, 0]) } else { (AF_INET6.into(), hop.0) };
    let mut params =
        bpf_redir_neigh { nh_family, __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh } };
    // SAFETY: the structure is passed with its size; the helper copies it.
    unsafe {
        bpf_redirect_neigh(route.ifindex, &raw mut params, size_of::<bpf_redir_neigh>() as i32, 0) as i32
    }
}

/// Sends the frame out of the device that it came in by.
#[inline(always)]
pub(crate) fn bounce(ctx: &TcContext) -> i32 {
    // SAFETY: the context outlives the program's run.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: plain integers.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}
