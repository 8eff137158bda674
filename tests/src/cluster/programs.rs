//! The programs of a cluster beside the control plane's: built once, from the modules that
//! `tests/kube`, `tests/cni` and `tests/coredns` pin, and kept in the cache for all checkouts.

use crate::apiserver::assets::{self, Program, VERSION};
use crate::go::{self, cache, say};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release of the plugins that `tests/cni/go.mod` pins.
const CNI_VERSION: &str = "v1.9.1";
/// The release that `tests/coredns/go.mod` pins.
const COREDNS_VERSION: &str = "v1.14.7";
/// The plugins that the nodes' configuration names.
const PLUGINS: [(&str, &str); 5] = [
    ("ptp", "main/ptp"),
    ("bridge", "main/bridge"),
    ("loopback", "main/loopback"),
    ("host-local", "ipam/host-local"),
    ("portmap", "meta/portmap"),
];

/// Where each of them is.
#[derive(Debug, Clone)]
pub struct Programs {
    pub etcd: PathBuf,
    pub api_server: PathBuf,
    pub controller_manager: PathBuf,
    pub scheduler: PathBuf,
    pub kubelet: PathBuf,
    pub kubectl: PathBuf,
    pub kube_proxy: PathBuf,
    /// The server and client of the upstream suites.
    pub agnhost: PathBuf,
    /// The suites' reproduction of Kubernetes issue 74839.
    pub regression: PathBuf,
    pub coredns: PathBuf,
    /// What holds a pod's namespaces.
    pub pause: PathBuf,
    /// The folder of the CNI plugins.
    pub cni: PathBuf,
}

impl Programs {
    /// Finds them, or builds those that are missing.
    ///
    /// # Errors
    /// When one cannot be had; says what to do.
    pub fn locate() -> Result<Self> {
        Ok(Self {
            etcd: assets::locate(Program::Etcd)?,
            api_server: assets::locate(Program::ApiServer)?,
            controller_manager: assets::locate(Program::ControllerManager)?,
            scheduler: assets::locate(Program::Scheduler)?,
            kubelet: assets::locate(Program::Kubelet)?,
            kubectl: assets::locate(Program::Kubectl)?,
            kube_proxy: assets::locate(Program::KubeProxy)?,
            agnhost: kube("agnhost", "k8s.io/kubernetes/test/images/agnhost")?,
            regression: kube(
                "regression-issue-74839",
                "k8s.io/kubernetes/test/images/regression-issue-74839",
            )?,
            coredns: coredns()?,
            pause: pause()?,
            cni: plugins()?,
        })
    }
}

/// A program of the Kubernetes module that is none of its `cmd`s.
pub(super) fn kube(name: &str, package: &str) -> Result<PathBuf> {
    go::once(&kube_cache()?, name, |temporary| {
        say(&format!("{name} {VERSION}: building it with Go (minutes, once)"));
        go::build("kube", package, &assets::linker_flags(), temporary)
    })
}

/// The upstream end-to-end suite, compiled whole.
///
/// # Errors
/// When it cannot be built.
pub fn e2e() -> Result<PathBuf> {
    go::once(&kube_cache()?, "e2e.test", |temporary| {
        say(&format!("e2e.test {VERSION}: building it with Go (some 20 minutes, once)"));
        go::build_test("kube", "k8s.io/kubernetes/test/e2e", &assets::linker_flags(), temporary)
    })
}

/// Runs a suite's specs beside each other.
///
/// # Errors
/// When it cannot be built.
pub fn ginkgo() -> Result<PathBuf> {
    kube("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo")
}

/// kubectl of the cluster's release.
///
/// # Errors
/// When it cannot be had.
pub fn kubectl() -> Result<PathBuf> {
    assets::locate(Program::Kubectl)
}

fn coredns() -> Result<PathBuf> {
    go::once(&cache()?.join("coredns").join(COREDNS_VERSION), "coredns", |temporary| {
        say(&format!("CoreDNS {COREDNS_VERSION}: building it with Go (minutes, once)"));
        let flags = format!("-s -w -X github.com/coredns/coredns/coremain.GitCommit={COREDNS_VERSION}");
        go::build("coredns", "github.com/coredns/coredns", &flags, temporary)
    })
}

fn plugins() -> Result<PathBuf> {
    let folder = cache()?.join("cni").join(CNI_VERSION);
    for (name, package) in PLUGINS {
        go::once(&folder, name, |temporary| {
            say(&format!("CNI plugin {name} {CNI_VERSION}: building it with Go (seconds, once)"));
            go::build(
                "cni",
                &format!("github.com/containernetworking/plugins/plugins/{package}"),
                "-s -w",
                temporary,
            )
        })?;
    }
    Ok(folder)
}

/// The pause program is C, in the Kubernetes module.
fn pause() -> Result<PathBuf> {
    go::once(&kube_cache()?, "pause", |temporary| {
        let source = go::module_folder("kube", "k8s.io/kubernetes")?.join("build/pause/linux/pause.c");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-Os", "-static"])
            .arg(format!("-DVERSION={VERSION}"))
            .arg("-o")
            .arg(temporary)
            .arg(&source);
        if !compiler.status().context("starting cc")?.success() {
            bail!("cc cannot compile {} (static, so it needs libc's static library)", source.display());
        }
        Ok(())
    })
}

/// A certificate that agnhost's porter serves, from the Kubernetes module.
pub(super) fn porter(file: &str) -> Result<PathBuf> {
    let module = go::module_folder("kube", "k8s.io/kubernetes")?;
    Ok(module.join("test/images/agnhost/porter").join(file))
}

/// Where the programs of this Kubernetes release are kept.
fn kube_cache() -> Result<PathBuf> {
    Ok(cache()?.join("kube").join(VERSION))
}

/// Finds a program of the machine's.
///
/// # Errors
/// When it is not installed.
pub(super) fn installed(name: &str) -> Result<PathBuf> {
    let found = super::process::PATH
        .split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(|file| file.is_file());
    found.with_context(|| format!("{name} is not installed: `cargo xtask setup cluster` gets it"))
}
