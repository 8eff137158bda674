//! Whether maps have the keys and values that this build's programs read and write.

use super::loader::data;
use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::MapData;
use lb_common::abi::{self as a, map};
use std::io;
use std::path::Path;

const fn sizes<K, V>() -> (u32, u32) {
    (size_of::<K>() as u32, size_of::<V>() as u32)
}

/// Each map, with the bytes of a key and of a value.
const LAYOUT: [(&str, (u32, u32)); 17] = [
    (map::FRONTENDS, sizes::<a::FrontendKey, a::Frontend>()),
    (map::BACKENDS, sizes::<u32, a::Backend>()),
    (map::TABLES, sizes::<u32, [u32; a::TABLE_BLOCK]>()),
    (map::FLOWS, sizes::<a::FlowKey, a::Flow>()),
    (map::TRANSIENT, sizes::<a::FlowKey, a::Flow>()),
    (map::FOREIGN, sizes::<a::FlowKey, a::Foreign>()),
    (map::FRAGMENTS, sizes::<a::FragmentKey, a::Fragments>()),
    (map::AFFINITY, sizes::<a::AffinityKey, a::Affinity>()),
    (map::SOCKETS, sizes::<a::SocketKey, a::SocketPeer>()),
    (map::NETNS, sizes::<a::NetnsKey, a::Addr>()),
    (map::PEERS, sizes::<u32, a::Peer>()),
    (map::NODE_ADDRESSES, sizes::<a::Addr, a::NodeAddress>()),
    (map::DEVICES, sizes::<u32, a::Device>()),
    (map::NODE, sizes::<u32, a::NodeConfig>()),
    (map::COUNTERS, sizes::<u32, u64>()),
    (map::SERVICE_COUNTERS, sizes::<u32, a::ServiceCounters>()),
    (map::PREFIXES, sizes::<a::Prefix, a::Held>()),
];

/// Looks at the maps of a loaded object: aya takes a pinned one without doing so.
///
/// # Errors
/// With the first map that is of another layout.
pub(super) fn check(ebpf: &Ebpf) -> Result<()> {
    for (name, expected) in LAYOUT {
        check_one(
            name,
            data(ebpf.map(name).with_context(|| format!("the object has no map {name}"))?)?,
            expected,
        )?;
    }
    Ok(())
}

/// Looks at those pinned in a folder. One that is not there is in nobody's way.
///
/// # Errors
/// With the first map that is of another layout, or that cannot be opened.
pub(super) fn check_pinned(maps: &Path) -> Result<()> {
    for (name, expected) in LAYOUT.into_iter().filter(|(name, _)| map::PINNED.contains(name)) {
        let path = maps.join(name);
        match path.try_exists() {
            Ok(false) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Ok(true) | Err(_) => {}
        }
        let pinned =
            MapData::from_pin(&path).with_context(|| format!("open pinned map {}", path.display()))?;
        check_one(name, &pinned, expected)?;
    }
    Ok(())
}

fn check_one(name: &str, map: &MapData, (key, value): (u32, u32)) -> Result<()> {
    let info = map.info()?;
    if (info.key_size(), info.value_size()) != (key, value) {
        bail!(
            "pinned map {name} has keys of {} and values of {} bytes, expected {key} and {value}: \
             run `weir cleanup` to start anew",
            info.key_size(),
            info.value_size()
        );
    }
    Ok(())
}
