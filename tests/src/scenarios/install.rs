//! What users do first with a cluster that Weir was installed into.

use super::stage::{Inside, PATIENCE, Stage};
use crate::cases::certificates;
use crate::manifests::demo_dir;
use crate::wait;
use crate::web::Fetch;
use crate::wire::Proto;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

/// The namespace of the usual tutorial's objects.
pub(super) const TUTORIAL: &str = "weir-seed";
const HOST: &str = "example.com";

/// The usual tutorial's Service and Ingress as they stand, with Deployments behind them: asked
/// from pods of each node, from a node, and from outside.
pub(super) fn seed(stage: &mut Stage) -> Result<String> {
    // A class is filled in when an Ingress is made: what a test that was stopped left will not do.
    stage.cluster().kubectl(&["delete", "namespace", TUTORIAL, "--ignore-not-found"])?;
    stage.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": TUTORIAL } }))?;
    for name in ["my-app", "api-service", "web-service"] {
        let mut deployment = stage.deployment(name, 2);
        deployment["metadata"]["namespace"] = TUTORIAL.into();
        stage.apply(&deployment)?;
    }
    for name in ["api-service", "web-service"] {
        stage.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": TUTORIAL },
            "spec": { "selector": { "app": name }, "ports": [{ "port": 80, "targetPort": 8080 }] },
        }))?;
    }
    let mut secret = stage.authority().secret("tls-secret", &[HOST], certificates::FIRST)?;
    secret["metadata"]["namespace"] = TUTORIAL.into();
    stage.apply(&secret)?;
    for file in ["my-service.yaml", "my-ingress.yaml"] {
        let path = demo_dir().join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let words = ["-n", TUTORIAL, "apply", "-f", "-"];
        stage.cluster().kubectl_with(&words, &text)?;
    }
    for name in ["my-app", "api-service", "web-service"] {
        let name = format!("deployment/{name}");
        stage.cluster().kubectl(&["-n", TUTORIAL, "rollout", "status", &name, "--timeout=120s"])?;
    }
    let mut asked = 0;
    let service = stage.json(&["-n", TUTORIAL, "get", "service", "my-service"])?;
    let address: IpAddr = service["spec"]["clusterIP"].as_str().context("no clusterIP")?.parse()?;
    for Inside { place, client, .. } in stage.inside() {
        wait::until(&format!("my-service from {place}"), PATIENCE, || {
            let answer = client.who(Proto::Tcp, (address, 80).into())?;
            ensure!(answer.pod.as_deref().is_some_and(|pod| pod.starts_with("my-app-")), "{answer:?}");
            Ok(())
        })?;
        asked += 1;
    }
    for node in stage.targets().ingress {
        for (target, pods) in [("/api", "api-service-"), ("/api/x", "api-service-"), ("/web", "web-service-")]
        {
            let fetch = Fetch::https((node, 443).into(), HOST, target).trusting(stage.authority().root());
            wait::until(&format!("https://{HOST}{target} at {node}"), PATIENCE, || {
                let fetched = stage.outside().fetch(fetch.clone())?;
                let seen = fetched.seen();
                ensure!(fetched.status == Some(200), "{fetched:?}");
                ensure!(seen.is_some_and(|seen| seen.pod.starts_with(pods)), "another's answer: {fetched:?}");
                Ok(())
            })?;
            asked += 1;
        }
        for (fetch, status) in [
            (Fetch::https((node, 443).into(), HOST, "/apix").trusting(stage.authority().root()), 404),
            (Fetch::http((node, 80).into(), HOST, "/api"), 308),
        ] {
            let fetched = stage.outside().fetch(fetch)?;
            ensure!(fetched.status == Some(status), "{status} expected: {fetched:?}");
            asked += 1;
        }
    }
    let published = wait::until("the Ingress's status", PATIENCE, || {
        let ingress = stage.json(&["-n", TUTORIAL, "get", "ingress", "my-ingress"])?;
        let list = ingress["status"]["loadBalancer"]["ingress"].as_array().map_or(0, Vec::len);
        ensure!(list > 0, "empty");
        Ok(list)
    })?;
    stage.cluster().kubectl(&["delete", "namespace", TUTORIAL, "--wait=false"])?;
    Ok(format!("{asked} questions answered as they should be, {published} addresses in the status"))
}

/// Names of Services, asked of the cluster's name servers from pods of each node and from a
/// node, over UDP.
pub(super) fn dns(stage: &mut Stage) -> Result<String> {
    let service = stage.json(&["-n", "kube-system", "get", "service", "kube-dns"])?;
    let server: IpAddr = service["spec"]["clusterIP"].as_str().context("no clusterIP")?.parse()?;
    let server = SocketAddr::new(server, 53);
    let name = format!("web.{}.svc.cluster.local", super::stage::NAMESPACE);
    let expected: BTreeSet<IpAddr> =
        stage.targets().cluster_ips.iter().map(SocketAddr::ip).filter(IpAddr::is_ipv4).collect();
    let mut asked = 0;
    for Inside { place, client, .. } in stage.inside() {
        wait::until(&format!("{name} from {place}"), PATIENCE, || {
            let found: BTreeSet<IpAddr> = client.resolve(server, &name)?.into_iter().collect();
            ensure!(found == expected, "{found:?}, not {expected:?}");
            Ok(())
        })?;
        asked += 1;
    }
    Ok(format!("{name} is known from {asked} places"))
}

/// Every way to a Service: cluster IPs from pods of each node and from a node, node ports at
/// each node from outside and from inside, TCP and UDP, both families; who asked is seen where
/// it is to be seen; new flows reach the pods of all nodes.
pub(super) fn every_door(stage: &mut Stage) -> Result<String> {
    stage.answers()?;
    let targets = stage.targets();
    let (mut asked, mut answered) = (0, BTreeSet::new());
    for Inside { place, client, .. } in stage.inside() {
        for proto in [Proto::Tcp, Proto::Udp] {
            for &to in targets.cluster_ips.iter().chain(&targets.node_ports) {
                let answer = client.who(proto, to)?;
                let pod =
                    answer.pod.clone().with_context(|| format!("{place} to {to}, {proto}: {answer:?}"))?;
                answered.insert(pod);
                asked += 1;
            }
        }
    }
    for proto in [Proto::Tcp, Proto::Udp] {
        for &to in targets.node_ports.iter().chain(&targets.far_node_ports) {
            let answer = stage.outside().who(proto, to)?;
            let pod = answer.pod.clone().with_context(|| format!("outside to {to}, {proto}: {answer:?}"))?;
            answered.insert(pod);
            asked += 1;
        }
    }
    let all = stage.pods(super::stage::NAMESPACE, "app=web")?.len();
    let web = answered.iter().filter(|pod| pod.starts_with("web-")).count();
    ensure!(web == all, "{web} of {all} pods of web answered anybody: {answered:?}");
    Ok(format!("{asked} questions, answered by all {all} pods of web"))
}

/// Endpoints that are processes of nodes: reached by cluster IP and node port, from everywhere.
pub(super) fn host_network(stage: &mut Stage) -> Result<String> {
    let namespace = super::stage::NAMESPACE;
    for object in stage.host_network_objects() {
        stage.apply(&object)?;
    }
    stage.rolled_out("daemonset/hosted")?;
    let service = stage.json(&["-n", namespace, "get", "service", "hosted"])?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("no nodePort")?;
    let port = u16::try_from(port)?;
    let addresses: Vec<IpAddr> = service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let mut asked = 0;
    let mut ask = |place: &str, client: &crate::helper::Helper, to: SocketAddr| {
        asked += 1;
        wait::until(&format!("{place} to {to}"), PATIENCE, || {
            let answer = client.who(Proto::Tcp, to)?;
            ensure!(answer.pod.as_deref().is_some_and(|pod| pod.starts_with("hosted-")), "{answer:?}");
            Ok(())
        })
    };
    for Inside { place, client, .. } in stage.inside() {
        for &address in &addresses {
            ask(place, client, (address, 80).into())?;
        }
    }
    for node in stage.targets().ingress {
        ask("outside", stage.outside(), (node, port).into())?;
    }
    stage.cluster().kubectl(&["-n", namespace, "delete", "daemonset/hosted", "service/hosted"])?;
    Ok(format!("{asked} questions answered"))
}
