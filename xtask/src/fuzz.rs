//! Runs the tests package's `fuzz` for a while: in release mode what only computes; what needs
//! an agent and root as the tests do.

use crate::shell::{cargo, run as run_command, target};
use crate::{ebpf, root, test};
use anyhow::{Result, ensure};
use std::ffi::OsStr;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which fuzzer: path, judge, chunked, response, h2-frames, target, hello, ingress,
    /// differential, differential-sockets.
    name: String,
    /// For how long; `differential` is told a number of cases instead.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many executions, in place of a time; not for `path`.
    #[arg(long)]
    executions: Option<u64>,
    /// What `differential` starts from, to repeat a run.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.name.starts_with("differential") {
        return differential(args);
    }
    ensure!(args.seed.is_none(), "--seed is for differential; the others print their command");
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "tests", "--bin", "fuzz", "--", &args.name]);
    command.args(["--seconds", &args.seconds.to_string()]);
    if let Some(executions) = args.executions {
        command.args(["--executions", &executions.to_string()]);
    }
    run_command(&mut command)
}

/// kube-proxy and Weir side by side, in network namespaces.
fn differential(args: &Args) -> Result<()> {
    ebpf::build()?;
    let mut build = cargo();
    run_command(build.args(["build", "--quiet", "--package", "lb-userspace", "--bin", "weir"]))?;
    // Clients and servers are copies of it.
    test::program("demo", &[])?;
    let program = test::program("fuzz", &[])?;
    let mut words = vec![args.name.clone()];
    for (flag, number) in [("--executions", args.executions), ("--seed", args.seed)] {
        words.extend(number.into_iter().flat_map(|number| [flag.to_owned(), number.to_string()]));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (agent, bounding_set) = (target().join("debug/weir"), root::bounding_set());
    let variables = [("WEIR_BIN", agent.as_os_str()), ("WEIR_BOUNDING_SET", OsStr::new(&bounding_set))];
    run_command(&mut root::raised_with(&variables, &program, &words)?)
}
