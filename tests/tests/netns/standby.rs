//! One writer for each node; a second agent waits for its turn.

use crate::rig::{Rig, observe};
use lab::agent::Agent;
use lab::topology::Place;
use lab::wire::{Ask, Load, Proto};
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
