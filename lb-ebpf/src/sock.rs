//! Socket calls: connect, sendmsg, recvmsg, getpeername.

use crate::maps::{self, KernelTables};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_ANY, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock, bpf_sock_addr,
};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval, bpf_sk_storage_get,
};
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use core::ffi::c_void;
use lb_common::abi::{Addr, Be16, NetnsKey, Peer, Proto, SettingsFlags, SocketKey, SocketPeer};
use lb_common::path::Tables;
use lb_common::path::socket::{self, Call, Remote, Sockets};

/// The program's answer: go on, or fail the call.
const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

#[inline(always)]
pub(crate) fn connect<const V4: bool>(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context outlives the program's run.
    let proto = unsafe { (*ctx.sock_addr).protocol };
    let proto = if proto == u32::from(Proto::TCP.0) {
        Proto::TCP
    } else if proto == u32::from(Proto::UDP.0) {
        Proto::UDP
    } else {
        return ALLOW;
    };
    let mut to = remote::<V4>(ctx);
    let call = socket::connect(&KernelTables, &KernelSockets::of(ctx), &mut to, proto);
    carry_out::<V4>(ctx, call, &to)
}

#[inline(always)]
pub(crate) fn sendmsg<const V4: bool>(ctx: &SockAddrContext) -> i32 {
    let mut to = remote::<V4>(ctx);
    let call = socket::sendmsg(&KernelTables, &KernelSockets::of(ctx), &mut to);
    carry_out::<V4>(ctx, call, &to)
}

#[inline(always)]
pub(crate) fn recvmsg<const V4: bool>(ctx: &SockAddrContext) -> i32 {
    let mut from = remote::<V4>(ctx);
    let call = socket::recvmsg(&KernelSockets::of(ctx), &mut from);
    carry_out::<V4>(ctx, call, &from)
}

#[inline(always)]
pub(crate) fn getpeername<const V4: bool>(ctx: &SockAddrContext) -> i32 {
    let mut peer = remote::<V4>(ctx);
    let call = socket::getpeername(&KernelSockets::of(ctx), &mut peer);
    carry_out::<V4>(ctx, call, &peer)
}

#[inline(always)]
fn remote<const V4: bool>(ctx: &SockAddrContext) -> Remote {
    let sock = ctx.sock_addr;
    // SAFETY: the context outlives the program's run; the verifier allows 4-byte reads of
    // these fields.
    unsafe {
        let addr = if V4 {
            Addr::from_v4_word((*sock).user_ip4)
        } else {
            let ip = &raw const (*sock).user_ip6;
            let ip: *const u32 = ip.cast();
            Addr([
                ip.read_volatile(),
                ip.add(1).read_volatile(),
                ip.add(2).read_volatile(),
                ip.add(3).read_volatile(),
            ])
        };
        Remote { addr, port: Be16::from_wire((*sock).user_port as u16) }
    }
}

#[inline(always)]
fn carry_out<const V4: bool>(ctx: &SockAddrContext, call: Call, to: &Remote) -> i32 {
    match call {
        Call::Untouched => ALLOW,
        Call::Translated => {
            write::<V4>(ctx.sock_addr, to);
            ALLOW
        }
        Call::Refused => {
            if KernelTables.settings().flags.has(SettingsFlags::SET_RETVAL) {
                // SAFETY: a plain number; the hook's default would be EPERM (S36).
                unsafe { bpf_set_retval(-ECONNREFUSED) };
            }
            DENY
        }
        // EPERM is what the hook says by itself, as a firewall in the output path does.
        Call::Denied => DENY,
    }
}

#[inline(always)]
fn write<const V4: bool>(sock: *mut bpf_sock_addr, to: &Remote) {
    // SAFETY: the context outlives the program's run; the verifier allows 4-byte writes of
    // these fields.
    unsafe {
        if V4 {
            (*sock).user_ip4 = to.addr.v4_word();
        } else {
            let ip = &raw mut (*sock).user_ip6;
            let ip: *mut u32 = ip.cast();
            let [a, b, c, d] = to.addr.0;
            ip.write_volatile(a);
            ip.add(1).write_volatile(b);
            ip.add(2).write_volatile(c);
            ip.add(3).write_volatile(d);
        }
        (*sock).user_port = to.port.wire().into();
    }
}

/// A pod's TCP connection has got its source address.
#[inline(always)]
pub(crate) fn connecting(ctx: &SockOpsContext) {
    let ops = ctx.ops;
    // SAFETY: the context outlives the program's run; the verifier allows these reads.
    let (sk, local) = unsafe {
        if (*ops).op != BPF_SOCK_OPS_TCP_CONNECT_CB {
            return;
        }
        let local = if (*ops).family == AF_INET {
            Addr::from_v4_word((*ops).local_ip4)
        } else {
            let ip: *const u32 = (&raw const (*ops).local_ip6).cast();
            Addr([
                ip.read_volatile(),
                ip.add(1).read_volatile(),
                ip.add(2).read_volatile(),
                ip.add(3).read_volatile(),
            ])
        };
        ((*ops).__bindgen_anon_2.sk, local)
    };
    if !sk.is_null() {
        socket::connecting(&KernelTables, &KernelSockets { ctx: ctx.as_ptr(), sk: sk.cast() }, &local);
    }
}

const AF_INET: u32 = 2;

struct KernelSockets {
    ctx: *mut c_void,
    /// The socket in hand (`struct bpf_sock`).
    sk: *mut c_void,
}

impl KernelSockets {
    #[inline(always)]
    fn of(ctx: &SockAddrContext) -> Self {
        // SAFETY: the context outlives the program's run.
        let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
        Self { ctx: ctx.as_ptr(), sk: sk.cast() }
    }

    /// The socket's storage; `create`: made if it is not there.
    #[inline(always)]
    fn storage(&self, create: bool) -> Option<&'static mut Peer> {
        let flags = if create { BPF_SK_STORAGE_GET_F_CREATE } else { 0 };
        let map = core::ptr::from_ref(&maps::PEERS).cast_mut().cast();
        // SAFETY: socket storage lives as long as the socket in hand, and its content is
        // plain data.
        unsafe {
            bpf_sk_storage_get(map, self.sk, core::ptr::null_mut(), flags.into()).cast::<Peer>().as_mut()
        }
    }
}

impl Sockets for KernelSockets {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context of a running program.
        unsafe { bpf_get_socket_cookie(self.ctx) }
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: the context of a running program.
        unsafe { bpf_get_netns_cookie(self.ctx) }
    }

    #[inline(always)]
    fn pod(&self, key: &NetnsKey) -> Option<Addr> {
        // SAFETY: copied out at once.
        unsafe { maps::NETNS.get(key).copied() }
    }

    #[inline(always)]
    fn put_pod(&self, key: &NetnsKey, addr: &Addr) {
        // A pod that cannot be remembered goes on under its namespace.
        let _ = maps::NETNS.insert(key, addr, BPF_ANY.into());
    }

    #[inline(always)]
    fn peer(&self) -> Option<Peer> {
        self.storage(false).copied()
    }

    #[inline(always)]
    fn put_peer(&self, peer: &Peer) {
        if let Some(entry) = self.storage(true) {
            *entry = *peer;
        }
    }

    #[inline(always)]
    fn local_port(&self) -> Be16 {
        let sk: *const bpf_sock = self.sk.cast();
        // SAFETY: the socket in hand; the verifier allows a 4-byte read of this field, which is
        // in host order.
        Be16::new(unsafe { (&raw const (*sk).src_port).read_volatile() } as u16)
    }

    #[inline(always)]
    fn datagram(&self, key: &SocketKey) -> Option<SocketPeer> {
        // SAFETY: copied out at once.
        unsafe { maps::SOCKETS.get(key).copied() }
    }

    #[inline(always)]
    fn put_datagram(&self, key: &SocketKey, value: &SocketPeer) -> bool {
        maps::SOCKETS.insert(key, value, BPF_ANY.into()).is_ok()
    }
}
