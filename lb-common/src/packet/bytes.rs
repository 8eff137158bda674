//! A frame in plain memory: simulator, tests, fuzzing.

use super::{Delta, Packet};
use bytemuck::Pod;

/// A frame of `len` bytes at the start of a larger buffer, so that it can grow.
#[derive(Debug)]
pub struct Frame<'a> {
    buffer: &'a mut [u8],
    len: usize,
    link_header: usize,
}

impl<'a> Frame<'a> {
    /// The first `len` bytes of `buffer` (or all of it, if shorter), with a link-layer header
    /// of `link_header` bytes.
    pub fn new(buffer: &'a mut [u8], len: usize, link_header: usize) -> Self {
        let len = len.min(buffer.len());
        Self { buffer, len, link_header }
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

impl Packet for Frame<'_> {
    fn link_header(&self) -> usize {
        self.link_header
    }

    fn len(&self) -> usize {
        self.len
    }

    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        let end = offset.checked_add(size_of::<T>())?;
        self.bytes().get(offset..end).map(bytemuck::pod_read_unaligned)
    }

    fn store<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        let end = offset.checked_add(size_of::<T>())?;
        let len = self.len;
        self.buffer.get_mut(..len)?.get_mut(offset..end)?.copy_from_slice(bytemuck::bytes_of(value));
        Some(())
    }

    fn correct(&mut self, offset: usize, pseudo: Delta, fields: Delta, udp: bool) -> Option<()> {
        let check: u16 = self.load(offset)?;
        if udp && check == 0 {
            return Some(());
        }
        let check = match pseudo.and(fields).apply(check) {
            0 if udp => 0xffff,
            check => check,
        };
        self.store(offset, &check)
    }

    fn reshape(&mut self, len: usize, offset: usize, gap: usize) -> Option<()> {
        if len > self.len || offset > len || len + gap > self.buffer.len() {
            return None;
        }
        self.buffer.copy_within(offset..len, offset + gap);
        self.len = len + gap;
        Some(())
    }
}
