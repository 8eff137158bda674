//! Weir's eBPF programs, one entry point per hook.
//!
//! Each wraps its context, calls the path of `lb-common` and turns the verdict into the
//! hook's code. Nothing is decided here.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unreachable_pub, reason = "the loader finds the entry points by name")]

mod count;
mod maps;
mod skb;
mod sock;
mod xdp;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{cgroup_sock_addr, classifier, sock_ops, xdp};
use aya_ebpf::programs::{SockAddrContext, SockOpsContext, TcContext, XdpContext};
use lb_common::packet::ETHERNET;
use lb_common::path::{self, Origin, Verdict};
use maps::KernelTables;

/// From the network, Ethernet.
#[classifier]
pub fn outside_ingress(ctx: TcContext) -> i32 {
    ingress::<ETHERNET>(&ctx, Origin::Outside)
}

/// From the network, over a device without link-layer header (tunnels).
#[classifier]
pub fn outside_ingress_l3(ctx: TcContext) -> i32 {
    ingress::<0>(&ctx, Origin::Outside)
}

/// From a pod.
#[classifier]
pub fn inside_ingress(ctx: TcContext) -> i32 {
    ingress::<ETHERNET>(&ctx, Origin::Inside)
}

/// From a pod, over a device without link-layer header.
#[classifier]
pub fn inside_ingress_l3(ctx: TcContext) -> i32 {
    ingress::<0>(&ctx, Origin::Inside)
}

/// To the network or to a pod, Ethernet.
#[classifier]
pub fn egress(ctx: TcContext) -> i32 {
    leave::<ETHERNET>(&ctx)
}

/// To the network or to a pod, over a device without link-layer header.
#[classifier]
pub fn egress_l3(ctx: TcContext) -> i32 {
    leave::<0>(&ctx)
}

#[inline(always)]
fn ingress<const L2: usize>(ctx: &TcContext, from: Origin) -> i32 {
    let mut packet = skb::Skb::<L2>::new(ctx);
    let network = skb::SkbNetwork::new(ctx);
    let Some(scratch) = maps::scratch() else { return TC_ACT_UNSPEC };
    let verdict = path::ingress(&mut packet, &KernelTables, &network, scratch, from);
    count::add(verdict.slot());
    log::<L2>(ctx, verdict);
    match verdict {
        // TC_ACT_UNSPEC is TCX_NEXT as well: other programs on the hook still run (S83).
        Verdict::Pass(_) => TC_ACT_UNSPEC,
        Verdict::Redirect(_, route) => skb::redirect(&route),
        Verdict::Answer(_) => skb::bounce(ctx),
        Verdict::Drop(_) => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn leave<const L2: usize>(ctx: &TcContext) -> i32 {
    let mut packet = skb::Skb::<L2>::new(ctx);
    let Some(scratch) = maps::scratch() else { return TC_ACT_UNSPEC };
    let verdict = path::egress(&mut packet, &KernelTables, scratch);
    count::add(verdict.slot());
    match verdict {
        Verdict::Pass(_) | Verdict::Redirect(..) | Verdict::Answer(_) => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT,
    }
}

/// One line for each verdict about a Service; pruned at load while `--bpf-log` is off.
#[inline(always)]
fn log<const L2: usize>(ctx: &TcContext, verdict: Verdict) {
    match verdict {
        Verdict::Pass(_) => aya_log_ebpf::trace!(ctx, "pass slot={} link_header={}", verdict.slot(), L2),
        Verdict::Redirect(_, route) => {
            aya_log_ebpf::debug!(ctx, "redirect slot={} ifindex={}", verdict.slot(), route.ifindex)
        }
        Verdict::Answer(_) | Verdict::Drop(_) => aya_log_ebpf::info!(ctx, "refuse slot={}", verdict.slot()),
    }
}

/// Finishes packets of known flows before a socket buffer is made.
#[xdp]
pub fn early(ctx: XdpContext) -> u32 {
    let network = xdp::XdpNetwork::new(&ctx);
    let mut frame = xdp::XdpFrame::new(&ctx);
    let Some(scratch) = maps::scratch() else { return xdp_action::XDP_PASS };
    let verdict = path::early(&mut frame, &KernelTables, &network, scratch);
    match verdict {
        Verdict::Redirect(..) => {
            count::add(verdict.slot());
            network.send(&ctx)
        }
        Verdict::Drop(_) => {
            count::add(verdict.slot());
            xdp_action::XDP_DROP
        }
        Verdict::Pass(_) | Verdict::Answer(_) => xdp_action::XDP_PASS,
    }
}

#[cgroup_sock_addr(connect4)]
pub fn connect_v4(ctx: SockAddrContext) -> i32 {
    sock::connect::<true>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect_v6(ctx: SockAddrContext) -> i32 {
    sock::connect::<false>(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg_v4(ctx: SockAddrContext) -> i32 {
    sock::sendmsg::<true>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg_v6(ctx: SockAddrContext) -> i32 {
    sock::sendmsg::<false>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg_v4(ctx: SockAddrContext) -> i32 {
    sock::recvmsg::<true>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg_v6(ctx: SockAddrContext) -> i32 {
    sock::recvmsg::<false>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername_v4(ctx: SockAddrContext) -> i32 {
    sock::getpeername::<true>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername_v6(ctx: SockAddrContext) -> i32 {
    sock::getpeername::<false>(&ctx)
}

/// Learns the addresses of pods from their connections.
#[sock_ops]
pub fn connecting(ctx: SockOpsContext) -> u32 {
    sock::connecting(&ctx);
    1
}

/// GPL-compatible: the helpers that redirect and look up routes ask for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: a reachable panic does not pass the verifier.
    loop {}
}
