//! Two networks that are alike, kube-proxy in one and Weir in the other, and the API server
//! that tells both the same.
//!
//! ```text
//!   client, node1, node2, pods      client, node1, node2, pods
//!              │ kube-proxy                    │ weir --compat kube-proxy
//!              └──────── api: kube-apiserver ──┘
//! ```

use super::case::Client;
use super::probe::{Fate, Fates, How, Probe};
use super::world::{HOSTS, NAMESPACE, SERVED, World, ZONES};
use crate::agent::{Agent, Setup};
use crate::apiserver::{self, ApiServer, Pod};
use crate::helper::{self, Helper};
use crate::kube_proxy::{KubeProxy, Mode};
use crate::manifests::PodSpec;
use crate::netns::Netns;
use crate::topology::{NODE1, NODE2, Place, Topology};
use crate::wait;
use anyhow::{Context, Result, anyhow, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use kube::Client as Kube;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams,
};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Where the API server listens, out of all networks that Services know.
const API: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
/// What both know as the pods' network.
const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/48";
/// What follows the objects of a world: when it is served, so are they.
const SENTINEL: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 255, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xff01)),
];
/// Requests to the API server at the same time.
const WIDE: usize = 16;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    KubeProxy,
    Weir,
}

/// A network with its servers.
struct Lab {
    network: Topology,
    _servers: Vec<Helper>,
}

/// The two networks, made.
pub(super) struct Networks {
    kube_proxy: Lab,
    weir: Lab,
    server: ApiServer,
    _api: Netns,
}

/// Both at work.
pub(super) struct Twins<'a> {
    networks: &'a Networks,
    _agent: Agent<'a>,
    kube_proxy: KubeProxy,
    sockets: bool,
    sentinels: u16,
}

impl Networks {
    pub(super) fn new() -> Result<Self> {
        let (kube_proxy, weir) = (Lab::new()?, Lab::new()?);
        let api = Netns::new(format!("{}-api", kube_proxy.network.scratch().id()))?;
        api.ip(&[format!("addr add {API}/32 dev lo")])?;
        for (n, lab) in [&kube_proxy, &weir].into_iter().enumerate() {
            let node = lab.network.node1();
            api.ip(&[
                format!("link add lab{n} type veth peer name api netns {}", node.name()),
                format!("addr add 10.255.{}.1/30 dev lab{n}", n + 1),
                format!("link set lab{n} up"),
            ])?;
            node.ip(&[
                format!("addr add 10.255.{}.2/30 dev api", n + 1),
                "link set api up".into(),
                format!("route add {API}/32 via 10.255.{}.1", n + 1),
            ])?;
        }
        let place = apiserver::Place { netns: Some(api.path().to_owned()), address: API.into() };
        let server = ApiServer::start_in(&place)?;
        for (name, (v4, v6), zone) in [("node1", NODE1, ZONES[0]), ("node2", NODE2, ZONES[1])] {
            server.create_node(name, &[v4.into(), v6.into()])?;
            server.apply(&json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": name, "labels": {
                    "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone,
                } },
            }))?;
        }
        server.create_namespace(NAMESPACE)?;
        for spec in kube_proxy.network.pods() {
            server.run_pod(&Pod {
                namespace: NAMESPACE.into(),
                name: spec.name.clone(),
                node: spec.node.clone(),
                addresses: spec.ips.clone(),
                ..Pod::default()
            })?;
        }
        Ok(Self { kube_proxy, weir, server, _api: api })
    }

    fn lab(&self, side: Side) -> &Topology {
        match side {
            Side::KubeProxy => &self.kube_proxy.network,
            Side::Weir => &self.weir.network,
        }
    }
}

impl Lab {
    fn new() -> Result<Self> {
        // Servers are started below, one for each port: an answer says which it is from.
        let pods = HOSTS.iter().filter(|host| host.last != 0);
        let mut specs: Vec<PodSpec> =
            pods.map(|host| pod(host.name, host.node, [false, true].map(|v6| host.ip(v6)))).collect();
        for (name, node) in [("cli", 1), ("far", 2)] {
            specs.push(pod(
                name,
                node,
                [false, true].map(|v6| super::world::Host { name, node, last: 20 }.ip(v6)),
            ));
        }
        let network = Topology::new(&specs)?;
        let far = network.scratch().cgroup("elsewhere/host")?;
        let other_node = Helper::start(&helper::executable()?, network.node2(), Some(&far))?;
        let mut servers = Vec::new();
        for host in HOSTS {
            let ips = [false, true].map(|v6| host.ip(v6));
            let serve = |helper: &Helper| helper.serve_at(host.name, &ips, &SERVED);
            match (host.last, host.node) {
                (0, 2) => serve(&other_node)?,
                (0, _) => servers.push(served(network.start_helper(&Place::Host)?, serve)?),
                _ => servers.push(served(network.start_helper(&Place::pod(host.name))?, serve)?),
            }
        }
        servers.push(other_node);
        network.client().ip(&[
            format!("route add 10.96.0.0/16 via {}", NODE1.0),
            format!("route add fd00:10:96::/112 via {}", NODE1.1),
            // Load balancers' addresses and externalIPs; of IPv6 the network has them.
            format!("route add 198.18.0.0/15 via {}", NODE1.0),
        ])?;
        // Refusals come by the thousand.
        let nodes = [network.node1(), network.node2(), network.client()];
        let pods = specs.iter().map(|spec| network.pod(&spec.name)).collect::<Result<Vec<_>>>()?;
        for netns in nodes.into_iter().chain(pods) {
            for (key, value) in [
                ("net/ipv4/icmp_ratelimit", "0"),
                ("net/ipv4/icmp_msgs_per_sec", "1000000"),
                ("net/ipv4/icmp_msgs_burst", "1000000"),
                ("net/ipv6/icmp/ratelimit", "0"),
            ] {
                netns.sysctl(key, value)?;
            }
        }
        Ok(Self { network, _servers: servers })
    }
}

fn served(helper: Helper, serve: impl FnOnce(&Helper) -> Result<()>) -> Result<Helper> {
    serve(&helper)?;
    Ok(helper)
}

fn pod(name: &str, node: u8, ips: [IpAddr; 2]) -> PodSpec {
    PodSpec { name: name.into(), node: format!("node{node}"), ips: ips.into(), ..PodSpec::default() }
}

impl<'a> Twins<'a> {
    /// Starts both on their networks.
    pub(super) fn start(networks: &'a Networks, sockets: bool) -> Result<Self> {
        let mut setup = Setup::kubeconfig(&networks.server.kubeconfig()).with(&[
            "--compat=kube-proxy",
            "--l7=off",
            &format!("--cluster-cidr={CLUSTER_CIDR}"),
        ]);
        if sockets {
            setup = setup.with(&["--socket-lb=on"]);
        }
        let kube_proxy = KubeProxy::start(&networks.kube_proxy.network, &networks.server, Mode::Nftables)?;
        let agent = Agent::ready(&networks.weir.network, setup)?;
        Ok(Self { networks, _agent: agent, kube_proxy, sockets, sentinels: 0 })
    }

    /// Puts a world in the place of the one before, and waits until both serve it.
    pub(super) fn show(&mut self, world: &World) -> Result<()> {
        let server = &self.networks.server;
        server.ask(clear)?;
        let objects = world.objects();
        let (services, slices): (Vec<Value>, Vec<Value>) =
            objects.into_iter().partition(|object| object["kind"] == "Service");
        server.ask(|client| create(client, services))?;
        server.ask(|client| create(client, slices))?;
        self.sentinels += 1;
        // Another port each time: what was there before does not answer for it.
        let port = 1000 + self.sentinels;
        server.ask(move |client| create(client, sentinel(port)))?;
        // Each family is served by itself.
        let question =
            |ip| Probe { how: How::Tcp, to: SocketAddr::new(ip, port), tries: 1, patience_ms: 1000 };
        let questions = SENTINEL.map(question).to_vec();
        let served = |side| -> Result<()> {
            let answers = self.networks.lab(side).at(&Client::Pod.place())?.probe(questions.clone())?;
            let answered = |fate: &Fate| matches!(fate, Fate::Answered { .. });
            ensure!(answers.iter().flatten().all(answered), "{side:?}: {answers:?}");
            Ok(())
        };
        wait::until("Weir serves the world", Duration::from_secs(60), || served(Side::Weir))?;
        self.kube_proxy.wait("kube-proxy serves the world", || served(Side::KubeProxy))
    }

    /// Has both asked the same, all clients at once; the answers of each in the order of the
    /// questions.
    pub(super) fn put(&self, questions: &[(Client, Probe)]) -> Result<[Vec<Fates>; 2]> {
        std::thread::scope(|scope| {
            let sides =
                [Side::KubeProxy, Side::Weir].map(|side| scope.spawn(move || self.put_to(side, questions)));
            let [kube_proxy, weir] =
                sides.map(|side| side.join().map_err(|_| anyhow!("a client's thread died")));
            Ok([kube_proxy??, weir??])
        })
    }

    fn put_to(&self, side: Side, questions: &[(Client, Probe)]) -> Result<Vec<Fates>> {
        let lab = self.networks.lab(side);
        let mut all = vec![Fates::new(); questions.len()];
        let answered = std::thread::scope(|scope| {
            let threads: Vec<_> = Client::ALL
                .into_iter()
                .map(|client| {
                    let own: Vec<usize> =
                        (0..questions.len()).filter(|n| questions[*n].0 == client).collect();
                    let probes = own.iter().map(|n| questions[*n].1).collect();
                    scope.spawn(move || -> Result<_> { Ok((own, lab.at(&client.place())?.probe(probes)?)) })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a client's thread died"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        for (own, fates) in answered {
            ensure!(own.len() == fates.len(), "{side:?}: an answer for each question");
            for (at, fates) in own.into_iter().zip(fates) {
                let itself = self.sockets && side == Side::Weir && questions[at].0 == Client::Hairpin;
                all[at] =
                    if itself { fates.into_iter().map(|fate| through(lab, fate)).collect() } else { fates };
            }
        }
        Ok(all)
    }
}

/// What a pod that reaches itself by a translated socket sees, as if its packets had passed the
/// node.
fn through(lab: &Topology, fate: Fate) -> Fate {
    match fate {
        Fate::Answered { by, seen, named } if seen == HOSTS[0].ip(seen.is_ipv6()) => {
            let gateway = lab.gateways().find(|gateway| gateway.is_ipv6() == seen.is_ipv6());
            Fate::Answered { by, seen: gateway.unwrap_or(seen), named }
        }
        other @ (Fate::Answered { .. } | Fate::Refused | Fate::Silent | Fate::Failed(_)) => other,
    }
}

/// A Service that leads to a pod of the other node, at addresses of its own.
fn sentinel(port: u16) -> Vec<Value> {
    let name = format!("sentinel-{port}");
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "clusterIP": SENTINEL[0], "clusterIPs": SENTINEL, "ipFamilyPolicy": "RequireDualStack",
            "ports": [{ "name": "p", "port": port }],
        },
    })];
    objects.extend([("IPv4", false), ("IPv6", true)].map(|(family, v6)| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{}", family.to_lowercase()), "namespace": NAMESPACE,
                "labels": { "kubernetes.io/service-name": name },
            },
            "addressType": family, "ports": [{ "name": "p", "port": SERVED[0], "protocol": "TCP" }],
            "endpoints": [{ "addresses": [HOSTS[3].ip(v6)], "conditions": { "ready": true } }],
        })
    }));
    objects
}

fn api(client: &Kube, kind: &str) -> Api<DynamicObject> {
    let (group, version) = if kind == "Service" { ("", "v1") } else { ("discovery.k8s.io", "v1") };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(client.clone(), NAMESPACE, &resource)
}

/// Deletes all Services and slices.
async fn clear(client: Kube) -> Result<()> {
    for kind in ["Service", "EndpointSlice"] {
        api(&client, kind).delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    }
    Ok(())
}

/// Creates objects, several at a time; the status that one has is written after it.
async fn create(client: Kube, objects: Vec<Value>) -> Result<()> {
    stream::iter(objects.into_iter().map(|mut object| {
        let client = client.clone();
        async move {
            let api = api(&client, object["kind"].as_str().unwrap_or_default());
            let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let typed = serde_json::from_value(object.clone())?;
            api.create(&PostParams::default(), &typed).await.with_context(|| format!("creating {object}"))?;
            if let Some(status) = status {
                let patch = Patch::Merge(json!({ "status": status }));
                api.patch_status(&name, &PatchParams::default(), &patch).await?;
            }
            anyhow::Ok(())
        }
    }))
    .buffer_unordered(WIDE)
    .try_collect()
    .await
}
