//! The other provider: the user's kind, kubectl and container engine. Only their commands
//! and kind's configuration are made here; the cluster is kind's own.

use super::addons::{self, WEIR_NAMESPACE};
use super::plan::{IpFamily, Plan, Proxy};
use super::state::home;
use crate::go::say;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// kind's name of the cluster.
const NAME: &str = "weir";
/// What the user must have.
const PROGRAMS: [&str; 2] = ["kind", "kubectl"];

/// Starts a cluster in kind and installs the proxy.
///
/// # Errors
/// When a program is missing, or one of them fails.
pub fn up(plan: &Plan, proxy: Proxy, image: Option<&Path>) -> Result<()> {
    let missing = missing(&std::env::var("PATH").unwrap_or_default());
    if !missing.is_empty() {
        bail!("the kind provider needs {}, which PATH does not have", missing.join(" and "));
    }
    let kubeconfig = kubeconfig()?;
    if let Some(folder) = kubeconfig.parent() {
        fs::create_dir_all(folder)?;
    }
    let image = match proxy {
        Proxy::Weir => Some(image.context("no image of Weir is named")?),
        Proxy::KubeProxyNftables | Proxy::KubeProxyIptables | Proxy::None => None,
    };
    run(&create(&kubeconfig), &config(plan, proxy))?;
    if let Some(image) = image {
        for step in install(&kubeconfig, image, &addons::deploy()) {
            run(&step, "")?;
        }
    }
    for step in waits(&kubeconfig, proxy) {
        run(&step, "")?;
    }
    println!("up: export KUBECONFIG={}", kubeconfig.display());
    Ok(())
}

/// Removes it.
///
/// # Errors
/// When kind is missing or fails.
pub fn down() -> Result<()> {
    let kubeconfig = kubeconfig()?;
    run(&words(&["kind", "delete", "cluster", "--name", NAME, "--kubeconfig"], &[&kubeconfig]), "")?;
    let _ = fs::remove_file(kubeconfig);
    Ok(())
}

fn kubeconfig() -> Result<PathBuf> {
    Ok(home()?.join("kind.kubeconfig"))
}

/// kind's configuration. As with the local provider, the nodes that are counted hold no
/// control plane.
fn config(plan: &Plan, proxy: Proxy) -> String {
    let mode = proxy.kube_proxy_mode().unwrap_or("none");
    let family = match plan.ip_family {
        IpFamily::Dual => "dual",
        IpFamily::Ipv4 => "ipv4",
    };
    let mut text = format!(
        "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnetworking:\n  kubeProxyMode: \"{mode}\"\n  \
         ipFamily: {family}\nnodes:\n- role: control-plane\n"
    );
    for _ in 0..plan.nodes {
        let _ = writeln!(text, "- role: worker");
    }
    text
}

fn create(kubeconfig: &Path) -> Vec<String> {
    words(&["kind", "create", "cluster", "--name", NAME, "--config", "-", "--kubeconfig"], &[kubeconfig])
}

fn install(kubeconfig: &Path, image: &Path, manifests: &Path) -> Vec<Vec<String>> {
    vec![
        words(&["kind", "load", "image-archive", "--name", NAME], &[image]),
        kubectl(kubeconfig, &["apply", "-k", &manifests.to_string_lossy()]),
    ]
}

fn waits(kubeconfig: &Path, proxy: Proxy) -> Vec<Vec<String>> {
    let status = |namespace, what| {
        kubectl(kubeconfig, &["rollout", "status", "-n", namespace, what, "--timeout=300s"])
    };
    let mut steps = Vec::new();
    if proxy == Proxy::Weir {
        steps.push(status(WEIR_NAMESPACE, "daemonset/weir"));
    }
    if proxy != Proxy::None {
        steps.push(status("kube-system", "deployment/coredns"));
    }
    steps
}

fn kubectl(kubeconfig: &Path, rest: &[&str]) -> Vec<String> {
    let mut all = words(&["kubectl", "--kubeconfig"], &[kubeconfig]);
    all.extend(rest.iter().map(ToString::to_string));
    all
}

fn words(fixed: &[&str], paths: &[&Path]) -> Vec<String> {
    let paths = paths.iter().map(|path| path.display().to_string());
    fixed.iter().map(ToString::to_string).chain(paths).collect()
}

/// Those of the programs that are in no folder of `PATH`.
fn missing(path: &str) -> Vec<&'static str> {
    let there = |name: &&&str| path.split(':').any(|folder| Path::new(folder).join(name).is_file());
    PROGRAMS.iter().filter(|name| !there(name)).copied().collect()
}

fn run(words: &[String], input: &str) -> Result<()> {
    let (program, arguments) = words.split_first().context("no program")?;
    say(&words.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} is not installed"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing may have ended: its exit code tells.
        let _ = stdin.write_all(input.as_bytes());
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} failed ({status})", words.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn kind_is_asked_for_nodes_without_a_proxy() -> Result<()> {
        let plan = Plan { nodes: 2, ..Plan::default() };
        let config: Value = serde_saphyr::from_str(&config(&plan, Proxy::Weir))?;
        assert_eq!(config["apiVersion"], "kind.x-k8s.io/v1alpha4");
        assert_eq!(
            (&config["networking"]["kubeProxyMode"], &config["networking"]["ipFamily"]),
            (&"none".into(), &"dual".into())
        );
        let roles: Vec<&str> = config["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|node| node["role"].as_str())
            .collect();
        assert_eq!(roles, ["control-plane", "worker", "worker"]);
        Ok(())
    }

    #[test]
    fn kube_proxy_runs_where_it_is_asked_for() -> Result<()> {
        let config: Value = serde_saphyr::from_str(&config(&Plan::default(), Proxy::KubeProxyNftables))?;
        assert_eq!(config["networking"]["kubeProxyMode"], "nftables");
        Ok(())
    }

    #[test]
    fn image_is_loaded_before_the_manifests_are_applied() {
        let kubeconfig = Path::new("/c/kind.kubeconfig");
        let lines: Vec<String> = std::iter::once(create(kubeconfig))
            .chain(install(kubeconfig, Path::new("/t/weir-image.tar"), Path::new("/w/deploy")))
            .chain(waits(kubeconfig, Proxy::Weir))
            .map(|words| words.join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "kind create cluster --name weir --config - --kubeconfig /c/kind.kubeconfig",
                "kind load image-archive --name weir /t/weir-image.tar",
                "kubectl --kubeconfig /c/kind.kubeconfig apply -k /w/deploy",
                "kubectl --kubeconfig /c/kind.kubeconfig rollout status -n weir-system daemonset/weir --timeout=300s",
                "kubectl --kubeconfig /c/kind.kubeconfig rollout status -n kube-system deployment/coredns --timeout=300s",
            ]
        );
        assert!(waits(kubeconfig, Proxy::None).is_empty(), "names are not found without a proxy");
    }

    #[test]
    fn missing_programs_are_named() {
        assert_eq!(missing("/nowhere"), ["kind", "kubectl"]);
    }
}
