//! Where the programs of the control plane come from.
//!
//! Looked for in this order: the folder `KUBEBUILDER_ASSETS`, the cache outside of the
//! checkout, `PATH` (etcd only, which distributions package), the release site named by
//! `WEIR_KUBE_RELEASE_URL`; else built with Go from the module that `tests/kube/go.mod`
//! pins. What is fetched or built lands in the cache, once for all checkouts.

use crate::go::{self, cache, say};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Kubernetes release, as `tests/kube/go.mod` pins it.
pub const VERSION: &str = "v1.36.3";

/// A program of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
    Kubelet,
    Kubectl,
    /// What Weir replaces: a peer in benchmarks, a baseline in a cluster.
    KubeProxy,
}

impl Program {
    /// The file's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Kubectl => "kubectl",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// Finds a program, or fetches or builds it.
///
/// # Errors
/// When none of the ways leads to it; says what to do.
pub fn locate(program: Program) -> Result<PathBuf> {
    let name = program.name();
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let cache = cache()?.join("kube").join(VERSION);
    let mut places: Vec<PathBuf> = assets.into_iter().chain([cache.clone()]).collect();
    if program == Program::Etcd {
        places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        places.push("/usr/sbin".into());
    }
    if let Some(found) = places.iter().map(|place| place.join(name)).find(|file| file.is_file()) {
        return Ok(found);
    }
    if program == Program::Etcd {
        bail!("etcd is missing: `cargo xtask setup test` installs Debian's etcd-server");
    }
    go::once(&cache, name, |temporary| {
        if let Err(refused) = fetch(name, temporary) {
            say(&format!("{name} {VERSION}: {refused:#}; building it with Go (minutes, once)"));
            build(name, temporary)?;
        }
        Ok(())
    })
}

/// Fetches a program from the release site that the user named.
fn fetch(name: &str, to: &Path) -> Result<()> {
    let Ok(template) = std::env::var("WEIR_KUBE_RELEASE_URL") else { bail!("no WEIR_KUBE_RELEASE_URL") };
    let url = address(&template, name);
    say(&format!("{name} {VERSION}: {url}"));
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--silent", "--show-error", "--location"]);
    curl.args(["--connect-timeout", "5", "--max-time", "300", "--output"]).arg(to).arg(&url);
    if !curl.status().context("starting curl")?.success() {
        bail!("{url} cannot be fetched");
    }
    let mut mode = fs::metadata(to)?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    Ok(fs::set_permissions(to, mode)?)
}

/// Fills in the template: `{version}`, `{arch}` (Go's name) and `{program}`.
fn address(template: &str, name: &str) -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    template.replace("{version}", VERSION).replace("{arch}", arch).replace("{program}", name)
}

/// Builds a program from the pinned module.
fn build(name: &str, to: &Path) -> Result<()> {
    go::build("kube", &format!("k8s.io/kubernetes/cmd/{name}"), &linker_flags(), to).with_context(|| {
        format!(
            "{name} {VERSION} cannot be built: `cargo xtask setup test` gets a Go that can; or set KUBEBUILDER_ASSETS to a folder that has it, \
             or WEIR_KUBE_RELEASE_URL to where it can be fetched ({{version}}, {{arch}}, {{program}} are filled in)"
        )
    })
}

/// Linker flags that make a program say its release.
pub(crate) fn linker_flags() -> String {
    let version = "k8s.io/component-base/version";
    let minor = VERSION.split('.').nth(1).unwrap_or_default();
    format!("-s -w -X {version}.gitVersion={VERSION} -X {version}.gitMajor=1 -X {version}.gitMinor={minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_address_is_filled_in() {
        let url = address("https://mirror.test/{version}/{program}", "kube-apiserver");
        assert_eq!(url, "https://mirror.test/v1.36.3/kube-apiserver");
    }
}
