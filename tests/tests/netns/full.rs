//! The map of confirmed flows is full (S69, H52).

use crate::rig::Rig;
use lab::agent::Agent;
use lab::topology::{NODE1, Place};
use lab::wait;
use lab::wire::{Ask, Flows, Proto};
use std::net::SocketAddr;
use std::time::Duration;

/// The smallest that `--conntrack-max` takes.
const ROOM: u32 = 1_024;

#[test]
fn full_map_refuses_new_flows_alone_and_is_told() {
    let rig = Rig::new();
    let room = ROOM.to_string();
    let agent = Agent::ready(&rig.lab, rig.setup().with(&["--conntrack-max", &room])).unwrap();
    let outside = rig.lab.at(&Place::Outside).unwrap();
    let node = |port| SocketAddr::from((NODE1.0, port));
    let flows = Flows {
        proto: Proto::Tcp,
        to: vec![node(30081), node(30082)],
        count: ROOM,
        interval_ms: 1_000,
        deadline_ms: 10_000,
        from_port: 0,
    };
    let open = outside.open_flows(flows).unwrap();
    let told = |agent: &Agent<'_>, reason: &str| {
        let out = String::from_utf8_lossy(&agent.verb(&["problems"])?.stdout).into_owned();
        let found = out.lines().any(|line| line.contains("--conntrack-max") && line.contains(reason));
        anyhow::ensure!(found, "{out}");
        Ok(())
    };

    let ask = Ask::new(Proto::Tcp, node(30080));
    wait::until("a refused flow is told", Duration::from_secs(20), || {
        let answer = outside.ask(ask.clone().timeout_ms(500))?;
        assert!(!answer.ok(), "a flow without room: {answer:?}");
        told(&agent, "new flows are refused")
    })
    .unwrap();
    let metrics = agent.metrics().unwrap();
    let counted = metrics.lines().find(|line| line.contains("\"conntrack_full\"")).unwrap();
    assert!(!counted.ends_with(" 0"), "{counted}");
    let report = outside.stop_flows(open).unwrap();
    assert_eq!(report.lost(), Vec::<String>::new());
    wait::until("closed flows have left room", Duration::from_secs(10), || {
        let answer = outside.ask(ask.clone())?;
        anyhow::ensure!(answer.ok(), "{answer:?}");
        Ok(())
    })
    .unwrap();

    agent.terminate(Duration::from_secs(10)).unwrap();
    let agent = Agent::ready(&rig.lab, rig.setup().with(&["--conntrack-max", "2048"])).unwrap();
    told(&agent, "made room for 1024 flows, not 2048").unwrap();
}
