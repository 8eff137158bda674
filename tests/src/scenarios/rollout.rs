//! Pods that are replaced while traffic runs: those of a Service, and Weir's own.

use super::stage::{NAMESPACE, PATIENCE, Stage};
use super::watch::{Scale, Sum, Watch, pause};
use crate::wait;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Where Weir lives, and how its pods are found.
pub(super) const SYSTEM: &str = "weir-system";
pub(super) const LABEL: &str = "app.kubernetes.io/name=weir";
/// A rollout of one node after the other, on two cores.
const ROLLOUT: Duration = Duration::from_secs(300);
/// Traffic goes on for this long after the last step.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// How long a rollout that cannot succeed is watched.
const BROKEN: Duration = Duration::from_secs(30);

/// A rolling update of the Deployment behind node ports, cluster IPs and the Ingress. (The long
/// flows are to other pods: a flow ends with its pod.)
pub(super) fn deployment(stage: &mut Stage) -> Result<String> {
    let watch = Watch::start(stage, stage.scale())?;
    let before = uids(stage, NAMESPACE, "app=web")?;
    stage.cluster().kubectl(&["-n", NAMESPACE, "rollout", "restart", "deployment/web"])?;
    stage.rolled_out("deployment/web")?;
    gone(stage, NAMESPACE, "app=web", &before)?;
    finish(watch).map(|sum| format!("{} pods replaced: {sum}", before.len()))
}

/// A rolling update of Weir itself on all nodes.
pub(super) fn weir(stage: &mut Stage) -> Result<String> {
    let watch = Watch::start(stage, stage.scale())?;
    let before = uids(stage, SYSTEM, LABEL)?;
    let began = Instant::now();
    stage.cluster().kubectl(&["-n", SYSTEM, "rollout", "restart", "daemonset/weir"])?;
    rolled_out(stage)?;
    let new = began.elapsed().as_secs();
    gone(stage, SYSTEM, LABEL, &before)?;
    let old = began.elapsed().as_secs();
    let sum = finish(watch)?;
    Ok(format!("{} nodes, all new after {new} s, the old gone after {old} s: {sum}", before.len()))
}

/// A rollout that never becomes ready leaves the old pods serving; it is undone.
pub(super) fn broken(stage: &mut Stage) -> Result<String> {
    let watch = Watch::start(stage, Scale::SMALL)?;
    let before = uids(stage, SYSTEM, LABEL)?;
    // A value that no flag takes: the process ends with exit code 2, again and again.
    stage.cluster().kubectl(&["-n", SYSTEM, "set", "env", "daemonset/weir", "WEIR_L7=perhaps"])?;
    let watched = (|| {
        wait::until("a pod that cannot start", PATIENCE, || {
            let pods = stage.pods(SYSTEM, LABEL)?;
            let fails = |pod: &Value| {
                let state = &pod["status"]["containerStatuses"][0];
                state["restartCount"].as_u64() > Some(0) && state["ready"] == false
            };
            ensure!(pods.iter().any(fails), "none yet");
            Ok(())
        })?;
        pause(BROKEN);
        let left = uids(stage, SYSTEM, LABEL)?;
        ensure!(before.is_subset(&left), "an old pod is gone: {before:?}, now {left:?}");
        Ok(())
    })();
    stage.cluster().kubectl(&["-n", SYSTEM, "rollout", "undo", "daemonset/weir"])?;
    rolled_out(stage)?;
    watched?;
    finish(watch).map(|sum| format!("the {} old pods stayed: {sum}", before.len()))
}

/// Weir's pods are deleted, one node after the other.
pub(super) fn deleted(stage: &mut Stage) -> Result<String> {
    let watch = Watch::start(stage, stage.scale())?;
    let nodes = stage.cluster().nodes();
    for node in &nodes {
        let here = format!("--field-selector=spec.nodeName={}", node.name());
        stage.cluster().kubectl(&["-n", SYSTEM, "delete", "pods", "-l", LABEL, &here])?;
        rolled_out(stage)?;
    }
    finish(watch).map(|sum| format!("one after the other on {} nodes: {sum}", nodes.len()))
}

fn finish(watch: Watch<'_>) -> Result<Sum> {
    pause(AFTERWARDS);
    watch.stop()?.nothing_lost()
}

/// Waits until Weir is ready on every node, and no pod of it is about to end.
pub(super) fn rolled_out(stage: &Stage) -> Result<()> {
    stage.cluster().wait_rollout(SYSTEM, "daemonset/weir", ROLLOUT)?;
    wait::until("the end of pods that were replaced", ROLLOUT, || {
        let pods = stage.pods(SYSTEM, LABEL)?;
        let ending = |pod: &&Value| !pod["metadata"]["deletionTimestamp"].is_null();
        let left = pods.iter().filter(ending).count();
        ensure!(left == 0, "{left} are there still");
        Ok(())
    })
}

fn uids(stage: &Stage, namespace: &str, label: &str) -> Result<BTreeSet<String>> {
    let pods = stage.pods(namespace, label)?;
    Ok(pods.iter().filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned)).collect())
}

/// Waits until pods are no more.
fn gone(stage: &Stage, namespace: &str, label: &str, old: &BTreeSet<String>) -> Result<()> {
    wait::until("the end of the old pods", ROLLOUT, || {
        let left = uids(stage, namespace, label)?;
        ensure!(left.is_disjoint(old), "still there: {:?}", left.intersection(old));
        Ok(())
    })
}
