//! The whole case table over manifests.

use crate::rig::{Rig, assert_cases};
use lab::agent::Agent;

#[test]
fn every_case_holds() {
    let rig = Rig::new();
    let agent = rig.agent();
    assert_cases(&rig.lab, &agent);
}

#[test]
fn every_case_holds_again_after_a_restart() {
    let rig = Rig::new();
    let first = rig.agent();
    let before = first.cluster_ip("default/my-service").unwrap();
    first.kill().unwrap();
    let agent = rig.agent();
    assert_eq!(agent.cluster_ip("default/my-service").unwrap(), before);
    assert_cases(&rig.lab, &agent);
}

/// Kernels before 6.6 have no tcx: a filter on the clsact qdisc instead, replaced in place by
/// the next agent and removed by `weir cleanup`.
#[test]
fn every_case_holds_over_clsact() {
    let rig = Rig::new();
    let setup = || rig.setup().with(&["--tc-attach", "clsact"]);
    let first = Agent::ready(&rig.lab, setup()).unwrap();
    first.kill().unwrap();
    let agent = Agent::ready(&rig.lab, setup()).unwrap();
    let text = agent.json(&["status"]).unwrap().to_string();
    assert!(text.contains("clsact ingress") && !text.contains("tcx"), "{text}");
    assert_cases(&rig.lab, &agent);
}
