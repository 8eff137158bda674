//! Outside judges of what the proxy serves. Needs root: `cargo xtask test suites`.

#![expect(clippy::unwrap_used, reason = "tests")]

mod h2spec;
