//! Measures, prints a table and writes `target/bench/NAME.json`; called by `cargo xtask bench`.

use clap::Parser;
use lab::bench::{self, control, l4, l7, tls};
use std::process::ExitCode;

/// Measures Weir; needs root.
#[derive(Parser)]
#[command(name = "bench")]
enum What {
    /// The data path: requests, packets and bytes per second beside nftables.
    L4(l4::Options),
    /// The proxy: requests per second of its CPU beside nginx and HAProxy, latency, memory.
    L7(l7::Options),
    /// The control path: 10,000 Services, one change among them, memory.
    Control(control::Options),
    /// TLS: handshakes, lookups of names, memory.
    Tls(tls::Options),
}

fn main() -> ExitCode {
    bench::serve_if_asked();
    let done = match What::parse() {
        What::L4(options) => l4::run(&options),
        What::L7(options) => l7::run(&options),
        What::Control(options) => control::run(&options),
        What::Tls(options) => tls::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
