//! h2spec, an outside judge of HTTP/2 servers: built from the module that `tests/h2spec/go.mod`
//! pins, run from the outside client's namespace, its sum read from what it prints.

use crate::go;
use crate::topology::Topology;
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

/// The release that `tests/h2spec/go.mod` pins.
pub const VERSION: &str = "v2.2.1";
/// Its tests, all of them.
pub const TESTS: u32 = 145;

/// What it found.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub tests: u32,
    pub passed: u32,
    pub skipped: u32,
    pub failed: u32,
    /// Everything that it printed.
    pub said: String,
}

/// Finds the program, or builds it.
///
/// # Errors
/// When there is no Go that can build it.
pub fn locate() -> Result<PathBuf> {
    go::once(&go::cache()?.join("h2spec").join(VERSION), "h2spec", |temporary| {
        go::say(&format!("h2spec {VERSION}: building it with Go (seconds, once)"));
        let built = go::build("h2spec", "github.com/summerwind/h2spec/cmd/h2spec", "-s -w", temporary);
        built.context("h2spec cannot be built: `cargo xtask setup test` gets a Go that can")
    })
}

/// Judges a server over TLS, from the outside client's namespace.
///
/// # Errors
/// When it cannot be run or prints no sum.
pub fn judge(lab: &Topology, server: SocketAddr, path: &str) -> Result<Verdict> {
    let program = locate()?;
    let (host, port) = (server.ip().to_string(), server.port().to_string());
    let out = lab.client().enter(|| {
        Command::new(&program)
            .args(["--host", &host, "--port", &port, "--path", path])
            .args(["--tls", "--insecure", "--timeout", "3"])
            .output()
    })??;
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    sum(&said).with_context(|| format!("h2spec ({}) prints no sum:\n{said}", out.status))
}

/// Reads `145 tests, 144 passed, 0 skipped, 1 failed`.
fn sum(said: &str) -> Option<Verdict> {
    let line = said.lines().rev().find(|line| line.contains(" tests, "))?;
    let number = |what: &str| {
        let mut parts = line.split(", ").filter_map(|part| part.trim().split_once(' '));
        parts.find(|(_, word)| *word == what)?.0.parse().ok()
    };
    Some(Verdict {
        tests: number("tests")?,
        passed: number("passed")?,
        skipped: number("skipped")?,
        failed: number("failed")?,
        said: said.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_is_read() {
        let said = "Finished in 1.2 seconds\n145 tests, 143 passed, 1 skipped, 1 failed\n";
        let verdict = sum(said).expect("a sum");
        assert_eq!((verdict.tests, verdict.passed, verdict.skipped, verdict.failed), (145, 143, 1, 1));
        assert!(sum("error: connection refused").is_none());
    }
}
