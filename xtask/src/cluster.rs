//! A real cluster on this machine: prepares what it needs, then runs the tests package's
//! `cluster` as root.

use crate::setup::{self, Group};
use crate::shell::{run as run_command, target};
use crate::{root, test};
use anyhow::Result;
use std::process::{Command, ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// up, down, proxy, load, exec, and their arguments; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    words: Vec<String>,
}

/// Runs a verb; what it runs to the end gives the exit code.
///
/// # Errors
/// When what it needs cannot be had.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let verb = args.words.first().map_or("", String::as_str);
    let kind = args.words.windows(2).any(|pair| pair == ["--provider", "kind"])
        || args.words.iter().any(|word| word == "--provider=kind");
    if verb == "up" && !kind {
        setup::prepare(&[Group::Run, Group::Cluster])?;
    }
    let program = test::program("cluster", &[])?;
    let image = target().join("weir-image.tar").display().to_string();
    let mut words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    if matches!(verb, "up" | "proxy") && !words.iter().any(|word| word.starts_with("--image")) {
        words.extend(["--image", &image]);
    }
    // kind and its container engine are the user's.
    let mut command = if kind {
        let mut command = Command::new(&program);
        command.args(&words);
        command
    } else {
        root::raised(&program, &words)?
    };
    if verb == "exec" || verb == "e2e" {
        let status = command.status()?;
        return Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)));
    }
    run_command(&mut command)?;
    Ok(ExitCode::SUCCESS)
}
