//! What is established survives a flood of new sources (decision 4, H49, S69).

use crate::rig::Rig;
use lab::flood::syn_flood;
use lab::topology::{NODE1, Place};
use lab::wire::{Flows, Proto};
use std::net::SocketAddrV4;

const SOURCES: u32 = 1_000_000;

#[test]
fn million_new_sources_cost_no_open_flow() {
    let rig = Rig::new();
    let _agent = rig.agent();
    let outside = rig.lab.at(&Place::Outside).unwrap();
    let unhooked = rig.lab.at(&Place::unhooked("client")).unwrap();
    let flows = |to: &[&str], count| Flows {
        proto: Proto::Tcp,
        to: to.iter().map(|to| to.parse().unwrap()).collect(),
        count,
        interval_ms: 1_000,
        deadline_ms: 20_000,
        from_port: 0,
    };
    let through = outside.open_flows(flows(&["172.30.0.1:30081", "172.30.0.1:30082"], 800)).unwrap();
    let inside = unhooked.open_flows(flows(&["10.96.10.1:80", "[fd00:10:96::a01]:80"], 200)).unwrap();
    let before = [outside.flows(through).unwrap(), unhooked.flows(inside).unwrap()];

    let target = SocketAddrV4::new(NODE1.0, 30080);
    let flood = syn_flood(rig.lab.client(), rig.lab.node1(), target, SOURCES).unwrap();
    assert_eq!(flood.sent, SOURCES);
    println!("{} SYNs in {:?}", flood.sent, flood.took);

    // Every flow must speak again after the flood, so that one that died in silence shows.
    let after = [outside.flows(through).unwrap(), unhooked.flows(inside).unwrap()];
    lab::wait::until("every flow speaks after the flood", std::time::Duration::from_secs(30), || {
        for (helper, flows, after) in [(&outside, through, &after[0]), (&unhooked, inside, &after[1])] {
            let now = helper.flows(flows)?;
            anyhow::ensure!(now.lost().is_empty(), "{:?}", now.lost());
            anyhow::ensure!(now.least_progress_since(after) >= 2, "a flow stands still");
        }
        Ok(())
    })
    .unwrap();
    let ends = [outside.stop_flows(through).unwrap(), unhooked.stop_flows(inside).unwrap()];
    for (end, before) in ends.iter().zip(&before) {
        assert_eq!(end.lost(), Vec::<String>::new());
        assert!(end.least_progress_since(before) > 0);
    }
    assert_eq!(ends.iter().map(|end| end.flows.len()).sum::<usize>(), 1_000);
}
