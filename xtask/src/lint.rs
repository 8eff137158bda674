//! Checks format and clippy.

use crate::shell::{cargo, run as run_command};
use anyhow::Result;

pub(crate) fn run() -> Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    run_command(cargo().args(["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"]))
}
