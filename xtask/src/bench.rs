//! Measures: builds in release mode, then runs the tests package's `bench`.

use crate::setup::{self, Group};
use crate::shell::run as run_command;
use crate::{build, root, test};
use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure: l4, l7, control, tls.
    name: String,
    /// Further arguments of the benchmark: `--rounds 30`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    more: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::prepare(&[Group::Run, Group::Bench])?;
    let agent = build::agent()?;
    let bench = test::program("bench", &["--release"])?;
    let words: Vec<&str> = std::iter::once(&args.name).chain(&args.more).map(String::as_str).collect();
    run_command(&mut root::raised_with(&[("WEIR_BIN", agent.as_os_str())], &bench, &words)?)
}
