//! Builds, runs and tests Weir: one file for each verb.
//!
//! Everything is built as the user who called; only a child that needs root is raised
//! (`root.rs`). What is fetched or built once and kept lies outside of the checkout
//! (`cache.rs`).

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod bench;
mod bless;
mod build;
mod cache;
mod cluster;
mod ebpf;
mod fuzz;
mod image;
mod lint;
mod remap;
mod root;
mod run;
mod setup;
mod shell;
mod test;
mod toolchain;
mod verify;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests Weir")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Finds or installs what is missing, and says what it does.
    Setup(setup::Args),
    /// Builds the eBPF object, `target/bpf/lb-ebpf.o`.
    BuildEbpf,
    /// Builds the eBPF object, then the release agent, `target/release/weir`.
    Build,
    /// Builds the container image, `target/weir-image.tar`.
    Image(image::Args),
    /// Builds, then runs the demo: namespaces, an agent, real traffic.
    Run(run::Args),
    /// Runs the tests: all layers, or the named ones.
    Test(test::Args),
    /// Checks format, clippy, who imports whom, file lengths.
    Lint,
    /// Loads each eBPF program and prints how many instructions the verifier looked at.
    Verify,
    /// Rewrites the expected output of the golden tests.
    Bless,
    /// Runs a fuzzer for a while.
    Fuzz(fuzz::Args),
    /// Measures, prints a table and writes `target/bench/NAME.json`.
    Bench(bench::Args),
    /// Starts a real cluster on this machine, or takes it down.
    Cluster(cluster::Args),
}

fn main() -> ExitCode {
    let done = match Args::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::BuildEbpf => ebpf::build().map(drop),
        Verb::Build => build::run(),
        Verb::Image(args) => image::run(&args),
        Verb::Run(args) => run::run(&args),
        // Its last line is the sum; nothing is said after it.
        Verb::Test(args) => match test::run(&args) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Verb::Lint => lint::run(),
        Verb::Verify => verify::run(),
        Verb::Bless => bless::run(),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Cluster(args) => match cluster::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
    };
    exit_code(done)
}

fn exit_code(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
