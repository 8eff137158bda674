//! Outside judges of what the proxy serves, Helm for the chart, and the rules of Ingress over a real API server with
//! pods that controllers make. Needs root: `cargo xtask test suites`.

#![expect(clippy::unwrap_used, reason = "tests")]

mod chart;
mod h2spec;
mod rules;
