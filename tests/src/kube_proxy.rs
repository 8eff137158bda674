//! The real kube-proxy on node1, as the one that Weir takes over from and gives back to.

use crate::apiserver::ApiServer;
use crate::apiserver::assets::{Program, locate};
use crate::netns::sys;
use crate::topology::Topology;
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How it puts Services into the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Nftables,
    /// By whatever the machine's `iptables` writes to.
    Iptables,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    /// What is in the ruleset while its rules are there.
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Nftables => "table ip6 kube-proxy",
            Self::Iptables => "KUBE-SERVICES",
        }
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
pub fn cleanup(lab: &Topology) -> Result<()> {
    let mut command = Command::new(locate(Program::KubeProxy)?);
    command.arg("--cleanup").stdin(Stdio::null());
    sys::start_in(&mut command, lab.node1().file().as_raw_fd(), None);
    let out = command.output()?;
    if !out.status.success() {
        bail!("kube-proxy --cleanup: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}
