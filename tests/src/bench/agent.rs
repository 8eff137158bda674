//! The agent as a measurement runs it: `weir run` in a node's namespace, in the node's
//! cgroup, with its pins in the scratch's bpffs.

use crate::agent::{confined, get, program};
use crate::netns::{Netns, sys};
use crate::scratch::{Scratch, procs_file};
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const HEALTH_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// A running agent. Dropping it kills it; what it pinned goes with the scratch.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    log: PathBuf,
    pub(super) started: Instant,
}

impl Agent {
    pub(super) fn start(node: &Netns, scratch: &Scratch, manifests: &Path) -> Result<Self> {
        let log = scratch.logs().join("weir.log");
        let file = File::create(&log)?;
        let mut command = confined(&program()?);
        command
            // One process: the one whose time and memory are read.
            .args(["run", "--node-name", "node1", "--l7", "off"])
            .arg("--manifests")
            .arg(manifests)
            .arg("--cgroup")
            .arg(scratch.cgroup("node")?)
            .arg("--bpffs")
            .arg(scratch.bpffs())
            .arg("--state-dir")
            .arg(scratch.dir().join("state"))
            .arg("--admin-socket")
            .arg(scratch.dir().join("state/admin.sock"))
            .args(["--healthz-listen", &format!("0.0.0.0:{HEALTH_PORT}")])
            .args(["--metrics-listen", &format!("127.0.0.1:{METRICS_PORT}")])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        let procs = procs_file(&scratch.cgroup("node/weir")?)?;
        sys::start_in(&mut command, node.file().as_raw_fd(), Some(procs.as_raw_fd()));
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Self { child, log, started })
    }

    /// Waits for `/readyz`; returns how long that took from the start.
    pub(super) fn wait_ready(&mut self, node: &Netns, deadline: Duration) -> Result<Duration> {
        let mut ended = None;
        let child = &mut self.child;
        let ready = wait::until("the agent is ready", deadline, || {
            ended = child.try_wait()?;
            if ended.is_some() {
                return Ok(());
            }
            let (code, body) = node.enter(|| get((Ipv4Addr::LOCALHOST, HEALTH_PORT).into(), "/readyz"))??;
            ensure!(code == 200, "/readyz says {code}: {body}");
            Ok(())
        });
        let took = self.started.elapsed();
        if let Some(status) = ended {
            bail!("the agent ended with {status}; its log:\n{}", self.log_end());
        }
        ready.with_context(|| format!("the agent's log:\n{}", self.log_end()))?;
        Ok(took)
    }

    /// One scrape of the metrics: value by name with labels.
    pub(super) fn metrics(&self, node: &Netns) -> Result<BTreeMap<String, f64>> {
        let (_, text) = node.enter(|| get((Ipv4Addr::LOCALHOST, METRICS_PORT).into(), "/metrics"))??;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Ok(lines
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(k, v)| Some((k.into(), v.parse().ok()?)))
            .collect())
    }

    /// A line such as `VmRSS` of `/proc/PID/status`, in KiB.
    pub(super) fn memory_kib(&self, line: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
        let number = found.and_then(|value| value.split_whitespace().next()).context("no such line")?;
        Ok(number.parse()?)
    }

    /// CPU time used so far, user and system.
    pub(super) fn cpu(&self) -> Result<(Duration, Duration)> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after = text.rsplit_once(')').context("stat")?.1;
        let ticks = |n: usize| -> Result<Duration> {
            let ticks: u64 = after.split_whitespace().nth(n).context("stat")?.parse()?;
            // USER_HZ is 100 on every architecture that Linux has left.
            Ok(Duration::from_millis(ticks * 10))
        };
        Ok((ticks(11)?, ticks(12)?))
    }

    pub(super) fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
