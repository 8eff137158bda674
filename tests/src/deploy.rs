//! The manifests of `deploy/`, as the tools that install them read them.

use crate::apiserver::assets::{Program, locate};
use crate::go;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder itself.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Every folder that `kubectl apply -k` can be given: `deploy` itself, the overlays, the cleanup.
///
/// # Errors
/// When the folder cannot be read.
pub fn installable() -> Result<Vec<PathBuf>> {
    let mut all = vec![folder(), folder().join("cleanup")];
    for entry in std::fs::read_dir(folder().join("overlays"))? {
        all.push(entry?.path());
    }
    all.sort();
    Ok(all)
}

/// Runs kubectl and returns what it printed.
///
/// # Errors
/// With what it says when it fails.
pub fn kubectl(kubeconfig: Option<&Path>, words: &[&str]) -> Result<String> {
    let mut command = Command::new(locate(Program::Kubectl)?);
    // Nobody's own cluster is ever asked.
    command.env("KUBECONFIG", kubeconfig.unwrap_or(Path::new("/dev/null"))).args(words);
    let output = command.output().context("starting kubectl")?;
    if !output.status.success() {
        bail!("kubectl {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The objects that a folder stands for.
///
/// # Errors
/// When kustomize does not understand it.
pub fn objects(folder: &Path) -> Result<Vec<Value>> {
    let text = kubectl(None, &["kustomize", &folder.to_string_lossy()])?;
    serde_saphyr::from_multiple(&text).with_context(|| format!("{}", folder.display()))
}

/// The Helm release that `tests/helm/go.mod` pins.
const HELM: &str = "v3.19.0";

/// The objects that the chart stands for, with files of `deploy/chart/values`.
///
/// # Errors
/// When there is no Go that can build Helm, or Helm does not understand the chart.
pub fn rendered(values: &[&str]) -> Result<Vec<Value>> {
    let helm = go::once(&go::cache()?.join("helm").join(HELM), "helm", |temporary| {
        go::say(&format!("Helm {HELM}: building it with Go (minutes, once)"));
        let built = go::build("helm", "helm.sh/helm/v3/cmd/helm", "-s -w", temporary);
        built.context("Helm cannot be built: `cargo xtask setup test` gets a Go that can")
    })?;
    let chart = folder().join("chart");
    let mut command = Command::new(helm);
    command.env("KUBECONFIG", "/dev/null").args(["template", "weir"]).arg(chart.join("weir"));
    command.args(["--namespace", "weir-system"]);
    for values in values {
        command.arg("--values").arg(chart.join("values").join(format!("{values}.yaml")));
    }
    let output = command.output().context("starting Helm")?;
    if !output.status.success() {
        bail!("{values:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_saphyr::from_multiple(&String::from_utf8(output.stdout)?)?)
}

/// The object of that kind and name.
///
/// # Errors
/// When there is none.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let found = objects.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.with_context(|| format!("no {kind} {name}"))
}
