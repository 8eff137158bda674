//! Connected UDP sockets whose backend goes (S64; upstream: Conntrack "should be able to preserve
//! UDP traffic when server pod cycles", R48 to R51).

use crate::rig::Rig;
use lab::manifests::replace;
use lab::topology::Place;
use lab::wait;
use lab::wire::{Flows, FlowsReport, Proto};
use std::fs;
use std::time::Duration;

const FLOWS: u32 = 20;

fn flows(to: &str) -> Flows {
    Flows {
        proto: Proto::Udp,
        to: vec![to.parse().unwrap()],
        count: FLOWS,
        interval_ms: 20,
        deadline_ms: 3_000,
        from_port: 0,
    }
}

/// Those that were connected to this pod.
fn on<'a>(report: &'a FlowsReport, pod: &str) -> Vec<&'a lab::wire::FlowReport> {
    report.flows.iter().filter(|flow| flow.pod == pod).collect()
}

#[test]
fn connected_udp_sockets_leave_a_backend_that_goes() {
    let rig = Rig::new();
    let agent = rig.agent();
    let mut running = Vec::new();
    for (place, to) in [
        (Place::pod("client"), "10.96.10.2:53"),
        (Place::pod("client"), "[fd00:10:96::a02]:53"),
        (Place::pod("client"), "172.30.0.1:30080"),
        (Place::Host, "10.96.10.2:53"),
        (Place::Host, "[fd00:10:96::a02]:53"),
    ] {
        let helper = rig.lab.at(&place).unwrap();
        let activity = helper.open_flows(flows(to)).unwrap();
        running.push((place, to, helper, activity));
    }
    for (place, to, helper, activity) in &running {
        let report = helper.flows(*activity).unwrap();
        let (one, two) = (on(&report, "my-app-1").len(), on(&report, "my-app-2").len());
        assert!(one > 0 && two > 0 && one + two == FLOWS as usize, "{place} {to}: {one}, {two}");
    }

    // Its server goes on answering: only the socket's move tells.
    let file = rig.manifests.join("pods.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let left: Vec<&str> = text.split("---\n").filter(|pod| !pod.contains("name: my-app-2\n")).collect();
    assert_eq!(left.len() + 1, text.split("---\n").count());
    replace(&file, &left.join("---\n")).unwrap();

    for (place, to, helper, activity) in running {
        let at_host = place == Place::Host;
        wait::until("all have left", Duration::from_secs(2), || {
            let report = helper.flows(activity)?;
            for flow in on(&report, "my-app-2") {
                let left = if at_host { flow.lost.is_some() } else { flow.strangers > 0 };
                anyhow::ensure!(left, "{place} {to}: {flow:?}");
            }
            Ok(())
        })
        .unwrap();
        let before = helper.flows(activity).unwrap();
        crate::rig::observe(Duration::from_millis(500));
        let report = helper.stop_flows(activity).unwrap();
        for flow in on(&report, "my-app-1") {
            assert_eq!((flow.strangers, &flow.lost), (0, &None), "{place} {to}: {flow:?}");
        }
        for (flow, before) in on(&report, "my-app-2").into_iter().zip(on(&before, "my-app-2")) {
            if at_host {
                // ECONNABORTED once, to whoever reads or writes next; no peer from then on,
                // which is EDESTADDRREQ.
                let lost = flow.lost.as_deref().unwrap_or_default();
                let ended = ["os error 103", "os error 89"].iter().any(|error| lost.contains(error));
                assert!(ended, "{place} {to}: {flow:?}");
            } else {
                assert_eq!(flow.lost, None, "{place} {to}: {flow:?}");
                let (all, others) = (flow.echoed - before.echoed, flow.strangers - before.strangers);
                assert!(all > 10 && all == others, "{place} {to}: {flow:?} after {before:?}");
            }
        }
    }
    wait::until("they are counted", Duration::from_secs(20), || {
        let metrics = agent.metrics()?;
        let ended = metrics.lines().find_map(|line| line.strip_prefix("lb_sockets_ended_total "));
        anyhow::ensure!(ended.is_some_and(|count| count != "0"), "{ended:?}");
        Ok(())
    })
    .unwrap();
}
