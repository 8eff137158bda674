//! Ingress objects as nobody should write them, against one that must not suffer (H39, H41).
//!
//! A victim's Ingress, Service and certificate stand in one namespace. In another, objects come
//! and go: each begins as a valid one and is changed in a few places, by values of the wrong
//! kind, by hosts and paths of the victim, by what is huge, empty or strange. Whatever survives
//! the API's types goes through the same projection and model as in the agent. After each, the
//! victim's routes, endpoints, names and certificate are what they were; now and then, all
//! routes are those that a fresh model gives.

use crate::packets::fuzz::Chance;
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::networking::v1 as api;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use weir::model::l7::{L7Input, L7Model, L7Options, certificate};
use weir::model::routes::{Certificate, HostPattern, PathRule, Pool, PoolKey, Routes};
use weir::problem::{Kind, ObjectKey, ObjectRef};
use weir::source::{Change, Object, Objects, Touched, project};

const VICTIM: &str = "victim";
const HOSTILE: &str = "hostile";
/// How often everything is computed anew.
const AFRESH: u64 = 2_000;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    pub objects: u64,
    /// The API's types took them.
    pub read: u64,
    /// They changed some route.
    pub routed: u64,
    /// Problems that were told at the end.
    pub problems: usize,
}

/// What of the routes is the victim's.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    rules: BTreeMap<HostPattern, Vec<PathRule>>,
    pools: BTreeMap<PoolKey, Arc<Pool>>,
    names: BTreeMap<HostPattern, ObjectKey>,
    certificates: BTreeMap<ObjectKey, Arc<Certificate>>,
}

impl Held {
    fn of(routes: &Routes) -> Self {
        let rules = routes.hosts.iter().map(|(pattern, host)| {
            let own = host.rules.iter().filter(|rule| rule.action.ingress.namespace == VICTIM);
            (pattern.clone(), own.cloned().collect::<Vec<_>>())
        });
        let pools = routes.pools.iter().filter(|(key, _)| key.service.namespace == VICTIM);
        let names = routes.names.iter().filter(|(_, key)| key.namespace == VICTIM);
        let certificates = routes.certificates.iter().filter(|(key, _)| key.namespace == VICTIM);
        Self {
            rules: rules.filter(|(_, rules)| !rules.is_empty()).collect(),
            pools: pools.map(|(key, pool)| (key.clone(), Arc::clone(pool))).collect(),
            names: names.map(|(pattern, key)| (pattern.clone(), key.clone())).collect(),
            certificates: certificates.map(|(key, of)| (key.clone(), Arc::clone(of))).collect(),
        }
    }
}

/// The objects that stand, and the model over them.
struct Stage {
    objects: Objects,
    model: L7Model,
    input: L7Input,
    held: Held,
}

fn options() -> L7Options {
    L7Options { manifests: true, external_names: true, ..L7Options::default() }
}

fn ingress(value: Value) -> Option<weir::source::Ingress> {
    serde_json::from_value::<api::Ingress>(value).ok().map(|from| project::ingress(&from))
}

fn secret(namespace: &str, names: &[&str]) -> Result<weir::source::Secret> {
    let params = rcgen::CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let key = rcgen::KeyPair::generate()?;
    let object = json!({
        "metadata": { "name": "tls", "namespace": namespace },
        "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": params.self_signed(&key)?.pem(), "tls.key": key.serialize_pem() },
    });
    Ok(project::secret(serde_json::from_value(object)?))
}

impl Stage {
    fn new() -> Result<Self> {
        let mut objects = Objects::default();
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Ingress, Kind::IngressClass, Kind::Secret] {
            objects.apply(Change::Replace(kind, Vec::new()));
        }
        for namespace in [VICTIM, HOSTILE] {
            let service = json!({
                "metadata": { "name": "web", "namespace": namespace },
                "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80 }] },
            });
            let service = project::service(&serde_json::from_value(service)?);
            objects.apply(Change::Upsert(Object::Service(service)));
            let slice = json!({
                "metadata": { "name": "web-1", "namespace": namespace, "labels": {
                    "kubernetes.io/service-name": "web",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                }},
                "addressType": "IPv4",
                "ports": [{ "name": "http", "port": 8080 }],
                "endpoints": [{ "addresses": ["10.0.0.1"] }],
            });
            let slice = project::slice(&serde_json::from_value(slice)?, &mut project::Names::default());
            objects.apply(Change::Upsert(Object::EndpointSlice(slice.context("a slice")?)));
        }
        let own = secret(VICTIM, &["victim.example", "*.victim.example"])?;
        let self_signed = Arc::new(certificate(&own).map_err(anyhow::Error::msg)?);
        objects.apply(Change::Upsert(Object::Secret(own)));
        objects
            .apply(Change::Upsert(Object::Secret(secret(HOSTILE, &["victim.example", "hostile.example"])?)));
        let path = |path: &str, kind: &str| {
            let backend = json!({ "service": { "name": "web", "port": { "number": 80 } } });
            json!({ "path": path, "pathType": kind, "backend": backend })
        };
        let victim = json!({
            "metadata": { "name": "web", "namespace": VICTIM, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": {
                "rules": [
                    { "host": "victim.example", "http": { "paths": [path("/", "Prefix"), path("/api", "Exact")] } },
                    { "host": "*.victim.example", "http": { "paths": [path("/api", "Prefix")] } },
                ],
                "tls": [{ "hosts": ["victim.example", "*.victim.example"], "secretName": "tls" }],
            },
        });
        objects.apply(Change::Upsert(Object::Ingress(ingress(victim).context("the victim")?)));
        let input = L7Input { now: 1_800_000_000, self_signed: Some(self_signed), ..L7Input::default() };
        let mut model = L7Model::new(options());
        model.update(&objects, &input, &everything(&objects));
        let held = Held::of(model.routes());
        ensure!(held.rules.len() == 2 && held.names.len() == 2 && held.certificates.len() == 1, "{held:?}");
        Ok(Self { objects, model, input, held })
    }

    /// Takes one change; says whether routes differ by it.
    fn take(&mut self, change: Change) -> Result<bool> {
        let touched = self.objects.apply(change);
        let updates = self.model.update(&self.objects, &self.input, &touched);
        let held = Held::of(self.model.routes());
        ensure!(held == self.held, "the victim's routes were {:?} and are {held:?}", self.held);
        Ok(!updates.is_empty())
    }

    fn check_afresh(&self) -> Result<()> {
        let mut fresh = L7Model::new(options());
        fresh.update(&self.objects, &self.input, &everything(&self.objects));
        ensure!(fresh.routes() == self.model.routes(), "step by step is not as from scratch");
        ensure!(fresh.problems() == self.model.problems(), "problems are not as from scratch");
        let bounded = self.model.problems().len() <= 9 * (self.objects.ingresses.len() + 8);
        ensure!(bounded, "{} problems", self.model.problems().len());
        Ok(())
    }
}

fn everything(objects: &Objects) -> Touched {
    Touched {
        ingresses: objects.ingresses.keys().cloned().collect(),
        services: objects.services.keys().cloned().collect(),
        secrets: objects.secrets.keys().cloned().collect(),
        ingress_classes: true,
        ..Touched::default()
    }
}

/// Runs `count` objects, from one seed.
///
/// # Errors
/// When something panics, or the victim suffers: with the number of the object.
pub fn run(seed: u64, count: u64) -> Result<Tally> {
    let mut stage = Stage::new()?;
    let mut chance = Chance::new(seed);
    let mut tally = Tally::default();
    for number in 0..count {
        tally.objects += 1;
        let name = format!("h{}", below(&mut chance, 12));
        let change = if below(&mut chance, 16) == 0 {
            Some(Change::Delete(ObjectRef { kind: Kind::Ingress, key: ObjectKey::new(HOSTILE, &name) }))
        } else {
            let value = mutated(&mut chance, &name);
            let read = catch_unwind(AssertUnwindSafe(|| ingress(value.clone())));
            let read =
                read.map_err(|_| anyhow::anyhow!("seed {seed}, object {number}: reading {value} panics"))?;
            read.map(|mut ingress| {
                // Whatever it says of itself: these the API server sets.
                ingress.key = ObjectKey::new(HOSTILE, &name);
                ingress.created = ingress.created.max(1_790_000_000);
                Change::Upsert(Object::Ingress(ingress))
            })
        };
        let Some(change) = change else { continue };
        tally.read += 1;
        let told = format!("seed {seed}, object {number}: {change:?}");
        let taken = catch_unwind(AssertUnwindSafe(|| stage.take(change)));
        let taken = taken.map_err(|_| anyhow::anyhow!("{told}: the model panics"))?;
        tally.routed += u64::from(taken.with_context(|| told)?);
        if number % AFRESH == AFRESH - 1 {
            stage.check_afresh().with_context(|| format!("seed {seed}, object {number}"))?;
        }
    }
    stage.check_afresh().with_context(|| format!("seed {seed}"))?;
    tally.problems = stage.model.problems().len();
    Ok(tally)
}

fn below(chance: &mut Chance, n: usize) -> usize {
    usize::try_from(chance.draw() % n.max(1) as u64).unwrap_or(0)
}

fn pick<'a, T>(chance: &mut Chance, of: &'a [T]) -> &'a T {
    &of[below(chance, of.len())]
}

const HOSTS: [&str; 18] = [
    "victim.example",
    "*.victim.example",
    "a.victim.example",
    "VICTIM.example",
    "victim.example.",
    "hostile.example",
    "*.hostile.example",
    "x.hostile.example",
    "",
    "*",
    "*.",
    "..",
    "10.0.0.1",
    "[::1]",
    "victim.example:80",
    "victim.example\0",
    "víctim.example",
    "a/../victim.example",
];

const PATHS: [&str; 22] = [
    "/",
    "/api",
    "/api/",
    "/api/x",
    "",
    "api",
    "//",
    "/api//",
    "/../api",
    "/%2e%2e/api",
    "/%",
    "/%00",
    "/api\r\nHost: victim.example",
    "/(.*)",
    "/{a}",
    "/a;b",
    "/a?b",
    "/a#b",
    "/\u{0}",
    "/ä",
    "/\\..",
    "/\"} location / { proxy_pass http://evil; }",
];

const NAMES: [&str; 10] =
    ["web", "tls", "gone", "victim/web", "victim/tls", "../victim/tls", "", "WEB", "kubernetes", "a.b"];

/// A valid object of the hostile namespace, changed in a few places.
fn mutated(chance: &mut Chance, name: &str) -> Value {
    let mut value = valid(chance, name);
    for _ in 0..below(chance, 5) {
        let mut nodes = 0;
        visit(&mut value, &mut |_| nodes += 1);
        let chosen = below(chance, nodes);
        let new = strange(chance);
        let remove = below(chance, 4) == 0;
        let mut at = 0;
        visit(&mut value, &mut |node| {
            if at == chosen {
                match node {
                    Value::Array(list) if remove => drop(list.pop()),
                    Value::Object(fields) if remove => {
                        let key = fields.keys().next().cloned();
                        key.map(|key| fields.remove(&key));
                    }
                    Value::Null
                    | Value::Bool(_)
                    | Value::Number(_)
                    | Value::String(_)
                    | Value::Array(_)
                    | Value::Object(_) => *node = new.clone(),
                }
            }
            at += 1;
        });
    }
    value
}

fn valid(chance: &mut Chance, name: &str) -> Value {
    let backend = |chance: &mut Chance| match below(chance, 8) {
        0 => json!({ "resource": { "kind": "Bucket", "name": "b" } }),
        1 => json!({ "service": { "name": pick(chance, &NAMES), "port": { "name": "http" } } }),
        _ => {
            json!({ "service": { "name": pick(chance, &NAMES[..3]), "port": { "number": 80 + below(chance, 2) } } })
        }
    };
    let rules: Vec<Value> = (0..below(chance, 4))
        .map(|_| {
            let paths: Vec<Value> = (0..below(chance, 4))
                .map(|_| {
                    let kind = pick(chance, &["Exact", "Prefix", "ImplementationSpecific"]);
                    json!({ "path": pick(chance, &PATHS), "pathType": kind, "backend": backend(chance) })
                })
                .collect();
            let host = pick(chance, &HOSTS);
            if below(chance, 8) == 0 {
                json!({ "host": host })
            } else {
                json!({ "host": host, "http": { "paths": paths } })
            }
        })
        .collect();
    let tls: Vec<Value> = (0..below(chance, 3))
        .map(|_| {
            let hosts: Vec<&str> = (0..below(chance, 3)).map(|_| *pick(chance, &HOSTS)).collect();
            json!({ "hosts": hosts, "secretName": pick(chance, &NAMES) })
        })
        .collect();
    let mut spec = json!({ "rules": rules, "tls": tls });
    if below(chance, 4) == 0 {
        spec["defaultBackend"] = backend(chance);
    }
    if below(chance, 8) == 0 {
        spec["ingressClassName"] = json!(pick(chance, &["weir", "nginx", ""]));
    }
    json!({ "metadata": { "name": name, "namespace": HOSTILE }, "spec": spec })
}

/// A value that does not belong where it is put, or does so only by chance.
fn strange(chance: &mut Chance) -> Value {
    match below(chance, 14) {
        0 => Value::Null,
        1 => json!(i64::from(below(chance, 70_000) as u32) - 1_000),
        2 => json!(u64::MAX),
        3 => json!(-1.5),
        4 => json!(true),
        5 => json!([]),
        6 => json!({}),
        7 => json!("x".repeat(below(chance, 6_000))),
        8 => json!(char::from_u32(below(chance, 0x11_0000) as u32).unwrap_or('\u{fffd}').to_string()),
        9 => json!(vec![*pick(chance, &HOSTS); below(chance, 40)]),
        10 => json!(pick(chance, &HOSTS)),
        11 => json!(pick(chance, &PATHS)),
        12 => json!(pick(chance, &NAMES)),
        _ => {
            let path = json!({ "path": pick(chance, &PATHS), "pathType": "Prefix", "backend": { "service": { "name": "web", "port": { "number": 80 } } } });
            json!(vec![path; below(chance, 60)])
        }
    }
}

fn visit(value: &mut Value, act: &mut impl FnMut(&mut Value)) {
    act(value);
    match value {
        Value::Array(list) => list.iter_mut().for_each(|item| visit(item, act)),
        Value::Object(fields) => fields.values_mut().for_each(|item| visit(item, act)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn mutated_ingresses_do_nothing_to_others() {
        let tally = run(1, 20_000).unwrap();
        // They got somewhere: neither all refused nor all the same.
        assert!(tally.read > 5_000 && tally.routed > 2_000 && tally.problems > 10, "{tally:?}");
    }

    #[test]
    fn a_victim_that_suffers_is_noticed() {
        let mut stage = Stage::new().unwrap();
        let older = json!({
            "metadata": { "name": "older", "namespace": HOSTILE, "creationTimestamp": "2020-01-01T00:00:00Z" },
            "spec": { "rules": [{ "host": "victim.example", "http": { "paths": [
                { "path": "/", "pathType": "Prefix", "backend": { "service": { "name": "web", "port": { "number": 80 } } } },
            ]}}]},
        });
        assert!(stage.take(Change::Upsert(Object::Ingress(ingress(older).unwrap()))).is_err());
    }
}
