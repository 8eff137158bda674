//! Weir's L7 half judged from outside, byte by byte.
//!
//! ```text
//!  raw client (exchange, h2) ──> weir run --l4 off ──> origin that records what arrives
//! ```
//! The client sends what no library would; the [`origin`] reads with a strict reader of its
//! own ([`strict`]) that shares no code with Weir and finds fault with anything ambiguous. So
//! the verdict is taken from what reaches the origin and from what the client gets back.

pub mod bystander;
pub mod exchange;
pub mod h2;
pub mod load;
pub mod origin;
mod peer;
pub mod reply;
pub mod rig;
pub mod streams;
pub mod strict;
