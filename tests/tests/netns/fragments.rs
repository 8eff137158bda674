//! Datagrams in pieces, both ways (S71; upstream: Granular Checks "should be able to handle large
//! requests: udp", R43).

use crate::rig::Rig;
use lab::topology::{NODE1, Place};
use lab::wire::{Ask, Proto};
use std::collections::BTreeSet;

/// Sent back behind the pod's name: three pieces there and three back.
const LARGE: usize = 4_000;

#[test]
fn large_datagrams_and_their_answers_pass_through_services() {
    let rig = Rig::new();
    let agent = rig.agent();
    let cluster_ips = ["10.96.10.2:53".to_owned(), "[fd00:10:96::a02]:53".to_owned()];
    let node_ports = [format!("{}:30080", NODE1.0), format!("[{}]:30080", NODE1.1)];
    // Two of the three pods are on this node, so that answers come back by either hook; at the
    // socket nothing has to be done for fragments.
    for place in [Place::unhooked("client"), Place::pod("client"), Place::Host, Place::Outside] {
        let to = node_ports.iter().chain(cluster_ips.iter().filter(|_| place != Place::Outside));
        for to in to {
            let ask = Ask::new(Proto::Udp, to.parse().unwrap()).large(LARGE);
            let answers = rig.lab.at(&place).unwrap().ask_many(ask, 20).unwrap();
            for answer in &answers {
                assert!(answer.ok(), "{place} {to}: {answer:?}");
            }
            let pods: BTreeSet<_> = answers.iter().filter_map(|answer| answer.pod.as_deref()).collect();
            assert!(pods.len() > 1, "{place} {to}: on this node and elsewhere, not {pods:?} alone");
        }
    }
    let metrics = agent.metrics().unwrap();
    for lost in ["lost_fragment", "refused_fragment"] {
        let sample = format!("lb_datapath_verdicts_total{{verdict=\"drop\",reason=\"{lost}\"}} 0\n");
        assert!(metrics.contains(&sample), "no {sample}in\n{metrics}");
    }
}
