//! What tests ask of the data path in the kernel: run a program on one frame, look into flow
//! memory, start anew, let time pass. The agent uses none of it.

use super::{Bpf, Hash, sys};
use anyhow::{Context, Result, ensure};
use lb_common::abi::{Flow, FlowKey, Fragments, Ticks};

impl Bpf {
    /// Runs one of the packet programs on a frame, through the kernel's test-run.
    ///
    /// # Errors
    /// When there is no such program or the kernel refuses to run it.
    pub fn test_run(&mut self, program: &str, frame: &[u8], ifindex: u32) -> Result<(u32, Vec<u8>)> {
        self.loaded.test_run(program, frame, ifindex)
    }

    /// Visits every flow entry; true: a confirmed one.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn for_each_flow(&self, mut visit: impl FnMut(bool, &FlowKey, &Flow)) -> Result<()> {
        self.flows.for_each(|key, flow| visit(true, key, flow))?;
        self.transient.for_each(|key, flow| visit(false, key, flow))?;
        Ok(())
    }

    /// Forgets what packets left behind.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn forget(&mut self) -> Result<()> {
        clear(&mut self.flows)?;
        clear(&mut self.transient)?;
        clear(&mut self.fragments)?;
        clear(&mut self.affinity)
    }

    /// Makes everything remembered so many seconds older.
    ///
    /// # Errors
    /// When a map cannot be read or written, or the machine has not been up for as long.
    pub fn age(&mut self, seconds: u64) -> Result<()> {
        let nanos = seconds * 1_000_000_000;
        let ticks = Ticks::from_nanos(nanos).0;
        let young = "the machine has been up for too short a time to pretend that more has passed";
        for map in [&mut self.flows, &mut self.transient] {
            for (key, flow) in entries(map)? {
                let seen = Ticks(flow.seen.0.checked_sub(ticks).context(young)?);
                map.put(&key, &Flow { seen, ..flow })?;
            }
        }
        for (key, fragments) in entries(&self.fragments)? {
            let seen = Ticks(fragments.seen.0.checked_sub(ticks).context(young)?);
            self.fragments.put(&key, &Fragments { seen, ..fragments })?;
        }
        ensure!(sys::monotonic_nanos() > nanos, young);
        for (key, mut affinity) in entries(&self.affinity)? {
            affinity.seen_nanos = affinity.seen_nanos.checked_sub(nanos).context(young)?;
            self.affinity.put(&key, &affinity)?;
        }
        Ok(())
    }
}

fn entries<K: bytemuck::Pod + Ord, V: bytemuck::Pod + PartialEq>(map: &Hash<K, V>) -> Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    map.for_each(|key, value| all.push((*key, *value)))?;
    Ok(all)
}

fn clear<K: bytemuck::Pod + Ord, V: bytemuck::Pod + PartialEq>(map: &mut Hash<K, V>) -> Result<()> {
    for (key, _) in entries(map)? {
        map.remove(&key)?;
    }
    Ok(())
}
