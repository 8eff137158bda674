//! The whole case table over manifests.

use crate::rig::{Rig, assert_cases};

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
