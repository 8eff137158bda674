//! Builds everything: what the machine lacks, the eBPF object, the release agent.

use crate::ebpf;
use crate::setup::{self, Group};
use crate::shell::{cargo, run as run_command, say, target};
use anyhow::Result;

pub(crate) fn run() -> Result<()> {
    agent().map(drop)
}

/// Builds the release agent with the programs in it, and returns its path.
///
/// # Errors
/// When something is missing that cannot be installed, or a build fails.
pub(crate) fn agent() -> Result<std::path::PathBuf> {
    setup::prepare(&[Group::Build])?;
    ebpf::build()?;
    run_command(cargo().args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "lb-userspace",
        "--bin",
        "weir",
    ]))?;
    let program = target().join("release/weir");
    say(format_args!("agent: {}", program.display()));
    Ok(program)
}
