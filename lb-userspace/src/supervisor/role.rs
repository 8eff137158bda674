//! Which part of `weir run` this process is, and what that part is told.

use crate::args::value::AccessLog;
use crate::args::{AccessLogFormat, Config, L7Config, Role};
use crate::proxy::access_log;
use crate::proxy::engine::{ClientLimits, Settings};
use crate::proxy::pressure;
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
            process::run(options(&config.node_name, l7))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn options(node: &str, l7: &L7Config) -> Options {
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
        memory: pressure::own(),
        node: node.to_owned(),
        https_port: l7.https.first().map_or(443, std::net::SocketAddr::port),
        ..Settings::default()
    };
    let log_file = match &l7.access_log {
        AccessLog::File(path) => Some(path.clone()),
        AccessLog::Off | AccessLog::Stdout => None,
    };
    Options { settings, user: l7.proxy_user, drain_timeout: l7.drain_timeout, log_file }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::args::{Task, parse};
    use std::ffi::OsString;

    #[test]
    fn the_proxy_is_told_what_the_flags_say() {
        let flags = [
            "weir",
            "run",
            "--node-name=Worker-7",
            "--proxy-workers=3",
            "--proxy-body-size=5m",
            "--trusted-proxies=192.0.2.0/24",
            "--https-listen=0.0.0.0:8443",
            "--access-log=/var/log/weir.log",
            "--drain-timeout=7s",
        ];
        let Ok(Task::Run(config)) = parse(flags.map(OsString::from)) else { panic!("refused") };
        let Options { settings, drain_timeout, log_file, .. } =
            options(&config.node_name, config.l7.as_ref().unwrap());
        // The label `controller_pod` of the metrics.
        assert_eq!(settings.node, "worker-7");
        assert_eq!((settings.workers, settings.client.body_size), (3, 5 << 20));
        assert!(settings.trusts([192, 0, 2, 9].into()) && !settings.trusts([192, 0, 3, 9].into()));
        assert_eq!((settings.https_port, drain_timeout.as_secs()), (8443, 7));
        assert_eq!(log_file.as_deref(), Some(std::path::Path::new("/var/log/weir.log")));
    }
}
