//! What the scenarios play on: Services, an Ingress and pods of the lab's own server in the
//! cluster, and clients outside, in pods and on nodes.

use super::place::{client_in_pod, client_on_node};
use super::watch::{DEADLINE_MS, Scale};
use crate::authority::Authority;
use crate::cluster::images::write_lab;
use crate::cluster::{Cluster, Node};
use crate::helper::{self, Helper};
use crate::wait;
use crate::web::Fetch;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Where everything of a test lives.
pub(super) const NAMESPACE: &str = "weir-test";
/// The image of the lab's own server.
pub(super) const IMAGE: &str = "docker.io/library/weir-lab:dev";
pub(super) const HOST: &str = "weir.test";
const SECRET: &str = "weir-test-tls";
/// What a pod or a rollout may take: images are there, two cores are shared by three nodes.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
const NODE_PORT: u16 = 30_180;
/// The first of the ports of the Services that have one pod, on one node, each.
const FAR_NODE_PORT: u16 = 30_190;

/// The addresses that traffic goes to.
#[derive(Debug, Default)]
pub(super) struct Targets {
    /// A Service with pods on all nodes, by every node's addresses.
    pub(super) node_ports: Vec<SocketAddr>,
    /// Services with a pod on one node each, by the addresses of the others.
    pub(super) far_node_ports: Vec<SocketAddr>,
    /// The Service with pods on all nodes, both families.
    pub(super) cluster_ips: Vec<SocketAddr>,
    /// The Services that have one pod, on one node, each.
    pub(super) steady_cluster_ips: Vec<SocketAddr>,
    /// Every node's address for HTTP.
    pub(super) ingress: Vec<IpAddr>,
}

/// A node as traffic sees it.
#[derive(Debug)]
struct Door {
    node: String,
    addresses: Vec<IpAddr>,
    /// The Service whose only pod is on this node.
    node_port: u16,
    cluster_ips: Vec<SocketAddr>,
}

/// A client inside of the cluster.
pub(super) struct Inside {
    pub(super) node: String,
    /// What it is, for messages.
    pub(super) place: String,
    pub(super) client: Helper,
}

/// A cluster with the test's objects and clients in it.
pub(super) struct Stage {
    cluster: Cluster,
    authority: Authority,
    /// What clients are started from.
    executable: PathBuf,
    outside: Helper,
    inside: Vec<Inside>,
    doors: Vec<Door>,
    cluster_ips: Vec<SocketAddr>,
    /// Archives of the images that nodes were given after their start.
    images: Vec<PathBuf>,
    /// How much traffic a scenario has by default.
    scale: Scale,
}

impl Stage {
    /// Makes the objects, waits until all pods are ready, and starts the clients.
    ///
    /// # Errors
    /// When the cluster is not up, or pods do not become ready.
    pub(super) fn set_up(cluster: Cluster, mut images: Vec<PathBuf>, scale: Scale) -> Result<Self> {
        let authority = Authority::new()?;
        // This program, as a client and, in an image, as the server of pods.
        let executable = std::env::current_exe()?;
        let archive = cluster.run().root().join("weir-lab.tar");
        write_lab(IMAGE, &executable, &archive)?;
        cluster.load_image(&archive)?;
        images.push(archive);
        let outside = Helper::start(&executable, cluster.outside(), None)?;
        let mut stage = Self {
            cluster,
            authority,
            executable,
            outside,
            inside: Vec::new(),
            doors: Vec::new(),
            cluster_ips: Vec::new(),
            images,
            scale,
        };
        // What an earlier test left behind.
        stage.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found"])?;
        stage
            .apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }))?;
        let mut secret = stage.authority.secret(SECRET, &[HOST], 1)?;
        secret["metadata"]["namespace"] = NAMESPACE.into();
        stage.apply(&secret)?;
        for object in objects(&stage.node_names()) {
            stage.apply(&object)?;
        }
        stage.rolled_out("deployment/web")?;
        stage.rolled_out("daemonset/client")?;
        for node in stage.node_names() {
            stage.rolled_out(&format!("deployment/only-{node}"))?;
        }
        stage.find_doors()?;
        stage.new_clients()?;
        stage.answers()?;
        Ok(stage)
    }

    pub(super) fn scale(&self) -> Scale {
        self.scale
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn node_names(&self) -> Vec<String> {
        self.cluster.nodes().iter().map(Node::name).collect()
    }

    fn addresses(&self, node: &Node<'_>) -> Vec<IpAddr> {
        if self.cluster.plan().dual() { vec![node.v4(), node.v6()] } else { vec![node.v4()] }
    }

    /// Who signed the certificates of the test.
    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A Deployment of the lab's server.
    pub(super) fn deployment(&self, name: &str, replicas: usize) -> Value {
        deployment(name, replicas, json!({}))
    }

    /// A server on each node, as a process of the node, and its Service.
    pub(super) fn host_network_objects(&self) -> [Value; 2] {
        let more = json!({ "hostNetwork": true, "tolerations": [{ "operator": "Exists" }] });
        let mut pods = daemon_set("hosted", more);
        // 8080 is a port that others on a node may have.
        let server = &mut pods["spec"]["template"]["spec"]["containers"][0];
        server["env"][2]["value"] = "18080".into();
        server["env"][3]["value"] = "".into();
        server["readinessProbe"]["tcpSocket"]["port"] = 18_080.into();
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "hosted", "namespace": NAMESPACE },
            "spec": {
                "type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "selector": { "app": "hosted" },
                "ports": [{ "port": 80, "targetPort": 18_080 }],
            },
        });
        [pods, service]
    }

    /// A client that is no node and no pod.
    pub(super) fn outside(&self) -> &Helper {
        &self.outside
    }

    /// A client in a pod of each node, and one on a node itself.
    pub(super) fn inside(&self) -> &[Inside] {
        &self.inside
    }

    pub(super) fn targets(&self) -> Targets {
        self.targets_without("")
    }

    /// Where traffic goes that has nothing to do with a node.
    pub(super) fn targets_without(&self, node: &str) -> Targets {
        let mut targets = Targets { cluster_ips: self.cluster_ips.clone(), ..Targets::default() };
        let doors: Vec<&Door> = self.doors.iter().filter(|door| door.node != node).collect();
        for door in &doors {
            targets.steady_cluster_ips.extend(&door.cluster_ips);
            for &address in &door.addresses {
                targets.node_ports.push(SocketAddr::new(address, NODE_PORT));
                targets.ingress.push(address);
                let others = doors.iter().filter(|other| other.node != door.node);
                targets.far_node_ports.extend(others.map(|other| SocketAddr::new(address, other.node_port)));
            }
        }
        targets
    }

    /// Gives a new node the images that the others were given.
    pub(super) fn load_images(&self, node: &Node<'_>) -> Result<()> {
        self.images.iter().try_for_each(|archive| node.load_image(archive))
    }

    /// A request by HTTP and one by HTTPS, which trusts the test's authority only.
    pub(super) fn fetches(&self, node: IpAddr) -> Vec<Fetch> {
        let fetches = [
            Fetch::http((node, 80).into(), &format!("plain.{HOST}"), "/"),
            Fetch::https((node, 443).into(), HOST, "/").trusting(self.authority.root()),
        ];
        fetches.map(|fetch| Fetch { timeout_ms: DEADLINE_MS, ..fetch }).into()
    }

    pub(super) fn apply(&self, object: &Value) -> Result<()> {
        self.cluster.apply(&object.to_string())
    }

    /// Waits until a Deployment or DaemonSet of the test is as its template says.
    pub(super) fn rolled_out(&self, name: &str) -> Result<()> {
        self.cluster.wait_rollout(NAMESPACE, name, PATIENCE)
    }

    /// A pod of the test with this label on this node that is not about to end.
    pub(super) fn pod_on(&self, label: &str, node: &str) -> Result<Value> {
        let found = self
            .pods(NAMESPACE, label)?
            .into_iter()
            .find(|pod| pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null());
        found.with_context(|| format!("no pod {label} on {node}"))
    }

    /// The pods with a label, those included that are about to end.
    pub(super) fn pods(&self, namespace: &str, label: &str) -> Result<Vec<Value>> {
        let mut list = self.json(&["-n", namespace, "get", "pods", "-l", label])?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// What `kubectl … -o json` says.
    pub(super) fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.cluster.kubectl(&[words, &["-o", "json"]].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    fn find_doors(&mut self) -> Result<()> {
        self.cluster_ips = self.cluster_ips_of("web")?;
        let nodes = self.cluster.nodes();
        let doors = (FAR_NODE_PORT..).zip(&nodes).map(|(node_port, node)| {
            let cluster_ips = self.cluster_ips_of(&format!("only-{}", node.name()))?;
            Ok(Door { node: node.name(), addresses: self.addresses(node), node_port, cluster_ips })
        });
        let doors = doors.collect::<Result<_>>()?;
        self.doors = doors;
        Ok(())
    }

    fn cluster_ips_of(&self, service: &str) -> Result<Vec<SocketAddr>> {
        let object = self.json(&["-n", NAMESPACE, "get", "service", service])?;
        let addresses = object["spec"]["clusterIPs"].as_array().context("no clusterIPs")?;
        let socket = |address: &str| Ok(SocketAddr::new(address.parse()?, 80));
        addresses.iter().filter_map(Value::as_str).map(socket).collect()
    }

    /// Starts the clients inside of the cluster, in place of those that there are.
    pub(super) fn new_clients(&mut self) -> Result<()> {
        let mut inside = Vec::new();
        for node in self.cluster.nodes() {
            let pod = self.pod_on("app=client", &node.name())?;
            let client = client_in_pod(&self.executable, pod["metadata"]["uid"].as_str().context("no uid")?)?;
            inside.push(Inside { node: node.name(), place: format!("pod on {}", node.name()), client });
        }
        if let Some(node) = self.cluster.nodes().first() {
            let client = client_on_node(&self.executable, node)?;
            inside.push(Inside { node: node.name(), place: format!("host {}", node.name()), client });
        }
        self.inside = inside;
        Ok(())
    }

    /// Ends the clients on a node, whose processes would outlive it: they are none of its own.
    pub(super) fn end_clients_on(&self, node: &str) -> Result<()> {
        self.inside.iter().filter(|inside| inside.node == node).try_for_each(|inside| inside.client.end())
    }

    /// Waits until every kind of traffic is answered.
    pub(super) fn answers(&self) -> Result<()> {
        self.answers_at_l4()?;
        for fetch in self.targets().ingress.into_iter().flat_map(|node| self.fetches(node)) {
            wait::until(&format!("an answer from {}", fetch.to), PATIENCE, || {
                let fetched = self.outside.fetch(fetch.clone())?;
                ensure!(fetched.status == Some(200), "{fetched:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Waits until Services are answered by all their ways.
    pub(super) fn answers_at_l4(&self) -> Result<()> {
        let Targets { node_ports, far_node_ports, cluster_ips, .. } = self.targets();
        for to in node_ports.into_iter().chain(far_node_ports) {
            self.answered(&self.outside, to)?;
        }
        for inside in &self.inside {
            for &to in &cluster_ips {
                self.answered(&inside.client, to).with_context(|| inside.place.clone())?;
            }
        }
        Ok(())
    }

    fn answered(&self, helper: &Helper, to: SocketAddr) -> Result<()> {
        use crate::wire::Proto;
        for proto in [Proto::Tcp, Proto::Udp] {
            wait::until(&format!("an answer from {to}, {proto}"), PATIENCE, || {
                let answer = helper.who(proto, to)?;
                ensure!(answer.ok(), "{answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Takes the objects away again, without waiting for their end. Clients in pods end first: a
    /// pod does not end while its cgroup holds a process.
    pub(super) fn strike(mut self) -> Result<()> {
        self.inside.clear();
        let words = ["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"];
        self.cluster.kubectl(&words).map(drop)
    }
}

/// The objects: `web` with pods on all nodes, behind a node port and an Ingress; `only-NODE`
/// with one pod on that node; a client pod on each node.
fn objects(nodes: &[String]) -> Vec<Value> {
    let mut all = vec![
        deployment(
            "web",
            nodes.len() * 2,
            json!({
                "topologySpreadConstraints": [{
                    "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": { "matchLabels": { "app": "web" } },
                }],
            }),
        ),
        service("web", NODE_PORT),
        daemon_set("client", json!({ "tolerations": [{ "operator": "Exists" }] })),
        ingress(),
    ];
    for (port, node) in (FAR_NODE_PORT..).zip(nodes) {
        let name = format!("only-{node}");
        all.push(deployment(&name, 1, json!({ "nodeSelector": { "kubernetes.io/hostname": node } })));
        all.push(service(&name, port));
    }
    all
}

fn deployment(name: &str, replicas: usize, more: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": template(name, more),
        },
    })
}

fn daemon_set(name: &str, more: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": template(name, more),
        },
    })
}

/// A pod of the lab's server on port 8080. It goes on serving for a while after it was told to
/// end, as pods do that are to lose nothing.
fn template(name: &str, more: Value) -> Value {
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    let mut spec = json!({
        "terminationGracePeriodSeconds": 10,
        "automountServiceAccountToken": false,
        "containers": [{
            "name": "server",
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "args": [helper::POD],
            // Without a request it would get next to nothing where processors are scarce.
            "resources": { "requests": { "cpu": "100m" } },
            "env": [
                { "name": "POD_NAME", "valueFrom": field("metadata.name") },
                { "name": "NODE_NAME", "valueFrom": field("spec.nodeName") },
                { "name": "TCP", "value": "8080" },
                { "name": "UDP", "value": "8080" },
            ],
            "lifecycle": { "preStop": { "sleep": { "seconds": 5 } } },
            "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
        }],
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    json!({ "metadata": { "labels": { "app": name } }, "spec": spec })
}

fn service(name: &str, node_port: u16) -> Value {
    let port = |protocol: &str| {
        json!({
            "name": protocol.to_lowercase(), "protocol": protocol,
            "port": 80, "targetPort": 8080, "nodePort": node_port,
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "RequireDualStack",
            "selector": { "app": name },
            "ports": [port("TCP"), port("UDP")],
        },
    })
}

fn ingress() -> Value {
    let backend = json!({ "service": { "name": "web", "port": { "name": "tcp" } } });
    let rule = |host: &str| {
        json!({
            "host": host,
            "http": { "paths": [{ "path": "/", "pathType": "Prefix", "backend": backend }] },
        })
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": { "name": "web", "namespace": NAMESPACE },
        "spec": {
            "ingressClassName": "weir",
            "rules": [rule(HOST), rule(&format!("plain.{HOST}"))],
            "tls": [{ "hosts": [HOST], "secretName": SECRET }],
        },
    })
}
