//! Socket calls: connect, sendmsg, recvmsg, getpeername.

use crate::maps::{self, KernelTables};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use lb_common::abi::{Addr, Be16, Peer, Proto, SettingsFlags, SocketKey, SocketPeer};
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
    carry_out::<V4>(ctx, socket::connect(&KernelTables, &KernelSockets { ctx }, remote::<V4>(ctx), proto))
}

#[inline(always)]
pub(crate) fn sendmsg<const V4: bool>(ctx: &SockAddrContext) -> i32 {
    carry_out::<V4>(ctx, socket::sendmsg(&KernelTables, &KernelSockets { ctx }, remote::<V4>(ctx)))
}

#[inline(always)]
pub(crate) fn recvmsg<const V4: bool>(ctx: &SockAddrContext) -> i32 {
    carry_out::<V4>(ctx, socket::recvmsg(&KernelSockets { ctx }, remote::<V4>(ctx)))
}

#[inline(always)]
pub(crate) fn getpeername<const V4: bool>(ctx: &SockAddrContext) -> i32 {
    carry_out::<V4>(ctx, socket::getpeername(&KernelSockets { ctx }, remote::<V4>(ctx)))
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
fn carry_out<const V4: bool>(ctx: &SockAddrContext, call: Call) -> i32 {
    match call {
        Call::Untouched => ALLOW,
        Call::Translated(to) => {
            write::<V4>(ctx.sock_addr, &to);
            ALLOW
        }
        Call::Refused => {
            if KernelTables.settings().flags.has(SettingsFlags::SET_RETVAL) {
                // SAFETY: a plain number; the hook's default would be EPERM (S36).
                unsafe { bpf_set_retval(-ECONNREFUSED) };
            }
            DENY
        }
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

struct KernelSockets<'a> {
    ctx: &'a SockAddrContext,
}

impl Sockets for KernelSockets<'_> {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context of a running program.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: the context of a running program.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn peer(&self) -> Option<Peer> {
        // SAFETY: socket storage lives as long as the socket in hand; copied out at once.
        unsafe { maps::PEERS.get_ptr_mut(self.ctx).as_ref().copied() }
    }

    #[inline(always)]
    fn put_peer(&self, peer: &Peer) {
        // SAFETY: as above; the element is written whole, by the socket's own caller.
        unsafe {
            let entry = maps::PEERS.get_or_insert_ptr_mut(self.ctx, None);
            if !entry.is_null() {
                *entry = *peer;
            }
        }
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
