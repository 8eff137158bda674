//! Raw frames: XDP.

use crate::skb::{fib, next_hop};
use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_SUCCESS, xdp_action, xdp_md};
use aya_ebpf::programs::XdpContext;
use core::cell::Cell;
use core::hint::black_box;
use core::mem::{MaybeUninit, size_of};
use lb_common::abi::{Addr, FlowKey, Peer, Proto};
use lb_common::packet::{Delta, ETHERNET, Packet};
use lb_common::path::{Network, NoRoute, Route};

/// How far into a frame the path reads: headers only. A bound that the verifier can see.
const MAX_OFFSET: usize = 1024;

/// A frame in the driver's memory, accessed directly.
pub(crate) struct XdpFrame {
    ctx: *mut xdp_md,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx }
    }

    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        if offset > MAX_OFFSET {
            return None;
        }
        // SAFETY: the context outlives the program's run.
        let (start, end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        // Through black_box, or the optimiser drops a check that the verifier wants to see.
        let address = start + offset;
        if black_box(address + size_of::<T>()) > end {
            return None;
        }
        if address + size_of::<T>() > end {
            return None;
        }
        Some(address as *mut T)
    }
}

impl Packet for XdpFrame {
    #[inline(always)]
    fn link_header(&self) -> usize {
        ETHERNET
    }

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.ctx).data_end as usize - (*self.ctx).data as usize }
    }

    #[inline(always)]
    fn load<T: bytemuck::Pod>(&self, offset: usize) -> Option<T> {
        const { assert!(size_of::<T>().is_multiple_of(2), "frames are read by 16-bit words") };
        let from = self.at::<T>(offset)?.cast::<u16>();
        let mut value = MaybeUninit::<T>::uninit();
        let into = value.as_mut_ptr().cast::<u16>();
        for word in 0..size_of::<T>() / 2 {
            // SAFETY: `at` checked the bounds; a frame's headers lie at even addresses. By
            // words, because a whole copy would be a call that goes byte by byte.
            unsafe { into.add(word).write_unaligned(from.add(word).read_volatile()) };
        }
        // SAFETY: written to the last byte; every bit pattern is a T.
        Some(unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn store<T: bytemuck::Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        // SAFETY: `at` checked the bounds; the frame is ours while the program runs.
        self.at::<T>(offset).map(|p| unsafe { p.write_unaligned(*value) })
    }

    #[inline(always)]
    fn correct(&mut self, offset: usize, pseudo: Delta, fields: Delta, udp: bool) -> Option<()> {
        let check: u16 = self.load(offset)?;
        if udp && check == 0 {
            return Some(());
        }
        let new = pseudo.and(fields).apply(check);
        let new = if udp && new == 0 { 0xffff } else { new };
        self.store(offset, &new)
    }

    #[inline(always)]
    fn reshape(&mut self, _len: usize, _offset: usize, _gap: usize) -> Option<()> {
        // The early path answers nothing: it leaves such packets to tc.
        None
    }
}

/// Routes as seen from the device that the frame came in by. Only a way out of that same
/// device to a known neighbour counts: its driver can send the frame back (`XDP_TX`), whereas
/// another device may have no XDP at all and lose it. The rest is left to tc.
pub(crate) struct XdpNetwork {
    ctx: *mut xdp_md,
    link: Cell<[u16; 6]>,
}

impl XdpNetwork {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx, link: Cell::new([0; 6]) }
    }

    /// Writes the neighbour's address and sends the frame.
    #[inline(always)]
    pub(crate) fn send(&self, ctx: &XdpContext) -> u32 {
        let mut frame = XdpFrame::new(ctx);
        match frame.store(0, &self.link.get()) {
            Some(()) => xdp_action::XDP_TX,
            None => xdp_action::XDP_DROP,
        }
    }
}

impl Network for XdpNetwork {
    #[inline(always)]
    fn route(&self, source: &Addr, destination: &Addr, proto: Proto) -> Result<Route, NoRoute> {
        // SAFETY: the context outlives the program's run.
        let (ifindex, length) = unsafe {
            let md = &*self.ctx;
            // Through black_box, or 14 is taken from the end first, which the verifier refuses.
            (md.ingress_ifindex, black_box(md.data_end as usize - md.data as usize).wrapping_sub(ETHERNET))
        };
        let (params, code) = fib(self.ctx.cast(), ifindex, source, destination, proto, length as u16)
            .ok_or(NoRoute::Unreachable)?;
        if code != BPF_FIB_LKUP_RET_SUCCESS || params.ifindex != ifindex {
            return Err(NoRoute::Unreachable);
        }
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (params.dmac, params.smac);
        self.link.set([
            u16::from_ne_bytes([d0, d1]),
            u16::from_ne_bytes([d2, d3]),
            u16::from_ne_bytes([d4, d5]),
            u16::from_ne_bytes([s0, s1]),
            u16::from_ne_bytes([s2, s3]),
            u16::from_ne_bytes([s4, s5]),
        ]);
        Ok(Route { ifindex: params.ifindex, next_hop: next_hop(params) })
    }

    #[inline(always)]
    fn socket_owns(&self, _tuple: &FlowKey) -> bool {
        // The early path opens no flow.
        false
    }

    #[inline(always)]
    fn socket_expects(&self, _tuple: &FlowKey) -> bool {
        // The early path opens no flow.
        false
    }

    #[inline(always)]
    fn sender(&self) -> Option<Peer> {
        // Nobody's yet: it comes from the network.
        None
    }
}
