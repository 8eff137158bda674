//! What an earlier agent's flows need of the programs that are about to be loaded.
//!
//! Replies to a source of ours are known by their port before a map is asked. When
//! `--snat-port-range` has changed, open flows have ports out of the former range: they are
//! looked for once, as the programs are loaded, and flows go on by what their entries say.

use super::sys;
use aya::maps::MapData;
use lb_common::abi::{Flow, FlowFlags, FlowKey, PortRange, map};
use std::os::fd::AsFd;
use std::path::Path;

/// The smallest range that holds the source ports of all flows in the maps pinned below `maps`
/// that are in none of `ranges`.
pub(super) fn ports(maps: &Path, ranges: [PortRange; 2]) -> PortRange {
    let mut found = PortRange::EMPTY;
    for name in [map::FLOWS, map::TRANSIENT] {
        // No map: no agent was here. One of another layout is refused when it is opened to be used.
        let Ok(pinned) = MapData::from_pin(maps.join(name)) else { continue };
        let sizes = pinned.info().map(|info| (info.key_size() as usize, info.value_size() as usize));
        if !sizes.is_ok_and(|sizes| sizes == (size_of::<FlowKey>(), size_of::<Flow>())) {
            continue;
        }
        let read = sys::for_each(pinned.fd().as_fd(), |key, flow| found = widened(found, ranges, key, flow));
        if let Err(error) = read {
            tracing::warn!(map = name, %error, "flows cannot be read: those out of a former port range end");
        }
    }
    found
}

/// `found`, and the port of a flow that is outside of `ranges`.
fn widened(found: PortRange, ranges: [PortRange; 2], key: &FlowKey, flow: &Flow) -> PortRange {
    let port = key.destination_port;
    let ours = flow.flags.has(FlowFlags::REPLY.with(FlowFlags::SNAT));
    if !ours || ranges.iter().any(|range| range.contains(port)) {
        return found;
    }
    let port = port.get();
    if found.is_empty() {
        return PortRange { first: port, last: port };
    }
    PortRange { first: found.first.min(port), last: found.last.max(port) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::Be16;

    #[test]
    fn only_masqueraded_flows_out_of_the_ranges_widen_it() {
        let ranges = [PortRange { first: 10_000, last: 29_999 }, PortRange::EMPTY];
        let (reply, snat) = (FlowFlags::REPLY, FlowFlags::SNAT);
        let mut found = PortRange::EMPTY;
        for (port, flags, expected) in [
            (20_000, reply.with(snat), (1, 0)),
            (40_000, reply, (1, 0)),
            (40_000, snat, (1, 0)),
            (40_000, reply.with(snat), (40_000, 40_000)),
            (61_000, reply.with(snat), (40_000, 61_000)),
            (50_000, reply.with(snat), (40_000, 61_000)),
            (33_000, reply.with(snat), (33_000, 61_000)),
        ] {
            let key = FlowKey { destination_port: Be16::new(port), ..FlowKey::default() };
            found = widened(found, ranges, &key, &Flow { flags, ..Flow::default() });
            assert_eq!((found.first, found.last), expected, "{port} {flags:?}");
        }
    }
}
