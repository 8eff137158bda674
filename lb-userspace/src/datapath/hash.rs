//! A hash map in the kernel, with the two things that aya's lacks: plain-data types of
//! `lb-common`, and reading it whole in batches.

use super::loader::data;
use super::pod::Raw;
use super::{OpError, sys};
use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use bytemuck::Pod;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// An open hash map, LRU or not.
pub(super) struct Hash<K, V> {
    name: &'static str,
    capacity: u32,
    /// A second descriptor of the same map: aya's type does not lend its own.
    fd: OwnedFd,
    map: HashMap<MapData, Raw<K>, Raw<V>>,
}

impl<K: Pod + Ord, V: Pod + PartialEq> Hash<K, V> {
    pub(super) fn new(name: &'static str, map: Map) -> Result<Self> {
        let inner = data(&map)?;
        let capacity = inner.info()?.max_entries();
        let fd = inner.fd().as_fd().try_clone_to_owned().with_context(|| format!("open map {name} again"))?;
        let map = map.try_into().with_context(|| format!("map {name}"))?;
        Ok(Self { name, capacity, fd, map })
    }

    /// The same map, for another thread.
    pub(super) fn again(&self) -> Result<Self> {
        let fd = self.fd.try_clone().with_context(|| format!("open map {} again", self.name))?;
        let inner = MapData::from_fd(fd).with_context(|| format!("map {}", self.name))?;
        Self::new(self.name, Map::from_map_data(inner)?)
    }

    pub(super) const fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.map.get(&Raw(*key), 0).ok().map(|value| value.0)
    }

    /// Adds or replaces an entry: readers see the old one or the new one.
    pub(super) fn put(&mut self, key: &K, value: &V) -> Result<(), OpError> {
        self.map.insert(Raw(*key), Raw(*value), 0).map_err(|error| self.error(error))
    }

    /// Removes an entry; false when it was not there.
    pub(super) fn remove(&mut self, key: &K) -> Result<bool, OpError> {
        match self.map.remove(&Raw(*key)) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }

    /// Visits every entry. Those that come and go meanwhile may be missed.
    pub(super) fn for_each(&self, visit: impl FnMut(&K, &V)) -> io::Result<()> {
        sys::for_each(self.fd.as_fd(), visit)
    }

    /// Makes the map hold exactly `wanted`.
    pub(super) fn replace(&mut self, wanted: &BTreeMap<K, V>) -> Result<(), OpError> {
        let mut present = BTreeMap::new();
        self.for_each(|key, value| {
            present.insert(*key, *value);
        })
        .map_err(|source| OpError::Kernel { map: self.name, source })?;
        for (key, value) in wanted {
            if present.get(key) != Some(value) {
                self.put(key, value)?;
            }
        }
        for key in present.keys().filter(|key| !wanted.contains_key(key)) {
            self.remove(key)?;
        }
        Ok(())
    }

    fn error(&self, error: MapError) -> OpError {
        let source =
            if let MapError::SyscallError(error) = error { error.io_error } else { io::Error::other(error) };
        if source.raw_os_error() == Some(libc::E2BIG) {
            OpError::Full { map: self.name, capacity: self.capacity }
        } else {
            OpError::Kernel { map: self.name, source }
        }
    }
}
