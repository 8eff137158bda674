//! The longest-prefix map in the kernel: sets of addresses.

use super::loader::data;
use super::pod::Raw;
use super::{OpError, sys};
use anyhow::{Context, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData, MapError};
use lb_common::abi::{Held, Prefix, map};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// What follows the length in a [`Prefix`].
type Rest = Raw<[u32; 5]>;

/// An open map of prefixes.
pub(super) struct Prefixes {
    capacity: u32,
    /// A second descriptor of the same map: aya's type does not lend its own.
    fd: OwnedFd,
    map: LpmTrie<MapData, Rest, Raw<Held>>,
}

fn key(prefix: &Prefix) -> Key<Rest> {
    let [a, b, c, d] = prefix.addr.0;
    Key::new(prefix.len, Raw([prefix.set, a, b, c, d]))
}

impl Prefixes {
    pub(super) fn new(map: Map) -> Result<Self> {
        let inner = data(&map)?;
        let capacity = inner.info()?.max_entries();
        let fd = inner.fd().as_fd().try_clone_to_owned().context("open the map of prefixes again")?;
        Ok(Self { capacity, fd, map: map.try_into().context("the map of prefixes")? })
    }

    pub(super) const fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(super) fn put(&mut self, prefix: &Prefix, held: Held) -> Result<(), OpError> {
        self.map.insert(&key(prefix), Raw(held), 0).map_err(|error| self.error(error))
    }

    /// Takes one out; one that is not there is no error.
    pub(super) fn remove(&mut self, prefix: &Prefix) -> Result<(), OpError> {
        match self.map.remove(&key(prefix)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) if os_error(&error) == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(self.error(error)),
        }
    }

    pub(super) fn all(&self) -> io::Result<BTreeMap<Prefix, Held>> {
        let mut found = BTreeMap::new();
        sys::for_each(self.fd.as_fd(), |prefix: &Prefix, held: &Held| {
            found.insert(*prefix, *held);
        })?;
        Ok(found)
    }

    fn error(&self, error: MapError) -> OpError {
        // A trie that is full says ENOSPC, where a hash map says E2BIG.
        if os_error(&error) == Some(libc::ENOSPC) {
            return OpError::Full { map: map::PREFIXES, capacity: self.capacity };
        }
        let source =
            if let MapError::SyscallError(error) = error { error.io_error } else { io::Error::other(error) };
        OpError::Kernel { map: map::PREFIXES, source }
    }
}

fn os_error(error: &MapError) -> Option<i32> {
    if let MapError::SyscallError(error) = error { error.io_error.raw_os_error() } else { None }
}
