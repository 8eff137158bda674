//! `loadBalancerSourceRanges` for clients of every kind (S51; upstream: LoadBalancers "should
//! only allow access from service loadbalancer source ranges").

use crate::rig::Rig;
use lab::agent::Agent;
use lab::manifests::replace;
use lab::topology::{CLIENT, NODE1, Place, Topology};
use lab::wait;
use lab::wire::{Ask, Proto};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// Writes the Service: its own load-balancer addresses, who may use them.
fn fenced(manifests: &Path, ranges: &[String]) {
    let ranges: Vec<String> = ranges.iter().map(|range| format!("\"{range}\"")).collect();
    let text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: fenced}}
spec:
  type: LoadBalancer
  selector: {{app: my-app}}
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: 10.96.10.60
  clusterIPs: [10.96.10.60, \"fd00:10:96::a60\"]
  loadBalancerSourceRanges: [{}]
  ports:
    - {{name: http, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30160}}
    - {{name: echo, protocol: UDP, port: 80, targetPort: 8080, nodePort: 30160}}
status:
  loadBalancer: {{ingress: [{{ip: 198.51.100.60}}, {{ip: \"2001:db8:100::60\"}}]}}
",
        ranges.join(", ")
    );
    replace(&manifests.join("fenced.yaml"), &text).unwrap();
}

fn all() -> Vec<Place> {
    vec![Place::Outside, Place::pod("client"), Place::unhooked("client"), Place::Host]
}

/// Waits until exactly these places are served at the load balancer's address.
fn served(lab: &Topology, who: &[Place], v6: bool, proto: Proto) {
    let at: SocketAddr = if v6 { "[2001:db8:100::60]:80" } else { "198.51.100.60:80" }.parse().unwrap();
    for place in all() {
        let wanted = who.contains(&place);
        wait::until("the ranges are in force", Duration::from_secs(10), || {
            let answer = lab.at(&place)?.ask(Ask::new(proto, at).timeout_ms(300))?;
            anyhow::ensure!(answer.ok() == wanted, "{place} {proto} {at}: {answer:?}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn source_ranges_let_in_whom_they_name() {
    let rig = Rig::new();
    fenced(&rig.manifests, &[]);
    let agent = rig.agent();
    let lab = &rig.lab;
    let pod = |v6| lab.pod_ip("client", v6).unwrap();
    let node = |v6: bool| if v6 { NODE1.1.into() } else { IpAddr::from(NODE1.0) };
    let outside = |v6: bool| if v6 { CLIENT.1.into() } else { IpAddr::from(CLIENT.0) };
    let whole = |ip: IpAddr| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
    let both = |of: &dyn Fn(bool) -> IpAddr| vec![whole(of(false)), whole(of(true))];
    let pods = [Place::pod("client"), Place::unhooked("client")];
    for (ranges, who) in [
        (vec![], all()),
        (both(&pod), pods.to_vec()),
        (both(&outside), vec![Place::Outside]),
        (both(&node), vec![Place::Host]),
        ([both(&node), both(&pod)].concat(), [&pods[..], &[Place::Host]].concat()),
    ] {
        fenced(&rig.manifests, &ranges);
        for v6 in [false, true] {
            for proto in [Proto::Tcp, Proto::Udp] {
                served(lab, &who, v6, proto);
            }
        }
    }
    // Only addresses of the load balancer are fenced.
    for at in ["10.96.10.60:80", "172.30.0.1:30160"] {
        for place in [Place::pod("client"), Place::Host] {
            let answer = lab.at(&place).unwrap().ask(Ask::new(Proto::Tcp, at.parse().unwrap())).unwrap();
            assert!(answer.ok(), "{place} {at}: {answer:?}");
        }
    }
    told(&agent);
}

fn told(agent: &Agent<'_>) {
    let told = agent.json(&["explain", "198.51.100.60:80", "--from", &CLIENT.0.to_string()]).unwrap();
    assert_eq!(told["reason"], "source_range", "{told}");
    let metrics = agent.metrics().unwrap();
    let line = metrics.lines().find(|line| line.contains("reason=\"source_range\"")).unwrap_or_default();
    let count = line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok());
    assert!(count.is_some_and(|count| count > 0), "{line}");
}
