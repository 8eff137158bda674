//! Weir is taken away, as docs/install.md says: nothing of it is left on any node.

use super::install::TUTORIAL;
use super::stage::{NAMESPACE, PATIENCE, Stage};
use crate::cluster::BpfObjects;
use crate::wait;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Maps are freed a moment after their last user.
const FREED: Duration = Duration::from_secs(30);

/// Programs, maps, pins and rules are gone from every node, addresses from the Ingresses' statuses;
/// and Weir can be installed again.
pub(super) fn uninstall(stage: &mut Stage) -> Result<String> {
    let before = objects(stage)?;
    let (programs, maps) = (count(&before, |one| one.programs.len()), count(&before, |one| one.maps.len()));
    ensure!(programs > 0 && maps > 0, "there was nothing to take away: {before:?}");
    wait::until("addresses in statuses", PATIENCE, || {
        ensure!(published(stage)? > 0, "none");
        Ok(())
    })?;
    stage.cluster().uninstall_weir()?;
    nothing_left(stage, &before)?;
    let left = published(stage)?;
    ensure!(left == 0, "{left} addresses are left in statuses of Ingresses");
    stage.cluster().install_weir()?;
    stage.answers()?;
    Ok(format!(
        "{programs} programs and {maps} maps of {} nodes gone, statuses empty; installed again",
        before.len()
    ))
}

/// Addresses in the statuses of all Ingresses.
fn published(stage: &Stage) -> Result<usize> {
    let ingresses = stage.json(&["get", "ingresses", "-A"])?;
    let all = ingresses["items"].as_array().into_iter().flatten();
    Ok(all.filter_map(|one| one["status"]["loadBalancer"]["ingress"].as_array()).map(Vec::len).sum())
}

fn count(all: &[BpfObjects], number: impl Fn(&BpfObjects) -> usize) -> usize {
    all.iter().map(number).sum()
}

/// What each node has.
pub(super) fn objects(stage: &Stage) -> Result<Vec<BpfObjects>> {
    stage.cluster().nodes().iter().map(|node| node.bpf()).collect()
}

/// That no node has anything, and that the kernel has freed what was there.
pub(super) fn nothing_left(stage: &Stage, before: &[BpfObjects]) -> Result<()> {
    for (node, before) in stage.cluster().nodes().iter().zip(before) {
        wait::until(&format!("nothing of Weir's on {}", node.name()), FREED, || {
            let now = node.bpf()?;
            ensure!(now.is_empty(), "{now:?}");
            let loaded = before.still_loaded()?;
            ensure!(loaded.is_empty(), "still in the kernel: {loaded:?}");
            Ok(())
        })?;
        let rules = node.rules().context("rules")?;
        // Another proxy's rules name the test's own Services.
        let rules = rules.replace(NAMESPACE, "").replace(TUTORIAL, "");
        ensure!(!rules.contains("weir"), "rules of Weir's on {}: {rules}", node.name());
        ensure!(node.run("ls", &["/run/weir"]).is_err(), "/run/weir is there on {}", node.name());
        ensure!(node.agents()?.is_empty(), "a process of Weir's runs on {}", node.name());
    }
    Ok(())
}
