//! A real cluster on this machine: prepares what it needs, then runs the tests package's
//! `cluster` as root.

use crate::setup::{self, Group};
use crate::shell::run as run_command;
use crate::{image, root, test};
use anyhow::Result;
use std::process::{Command, ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// up, down, test, e2e, proxy, load, exec, and their arguments; `--help` lists them.
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
    let image = if installs_weir(&args.words) {
        Some(image::for_this_machine()?.display().to_string())
    } else if verb == "test" && !args.words.iter().any(|word| word.starts_with("--image")) {
        // For nodes that join: what `up` installed.
        Some(image::default_file().display().to_string())
    } else {
        None
    };
    let program = test::program("cluster", &[])?;
    let mut words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    if let Some(image) = &image {
        words.extend(["--image", image]);
    }
    // kind and its container engine are the user's.
    let mut command = if kind {
        let mut command = Command::new(&program);
        command.args(&words);
        command
    } else {
        root::raised(&program, &words)?
    };
    if matches!(verb, "exec" | "e2e" | "test") {
        let status = command.status()?;
        return Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)));
    }
    run_command(&mut command)?;
    Ok(ExitCode::SUCCESS)
}

/// Brings a cluster up for a check of each change, and returns the command that asks it; [`stop`]
/// takes it down again.
///
/// # Errors
/// When one is up already, or it does not come up.
pub(crate) fn check() -> Result<Command> {
    setup::prepare(&[Group::Run, Group::Cluster])?;
    let image = image::for_tests()?.display().to_string();
    let program = test::program("cluster", &[])?;
    run_command(&mut root::raised(&program, &["up", "--nodes", "2", "--image", &image])?)?;
    root::raised(&program, &["test", "--ci", "--image", &image])
}

/// Takes down what [`check`] brought up.
///
/// # Errors
/// When something is left.
pub(crate) fn stop() -> Result<()> {
    run_command(&mut root::raised(&test::program("cluster", &[])?, &["down"])?)
}

/// Tells whether a verb installs Weir, and names no archive for that.
fn installs_weir(words: &[String]) -> bool {
    let has = |name: &str| words.iter().any(|word| word == name || word.starts_with(&format!("{name}=")));
    let other = |word: &str| word.starts_with("kube-proxy-") || word == "none";
    let others = words.iter().any(|word| other(word.strip_prefix("--proxy=").unwrap_or(word)));
    match words.first().map(String::as_str) {
        Some("up" | "proxy") => !has("--image") && !has("--help") && !has("-h") && !others,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_built_only_where_it_is_installed() {
        for (line, wanted) in [
            ("up", true),
            ("up --nodes 2", true),
            ("up --proxy weir", true),
            ("up --proxy none", false),
            ("up --proxy=kube-proxy-nftables", false),
            ("up --image x.tar", false),
            ("up --image=x.tar", false),
            ("proxy weir", true),
            ("proxy kube-proxy-iptables", false),
            ("down", false),
            ("exec -- weir up", false),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(installs_weir(&words), wanted, "{line}");
        }
    }
}
