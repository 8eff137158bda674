//! Which part of `weir run` this process is, and what that part is told.

use crate::args::value::AccessLog;
use crate::args::{AccessLogFormat, Config, L7Config, Role};
use crate::proxy::access_log;
use crate::proxy::engine::{ClientLimits, Settings};
use crate::proxy::process::{self, Options};
use crate::{agent, logs, supervisor};
use anyhow::Context;
use std::process::ExitCode;

/// Runs it to its end. With `--l7 off` there is the agent alone, in the one process.
///
/// # Errors
/// What makes the part give up.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    match (config.role, &config.l7) {
        (None, Some(_)) => return supervisor::run(&config),
        (None, None) | (Some(Role::Agent), _) => agent::run(config)?,
        (Some(Role::Proxy), l7) => {
            let l7 = l7.as_ref().context("there is no proxy with --l7 off")?;
            logs::init(&config.log);
            process::run(options(l7))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn options(l7: &L7Config) -> Options {
    let settings = Settings {
        workers: l7.workers,
        client: ClientLimits { body_size: l7.body_size.unwrap_or(0), ..ClientLimits::default() },
        trusted: l7.trusted_proxies.clone(),
        access_log: match &l7.access_log {
            AccessLog::Off => access_log::Target::Off,
            AccessLog::Stdout => access_log::Target::Stdout,
            AccessLog::File(path) => access_log::Target::File(path.clone()),
        },
        access_log_format: match l7.access_log_format {
            AccessLogFormat::Nginx => access_log::Format::Nginx,
            AccessLogFormat::Json => access_log::Format::Json,
        },
        https_port: l7.https.first().map_or(443, std::net::SocketAddr::port),
        ..Settings::default()
    };
    let log_file = match &l7.access_log {
        AccessLog::File(path) => Some(path.clone()),
        AccessLog::Off | AccessLog::Stdout => None,
    };
    Options { settings, user: l7.proxy_user, drain_timeout: l7.drain_timeout, log_file }
}
