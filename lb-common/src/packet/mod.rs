//! Bytes to values and back.
//!
//! [`Packet`] is all that the packet path may do to a frame: read and write small values at
//! an offset, and correct a transport checksum by a difference. How a checksum is corrected
//! depends on who holds the frame (socket buffers know about offload, plain bytes do not),
//! so the path never touches one itself.

mod bytes;
mod checksum;
mod parse;
mod quoted;
mod refuse;
mod rewrite;

pub use bytes::Frame;
pub use checksum::{Delta, fold, sum};
pub use parse::{Fragment, Parsed, TcpFlags, parse};
pub use quoted::{Ends, Quoted, quoted, rewrite_error};
pub use refuse::{Answered, refuse};
pub use rewrite::{Rewrite, rewrite, rewrite_later};

use bytemuck::Pod;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

/// A frame that the path reads and rewrites. Offsets count from its first byte.
pub trait Packet {
    /// Length of the link-layer header: [`ETHERNET`], or 0 on devices without one.
    fn link_header(&self) -> usize;

    /// Length of the whole frame, link-layer header included.
    fn len(&self) -> usize;

    /// Whether the frame has no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value at `offset`; `None` past the end.
    fn load<T: Pod>(&self, offset: usize) -> Option<T>;

    /// Writes a value at `offset`; `None` past the end or when the frame cannot be written.
    fn store<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()>;

    /// The same where no checksum of the packet's own makes up for the change.
    fn store_uncovered<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        self.store(offset, value)
    }

    /// Corrects the transport checksum at `offset` for changed addresses (`pseudo`) and
    /// changed transport fields (`fields`). For UDP a zero sum stays zero, and one that
    /// becomes zero is sent as 0xffff (RFC 768).
    fn correct(&mut self, offset: usize, pseudo: Delta, fields: Delta, udp: bool) -> Option<()>;

    /// Cuts the frame to `len` bytes, then opens a gap of `gap` bytes at `offset` (the start
    /// of the network header). The gap's content is undefined.
    fn reshape(&mut self, len: usize, offset: usize, gap: usize) -> Option<()>;
}
