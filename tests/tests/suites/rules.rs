//! The rules of the Ingress API, asked from outside (I4, I6 to I12, I14, I15, I17, I28, I39, I48,
//! I69): Deployments that the real controllers turn into pods, Ingresses that say by their status
//! where they are served. Hosts, paths, default backends, classes, certificates, and how requests
//! spread; what the upstream suite asks (`cargo xtask test conformance`) is asked here as well.

use lab::agent::{Agent, Setup};
use lab::apiserver::{ApiServer, Place};
use lab::authority::Authority;
use lab::kubelet::Kubelet;
use lab::manifests::{demo_dir, kind, read_dir};
use lab::topology::{self, NODE2, Topology};
use lab::wait;
use lab::web::{Fetch, Fetched, Version};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

const NAMESPACE: &str = "rules";
const PATIENCE: Duration = Duration::from_secs(60);

/// A Deployment of the lab's server and its Service.
fn backend(service: &str, port_name: &str) -> [Value; 2] {
    let labels = json!({ "app": service });
    let from = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    [
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "namespace": NAMESPACE, "name": service },
            "spec": {
                "replicas": 1, "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": { "containers": [{
                    "name": "server", "image": "example.com/server:1",
                    "ports": [{ "name": "web", "containerPort": 3000 }],
                    "env": [
                        { "name": "POD_NAME", "valueFrom": from("metadata.name") },
                        { "name": "NAMESPACE", "valueFrom": from("metadata.namespace") },
                        { "name": "SERVICE_NAME", "value": service },
                    ],
                }] } },
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": NAMESPACE, "name": service },
            "spec": {
                "selector": labels,
                "ports": [{ "name": port_name, "port": 8080, "targetPort": "web" }],
            },
        }),
    ]
}

/// By the port's number, and once by its name.
fn service(name: &str) -> Value {
    let port = if name == "named" { json!({ "name": "http" }) } else { json!({ "number": 8080 }) };
    json!({ "service": { "name": name, "port": port } })
}

fn rule(host: &str, paths: &[(&str, &str, &str)]) -> Value {
    let paths: Vec<Value> = paths
        .iter()
        .map(|(path, kind, name)| json!({ "path": path, "pathType": kind, "backend": service(name) }))
        .collect();
    json!({ "host": host, "http": { "paths": paths } })
}

fn ingress(name: &str, class: &str, spec: &Value) -> Value {
    ingress_in(NAMESPACE, name, class, spec)
}

fn ingress_in(namespace: &str, name: &str, class: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["ingressClassName"] = json!(class);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": { "namespace": namespace, "name": name }, "spec": spec,
    })
}

/// Who must answer, or with which status.
enum Expect {
    Service(&'static str),
    Status(u16),
}
use Expect::{Service, Status};

/// Host, path, who answers.
const ROWS: [(&str, &str, Expect); 25] = [
    // A host by its name, whatever its case; one label for a wildcard.
    ("named.test", "/", Service("named")),
    ("NAMED.test", "/any/path", Service("named")),
    ("named.test:80", "/", Service("named")),
    ("other.test", "/", Status(404)),
    ("sub.named.test", "/", Status(404)),
    ("one.wild.test", "/", Service("wild")),
    ("two.one.wild.test", "/", Status(404)),
    ("wild.test", "/", Status(404)),
    // Exact: byte by byte.
    ("exact.test", "/foo", Service("foo-exact")),
    ("exact.test", "/foo?a=/foo/", Service("foo-exact")),
    ("exact.test", "/foo/", Status(404)),
    ("exact.test", "/FOO", Status(404)),
    ("exact.test", "/bar", Status(404)),
    // Prefix: element by element, the longest wins, in whatever order they are written.
    ("prefix.test", "/foo", Service("foo")),
    ("prefix.test", "/foo/", Service("foo")),
    ("prefix.test", "/FOO", Status(404)),
    ("prefix.test", "/aaa/bbb", Service("aaa-bbb")),
    ("prefix.test", "/aaa/bbb/ccc", Service("aaa-bbb")),
    ("prefix.test", "/aaa/bbbccc", Service("aaa")),
    ("prefix.test", "/aaaccc", Status(404)),
    // Exact before Prefix for the same path.
    ("mixed.test", "/foo", Service("foo-exact")),
    ("mixed.test", "/foo/bar", Service("foo")),
    // A slash at the end: without meaning for Prefix, with meaning for Exact.
    ("slash.test", "/aaa/bbb", Service("aaa-bbb")),
    ("slash.test", "/aaa/bbb/", Service("aaa-bbb")),
    ("slash.test", "/foo", Status(404)),
];

/// One pod each.
const BACKENDS: [&str; 7] = ["named", "wild", "foo-exact", "foo", "aaa", "aaa-bbb", "fallback"];

struct Cluster<'a> {
    lab: &'a Topology,
    server: &'a ApiServer,
    kubelet: Kubelet<'a>,
}

impl Cluster<'_> {
    /// Waits while the kubelet goes on working.
    fn until<T>(&mut self, what: &str, mut f: impl FnMut(&ApiServer) -> anyhow::Result<T>) -> T {
        let (server, kubelet) = (self.server, &mut self.kubelet);
        wait::until(what, PATIENCE, || {
            kubelet.step()?;
            f(server)
        })
        .unwrap()
    }

    /// Waits for the address in an Ingress' status.
    fn address(&mut self, name: &str) -> IpAddr {
        self.address_in(NAMESPACE, name)
    }

    fn address_in(&mut self, namespace: &str, name: &str) -> IpAddr {
        self.until(&format!("an address of {namespace}/{name}"), |server| {
            let ingress = server.get("networking.k8s.io/v1", "Ingress", namespace, name)?;
            let ingress = ingress.unwrap_or_default();
            let ip = ingress.pointer("/status/loadBalancer/ingress/0/ip").and_then(Value::as_str);
            anyhow::ensure!(ip.is_some(), "status: {}", ingress["status"]);
            Ok(ip.unwrap_or_default().parse()?)
        })
    }

    fn fetch(&self, fetch: Fetch) -> Fetched {
        self.lab.at(&topology::Place::Outside).unwrap().fetch(fetch).unwrap()
    }
}

fn nodes_and_class(server: &ApiServer) {
    for node in read_dir(&demo_dir()).unwrap().iter().filter(|object| kind(object) == "Node") {
        server.apply(node).unwrap();
    }
    let class = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": { "name": "weir" }, "spec": { "controller": "weir.dev/ingress" },
    });
    server.apply(&class).unwrap();
    server.create_namespace(NAMESPACE).unwrap();
}

fn ingresses(server: &ApiServer) {
    let foo = ("/foo", "Prefix", "foo");
    let spec = json!({
        "tls": [{ "hosts": ["secure.test"], "secretName": "secure" }],
        "rules": [
            rule("named.test", &[("/", "Prefix", "named")]),
            rule("*.wild.test", &[("/", "Prefix", "wild")]),
            rule("exact.test", &[("/foo", "Exact", "foo-exact")]),
            rule("prefix.test", &[foo, ("/aaa/bbb", "Prefix", "aaa-bbb"), ("/aaa", "Prefix", "aaa")]),
            rule("mixed.test", &[foo, ("/foo", "Exact", "foo-exact")]),
            rule("slash.test", &[("/aaa/bbb/", "Prefix", "aaa-bbb"), ("/foo/", "Exact", "foo")]),
            rule("secure.test", &[("/", "Prefix", "named")]),
        ],
    });
    server.apply(&ingress("rules", "weir", &spec)).unwrap();
    let spec = json!({ "rules": [rule("foreign.test", &[("/", "Prefix", "named")])] });
    server.apply(&ingress("foreign", "somebody-elses", &spec)).unwrap();
}

#[test]
fn rules_of_ingress_hold_for_pods_of_deployments() {
    let lab = Topology::new(&[]).unwrap();
    let place = Place { netns: Some(lab.node2().path().to_owned()), address: NODE2.0.into() };
    let server = ApiServer::start_in(&place).unwrap();
    let authority = Authority::new().unwrap();
    nodes_and_class(&server);
    let mut secret = authority.secret("secure", &["secure.test"], 7).unwrap();
    secret["metadata"]["namespace"] = json!(NAMESPACE);
    server.apply(&secret).unwrap();
    for object in BACKENDS.iter().flat_map(|name| backend(name, "http")) {
        server.apply(&object).unwrap();
    }
    ingresses(&server);
    let agent = Agent::ready(&lab, Setup::kubeconfig(&server.kubeconfig())).unwrap();
    let kubelet = Kubelet::new(&server, &lab);
    let mut cluster = Cluster { lab: &lab, server: &server, kubelet };
    for name in BACKENDS {
        cluster.until(&format!("a pod of {name}"), |server| {
            anyhow::ensure!(server.ready_endpoints(NAMESPACE, name)?.len() == 1, "none is ready");
            Ok(())
        });
    }
    let ip = cluster.address("rules");

    let mut wrong = Vec::new();
    for (host, path, expect) in &ROWS {
        // The last endpoint may reach the proxy after the API server.
        let asked = wait::until("the answer", Duration::from_secs(5), || {
            let fetched = cluster.fetch(Fetch::http((ip, 80).into(), host, path));
            let service = fetched.seen().and_then(|seen| seen.service);
            match expect {
                Service(name) => anyhow::ensure!(service.as_deref() == Some(*name), "{fetched:?}"),
                Status(status) => anyhow::ensure!(fetched.status == Some(*status), "{fetched:?}"),
            }
            Ok(())
        });
        if let Err(error) = asked {
            wrong.push(format!("{host}{path}: {error:#}"));
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}\n{}", wrong.len(), wrong.join("\n"), agent.log());
    println!("{} rows", ROWS.len());
    // A proxy has said that it routes so (I70).
    cluster.until("the Event", |server| {
        let events = server.list("events.k8s.io/v1", "Event", NAMESPACE, "")?;
        let sync = |event: &Value| event["regarding"]["name"] == "rules" && event["reason"] == "Sync";
        anyhow::ensure!(events.iter().any(sync), "{events:?}");
        Ok(())
    });

    let secure = Fetch::https((ip, 443).into(), "secure.test", "/").trusting(authority.root());
    for version in [Version::One, Version::Two] {
        let fetched = cluster.fetch(secure.clone().over(version));
        assert_eq!(fetched.status, Some(200), "{fetched:?}");
        assert_eq!(fetched.certificate.unwrap().names, ["secure.test"]);
    }
    let moved = cluster.fetch(Fetch::http((ip, 80).into(), "secure.test", "/a?b"));
    assert_eq!((moved.status, moved.header("location")), (Some(308), Some("https://secure.test/a?b")));

    // Another controller's: no route, and no status from us.
    let fetched = cluster.fetch(Fetch::http((ip, 80).into(), "foreign.test", "/"));
    assert_eq!(fetched.status, Some(404), "{fetched:?}");
    let foreign = server.get("networking.k8s.io/v1", "Ingress", NAMESPACE, "foreign").unwrap().unwrap();
    assert!(foreign.pointer("/status/loadBalancer/ingress").is_none(), "{foreign}");

    catch_all(&mut cluster, ip);
    spread(&mut cluster, ip);
    succession(&mut cluster, ip);
}

/// An Ingress without rules takes what no host takes, with every method.
fn catch_all(cluster: &mut Cluster<'_>, ip: IpAddr) {
    let spec = json!({ "defaultBackend": service("fallback") });
    cluster.server.apply(&ingress("catch-all", "weir", &spec)).unwrap();
    assert_eq!(cluster.address("catch-all"), ip);
    // The status may be written before the routes have reached the proxy.
    wait::until("its first answer", PATIENCE, || {
        let fetched = cluster.fetch(Fetch::http((ip, 80).into(), "any.test", "/"));
        anyhow::ensure!(fetched.status == Some(200), "{fetched:?}");
        Ok(())
    })
    .unwrap();
    for (method, host, path) in [
        ("GET", "any.test", "/"),
        ("POST", "any.test", "/sub-path"),
        ("PUT", "172.30.0.1", "/resource"),
        ("DELETE", "any.test", "/resource"),
        ("PATCH", "any.test", "/resource"),
    ] {
        let fetched = cluster.fetch(Fetch::http((ip, 80).into(), host, path).method(method));
        let seen = fetched.seen().unwrap_or_else(|| panic!("{method} {host}{path}: {fetched:?}"));
        let saw = (seen.service.as_deref(), seen.method.as_str(), seen.path.as_str(), seen.proto.as_str());
        assert_eq!(saw, (Some("fallback"), method, path, "HTTP/1.1"));
        for name in ["server", "date", "content-type", "content-length"] {
            assert!(fetched.header(name).is_some(), "no {name}: {fetched:?}");
        }
    }
}

/// Ten pods, a hundred new connections: every pod is used.
fn spread(cluster: &mut Cluster<'_>, ip: IpAddr) {
    let mut deployment = backend("fallback", "http")[0].clone();
    deployment["spec"]["replicas"] = json!(10);
    cluster.server.apply(&deployment).unwrap();
    cluster.until("ten pods", |server| {
        let ready = server.ready_endpoints(NAMESPACE, "fallback")?;
        anyhow::ensure!(ready.len() == 10, "{} are ready", ready.len());
        Ok(())
    });
    let asked = || -> BTreeSet<String> {
        (0..100)
            .map(|_| cluster.fetch(Fetch::http((ip, 80).into(), "any.test", "/")).seen().unwrap().pod)
            .collect()
    };
    let used = wait::until("all pods are used", Duration::from_secs(10), || {
        let used = asked();
        anyhow::ensure!(used.len() == 10, "{} of 10: {used:?}", used.len());
        Ok(used)
    });
    used.unwrap();
}

/// A catch-all that is older keeps the newer one out, until its Namespace is being deleted: from
/// then on the newer one is served, though the older one stays for as long as a Pod of its own
/// does, and leads nowhere.
fn succession(cluster: &mut Cluster<'_>, ip: IpAddr) {
    const OLD: &str = "before";
    let server = cluster.server;
    let status = |cluster: &Cluster<'_>| cluster.fetch(Fetch::http((ip, 80).into(), "any.test", "/")).status;
    server.delete("networking.k8s.io/v1", "Ingress", NAMESPACE, "catch-all").unwrap();
    server.create_namespace(OLD).unwrap();
    server
        .apply(&ingress_in(OLD, "catch-all", "weir", &json!({ "defaultBackend": service("gone") })))
        .unwrap();
    assert_eq!(cluster.address_in(OLD, "catch-all"), ip);
    wait::until("its answer", PATIENCE, || {
        let found = status(cluster);
        anyhow::ensure!(found == Some(503), "{found:?}");
        Ok(())
    })
    .unwrap();
    server.apply(&ingress("catch-all", "weir", &json!({ "defaultBackend": service("fallback") }))).unwrap();
    assert_eq!(cluster.address("catch-all"), ip);
    assert_eq!(status(cluster), Some(503), "the older one holds it");

    // Nobody takes the finalizer away, so neither the Pod nor the Namespace goes.
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": OLD, "name": "stays", "finalizers": ["example.com/stays"] },
        "spec": { "containers": [{ "name": "main", "image": "none" }] },
    });
    server.apply(&pod).unwrap();
    server.delete("v1", "Namespace", "", OLD).unwrap();
    wait::until("the newer one's answer", PATIENCE, || {
        let found = status(cluster);
        anyhow::ensure!(found == Some(200), "{found:?}");
        Ok(())
    })
    .unwrap();
    let older = server.get("networking.k8s.io/v1", "Ingress", OLD, "catch-all").unwrap();
    assert!(older.is_some(), "it is gone: nothing was shown");
}
