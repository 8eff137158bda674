//! Runs the tests package's `fuzz`, in release mode, for a while.

use crate::shell::{cargo, run as run_command};
use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which fuzzer: path, judge, chunked, response, h2-frames, target, hello, ingress.
    name: String,
    /// For how long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many executions, in place of a time; not for `path`.
    #[arg(long)]
    executions: Option<u64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "tests", "--bin", "fuzz", "--", &args.name]);
    command.args(["--seconds", &args.seconds.to_string()]);
    if let Some(executions) = args.executions {
        command.args(["--executions", &executions.to_string()]);
    }
    run_command(&mut command)
}
