//! The demo: builds, then runs the tests package's `demo`, which makes namespaces, starts
//! an agent and sends real traffic.

use crate::setup::{self, Group};
use crate::shell::{run as run_command, say};
use crate::{build, root, test};
use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// End after the cases, with exit code 1 if one failed.
    #[arg(long)]
    check: bool,
    /// Further arguments of the demo.
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::prepare(&[Group::Run])?;
    let agent = build::agent()?;
    let demo = test::program("demo", &[])?;
    let mut words: Vec<&str> = Vec::new();
    if args.check {
        words.push("--check");
    }
    words.extend(args.more.iter().map(String::as_str));
    let mut command = root::raised_with(&[("WEIR_BIN", agent.as_os_str())], &demo, &words)?;
    say(format_args!("demo: {}", demo.display()));
    run_command(&mut command)
}
