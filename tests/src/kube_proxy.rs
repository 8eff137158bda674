//! The real kube-proxy on node1, as the one that Weir takes over from and gives back to.

use crate::apiserver::ApiServer;
use crate::apiserver::assets::{Program, locate};
use crate::netns::sys;
use crate::topology::Topology;
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How it puts Services into the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Nftables,
    /// By whatever the machine's `iptables` writes to.
    Iptables,
    /// By iptables-legacy, whatever `iptables` is.
    IptablesLegacy,
}

/// The names by which kube-proxy runs it.
const TOOLS: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables | Self::IptablesLegacy => "iptables",
        }
    }

    /// What is in the ruleset while its rules are there.
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Nftables => "table ip6 kube-proxy",
            Self::Iptables | Self::IptablesLegacy => "KUBE-SERVICES",
        }
    }

    /// Has a command find the tools of this mode first.
    fn prepare(self, lab: &Topology, command: &mut Command) -> Result<()> {
        if self != Self::IptablesLegacy {
            return Ok(());
        }
        let folder = lab.scratch().logs().join("legacy");
        fs::create_dir_all(&folder)?;
        let path = env::var_os("PATH").unwrap_or_default();
        let mut places = env::split_paths(&path).map(|folder| folder.join("xtables-legacy-multi"));
        let all =
            places.find(|file| file.exists()).context("no xtables-legacy-multi in PATH: install iptables")?;
        for tool in TOOLS {
            match symlink(&all, folder.join(tool)) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
        }
        let path = env::join_paths([folder].into_iter().chain(env::split_paths(&path)))?;
        command.env("PATH", path);
        Ok(())
    }
}

/// A running kube-proxy. Dropping it kills it and leaves its rules.
#[derive(Debug)]
pub struct KubeProxy {
    child: Child,
    log: PathBuf,
}

impl KubeProxy {
    /// Starts it in node1's namespace.
    ///
    /// # Errors
    /// When the program cannot be had.
    pub fn start(lab: &Topology, server: &ApiServer, mode: Mode) -> Result<Self> {
        let log = lab.scratch().logs().join("kube-proxy.log");
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(locate(Program::KubeProxy)?);
        command
            .arg(format!("--proxy-mode={}", mode.name()))
            .arg(format!("--kubeconfig={}", server.kubeconfig().display()))
            .args(["--hostname-override=node1", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48"])
            // Weir's own ports are the usual ones.
            .args(["--healthz-bind-address=127.0.0.1:21256", "--metrics-bind-address=127.0.0.1:21249"])
            // The machine's limits are not a namespace's to change.
            .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
            .args(["--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"])
            .arg("--iptables-localhost-nodeports=false")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        mode.prepare(lab, &mut command)?;
        sys::start_in(&mut command, lab.node1().file().as_raw_fd(), None);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Self { child, log })
    }

    /// Waits until `served` holds.
    ///
    /// # Errors
    /// With the end of its log when it does not in time.
    pub fn wait(&mut self, what: &str, mut served: impl FnMut() -> Result<()>) -> Result<()> {
        let child = &mut self.child;
        let waited = wait::until(what, Duration::from_secs(30), || {
            ensure!(child.try_wait()?.is_none(), "kube-proxy has ended");
            served()
        });
        waited.with_context(|| {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(20)..].join("\n")
        })
    }

    /// Ends it; its rules stay.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn stop(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `kube-proxy --cleanup` on node1, as its guide says.
///
/// # Errors
/// With what it said when it fails.
pub fn cleanup(lab: &Topology, mode: Mode) -> Result<()> {
    let mut command = Command::new(locate(Program::KubeProxy)?);
    command.arg("--cleanup").stdin(Stdio::null());
    mode.prepare(lab, &mut command)?;
    sys::start_in(&mut command, lab.node1().file().as_raw_fd(), None);
    let out = command.output()?;
    if !out.status.success() {
        bail!("kube-proxy --cleanup: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}
