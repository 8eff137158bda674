//! The Kubernetes programs of the api layer and h2spec and Helm of the suites layer: there, or a Go to
//! build them with.
//!
//! The tests build them on first use (`tests/src/go.rs`). The Go that they need
//! is newer than what distributions package; an older one is enough to fetch it, as the
//! module that Go publishes its own releases as, checked against Go's checksum database.

use super::packages;
use crate::cache;
use crate::shell::{find, is_program, line, output, run as run_command, say};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Kubernetes release that the api tests run against; `tests/kube/go.mod` pins it.
const VERSION: &str = "v1.36.3";
/// The h2spec release of the suites layer; `tests/h2spec/go.mod` pins it.
const H2SPEC: &str = "v2.2.1";
/// The Helm release of the suites layer; `tests/helm/go.mod` pins it.
const HELM: &str = "v3.19.0";
/// The Go minor release that `tests/kube/go.mod` asks for.
const GO_MINOR: u32 = 26;
/// The Go that is fetched where there is none or an older one; the tests look for this name.
const GO: &str = "go1.26.8";

pub(super) fn programs() -> Result<()> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let places: Vec<_> = assets.into_iter().chain([cache::dir()?.join("kube").join(VERSION)]).collect();
    let there = |name: &str| places.iter().any(|place| is_program(&place.join(name)));
    if there("kube-apiserver") && there("kube-controller-manager") {
        say(format_args!("Kubernetes {VERSION}: there"));
        return Ok(());
    }
    if std::env::var_os("WEIR_KUBE_RELEASE_URL").is_some() {
        say(format_args!("Kubernetes {VERSION}: the tests fetch it from WEIR_KUBE_RELEASE_URL, once"));
        return Ok(());
    }
    let go = go()?;
    say(format_args!("Kubernetes {VERSION}: the tests build it with {}, once (some minutes)", go.display()));
    Ok(())
}

/// What a cluster runs beside the control plane, most of it as source only; and the modules.
pub(super) fn cluster() -> Result<()> {
    let folder = cache::dir()?.join("kube").join(VERSION);
    if ["kubelet", "kubectl", "kube-scheduler", "kube-proxy", "agnhost", "pause"]
        .iter()
        .all(|name| is_program(&folder.join(name)))
    {
        say(format_args!("Kubernetes {VERSION}, nodes: there"));
        return Ok(());
    }
    let go = go()?;
    say(format_args!(
        "Kubernetes {VERSION}, nodes: built with {} when a cluster comes up, once (10 to 30 minutes)",
        go.display()
    ));
    Ok(())
}

/// h2spec and Helm, which are built from source.
pub(super) fn suites() -> Result<()> {
    for (name, version, time) in [("h2spec", H2SPEC, "seconds"), ("helm", HELM, "some minutes")] {
        if is_program(&cache::dir()?.join(name).join(version).join(name)) {
            say(format_args!("{name} {version}: there"));
            continue;
        }
        let go = go()?;
        say(format_args!("{name} {version}: the tests build it with {}, once ({time})", go.display()));
    }
    Ok(())
}

/// Finds a Go that is new enough, or fetches it.
fn go() -> Result<PathBuf> {
    let fetched = cache::dir()?.join(GO);
    let program = fetched.join("bin/go");
    if let Some(own) = find("go").filter(|go| is_new_enough(go)) {
        return Ok(own);
    }
    if is_program(&program) {
        return Ok(program);
    }
    if find("go").is_none() {
        packages("Go", &["golang-go"])?;
    }
    fetch(&fetched).context("install Go 1.26 by hand, or set KUBEBUILDER_ASSETS or WEIR_KUBE_RELEASE_URL")?;
    Ok(program)
}

fn is_new_enough(go: &Path) -> bool {
    output(Command::new(go).arg("version")).is_ok_and(|text| minor(&text) >= Some(GO_MINOR))
}

/// Reads `go version go1.26.8 linux/amd64`.
fn minor(text: &str) -> Option<u32> {
    text.split_whitespace().nth(2)?.strip_prefix("go1.")?.split('.').next()?.parse().ok()
}

/// Downloads a Go release as a module and makes a usable copy of it.
fn fetch(to: &Path) -> Result<()> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut go = Command::new("go");
    go.args(["mod", "download", "-json", &format!("golang.org/toolchain@v0.0.1-{GO}.linux-{arch}")]);
    // Outside of any module, whatever the user's flags say.
    go.current_dir("/").env_remove("GOFLAGS").env("GOTOOLCHAIN", "local");
    say(format_args!("Go: {}", line(&go)));
    let answer: serde_json::Value = serde_json::from_str(&output(&mut go)?)?;
    let module = answer["Dir"].as_str().context("go names no folder")?;
    let temporary = to.with_extension(format!("tmp{}", std::process::id()));
    fs::create_dir_all(temporary.parent().context("the cache has no folder")?)?;
    run_command(Command::new("cp").args(["--recursive", "--no-preserve=mode", module]).arg(&temporary))?;
    // Modules carry no mode bits.
    for folder in [temporary.join("bin"), temporary.join(format!("pkg/tool/linux_{arch}"))] {
        for program in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            fs::set_permissions(program?.path(), fs::Permissions::from_mode(0o755))?;
        }
    }
    fs::rename(&temporary, to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_minor_release_is_read() {
        assert_eq!(minor("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(minor("go version go1.19 linux/amd64"), Some(19));
        assert_eq!(minor("go version devel go1.27-abc"), None);
    }
}
