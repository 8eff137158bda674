//! Answers made from the stages' own state, on the reconciler's thread.

use crate::datapath::Programmed;
use crate::explain::url::{self, Url, UrlExplanation, UrlView};
use crate::explain::{Explanation, Target as Explained, View, explain as explain_view};
use crate::model::routes::{Action, HostPattern, Target};
use crate::model::{BackendState, FrontendKind, PortKey, PortState};
use crate::problem::ObjectKey;
use crate::proxy::matcher;
use crate::reconcile::Reconciler;
use lb_common::abi::{
    Addr, Be16, Flow, FlowFlags, FlowKey, FrontendFlags, FrontendKey, Reason, ServiceCounters,
};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};

/// Services that `wanted` accepts, with what is programmed for them.
pub(super) fn services(reconciler: &mut Reconciler, wanted: impl Fn(&ObjectKey) -> bool) -> Value {
    let Reconciler { model, planner, datapath, objects, .. } = reconciler;
    let mut told = Vec::new();
    for (key, state) in model.states().iter().filter(|(key, _)| wanted(key)) {
        let mut ports = Vec::new();
        for (port, state) in &state.ports {
            let id = planner.service_id(port);
            let counters = id.map(|id| datapath.service_counters(id)).unwrap_or_default();
            ports.push(self::port(port, state, id, counters, &|key| planner.frontends().contains_key(key)));
        }
        let kind = objects.services.get(key).map(|service| format!("{:?}", service.kind));
        told.push(json!({
            "service": key.to_string(),
            "type": kind,
            "ports": ports,
            "problems": state.problems,
        }));
    }
    Value::Array(told)
}

fn port(
    key: &PortKey,
    state: &PortState,
    id: Option<u32>,
    counters: ServiceCounters,
    programmed: &dyn Fn(&FrontendKey) -> bool,
) -> Value {
    let frontends: Vec<Value> = state
        .frontends
        .iter()
        .map(|frontend| {
            let live = FrontendKey::new(frontend.addr, Be16::new(frontend.port), key.proto);
            // A node port stands under "any", which is how it is addressed.
            let address = socket(frontend.addr, frontend.port);
            json!({ "address": address, "kind": kind(frontend.kind), "programmed": programmed(&live) })
        })
        .collect();
    let backends: Vec<Value> = state
        .backends
        .iter()
        .map(|backend| {
            json!({
                "address": socket(backend.addr, backend.port),
                "local": backend.local,
                "state": backend_state(backend),
                "cluster_ip": backend.in_cluster_ip,
                "inside": backend.in_inside,
                "outside": backend.in_outside,
            })
        })
        .collect();
    json!({
        "name": key.port_name,
        "protocol": key.proto.to_string(),
        "family": key.family.to_string(),
        "id": id,
        "affinity_seconds": state.affinity_seconds,
        "frontends": frontends,
        "backends": backends,
        "flows": { "packet": counters.packet_flows, "socket": counters.socket_flows },
        "drops": { "no_endpoint": counters.no_endpoint, "other": counters.dropped },
    })
}

fn kind(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::NodePort => "NodePort",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::ExternalIp => "ExternalIP",
    }
}

fn backend_state(backend: &BackendState) -> &'static str {
    if backend.in_cluster_ip || backend.in_inside || backend.in_outside {
        "ready"
    } else if backend.serving {
        "draining"
    } else {
        "not ready"
    }
}

fn socket(addr: Addr, port: u16) -> String {
    SocketAddr::new(addr.into(), port).to_string()
}

/// Routes of the hosts that are asked for, with what is behind them; `None`: L7 is off.
///
/// A host is found as a rule writes it, and as a client asks for it.
pub(super) fn routes(reconciler: &Reconciler, host: Option<&str>, namespace: Option<&str>) -> Option<Value> {
    let routes = reconciler.l7.as_ref()?.model.routes();
    let owner = host.and_then(|host| url::owner(routes, &matcher::host_name(host))).map(|(owner, _)| owner);
    let wanted = |pattern: &HostPattern| {
        host.is_none_or(|host| pattern.to_string() == host) || owner.as_ref() == Some(pattern)
    };
    let told = |path: String, kind: &str, action: &Action| {
        let mut rule = json!({ "path": path, "type": kind, "ingress": action.ingress.to_string() });
        let policies: Vec<String> =
            action.https_redirect.iter().map(|code| format!("https-{code}")).collect();
        rule["policies"] = policies.into();
        match &action.target {
            Target::Pool(key) => {
                let pool = routes.pools.get(key);
                let endpoints = pool.map_or(&[][..], |pool| &pool.endpoints);
                rule["service"] = key.to_string().into();
                rule["protocol"] = pool.map(|pool| url::protocol(pool.protocol)).into();
                rule["endpoints"] = endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().into();
            }
            Target::Unavailable(reason) => rule["unavailable"] = reason.as_str().into(),
        }
        rule
    };
    let of_namespace =
        |action: &&Action| namespace.is_none_or(|namespace| action.ingress.namespace == namespace);
    let hosts = routes.hosts.iter().filter(|(pattern, _)| wanted(pattern)).map(|(pattern, host)| {
        let rules = host.rules.iter().filter(|rule| of_namespace(&&rule.action)).map(|rule| {
            let kind = format!("{:?}", rule.kind);
            let path = if rule.path.is_empty() { "/" } else { &*rule.path };
            told(path.to_string(), &kind, &rule.action)
        });
        let default =
            host.default.iter().filter(of_namespace).map(|action| told(String::new(), "default", action));
        let name = if *pattern == HostPattern::Any { String::new() } else { pattern.to_string() };
        let (certificate, by_default) = url::certificate_of(routes, &name);
        let certificate = certificate.map(|(secret, certificate)| {
            json!({
                "secret": secret.to_string(),
                "names": certificate.names,
                "not_after": certificate.not_after,
                "by_default": by_default,
            })
        });
        json!({
            "host": pattern.to_string(),
            "certificate": certificate,
            "rules": rules.chain(default).collect::<Vec<_>>(),
        })
    });
    let hosts: Vec<Value> = hosts.filter(|host| namespace.is_none() || host["rules"] != json!([])).collect();
    Some(json!({ "hosts": hosts }))
}

/// A question about a URL.
pub(super) struct AskedUrl {
    pub(super) text: String,
    pub(super) url: Url,
    pub(super) method: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) http: Vec<SocketAddr>,
    pub(super) https: Vec<SocketAddr>,
    pub(super) waits: Option<String>,
}

/// From the routes as they are published; `None`: L7 is off.
pub(super) fn explain_url(reconciler: &Reconciler, asked: &AskedUrl) -> Option<UrlExplanation> {
    let model = &reconciler.l7.as_ref()?.model;
    let view = UrlView {
        routes: model.routes(),
        http: &asked.http,
        https: &asked.https,
        ingresses: &reconciler.objects.ingresses,
        is_ours: &|key| model.is_ours(key),
        waits: asked.waits.clone(),
    };
    Some(url::explain(&view, &asked.text, &asked.url, &asked.method, &asked.headers))
}

/// From the live tables.
pub(super) fn explain(
    reconciler: &mut Reconciler,
    target: &Explained,
    from: Option<IpAddr>,
) -> anyhow::Result<Explanation> {
    let programmed = reconciler.datapath.read()?;
    let Reconciler { model, node, inputs, datapath, .. } = reconciler;
    let datapath = std::cell::RefCell::new(datapath);
    let mut view = View {
        programmed,
        services: model.states(),
        node,
        inputs,
        slots: &mut |table| datapath.borrow_mut().slots(table),
        affinity: &mut |key| datapath.borrow_mut().affinity(key),
    };
    Ok(explain_view(&mut view, target, from))
}

/// Every stage's state.
pub(super) fn dump(reconciler: &mut Reconciler) -> Value {
    let services = services(reconciler, |_| true);
    let counters: Vec<Value> = {
        let all = reconciler.datapath.counters();
        let reasons = lb_common::abi::PassReason::ALL.iter().map(|r| (r.label(), r.slot()));
        let drops = lb_common::abi::DropReason::ALL.iter().map(|r| (r.label(), r.slot()));
        let events = Reason::ALL.iter().map(|r| (r.label(), r.slot()));
        let rows = reasons.chain(drops).chain(events);
        rows.map(|(label, slot)| json!({ "reason": label, "count": all.get(slot as usize) })).collect()
    };
    let objects = &reconciler.objects;
    let debug = |value: &dyn std::fmt::Debug| format!("{value:?}");
    let objects = json!({
        "listed": objects.listed,
        "node": objects.node.as_ref().map(|node| debug(node)),
        "services": objects.services.values().map(|service| debug(service)).collect::<Vec<_>>(),
        "endpoint_slices": objects.slices.values().map(|slice| debug(slice)).collect::<Vec<_>>(),
        "pods": objects.pods.values().map(|pod| debug(pod)).collect::<Vec<_>>(),
        "ingresses": objects.ingresses.values().map(|ingress| debug(ingress)).collect::<Vec<_>>(),
        "ingress_classes": objects.ingress_classes.values().map(|class| debug(class)).collect::<Vec<_>>(),
        // Names and types: the key is in no output.
        "secrets": objects.secrets.values().map(|secret| debug(secret)).collect::<Vec<_>>(),
    });
    let routes = routes(reconciler, None, None);
    let live = reconciler.datapath.read();
    let programmed = match &live {
        Ok(live) => self::programmed(live),
        Err(error) => json!({ "error": format!("{error:#}") }),
    };
    let facts = &reconciler.node.facts;
    let node = json!({
        "v4": facts.config.v4.to_string(),
        "v6": facts.config.v6.to_string(),
        "node_ports": [facts.config.node_ports.first, facts.config.node_ports.last],
        "addresses": facts.addresses.iter().map(|(addr, node)| json!({
            "address": addr.to_string(), "node_port": node.node_port == 1,
        })).collect::<Vec<_>>(),
        "devices": facts.devices.iter().map(|(index, device)| json!({
            "ifindex": index, "v4": device.v4.to_string(), "v6": device.v6.to_string(),
        })).collect::<Vec<_>>(),
        "pods": reconciler.inputs.pod_ips,
    });
    json!({ "objects": objects, "desired": services, "routes": routes, "programmed": programmed, "node": node, "counters": counters })
}

fn programmed(live: &Programmed) -> Value {
    let frontends: Vec<Value> = live
        .frontends
        .iter()
        .map(|(key, frontend)| {
            json!({
                "address": socket(key.addr, key.port.get()),
                "protocol": key.proto.to_string(),
                "service_id": frontend.service,
                "retired": frontend.flags.has(FrontendFlags::RETIRED),
                "inside": frontend.inside.count,
                "outside": frontend.outside.count,
                "maglev": frontend.outside.maglev_len,
                "affinity_seconds": frontend.affinity_seconds,
            })
        })
        .collect();
    let backends: Vec<Value> = live
        .backends
        .iter()
        .map(|(id, backend)| {
            json!({
                "id": id,
                "address": socket(backend.addr, backend.port.get()),
                "service_id": backend.service,
                "flags": backend.flags.0,
            })
        })
        .collect();
    json!({ "frontends": frontends, "backends": backends })
}

/// Flows from client to backend, as remembered.
pub(super) fn flows(reconciler: &mut Reconciler, service: Option<&ObjectKey>, limit: usize) -> Vec<Value> {
    let Reconciler { datapath, planner, .. } = reconciler;
    let wanted = |key: &FlowKey, flow: &Flow| {
        let _ = key;
        !flow.flags.has(FlowFlags::REPLY)
            && service
                .is_none_or(|service| planner.port(flow.service).is_some_and(|port| port.service == *service))
    };
    let flows = datapath.flows(limit, &wanted);
    let told = flows.iter().map(|(key, flow)| {
        let port = planner.port(flow.service);
        let flags = [
            (FlowFlags::SNAT, "masqueraded"),
            (FlowFlags::LOCAL, "local"),
            (FlowFlags::INSIDE, "inside"),
            (FlowFlags::FIN, "fin"),
            (FlowFlags::RST, "rst"),
            (FlowFlags::HANDSHAKE, "opening"),
        ];
        json!({
            "protocol": key.proto.to_string(),
            "client": socket(key.source, key.source_port.get()),
            "frontend": socket(key.destination, key.destination_port.get()),
            "backend": socket(flow.destination, flow.destination_port.get()),
            "source": socket(flow.source, flow.source_port.get()),
            "service": port.map(|port| port.service.to_string()),
            "flags": flags.iter().filter(|(flag, _)| flow.flags.has(*flag)).map(|(_, name)| *name).collect::<Vec<_>>(),
        })
    });
    told.collect()
}
