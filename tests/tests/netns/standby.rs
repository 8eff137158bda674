//! One writer for each node; a second agent waits for its turn.

use crate::rig::{Rig, observe};
use lab::agent::Agent;
use lab::topology::Place;
use lab::wait::until;
use lab::wire::{Ask, Load, Proto};
use lb_common::abi::{ABI_VERSION, map};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

#[test]
fn second_agent_waits_and_takes_over() {
    let rig = Rig::new();
    let first = rig.agent();
    let mut second = Agent::start(&rig.lab, rig.setup().second()).unwrap();
    assert!(second.wait_ready(Duration::from_secs(2)).is_err(), "two agents are ready at once");
    assert!(!second.log().is_empty(), "a standby says that it is one");
    // Whoever waits for it before the first one is stopped, as a DaemonSet with maxSurge does, is
    // told that it may.
    let codes = ["/readyz/rollout", "/readyz", "/healthz"].map(|path| second.get(20256, path).unwrap().0);
    assert_eq!(codes, [200, 503, 503]);

    let outside = rig.lab.at(&Place::Outside).unwrap();
    let ask = Ask::new(Proto::Tcp, "172.30.0.1:30080".parse().unwrap());
    let load = outside.start_load(Load { ask, per_second: 100 }).unwrap();
    first.kill().unwrap();
    second.wait_ready(Duration::from_secs(10)).unwrap();
    observe(Duration::from_secs(1));
    let report = outside.stop_load(load).unwrap();
    assert_eq!((report.refused, report.failed.len()), (0, 0), "{report:?}");
}

/// A rolling upgrade asks the next agent whether the last one may be stopped: one that could not
/// work with what is pinned ends, and says why.
#[test]
fn second_agent_that_could_not_take_over_is_never_ready() {
    let rig = Rig::new();
    let first = rig.agent();
    // What a build of another layout would find.
    let pin = rig.lab.scratch().bpffs().join(format!("weir/v{ABI_VERSION}/maps/{}", map::FLOWS));
    std::fs::remove_file(&pin).unwrap();
    let made = Command::new("bpftool")
        .args(["map", "create"])
        .arg(&pin)
        .args(["type", "hash", "key", "4", "value", "4", "entries", "8", "name", "other"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");

    let mut second = Agent::start(&rig.lab, rig.setup().second()).unwrap();
    let mut codes = BTreeSet::new();
    let ended = until("the second agent ends", Duration::from_secs(30), || {
        codes.extend(second.get(20256, "/readyz/rollout").map(|(code, _)| code));
        anyhow::ensure!(second.has_ended()?, "it runs");
        Ok(())
    });
    ended.unwrap();
    assert!(!codes.contains(&200), "/readyz/rollout said {codes:?}");
    let log = second.log();
    assert!(log.contains("could not take over") && log.contains("pinned map FLOWS"), "{log}");
    // Nobody notices.
    let outside = rig.lab.at(&Place::Outside).unwrap();
    let ask = Ask::new(Proto::Tcp, "172.30.0.1:30080".parse().unwrap());
    let load = outside.start_load(Load { ask, per_second: 100 }).unwrap();
    observe(Duration::from_secs(1));
    let report = outside.stop_load(load).unwrap();
    assert_eq!((report.refused, report.failed.len()), (0, 0), "{report:?}");
    drop(first);
}
