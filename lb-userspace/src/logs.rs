//! Log set-up: one line per event on standard error, text or JSON.
//!
//! Messages are constant and values are fields. `RUST_LOG` overrides `--log-level`, for a
//! single module for instance.

use crate::args::{LogConfig, LogFormat, LogLevel};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The API client's own line on each failed connect: what it means for Weir is told as a problem.
const QUIET: &str = "kube_client::client::builder=off";

/// Sets up the log of this process; the second call does nothing.
pub fn init(config: &LogConfig) {
    let level = match config.level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // A default directive counts only where there is no other.
    let modules = std::env::var("RUST_LOG").unwrap_or_else(|_| format!("{level},{QUIET}"));
    let filter = EnvFilter::builder().with_default_directive(level.into()).parse_lossy(modules);
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A sink that is gone must not end the process: it would be told on the same sink (H60).
    let builder = builder.log_internal_errors(false);
    let _already = match config.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
