//! Weir takes over from a running kube-proxy, and gives back, while connections are open
//! (S82, docs/from-kube-proxy.md).

use super::stage::{PATIENCE, Stage};
use super::uninstall::{nothing_left, objects};
use super::watch::{Scale, Watch, pause};
use crate::cluster::Proxy;
use crate::wait;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

/// Traffic goes on for this long between two steps.
const BETWEEN: Duration = Duration::from_secs(10);
/// How long open connections are waited for when Weir goes.
const DRAIN: Duration = Duration::from_secs(300);

pub(super) fn nftables(stage: &mut Stage) -> Result<String> {
    there_and_back(stage, Proxy::KubeProxyNftables)
}

pub(super) fn iptables(stage: &mut Stage) -> Result<String> {
    there_and_back(stage, Proxy::KubeProxyIptables)
}

fn there_and_back(stage: &mut Stage, kube_proxy: Proxy) -> Result<String> {
    let began = Instant::now();
    let before = objects(stage)?;
    stage.cluster().uninstall_weir()?;
    nothing_left(stage, &before)?;
    // What kube-proxy leaves by itself, such as chains without a rule, and what the kubelet adds
    // to those, is not Weir's.
    stage.cluster().set_kube_proxy(kube_proxy)?;
    stage.cluster().set_kube_proxy(Proxy::None)?;
    pause(BETWEEN);
    let bare = rules(stage)?;
    stage.cluster().set_kube_proxy(kube_proxy)?;
    stage.answers_at_l4()?;

    // There: flows that kube-proxy's rules translate outlive them.
    let scale = Scale { requests: 0, ..stage.scale() };
    let watch = Watch::start(stage, scale)?;
    pause(BETWEEN);
    stage.cluster().install_weir()?;
    pause(BETWEEN);
    stage.cluster().set_kube_proxy(Proxy::None)?;
    pause(BETWEEN);
    let there = watch.stop()?.nothing_lost()?;
    let took = began.elapsed().as_secs();

    // Back: flows that Weir translates go on beside kube-proxy.
    let watch = Watch::start(stage, scale)?;
    pause(BETWEEN);
    stage.cluster().set_kube_proxy(kube_proxy)?;
    pause(BETWEEN);
    let before = objects(stage)?;
    stage.cluster().end_agents()?;
    stage.cluster().begin_cleaning(Some(DRAIN))?;
    pause(BETWEEN);
    // Its connections end: that is what the cleaning pods wait for.
    let back = watch.stop()?.nothing_lost()?;
    stage.cluster().end_cleaning(DRAIN)?;
    stage.cluster().delete_weir()?;
    nothing_left(stage, &before)?;
    stage.answers_at_l4()?;

    stage.cluster().set_kube_proxy(Proxy::None)?;
    wait::until("rules as before", PATIENCE, || {
        let after = rules(stage)?;
        for ((node, before), after) in stage.cluster().nodes().iter().zip(&bare).zip(&after) {
            ensure!(before == after, "rules of {} before:\n{before}\nand after:\n{after}", node.name());
        }
        Ok(())
    })?;
    stage.cluster().install_weir()?;
    stage.answers()?;
    Ok(format!("there ({took} s): {there}; back: {back}; rules as before"))
}

fn rules(stage: &Stage) -> Result<Vec<String>> {
    stage.cluster().nodes().iter().map(|node| node.rules()).collect()
}
