//! Ingresses against a real API server: what is read, who may read it, what is written back.

use anyhow::{Context, Result, bail, ensure};
use lab::apiserver::{ApiServer, USER};
use lab::wait::until;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use weir::args::Task;
use weir::datapath::{Capacity, sim::Sim};
use weir::problem::ObjectKey;
use weir::source::kube::{ClientOptions, IngressOptions, KubeOptions, KubeSource};
use weir::source::{Batch, Objects, SecretState};

const PATIENCE: Duration = Duration::from_secs(90);
const NETWORKING: &str = "networking.k8s.io/v1";

/// A folder of its own for one agent.
fn folder(name: &str) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("weir-api-ingress-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A whole agent but for the kernel: it asks the API server as a node's would.
struct Agent {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
    folder: PathBuf,
}

impl Agent {
    fn start(server: &ApiServer, node: &str) -> Result<Self> {
        let folder = folder(node)?;
        let kubeconfig = server.kubeconfig();
        let state = folder.display().to_string();
        let arguments = [
            "weir",
            "run",
            "--l4=off",
            "--node-name",
            node,
            "--state-dir",
            &state,
            "--healthz-listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0",
            "--kubeconfig",
        ];
        let arguments = arguments.iter().map(Into::into).chain([kubeconfig.into_os_string()]);
        let Task::Run(config) = weir::args::parse(arguments)? else { bail!("not a run") };
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let open = || Ok(Box::new(Sim::new(Capacity::SMALL)) as Box<dyn weir::datapath::Datapath>);
            let ended = runtime.block_on(weir::agent::serve(*config, open, async { drop(stopped.await) }));
            runtime.shutdown_background();
            ended
        });
        Ok(Self { stop: Some(stop), thread: Some(thread), folder })
    }

    /// Stops it as SIGTERM does.
    fn stop(&mut self) -> Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => bail!("the agent panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("the agent: {error:#}");
        }
        // What is left of it is in nobody's way.
        let _left = std::fs::remove_dir_all(&self.folder);
    }
}

fn class(name: &str, controller: &str) -> Value {
    json!({ "apiVersion": NETWORKING, "kind": "IngressClass", "metadata": { "name": name },
        "spec": { "controller": controller } })
}

fn ingress(name: &str, class: &str, host: &str) -> Value {
    let backend = json!({ "service": { "name": "web", "port": { "number": 80 } } });
    json!({ "apiVersion": NETWORKING, "kind": "Ingress", "metadata": { "name": name },
        "spec": { "ingressClassName": class,
            "rules": [{ "host": host, "http": { "paths": [{ "path": "/", "pathType": "Prefix", "backend": backend }] } }],
            "tls": [{ "hosts": [host], "secretName": "missing" }] } })
}

/// The addresses in an Ingress' status.
fn addresses(server: &ApiServer, name: &str) -> Result<Vec<String>> {
    let ingress = server.get(NETWORKING, "Ingress", "default", name)?.context("it is gone")?;
    let list = ingress["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    Ok(list.iter().map(|entry| entry["ip"].as_str().unwrap_or_default().to_owned()).collect())
}

fn wait_addresses(server: &ApiServer, name: &str, wanted: &[&str], within: Duration) -> Result<()> {
    until(&format!("status of {name}"), within, || {
        let found = addresses(server, name)?;
        ensure!(found == wanted, "it is {found:?}, wanted {wanted:?}");
        Ok(())
    })
}

/// Events about an Ingress, as `Type Reason`.
fn events(server: &ApiServer, name: &str) -> Result<Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = server.list("events.k8s.io/v1", "Event", "default", "")?;
    let about = list
        .iter()
        .filter(|event| event["regarding"]["name"] == name && event["regarding"]["kind"] == "Ingress");
    let mut found: Vec<String> =
        about.map(|event| format!("{} {}", text(&event["type"]), text(&event["reason"]))).collect();
    found.sort();
    Ok(found)
}

#[test]
fn statuses_and_events_are_written_by_one_agent_handed_on_and_taken_away() -> Result<()> {
    let server = ApiServer::start()?;
    server.create_node("node-a", &["192.0.2.1".parse()?])?;
    server.create_node("node-b", &["192.0.2.2".parse()?])?;
    // Where Ingress is not served.
    server.create_node("node-c", &["192.0.2.3".parse()?])?;
    let serves = |serves: &str| {
        let labels = json!({ "weir.dev/l7": serves });
        server.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-c", "labels": labels } }))
    };
    serves("off")?;
    server.apply(&class("weir", "weir.dev/ingress"))?;
    server.apply(&class("other", "example.com/other"))?;
    server.apply(&ingress("ours", "weir", "ours.example"))?;
    let mut foreign = ingress("foreign", "other", "foreign.example");
    foreign["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } });
    server.apply(&foreign)?;

    let mut first = Agent::start(&server, "node-a")?;
    wait_addresses(&server, "ours", &["192.0.2.1", "192.0.2.2"], PATIENCE)?;
    until("events", PATIENCE, || {
        let found = events(&server, "ours")?;
        ensure!(found.contains(&"Normal Sync".to_owned()), "{found:?}");
        ensure!(found.contains(&"Warning BadCertificate".to_owned()), "{found:?}");
        Ok(())
    })?;
    let told = events(&server, "ours")?;

    serves("on")?;
    wait_addresses(&server, "ours", &["192.0.2.1", "192.0.2.2", "192.0.2.3"], PATIENCE)?;
    serves("off")?;
    wait_addresses(&server, "ours", &["192.0.2.1", "192.0.2.2"], PATIENCE)?;

    // A node that is not ready any more is nobody's address.
    server.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-b" },
        "status": { "conditions": [{ "type": "Ready", "status": "False" }] } }))?;
    wait_addresses(&server, "ours", &["192.0.2.1"], PATIENCE)?;

    // The second agent takes over, and nothing is taken away or said again.
    let mut second = Agent::start(&server, "node-b")?;
    let lease = || -> Result<String> {
        let lease = server.get("coordination.k8s.io/v1", "Lease", "default", "weir-status")?;
        let holder =
            lease.context("no Lease")?["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        Ok(holder.split('_').next().unwrap_or_default().to_owned())
    };
    ensure!(lease()? == "node-a", "the first one holds the Lease");
    // It is a candidate once it has listed everything; its socket says so.
    until("the second agent", PATIENCE, || {
        ensure!(second.folder.join("admin.sock").exists(), "it has not started");
        Ok(())
    })?;
    let stopping = Instant::now();
    first.stop()?;
    until("the hand-over", PATIENCE, || {
        let holder = lease()?;
        ensure!(holder == "node-b", "{holder:?} holds the Lease");
        Ok(())
    })?;
    println!("handed over after {:?}", stopping.elapsed());
    ensure!(addresses(&server, "ours")? == ["192.0.2.1"], "statuses outlive the first agent");

    // Another class: ours goes; what another controller wrote stays, though it is the same.
    server.apply(&ingress("ours", "other", "ours.example"))?;
    wait_addresses(&server, "ours", &[], PATIENCE)?;
    ensure!(addresses(&server, "foreign")? == ["192.0.2.1"], "not ours to touch");
    ensure!(events(&server, "ours")? == told, "said once: {:?}", events(&server, "ours")?);
    ensure!(events(&server, "foreign")?.is_empty());
    server.apply(&ingress("ours", "weir", "ours.example"))?;
    wait_addresses(&server, "ours", &["192.0.2.1"], PATIENCE)?;

    // The last one takes its own away.
    second.stop()?;
    wait_addresses(&server, "ours", &[], Duration::from_secs(1))?;
    ensure!(addresses(&server, "foreign")? == ["192.0.2.1"]);
    Ok(())
}

/// The API server source alone, and what an agent would know by it.
struct Source {
    runtime: tokio::runtime::Runtime,
    wanted: watch::Sender<BTreeSet<ObjectKey>>,
    batches: mpsc::Receiver<Batch>,
    objects: Objects,
    folder: PathBuf,
}

impl Drop for Source {
    fn drop(&mut self) {
        // What is left of it is in nobody's way.
        let _left = std::fs::remove_dir_all(&self.folder);
    }
}

impl Source {
    fn start(kubeconfig: &Path, name: &str) -> Result<Self> {
        let folder = folder(name)?;
        let client = ClientOptions {
            kubeconfig: Some(kubeconfig.to_owned()),
            apiserver: None,
            kubelet_kubeconfig: folder.join("none"),
            state_dir: folder.clone(),
        };
        let (wanted, secrets) = watch::channel(BTreeSet::new());
        let ingress = Some(IngressOptions { namespace: None, secrets });
        let source = KubeSource::new(KubeOptions { client, node_name: "node-a".into(), ingress });
        let (sender, batches) = mpsc::channel(16);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.spawn(source.run(sender, Arc::default()));
        Ok(Self { runtime, wanted, batches, objects: Objects::new("node-a"), folder })
    }

    /// Follows the source until it says what is waited for.
    fn until(&mut self, what: &str, done: impl Fn(&Objects) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !done(&self.objects) {
            let left = end.saturating_duration_since(Instant::now());
            let next = async { tokio::time::timeout(left, self.batches.recv()).await };
            let batch = self.runtime.block_on(next).with_context(|| format!("{what}: {:?}", self.objects))?;
            self.objects.apply_all(batch.context("the source ended")?);
        }
        Ok(())
    }
}

/// Lets [`USER`] read these.
fn allow(server: &ApiServer, name: &str, group: &str, resources: &[&str]) -> Result<()> {
    let rbac = "rbac.authorization.k8s.io";
    server.apply(
        &json!({ "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": { "name": name },
        "rules": [{ "apiGroups": [group], "resources": resources, "verbs": ["list", "watch"] }] }),
    )?;
    server.apply(&json!({ "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": { "name": name },
        "roleRef": { "apiGroup": rbac, "kind": "ClusterRole", "name": name },
        "subjects": [{ "apiGroup": rbac, "kind": "User", "name": USER }] }))?;
    Ok(())
}

#[test]
fn an_agent_that_may_not_read_ingresses_reads_services_until_it_may() -> Result<()> {
    let server = ApiServer::start()?;
    server.create_node("node-a", &["192.0.2.1".parse()?])?;
    server.apply(&class("weir", "weir.dev/ingress"))?;
    server.apply(&ingress("ours", "weir", "ours.example"))?;
    server.apply(&json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "ports": [{ "port": 80 }] } }))?;
    allow(&server, "l4", "", &["services", "nodes", "pods"])?;
    allow(&server, "l4-slices", "discovery.k8s.io", &["endpointslices"])?;
    let mut source = Source::start(&server.user_kubeconfig(), "refused")?;
    let web = ObjectKey::new("default", "web");
    let told = |objects: &Objects| {
        let mut problems = objects.source_problems.iter();
        problems.any(|problem| problem.reason.contains("refuses Ingress (403)"))
    };
    source.until("Services and a problem", |objects| objects.ready_l4() && told(objects))?;
    ensure!(source.objects.services.contains_key(&web) && !source.objects.ready_l7());

    // Services go on while Ingresses are refused.
    server.delete("v1", "Service", "default", "web")?;
    source.until("the Service is gone", |objects| !objects.services.contains_key(&web))?;

    allow(&server, "l7", "networking.k8s.io", &["ingresses", "ingressclasses"])?;
    source.until("Ingresses, by itself", |objects| objects.ready_l7() && !told(objects))?;
    ensure!(source.objects.ingresses.contains_key(&ObjectKey::new("default", "ours")));

    // A Secret is refused by name: known to be unreadable, not awaited for ever.
    let tls = ObjectKey::new("default", "tls");
    source.wanted.send_replace([tls.clone()].into());
    source.until("a refused Secret", |objects| matches!(objects.secret(&tls), SecretState::Missing(_)))?;
    let SecretState::Missing(reason) = source.objects.secret(&tls) else { bail!("it is known") };
    ensure!(reason.contains("refuses Secret (403)"), "{reason}");
    Ok(())
}

#[test]
fn a_needed_secret_is_followed_by_its_name_alone() -> Result<()> {
    let mut server = ApiServer::start()?;
    let secret = |name: &str, certificate: &str| {
        json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": { "name": name },
            "stringData": { "tls.crt": certificate, "tls.key": "key" } })
    };
    server.apply(&secret("other", "never read"))?;
    let mut source = Source::start(&server.kubeconfig(), "secrets")?;
    let tls = ObjectKey::new("default", "tls");
    source.wanted.send_replace([tls.clone()].into());
    source.until("that there is none", |objects| matches!(objects.secret(&tls), SecretState::Missing(_)))?;
    let is = |certificate: &'static str| {
        let tls = tls.clone();
        move |objects: &Objects| {
            let secret = objects.secrets.get(&tls);
            secret.and_then(|secret| secret.certificate.as_deref()) == Some(certificate.as_bytes())
        }
    };
    server.apply(&secret("tls", "one"))?;
    source.until("the Secret", is("one"))?;
    let changed = Instant::now();
    server.apply(&secret("tls", "two"))?;
    source.until("its change", is("two"))?;
    ensure!(changed.elapsed() < Duration::from_secs(1), "after {:?} (I32)", changed.elapsed());

    // The API server goes and comes back: what is known stays, then what is new is seen.
    server.kill_api();
    server.restart_api()?;
    server.apply(&secret("tls", "three"))?;
    source.until("a change after the outage", is("three"))?;

    server.delete("v1", "Secret", "default", "tls")?;
    source.until("that it is gone", |objects| matches!(objects.secret(&tls), SecretState::Missing(_)))?;
    server.apply(&secret("tls", "four"))?;
    source.until("that it is back", is("four"))?;
    source.wanted.send_replace(BTreeSet::new());
    source.until("that it is forgotten", |objects| objects.secrets.is_empty())?;
    ensure!(source.objects.secret(&tls) == SecretState::Awaited);
    Ok(())
}
