//! The demo's Ingresses over manifests (I76), and certificates that change under load.

use crate::rig::{Rig, assert_outcomes};
use lab::agent::Agent;
use lab::authority::Authority;
use lab::cases::{certificates, ingress};
use lab::manifests;

#[test]
fn every_ingress_case_holds_and_is_told() {
    let rig = Rig::new();
    let authority = Authority::new().unwrap();
    let (setup, _) = rig.ingress(&authority);
    let agent = Agent::ready(&rig.lab, setup).unwrap();
    assert_outcomes(&ingress::run(&rig.lab, &authority, |_| {}));
    assert_outcomes(&ingress::told(&agent));
}

#[test]
fn certificates_change_under_load_without_a_failed_request() {
    let rig = Rig::new();
    let authority = Authority::new().unwrap();
    let (setup, secret) = rig.ingress(&authority);
    let _agent = Agent::ready(&rig.lab, setup).unwrap();
    let change = |object: Option<&_>| manifests::write_or_remove(&secret, object);
    assert_outcomes(&certificates::run(&rig.lab, &authority, &change, |_| {}));
}
