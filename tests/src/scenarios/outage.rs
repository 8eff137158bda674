//! The API server goes away, a node goes away: what is left goes on, and what comes back is
//! taken in again.

use super::rollout::rolled_out;
use super::stage::{NAMESPACE, PATIENCE, Stage};
use super::watch::{Scale, Watch, pause};
use crate::wait;
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(60);
/// A node that is not heard of is NotReady after 40 s.
const UNHEARD: Duration = Duration::from_secs(90);
/// Traffic goes on for this long after the last step.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// No API server for a minute: nothing is lost; afterwards a change is seen at once.
pub(super) fn api_server(stage: &mut Stage) -> Result<String> {
    stage.cluster().kill_api()?;
    let watch = Watch::start(stage, stage.scale())?;
    watch.at_least(AWAY);
    stage.cluster().start_api()?;
    let back = Instant::now();
    stage.cluster().kubectl(&["-n", NAMESPACE, "scale", "deployment/web", "--replicas=3"])?;
    stage.rolled_out("deployment/web")?;
    stage.cluster().kubectl(&["-n", NAMESPACE, "scale", "deployment/web", "--replicas=6"])?;
    stage.rolled_out("deployment/web")?;
    let changed = back.elapsed().as_secs();
    pause(AFTERWARDS);
    let sum = watch.stop()?.nothing_lost()?;
    stage.answers()?;
    Ok(format!("{} s without, pods changed twice {changed} s after it: {sum}", AWAY.as_secs()))
}

/// A node is drained, ends and is taken out of the cluster; the others lose nothing. It comes
/// back and serves.
pub(super) fn node(stage: &mut Stage) -> Result<String> {
    let nodes = stage.cluster().nodes();
    ensure!(nodes.len() > 1, "there is one node only");
    let node = *nodes.last().context("no node")?;
    let name = node.name();
    let watch = Watch::without(stage, Scale::SMALL, &name)?;
    let words =
        ["drain", &name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s"];
    stage.cluster().kubectl(&words)?;
    let stopped = Instant::now();
    stage.end_clients_on(&name)?;
    node.remove()?;
    wait::until("the end of the node's pods", UNHEARD, || {
        let here = format!("--field-selector=spec.nodeName={name}");
        let pods = stage.json(&["get", "pods", "-A", &here])?;
        let left = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(left == 0, "{left} pods are there still");
        Ok(())
    })?;
    pause(AFTERWARDS);
    let without = stopped.elapsed().as_secs();
    node.add()?;
    stage.load_images(&node)?;
    stage.cluster().wait_nodes(PATIENCE)?;
    rolled_out(stage)?;
    for deployment in ["web", &format!("only-{name}")] {
        stage.rolled_out(&format!("deployment/{deployment}"))?;
    }
    stage.rolled_out("daemonset/client")?;
    let sum = watch.stop()?.nothing_lost()?;
    stage.new_clients()?;
    stage.answers()?;
    Ok(format!("{name} away for {without} s, then serving again: {sum}"))
}
