//! Where the time of the data path goes: the kernel's own statistics of each program, in a
//! slice of its own, since keeping them costs time.

use super::maps::{bpftool, pins};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Runs and nanoseconds of each attached program.
type Runs = BTreeMap<String, (u64, u64)>;

/// What one program did.
#[derive(Debug)]
pub(super) struct ProgramTime {
    pub(super) program: String,
    pub(super) runs: u64,
    pub(super) nanos_each: f64,
}

/// Runs `load` with statistics on; says what the programs pinned below `bpffs` took.
pub(super) fn during(bpffs: &Path, load: impl FnOnce() -> Result<()>) -> Result<Vec<ProgramTime>> {
    let before = fs::read_to_string(SWITCH)?;
    fs::write(SWITCH, "1").with_context(|| format!("writing {SWITCH}"))?;
    let measured = (|| -> Result<(Runs, Runs)> {
        let first = read(bpffs)?;
        load()?;
        Ok((first, read(bpffs)?))
    })();
    fs::write(SWITCH, before)?;
    let (first, last) = measured?;
    let mut times: Vec<ProgramTime> = last
        .into_iter()
        .filter_map(|(program, (runs, nanos))| {
            let (old_runs, old_nanos) = first.get(&program).copied().unwrap_or_default();
            let (runs, nanos) = (runs - old_runs, nanos - old_nanos);
            (runs > 0).then(|| ProgramTime { program, runs, nanos_each: nanos as f64 / runs as f64 })
        })
        .collect();
    times.sort_by(|a, b| (b.runs as f64 * b.nanos_each).total_cmp(&(a.runs as f64 * a.nanos_each)));
    Ok(times)
}

fn read(bpffs: &Path) -> Result<Runs> {
    let mut runs = Runs::new();
    for pin in pins(bpffs, "links")? {
        let link = bpftool(&["link".as_ref(), "show".as_ref(), "pinned".as_ref(), pin.as_os_str()])?;
        let id = link["prog_id"].as_u64().context("a link without a program")?.to_string();
        let program = bpftool(&["prog".as_ref(), "show".as_ref(), "id".as_ref(), id.as_ref()])?;
        let number = |field: &str| program[field].as_u64().unwrap_or(0);
        // Several links share a program.
        let name = program["name"].as_str().unwrap_or("?").to_owned();
        runs.insert(name, (number("run_cnt"), number("run_time_ns")));
    }
    Ok(runs)
}
