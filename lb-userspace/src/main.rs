//! Parses the command line, sets up the log, runs; nothing else.

use std::io::Write;
use std::process::ExitCode;
use weir::args::{self, Task};

/// Musl's own allocator has one lock for all threads, at which the proxy's workers would wait.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let task = match args::parse(std::env::args_os()) {
        Ok(task) => task,
        // Usage errors have exit code 2, help and version 0.
        Err(error) => error.exit(),
    };
    let result = match task {
        Task::Run(config) => weir::supervisor::role::run(*config),
        Task::Ask(verb) => weir::cli::run(verb),
    };
    result.unwrap_or_else(|error| {
        // Nobody may be reading.
        let _unread = writeln!(std::io::stderr(), "weir: {error:#}");
        ExitCode::FAILURE
    })
}
