//! An endpoint is removed while clients come and go (S29, S30, S79).

use crate::rig::{Rig, observe};
use lab::flows::now_us;
use lab::manifests::replace;
use lab::topology::Place;
use lab::wait;
use lab::wire::{Ask, Flows, Load, Proto};
use std::fs;
use std::time::Duration;

const LIMIT_US: u64 = 100_000;

#[test]
fn removed_endpoint_gets_no_new_flow_and_keeps_its_open_ones() {
    let rig = Rig::new();
    let _agent = rig.agent();
    let places = [
        (rig.lab.at(&Place::pod("client")).unwrap(), "10.96.10.1:80"),
        (rig.lab.at(&Place::unhooked("web-1")).unwrap(), "10.96.10.1:80"),
        (rig.lab.at(&Place::Outside).unwrap(), "172.30.0.1:30080"),
    ];
    let mut running = Vec::new();
    for (helper, to) in &places {
        let to = to.parse().unwrap();
        let flows = Flows {
            proto: Proto::Tcp,
            to: vec![to],
            count: 20,
            interval_ms: 20,
            deadline_ms: 3_000,
            from_port: 0,
        };
        let flows = helper.open_flows(flows).unwrap();
        let load = helper.start_load(Load { ask: Ask::new(Proto::Tcp, to), per_second: 100 }).unwrap();
        running.push((helper, flows, load));
    }
    for (helper, flows, load) in &running {
        let pods: Vec<String> =
            helper.flows(*flows).unwrap().flows.into_iter().map(|flow| flow.pod).collect();
        assert!(pods.iter().any(|pod| pod == "my-app-2"), "{pods:?}");
        wait::until("both pods answer", Duration::from_secs(10), || {
            let report = helper.load(*load)?;
            anyhow::ensure!(report.pods.len() == 2, "{report:?}");
            Ok(())
        })
        .unwrap();
    }

    let file = rig.manifests.join("pods.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let left: Vec<&str> = text.split("---\n").filter(|pod| !pod.contains("name: my-app-2\n")).collect();
    assert_eq!(left.len() + 1, text.split("---\n").count());
    replace(&file, &left.join("---\n")).unwrap();
    let event = now_us();
    let at_event: Vec<_> = running.iter().map(|(helper, flows, _)| helper.flows(*flows).unwrap()).collect();
    observe(Duration::from_secs(2));

    for ((helper, flows, load), before) in running.into_iter().zip(at_event) {
        let report = helper.stop_load(load).unwrap();
        assert_eq!((report.refused, report.failed.len()), (0, 0), "{report:?}");
        let (_, last) = report.pods["my-app-2"];
        assert!(last <= event + LIMIT_US, "sent to the removed pod {} µs after the event", last - event);
        let (_, last) = report.pods["my-app-1"];
        assert!(last > event + 10 * LIMIT_US, "no new connections after the event");
        let report = helper.stop_flows(flows).unwrap();
        assert_eq!(report.lost(), Vec::<String>::new());
        assert!(report.least_progress_since(&before) >= 40, "an open flow stood still");
    }
}

#[test]
fn service_without_its_last_endpoint_refuses_and_recovers() {
    let rig = Rig::new();
    let _agent = rig.agent();
    let file = rig.manifests.join("pods.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let pod = rig.lab.at(&Place::pod("client")).unwrap();
    let ask = Ask::new(Proto::Tcp, "10.96.10.4:80".parse().unwrap());
    assert!(pod.ask(ask.clone()).unwrap().ok());
    replace(&file, &text.replace("app: local-app", "app: renamed")).unwrap();
    wait::until("refused", Duration::from_secs(2), || {
        let answer = pod.ask(ask.clone())?;
        anyhow::ensure!(answer.refused(), "{answer:?}");
        Ok(())
    })
    .unwrap();
    replace(&file, &text).unwrap();
    wait::until("served again", Duration::from_secs(2), || {
        let answer = pod.ask(ask.clone())?;
        anyhow::ensure!(answer.ok(), "{answer:?}");
        Ok(())
    })
    .unwrap();
}
