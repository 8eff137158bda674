//! Giving Services back while no agent runs: the programs stay, open flows go on, and every
//! new one is left to whoever takes over.
//!
//! All that it takes is in the pinned maps: each frontend is marked as retired. An agent that
//! starts again finds that its frontends differ and serves them as before.

use super::hash::Hash;
use super::loader::pin_folder;
use super::prefixes::Prefixes;
use super::{gc, sys};
use anyhow::{Context, Result};
use aya::maps::{Map, MapData};
use lb_common::abi::{
    Flow, FlowFlags, FlowKey, Frontend, FrontendFlags, FrontendKey, Proto, Ticks, map, timeout,
};
use std::io;
use std::path::Path;

/// The maps of an agent that is gone.
pub struct Left {
    frontends: Hash<FrontendKey, Frontend>,
    flows: Hash<FlowKey, Flow>,
    transient: Hash<FlowKey, Flow>,
    prefixes: Prefixes,
}

/// Flows that are neither closed nor silent for too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Open {
    pub tcp: usize,
    pub udp: usize,
}

impl Open {
    pub const fn any(self) -> bool {
        self.tcp + self.udp > 0
    }
}

/// Opens what was left below `bpffs`; `None`: no agent of this version was here.
///
/// # Errors
/// When the maps cannot be opened.
pub fn left(bpffs: &Path) -> Result<Option<Left>> {
    let maps = pin_folder(bpffs).join("maps");
    if !maps.join(map::FRONTENDS).exists() {
        return Ok(None);
    }
    Ok(Some(Left {
        frontends: open(&maps, map::FRONTENDS)?,
        flows: open(&maps, map::FLOWS)?,
        transient: open(&maps, map::TRANSIENT)?,
        prefixes: Prefixes::new(Map::from_map_data(MapData::from_pin(maps.join(map::PREFIXES))?)?)?,
    }))
}

fn open<K, V>(maps: &Path, name: &'static str) -> Result<Hash<K, V>>
where
    K: bytemuck::Pod + Ord,
    V: bytemuck::Pod + PartialEq,
{
    let inner = MapData::from_pin(maps.join(name)).with_context(|| format!("open map {name}"))?;
    let info = inner.info()?;
    anyhow::ensure!(
        (info.key_size() as usize, info.value_size() as usize) == (size_of::<K>(), size_of::<V>()),
        "map {name} is of another version: run `weir cleanup` of that one"
    );
    Hash::new(name, Map::from_map_data(inner)?)
}

impl Left {
    /// Retires every frontend: open flows go on, new ones pass.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn retire(&mut self) -> Result<()> {
        // First, nobody tells any more which addresses are for Services, and which are taken: what
        // no frontend takes is for whoever takes over to refuse (S38).
        for prefix in self.prefixes.all().context("read the prefixes")?.into_keys() {
            self.prefixes.remove(&prefix)?;
        }
        let mut serving = Vec::new();
        self.frontends
            .for_each(|key, frontend| {
                if !frontend.flags.has(FrontendFlags::RETIRED) {
                    serving.push((*key, *frontend));
                }
            })
            .context("read the frontends")?;
        for (key, frontend) in serving {
            let flags = frontend.flags.with(FrontendFlags::RETIRED);
            self.frontends.put(&key, &Frontend { flags, ..frontend })?;
        }
        Ok(())
    }

    /// Tuples, from us to the backend, of all flows with a source of ours, closed ones too: the
    /// programs would still turn what comes back to them.
    ///
    /// # Errors
    /// When the flow maps cannot be read.
    pub fn masqueraded(&self) -> io::Result<Vec<FlowKey>> {
        let mut found = Vec::new();
        for map in [&self.transient, &self.flows] {
            map.for_each(|key, flow| {
                if flow.flags.has(FlowFlags::REPLY.with(FlowFlags::SNAT)) {
                    found.push(key.reversed());
                }
            })?;
        }
        Ok(found)
    }

    /// Flows that go on.
    ///
    /// # Errors
    /// When the flow maps cannot be read.
    pub fn open(&self) -> io::Result<Open> {
        let now = Ticks::from_nanos(sys::monotonic_nanos());
        let mut found = Open::default();
        let mut count = |proto: Proto| {
            *(if proto == Proto::TCP { &mut found.tcp } else { &mut found.udp }) += 1;
        };
        self.flows.for_each(|key, flow| {
            let pair = self.flows.get(&flow.pair(key.proto));
            if !flow.flags.has(FlowFlags::REPLY) && !gc::over(key, flow, pair.as_ref(), now) {
                count(key.proto);
            }
        })?;
        self.transient.for_each(|key, flow| {
            if !flow.flags.has(FlowFlags::REPLY) && opening(key, flow, now) {
                count(key.proto);
            }
        })?;
        Ok(found)
    }
}

/// Whether an entry of the transient map is of a flow that may still become one: neither side
/// has closed it, and the client was heard a moment ago.
fn opening(key: &FlowKey, flow: &Flow, now: Ticks) -> bool {
    let closed = flow.flags.has(FlowFlags::RST) || flow.flags.has(FlowFlags::FIN);
    let limit = if key.proto == Proto::TCP { Ticks::in_seconds(5) } else { timeout::UDP_UNREPLIED };
    !closed && now.since(flow.seen) <= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_that_opens_counts_until_it_is_silent_or_closed() {
        let tcp = FlowKey { proto: Proto::TCP, ..FlowKey::default() };
        let udp = FlowKey { proto: Proto::UDP, ..FlowKey::default() };
        let flow = |seen, flags| Flow { seen: Ticks(seen), flags, ..Flow::default() };
        for (name, key, flow, expected) in [
            ("tcp, a SYN just now", tcp, flow(999, FlowFlags::SEEN), true),
            ("tcp, a SYN a while ago", tcp, flow(990, FlowFlags::SEEN), false),
            ("tcp, refused", tcp, flow(999, FlowFlags::RST), false),
            ("tcp, ended", tcp, flow(999, FlowFlags::FIN), false),
            ("udp, not answered yet", udp, flow(980, FlowFlags::SEEN), true),
            ("udp, never answered", udp, flow(960, FlowFlags::SEEN), false),
        ] {
            assert_eq!(opening(&key, &flow, Ticks(1000)), expected, "{name}");
        }
    }
}
