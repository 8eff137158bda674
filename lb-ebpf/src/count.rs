//! Counters and the kernel's clock: the one place with inline assembly.

use crate::maps;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use core::arch::asm;

/// Adds one to this CPU's counter.
#[inline(always)]
pub(crate) fn add(slot: u32) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the pointer is this CPU's element, valid for the program's run. A program
        // that interrupts this one on the same CPU may lose one count.
        unsafe { *counter += 1 };
    }
}

/// Adds one to a value that other CPUs add to as well.
#[inline(always)]
pub(crate) fn add_shared(counter: *mut u64) {
    // SAFETY: the caller passes a pointer into a live map element, aligned to 8 bytes;
    // core's atomics do not exist on this target.
    unsafe {
        asm!("lock *(u64 *)({p} + 0) += {v}", p = in(reg) counter, v = in(reg) 1u64, options(nostack));
    }
}

/// Monotonic time, coarse (one scheduler tick); kernel 5.11.
#[inline(always)]
pub(crate) fn nanos() -> u64 {
    // SAFETY: takes nothing and always succeeds.
    unsafe { bpf_ktime_get_coarse_ns() }
}

#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: takes nothing and always succeeds.
    unsafe { bpf_get_prandom_u32() }
}
