//! A load balancer for the cluster, as a cloud has one: gives Services of type LoadBalancer an
//! address, keeps their finalizer, and routes the address to the nodes, each flow to one.
//!
//! It runs in the outside client's namespace, whose routes it writes. Where only local
//! endpoints may answer, only nodes whose health port says so are routed to. An address that
//! leads nowhere swallows packets, as the upstream suite wants: no ICMP error. A Service
//! with affinity is routed to one node, since every node remembers its own clients.

use super::plan::{BALANCER_POOL, CLIENT};
use super::state::Run;
use crate::agent::get;
use crate::apiserver::Connection;
use crate::go::say;
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Nodes with this label take no part.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// What one Service is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    namespace: String,
    name: String,
    address: Ipv4Addr,
    finalizers: Vec<String>,
    /// The status has the address already.
    told: bool,
    /// Where nodes say whether they have an endpoint.
    health_port: Option<u16>,
    affinity: bool,
}

/// A Service that no longer wants an address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unwanted {
    namespace: String,
    name: String,
    /// Without ours.
    finalizers: Vec<String>,
}

/// Runs until it is ended.
///
/// # Errors
/// When the namespace cannot be prepared.
pub fn run(run: &Run) -> Result<()> {
    let pool = Ipv4Addr::from([BALANCER_POOL[0], BALANCER_POOL[1], BALANCER_POOL[2], 0]);
    ip(&["address", "replace", &format!("{CLIENT}/32"), "dev", "lo"])?;
    ip(&["route", "replace", &format!("{pool}/24"), "dev", "lo", "src", &CLIENT.to_string()])?;
    // Choose by flow, not by address.
    std::fs::write("/proc/sys/net/ipv4/fib_multipath_hash_policy", "1").context("routing by flow")?;
    let mut api = Connection::open(None)?;
    api.connect(&run.kubeconfig())?;
    let mut given = BTreeMap::new();
    let mut routes = BTreeMap::new();
    loop {
        if let Err(error) = step(&api, &mut given, &mut routes) {
            // The API server may be away for a while.
            say(&format!("{error:#}"));
        }
        std::thread::park_timeout(PAUSE);
    }
}

/// Addresses by the uid of their Service.
type Given = BTreeMap<String, Ipv4Addr>;

fn step(api: &Connection, given: &mut Given, routes: &mut BTreeMap<Ipv4Addr, Vec<IpAddr>>) -> Result<()> {
    let nodes = ready_nodes(&api.list("v1", "Node", "", "")?);
    let (wanted, unwanted) = decide(&api.list("v1", "Service", "", "")?, given);
    for one in &wanted {
        if !one.finalizers.iter().any(|name| name == FINALIZER) {
            let finalizers = [&one.finalizers[..], &[FINALIZER.to_owned()]].concat();
            patch(
                api,
                &one.namespace,
                &one.name,
                json!({ "metadata": { "finalizers": finalizers } }),
                false,
            )?;
        }
        if !one.told {
            let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": one.address }] } } });
            patch(api, &one.namespace, &one.name, status, true)?;
        }
        let mut to = nodes.clone();
        if let Some(port) = one.health_port {
            to.retain(|node| {
                get(SocketAddr::new(*node, port), "/healthz").is_ok_and(|(code, _)| code == 200)
            });
        }
        if one.affinity {
            to.truncate(1);
        }
        route(routes, one.address, to)?;
    }
    for one in unwanted {
        let status = json!({ "status": { "loadBalancer": { "ingress": null } } });
        patch(api, &one.namespace, &one.name, status, true)?;
        patch(
            api,
            &one.namespace,
            &one.name,
            json!({ "metadata": { "finalizers": one.finalizers } }),
            false,
        )?;
    }
    let kept: BTreeSet<Ipv4Addr> = wanted.iter().map(|one| one.address).collect();
    let gone: Vec<Ipv4Addr> = routes.keys().filter(|address| !kept.contains(address)).copied().collect();
    gone.into_iter().try_for_each(|address| route(routes, address, Vec::new()))
}

/// Who is to have an address, who no longer; gives and takes back addresses.
fn decide(services: &[Value], given: &mut Given) -> (Vec<Wanted>, Vec<Unwanted>) {
    let (mut wanted, mut unwanted, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for service in services {
        let (meta, spec) = (&service["metadata"], &service["spec"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text(&meta["namespace"]), text(&meta["name"]));
        let finalizers: Vec<String> = meta["finalizers"].as_array().into_iter().flatten().map(text).collect();
        let ours = spec["type"] == "LoadBalancer"
            && spec["loadBalancerClass"].is_null()
            && meta["deletionTimestamp"].is_null();
        if !ours {
            if finalizers.iter().any(|one| one == FINALIZER) {
                let finalizers = finalizers.into_iter().filter(|one| one != FINALIZER).collect();
                unwanted.push(Unwanted { namespace, name, finalizers });
            }
            continue;
        }
        let uid = text(&meta["uid"]);
        let asked = spec["loadBalancerIP"].as_str().and_then(|ip| ip.parse().ok());
        let Some(address) = given.get(&uid).copied().or(asked).or_else(|| free(given)) else { continue };
        given.insert(uid.clone(), address);
        seen.insert(uid);
        let told = &service["status"]["loadBalancer"]["ingress"];
        let port = spec["healthCheckNodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
        wanted.push(Wanted {
            namespace,
            name,
            address,
            finalizers,
            told: told.as_array().is_some_and(|all| all.len() == 1) && told[0]["ip"] == address.to_string(),
            health_port: port.filter(|port| *port != 0),
            affinity: spec["sessionAffinity"] == "ClientIP",
        });
    }
    given.retain(|uid, _| seen.contains(uid));
    (wanted, unwanted)
}

/// An address of the pool that nobody has.
fn free(given: &Given) -> Option<Ipv4Addr> {
    let [a, b, c] = BALANCER_POOL;
    (1..250)
        .map(|last| Ipv4Addr::new(a, b, c, last))
        .find(|address| !given.values().any(|taken| taken == address))
}

/// The IPv4 addresses of nodes that are Ready and take part.
fn ready_nodes(nodes: &[Value]) -> Vec<IpAddr> {
    let ready = |node: &&Value| {
        let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
            && node["metadata"]["labels"].get(EXCLUDED).is_none()
    };
    let addresses = |node: &Value| {
        let all = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let internal = all.into_iter().filter(|one| one["type"] == "InternalIP");
        internal.filter_map(|one| one["address"].as_str()?.parse::<IpAddr>().ok()).find(IpAddr::is_ipv4)
    };
    nodes.iter().filter(ready).filter_map(addresses).collect()
}

fn patch(api: &Connection, namespace: &str, name: &str, change: Value, status: bool) -> Result<()> {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let done = api.ask(move |client| async move {
        let services: Api<Service> = Api::namespaced(client, &namespace);
        let (params, change) = (PatchParams::default(), Patch::Merge(change));
        let patched = if status {
            services.patch_status(&name, &params, &change).await
        } else {
            services.patch(&name, &params, &change).await
        };
        match patched {
            // It may have gone since it was listed.
            Err(kube::Error::Api(refused)) if refused.code == 404 => Ok(()),
            other => Ok(other.map(drop)?),
        }
    });
    done.context("a Service of type LoadBalancer")
}

/// Routes an address to nodes; to none: it swallows packets again.
fn route(routes: &mut BTreeMap<Ipv4Addr, Vec<IpAddr>>, address: Ipv4Addr, to: Vec<IpAddr>) -> Result<()> {
    if routes.get(&address).map_or(to.is_empty(), |now| *now == to) {
        return Ok(());
    }
    say(&format!("{address} to {to:?}"));
    let place = format!("{address}/32");
    if to.is_empty() {
        ip(&["route", "delete", &place])?;
        routes.remove(&address);
        return Ok(());
    }
    let mut words: Vec<String> =
        ["route", "replace", &place, "src", &CLIENT.to_string()].map(str::to_owned).into();
    words.extend(to.iter().flat_map(|node| {
        ["nexthop".to_owned(), "via".into(), node.to_string(), "weight".into(), "1".into()]
    }));
    ip(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    routes.insert(address, to);
    Ok(())
}

fn ip(words: &[&str]) -> Result<()> {
    let said = Command::new("ip").args(words).output().context("starting ip")?;
    if !said.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, spec: Value) -> Value {
        json!({ "metadata": { "namespace": "n", "name": name, "uid": name }, "spec": spec, "status": { "loadBalancer": {} } })
    }

    #[test]
    fn address_is_kept_until_the_service_goes() {
        let mut given = Given::new();
        let balanced = || json!({ "type": "LoadBalancer" });
        let (wanted, _) = decide(&[service("a", balanced()), service("b", balanced())], &mut given);
        let [a, b] = [wanted[0].address, wanted[1].address];
        assert_eq!((a, b), (Ipv4Addr::new(172, 31, 78, 1), Ipv4Addr::new(172, 31, 78, 2)));
        let (wanted, _) = decide(&[service("b", balanced())], &mut given);
        assert_eq!(wanted[0].address, b);
        let (wanted, _) = decide(&[service("b", balanced()), service("c", balanced())], &mut given);
        assert_eq!(wanted[1].address, a, "what was given back is given again");
    }

    #[test]
    fn service_that_is_deleted_or_of_another_type_gives_up_its_finalizer() {
        let mut deleted = service("a", json!({ "type": "LoadBalancer" }));
        deleted["metadata"]["finalizers"] = json!([FINALIZER, "other"]);
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut changed = service("b", json!({ "type": "ClusterIP" }));
        changed["metadata"]["finalizers"] = json!([FINALIZER]);
        let foreign = service("c", json!({ "type": "LoadBalancer", "loadBalancerClass": "x/y" }));
        let (wanted, unwanted) = decide(&[deleted, changed, foreign], &mut Given::new());
        assert!(wanted.is_empty());
        let kept: Vec<_> = unwanted.iter().map(|one| (one.name.as_str(), one.finalizers.clone())).collect();
        assert_eq!(kept, [("a", vec!["other".to_owned()]), ("b", vec![])]);
    }

    #[test]
    fn only_ready_nodes_that_take_part_are_routed_to() {
        let node = |address: &str, ready: &str, labels: Value| {
            json!({
                "metadata": { "labels": labels },
                "status": {
                    "conditions": [{ "type": "Ready", "status": ready }],
                    "addresses": [{ "type": "Hostname", "address": "x" }, { "type": "InternalIP", "address": address }],
                },
            })
        };
        let nodes = [
            node("172.31.77.11", "True", json!({})),
            node("172.31.77.12", "Unknown", json!({})),
            node("172.31.77.13", "True", json!({ EXCLUDED: "" })),
        ];
        assert_eq!(ready_nodes(&nodes), ["172.31.77.11".parse::<IpAddr>().expect("an address")]);
    }
}
