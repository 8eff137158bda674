//! Runs the tests package's `fuzz`, in release mode, for a while.

use crate::shell::{cargo, run as run_command};
use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which fuzzer.
    name: String,
    /// For how long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "tests", "--bin", "fuzz", "--", &args.name]);
    run_command(command.args(["--seconds", &args.seconds.to_string()]))
}
