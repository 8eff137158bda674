//! What the two halves of Weir share.
//!
//! [`abi`] is what both sides of the kernel boundary read; [`packet`] turns bytes into
//! values and back; [`path`] is the packet path itself, generic over a packet and its
//! tables, so that tc, XDP and a test over plain bytes run the same function.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod packet;
pub mod path;
