#![expect(clippy::unwrap_used, reason = "tests")]

use super::budget::Limit;
use super::*;
use crate::model::routes::{Action, PathKind, Protocol, Target};
use crate::source::{
    Endpoint, EndpointSlice, Ingress, IngressBackend, IngressClass, IngressPath, IngressRule, IngressTls,
    Namespace, PathType, Secret, Service, ServicePort, ServiceType, SlicePort,
};
use lb_common::abi::Proto;
use std::fmt::Write as _;

mod backends;
mod bounds;
mod certificates;
mod ours;
mod property;

/// A point in time at which the certificates of these tests are valid.
const NOW: i64 = 1_800_000_000;

fn key(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    ObjectKey::new(namespace, name)
}

fn options() -> L7Options {
    L7Options {
        controllers: ["weir.dev/ingress".to_string()].into(),
        manifests: true,
        external_names: true,
        ..L7Options::default()
    }
}

/// `svc:80`, `svc:http`, or what is not supported.
fn backend(text: &str) -> IngressBackend {
    match text.split_once(':') {
        Some((name, port)) => IngressBackend::Service {
            name: name.into(),
            port: port.parse().map_or_else(|_| BackendPort::Name(port.into()), BackendPort::Number),
        },
        None => IngressBackend::Unsupported(text.into()),
    }
}

/// An Ingress from lines: `host E|P|I path backend`, `host` alone (no `http`), `default backend`,
/// `tls secret host…` (`-`: no Secret).
fn ingress(name: &str, created: i64, lines: &[&str]) -> Ingress {
    let mut ingress = Ingress { key: key(name), created, ..Ingress::default() };
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let index = ingress.rules.len();
        match words[..] {
            ["default", to] => ingress.default_backend = Some(backend(to)),
            ["tls", secret, ref hosts @ ..] => ingress.tls.push(IngressTls {
                index: ingress.tls.len(),
                hosts: hosts.iter().map(ToString::to_string).enumerate().collect(),
                secret: (secret != "-").then(|| secret.to_string()),
            }),
            [host] => ingress.rules.push(IngressRule { index, host: host.into(), paths: None }),
            [host, kind, path, to] => {
                let path_type = match kind {
                    "E" => PathType::Exact,
                    "P" => PathType::Prefix,
                    _ => PathType::ImplementationSpecific,
                };
                let host = if host == "*" { "" } else { host };
                let path = IngressPath { index: 0, path: path.into(), path_type, backend: backend(to) };
                ingress.rules.push(IngressRule { index, host: host.into(), paths: Some(vec![path]) });
            }
            _ => panic!("{line}"),
        }
    }
    ingress
}

/// A Service with TCP port 80, named `http`, and one ready endpoint.
fn web(objects: &mut Objects, name: &str, addr: &str) {
    put_service(
        objects,
        Service { key: key(name), selector: true, ports: vec![port("http", 80)], ..Service::default() },
    );
    put_slice(objects, slice(name, &[addr]));
}

fn port(name: &str, port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        proto: Proto::TCP,
        port,
        node_port: 0,
        target_port: None,
        app_protocol: None,
    }
}

/// A slice of port `http` → 8080; endpoints as `address`, with `-` unready, `~` serving while it
/// terminates.
fn slice(service: &str, endpoints: &[&str]) -> EndpointSlice {
    EndpointSlice {
        key: key(&format!("{service}-1")),
        service: key(service),
        managed: true,
        headless: false,
        ports: vec![SlicePort { name: "http".into(), proto: Proto::TCP, port: 8080 }],
        endpoints: endpoints.iter().map(|text| endpoint(text)).collect(),
        trigger_time: None,
        problems: vec![],
    }
}

fn endpoint(text: &str) -> Endpoint {
    let addr = text.trim_end_matches(['-', '~']).parse().unwrap();
    let (ready, terminating) = (!text.ends_with(['-', '~']), text.ends_with('~'));
    Endpoint {
        addr,
        ready,
        serving: ready || terminating,
        terminating,
        node: None,
        zone: None,
        hint_zones: vec![],
        hint_nodes: vec![],
    }
}

fn put_service(objects: &mut Objects, service: Service) {
    objects.services.insert(service.key.clone(), Arc::new(service));
}

fn put_slice(objects: &mut Objects, slice: EndpointSlice) {
    objects.slices_of.entry(slice.service.clone()).or_default().insert(slice.key.clone());
    objects.slices.insert(slice.key.clone(), Arc::new(slice));
}

fn put_ingress(objects: &mut Objects, ingress: Ingress) {
    objects.ingresses.insert(ingress.key.clone(), Arc::new(ingress));
}

fn put_class(objects: &mut Objects, name: &str, controller: &str, default: bool) {
    let class = IngressClass { name: name.into(), controller: controller.into(), default };
    objects.ingress_classes.insert(name.into(), Arc::new(class));
}

fn everything(objects: &Objects) -> Touched {
    Touched {
        ingresses: objects.ingresses.keys().cloned().collect(),
        services: objects.services.keys().chain(objects.slices_of.keys()).cloned().collect(),
        secrets: objects.secrets.keys().cloned().collect(),
        ingress_classes: true,
        ..Touched::default()
    }
}

fn built_with(options: L7Options, objects: &Objects, input: &L7Input) -> L7Model {
    let mut model = L7Model::new(options);
    model.update(objects, input, &everything(objects));
    model
}

/// From scratch, at [`NOW`].
fn built(objects: &Objects) -> L7Model {
    built_with(options(), objects, &L7Input { now: NOW, ..L7Input::default() })
}

fn target(action: &Action) -> String {
    let target = match &action.target {
        Target::Pool(pool) => pool.to_string(),
        Target::Unavailable(_) => "503".into(),
    };
    let redirect = action.https_redirect.map(|code| format!(" {code}")).unwrap_or_default();
    format!("{target} ({}){redirect}", action.ingress)
}

/// Hosts and rules, one a line.
fn rules(model: &L7Model) -> Vec<String> {
    let mut lines = Vec::new();
    for (pattern, host) in &model.routes().hosts {
        for rule in &host.rules {
            let kind = if rule.kind == PathKind::Exact { "E" } else { "P" };
            lines.push(format!("{pattern} {kind} {} {}", rule.path, target(&rule.action)));
        }
        if let Some(action) = &host.default {
            lines.push(format!("{pattern} default {}", target(action)));
        }
        if host.rules.is_empty() && host.default.is_none() {
            lines.push(format!("{pattern} nothing"));
        }
    }
    lines
}

fn told(model: &L7Model) -> String {
    let mut out = String::new();
    for problem in model.problems() {
        writeln!(out, "{problem}").unwrap();
    }
    out
}

/// Asserts that each text is part of some Problem, and that there are no more Problems than texts.
fn assert_told(model: &L7Model, parts: &[&str]) {
    let told = told(model);
    for part in parts {
        assert!(told.contains(part), "{part:?} is not told:\n{told}");
    }
    assert_eq!(told.lines().count(), parts.len(), "{told}");
}

fn pool(model: &L7Model, service: &str, port: u16) -> Option<(Protocol, Vec<String>)> {
    let pool = model.routes().pools.get(&PoolKey { service: Arc::new(key(service)), port })?;
    Some((pool.protocol, pool.endpoints.iter().map(ToString::to_string).collect()))
}
