//! What runs in every cluster: CoreDNS, and who forwards to Services: Weir from `deploy/`, or
//! the real kube-proxy, or nobody.

use super::images::{COREDNS, KUBE_PROXY};
use super::plan::{DNS, api_address};
use super::{Cluster, Plan};
use crate::apiserver::assets::{self, Program};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The image that the manifests of `deploy/` name.
pub(super) const WEIR_IMAGE: &str = "docker.io/library/weir:dev";
/// Where they install it.
pub(super) const WEIR_NAMESPACE: &str = "weir-system";
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Applies CoreDNS; [`wait_coredns`] waits for it.
///
/// # Errors
/// With the refusal.
pub(super) fn install_coredns(cluster: &Cluster) -> Result<()> {
    let manifests = filled_in(include_str!("manifests/coredns.yaml"), cluster.plan(), COREDNS, "");
    cluster.apply(&manifests).context("CoreDNS")
}

/// # Errors
/// When it does not become ready.
pub(super) fn wait_coredns(cluster: &Cluster) -> Result<()> {
    cluster.wait_rollout("kube-system", "deployment/coredns", PATIENCE)
}

/// Runs the real kube-proxy on every node, in this mode.
///
/// # Errors
/// When it does not become ready.
pub(super) fn install_kube_proxy(cluster: &Cluster, mode: &str) -> Result<()> {
    let manifests = filled_in(include_str!("manifests/kube-proxy.yaml"), cluster.plan(), KUBE_PROXY, mode);
    cluster.apply(&manifests).context("kube-proxy")?;
    cluster.wait_rollout("kube-system", "daemonset/kube-proxy", PATIENCE)
}

/// Removes kube-proxy and the rules that it leaves, as its own `--cleanup` does.
///
/// # Errors
/// When it does not go.
pub(super) fn remove_kube_proxy(cluster: &Cluster) -> Result<()> {
    for what in ["daemonset", "configmap", "serviceaccount"] {
        cluster.kubectl(&[
            "delete",
            "-n",
            "kube-system",
            what,
            "kube-proxy",
            "--ignore-not-found",
            "--wait",
        ])?;
    }
    cluster.kubectl(&[
        "wait",
        "-n",
        "kube-system",
        "--for=delete",
        "pod",
        "-l",
        "k8s-app=kube-proxy",
        "--timeout=60s",
    ])?;
    let program = assets::locate(Program::KubeProxy)?;
    for node in cluster.nodes().iter().filter(|node| node.is_on()) {
        node.run(&program.to_string_lossy(), &["--cleanup"])?;
    }
    Ok(())
}

/// Installs Weir as a user does, from `deploy/`, and waits until it is ready on every node.
///
/// # Errors
/// When the API server refuses something, or a Pod does not become ready.
pub(super) fn install_weir(cluster: &Cluster) -> Result<()> {
    let folder = deploy();
    ensure!(folder.join("kustomization.yaml").is_file(), "no manifests in {}", folder.display());
    cluster.kubectl(&["apply", "-k", &folder.to_string_lossy()]).context("installing Weir")?;
    wait_weir(cluster)
}

/// Deletes Weir's DaemonSets: its agents are told to end. What they programmed stays, on purpose.
///
/// # Errors
/// When the API server refuses it.
pub(super) fn end_agents(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["-n", WEIR_NAMESPACE, "delete", "daemonset", "--all"]).map(drop)
}

/// Waits until Weir's Pods have gone.
///
/// # Errors
/// When one does not.
pub(super) fn wait_agents_gone(cluster: &Cluster) -> Result<()> {
    let words = ["-n", WEIR_NAMESPACE, "wait", "--for=delete", "pod", "--all", "--timeout=300s"];
    cluster.kubectl(&words).map(drop)
}

/// Deletes the rest of Weir's objects.
///
/// # Errors
/// When something does not go.
pub(super) fn delete_weir(cluster: &Cluster) -> Result<()> {
    delete(cluster, &deploy())
}

/// Starts `weir cleanup` on every node, as `deploy/cleanup` does, or `deploy/cleanup-drain`, which
/// lets open connections end first, for so long.
///
/// # Errors
/// When the API server refuses something.
pub(super) fn begin_cleaning(cluster: &Cluster, drain: Option<Duration>) -> Result<()> {
    let folder = if drain.is_some() { deploy().join("cleanup-drain") } else { cleanup() };
    let mut manifests = cluster.kubectl(&["kustomize", &folder.to_string_lossy()])?;
    if let Some(drain) = drain {
        let shorter = manifests.replace("--drain=1h", &format!("--drain={}s", drain.as_secs()));
        ensure!(shorter != manifests, "no --drain=1h in {}", folder.display());
        manifests = shorter;
    }
    cluster.apply(&manifests)
}

/// Waits until all nodes are clean, and deletes what [`begin_cleaning`] made.
///
/// # Errors
/// When a node is not clean in time.
pub(super) fn end_cleaning(cluster: &Cluster, patience: Duration) -> Result<()> {
    cluster.wait_rollout("weir-cleanup", "daemonset/weir-cleanup", patience)?;
    delete(cluster, &cleanup())
}

fn delete(cluster: &Cluster, folder: &Path) -> Result<()> {
    // An agent that is told to end drains its connections first.
    let words = ["delete", "-k", &folder.to_string_lossy(), "--ignore-not-found", "--wait", "--timeout=400s"];
    cluster.kubectl(&words).map(drop)
}

/// # Errors
/// When it is not ready in time.
pub(super) fn wait_weir(cluster: &Cluster) -> Result<()> {
    let sets = cluster.api().list("apps/v1", "DaemonSet", WEIR_NAMESPACE, "")?;
    ensure!(!sets.is_empty(), "no DaemonSet in {WEIR_NAMESPACE}");
    for set in sets.iter().filter_map(|set| set["metadata"]["name"].as_str()) {
        cluster.wait_rollout(WEIR_NAMESPACE, &format!("daemonset/{set}"), PATIENCE)?;
    }
    Ok(())
}

/// Loads Weir's image into all nodes, under the name that the manifests ask for.
///
/// # Errors
/// When there is no such archive, or it holds no image.
pub(super) fn load_weir(cluster: &Cluster, archive: &Path) -> Result<()> {
    let names = cluster.load_image(archive)?;
    let Some(name) = names.first() else { bail!("{}: no image in it has a name", archive.display()) };
    if !names.iter().any(|name| name == WEIR_IMAGE) {
        for node in cluster.nodes().iter().filter(|node| node.is_on()) {
            node.tag_image(name, WEIR_IMAGE)?;
        }
    }
    Ok(())
}

/// The checkout's manifests.
pub(super) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn cleanup() -> PathBuf {
    deploy().join("cleanup")
}

fn filled_in(manifests: &str, plan: &Plan, image: &str, mode: &str) -> String {
    let api = api_address();
    manifests
        .replace("DNS_ADDRESS", &DNS.to_string())
        .replace("API_HOST", &api.ip().to_string())
        .replace("API_PORT", &api.port().to_string())
        .replace("POD_CIDRS", &plan.pod_cidrs())
        .replace("IMAGE", image)
        .replace("MODE", mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn manifests_are_filled_in_whole() -> Result<()> {
        for (text, image, mode) in [
            (include_str!("manifests/coredns.yaml"), COREDNS, ""),
            (include_str!("manifests/kube-proxy.yaml"), KUBE_PROXY, "nftables"),
        ] {
            let filled = filled_in(text, &Plan::default(), image, mode);
            for word in ["DNS_ADDRESS", "API_HOST", "API_PORT", "POD_CIDRS", " IMAGE", " MODE"] {
                assert!(!filled.contains(word), "{word}");
            }
            let documents: Vec<Value> = serde_saphyr::from_multiple(&filled)?;
            assert!(documents.iter().all(|one| one["kind"].is_string()), "{documents:?}");
            assert!(filled.contains(image));
        }
        Ok(())
    }
}
