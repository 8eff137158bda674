//! Ingresses, their classes and Secrets from an API server that a test plays.

use super::*;
use crate::source::{Objects, SecretState};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch as channel};
use tokio::task::{JoinHandle, JoinSet};

const PATIENCE: Duration = Duration::from_secs(20);

/// One change of a Secret: its number, what happened, the object.
type Event = (u64, &'static str, Value);

/// What the server has, and what it was asked for.
#[derive(Default)]
struct World {
    secrets: BTreeMap<ObjectKey, Value>,
    events: Vec<Event>,
    /// Resources that are refused, and with which status.
    refused: BTreeMap<&'static str, u16>,
    /// A namespace whose Secrets may be read by name alone.
    by_name_only: Option<&'static str>,
    asked: Vec<String>,
}

struct Fake {
    address: String,
    world: Arc<Mutex<World>>,
    changed: channel::Sender<u64>,
    serving: JoinHandle<()>,
}

/// Which Secrets a request is for.
fn matches(request: &str, secret: &Value) -> bool {
    let (path, query) = request.split_once('?').unwrap_or((request, ""));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let in_namespace = path.contains(&format!("/namespaces/{}/", text(&secret["metadata"]["namespace"])));
    let by_name =
        query.contains(&format!("fieldSelector=metadata.name%3D{}", text(&secret["metadata"]["name"])));
    let by_type =
        query.contains("fieldSelector=type%3Dkubernetes.io%2Ftls") && secret["type"] == "kubernetes.io/tls";
    // A name is followed by the next parameter or the end, or another name would match too.
    let name_ends = !by_name || {
        let end = format!("metadata.name%3D{}", text(&secret["metadata"]["name"]));
        query.split('&').any(|part| part.ends_with(&end))
    };
    in_namespace && ((by_name && name_ends) || by_type)
}

async fn serve(
    mut stream: TcpStream,
    world: Arc<Mutex<World>>,
    mut changed: channel::Receiver<u64>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let request = head.split(' ').nth(1).unwrap_or_default();
    let (path, query) = request.split_once('?').unwrap_or((request, ""));
    let resource = path.rsplit('/').next().unwrap_or_default();
    let locked = || world.lock().unwrap_or_else(PoisonError::into_inner);
    locked().asked.push(request.to_owned());
    let is_list =
        |namespace: &str| path.contains(&format!("/{namespace}/secrets")) && !query.contains("metadata.name");
    let forbidden = locked().by_name_only.is_some_and(is_list).then_some(403);
    let refused = forbidden.or_else(|| locked().refused.get(resource).copied());
    if let Some(code) = refused {
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "message": format!("{resource} is not for you")});
        return answer(stream, code, &body).await;
    }
    if query.contains("watch=true") {
        let from = query.split('&').find_map(|part| part.strip_prefix("resourceVersion="));
        let mut seen = from.and_then(|from| from.parse().ok()).unwrap_or(0);
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head).await?;
        loop {
            let events: Vec<Event> = locked().events.iter().filter(|event| event.0 > seen).cloned().collect();
            for (number, kind, object) in events {
                seen = number;
                if resource == "secrets" && matches(request, &object) {
                    let line = format!("{}\n", json!({"type": kind, "object": object}));
                    stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await?;
                }
            }
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
    let ingress = json!({"metadata": {"name": "web", "namespace": "shop", "resourceVersion": "1"},
        "spec": {"ingressClassName": "weir", "rules": [{"host": "a.example"}]}});
    let class = json!({"metadata": {"name": "weir", "resourceVersion": "1"}, "spec": {"controller": "weir.dev/ingress"}});
    let node = json!({"metadata": {"name": "node-1", "resourceVersion": "1"}});
    let namespaces = [
        json!({"metadata": {"name": "shop", "resourceVersion": "1"}}),
        json!({"metadata": {"name": "old", "resourceVersion": "1", "deletionTimestamp": "2026-01-02T03:04:05Z"}}),
    ];
    let (items, version) = {
        let world = locked();
        let items = match resource {
            "secrets" => world.secrets.values().filter(|secret| matches(request, secret)).cloned().collect(),
            "ingresses" => vec![ingress],
            "ingressclasses" => vec![class],
            "nodes" => vec![node],
            "namespaces" => namespaces.into(),
            _ => Vec::new(),
        };
        (items, world.events.len())
    };
    let body = match resource {
        "version" => json!({"major": "1", "minor": "36", "gitVersion": "v1.36.3", "gitCommit": "",
            "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}),
        _ => {
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version.to_string()}, "items": items})
        }
    };
    answer(stream, 200, &body).await
}

async fn answer(mut stream: TcpStream, code: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    stream.shutdown().await
}

impl Fake {
    async fn start(refused: &[(&'static str, u16)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let world =
            Arc::new(Mutex::new(World { refused: refused.iter().copied().collect(), ..World::default() }));
        let (changed, listen) = channel::channel(0);
        let serving = tokio::spawn({
            let world = Arc::clone(&world);
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(serve(stream, Arc::clone(&world), listen.clone()));
                }
            }
        });
        Self { address, world, changed, serving }
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, namespace: &str, name: &str, certificate: &str) {
        let mut world = self.world();
        let number = world.events.len() as u64 + 1;
        let secret = json!({"metadata": {"namespace": namespace, "name": name, "resourceVersion": number.to_string()},
            "type": "kubernetes.io/tls", "data": {"tls.crt": certificate, "tls.key": "S0VZ"}});
        let old = world.secrets.insert(ObjectKey::new(namespace, name), secret.clone());
        world.events.push((number, if old.is_some() { "MODIFIED" } else { "ADDED" }, secret));
        drop(world);
        self.changed.send_replace(number);
    }

    fn remove(&self, namespace: &str, name: &str) {
        let mut world = self.world();
        let number = world.events.len() as u64 + 1;
        let secret = world.secrets.remove(&ObjectKey::new(namespace, name)).expect("it is there");
        world.events.push((number, "DELETED", secret));
        drop(world);
        self.changed.send_replace(number);
    }

    /// Requests for Secrets so far, lists and watches.
    fn asked(&self, resource: &str) -> Vec<String> {
        let world = self.world();
        world.asked.iter().filter(|request| request.contains(&format!("/{resource}?"))).cloned().collect()
    }
}

/// A source over a fake server, and what the agent would know.
struct Bench {
    fake: Fake,
    wanted: channel::Sender<BTreeSet<ObjectKey>>,
    objects: Objects,
    batches: mpsc::Receiver<crate::source::Batch>,
    running: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.running.abort();
        self.fake.serving.abort();
    }
}

impl Bench {
    async fn new(namespace: Option<&str>, refused: &[(&'static str, u16)]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let fake = Fake::start(refused).await;
        let client = ClientOptions {
            kubeconfig: None,
            apiserver: Some(fake.address.clone()),
            kubelet_kubeconfig: dir.path().join("none"),
            state_dir: dir.path().join("state"),
        };
        let (wanted, secrets) = channel::channel(BTreeSet::new());
        let ingress = Some(IngressOptions { namespace: namespace.map(str::to_owned), secrets });
        let source = KubeSource::new(KubeOptions { client, node_name: "node-1".into(), ingress });
        let (tx, batches) = mpsc::channel(16);
        let running = tokio::spawn(source.run(tx, Arc::default()));
        Self { fake, wanted, objects: Objects::new("node-1"), batches, running, _dir: dir }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Objects) -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while !done(&self.objects) {
            let batch = tokio::time::timeout_at(end, self.batches.recv()).await;
            let batch = batch.unwrap_or_else(|_| panic!("{what}: {:?}", self.objects)).expect("a batch");
            self.objects.apply_all(batch);
        }
    }

    fn want(&self, keys: impl IntoIterator<Item = ObjectKey>) {
        self.wanted.send_replace(keys.into_iter().collect());
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn certificate<'a>(objects: &'a Objects, key: &ObjectKey) -> Option<&'a [u8]> {
    objects.secrets.get(key).and_then(|secret| secret.certificate.as_deref())
}

#[tokio::test]
async fn a_refused_ingress_watch_is_told_and_stops_no_service() {
    for code in [403, 404] {
        let mut bench = Bench::new(None, &[("ingresses", code)]).await;
        bench
            .until("Services and the problem", |objects| {
                objects.ready_l4()
                    && objects.listed.contains(&Kind::IngressClass)
                    && !objects.source_problems.is_empty()
            })
            .await;
        assert!(!bench.objects.ready_l7());
        let problem = &bench.objects.source_problems[0];
        assert_eq!(problem.object.to_string(), "Agent watch of Ingress");
        let expected = format!("refuses Ingress ({code}): ingresses is not for you");
        assert!(problem.reason.contains(&expected), "{}", problem.reason);
    }
}

#[tokio::test]
async fn ingresses_are_watched_in_the_namespace_that_was_asked_for() {
    let mut bench = Bench::new(Some("shop"), &[]).await;
    bench.until("routes' kinds", Objects::ready_l7).await;
    assert_eq!(bench.objects.ingresses[&key("web")].class.as_deref(), Some("weir"));
    assert_eq!(bench.objects.ingress_classes["weir"].controller, "weir.dev/ingress");
    let asked = bench.fake.asked("ingresses");
    assert!(!asked.is_empty());
    let place = "/apis/networking.k8s.io/v1/namespaces/shop/ingresses?";
    assert!(asked.iter().all(|request| request.starts_with(place)), "{asked:?}");
    assert!(bench.fake.asked("secrets").is_empty(), "nobody needs one");
    bench.until("no Namespace", |objects| objects.listed.contains(&Kind::Namespace)).await;
    assert!(bench.fake.asked("namespaces").is_empty(), "all Ingresses are of one");
    // Headless Services are served too (I19), and so are another L4 proxy's.
    for kind in ["services", "endpointslices"] {
        let asked = bench.fake.asked(kind);
        assert!(!asked.is_empty() && asked.iter().all(|request| !request.contains("Selector")), "{asked:?}");
    }
}

#[tokio::test]
async fn namespaces_that_are_being_deleted_are_known() {
    let mut bench = Bench::new(None, &[]).await;
    bench.until("Namespaces", |objects| objects.listed.contains(&Kind::Namespace)).await;
    assert_eq!(bench.objects.ending_namespaces, ["old".to_owned()].into());
    // Without the right to see them everything else goes on.
    let mut bench = Bench::new(None, &[("namespaces", 403)]).await;
    bench
        .until("Ingresses and the problem", |objects| {
            objects.ready_l7() && !objects.source_problems.is_empty()
        })
        .await;
    assert_eq!(bench.objects.source_problems[0].object.to_string(), "Agent watch of Namespace");
}

#[tokio::test]
async fn needed_secrets_are_read_by_name_and_forgotten_when_nobody_needs_them() {
    let mut bench = Bench::new(None, &[]).await;
    bench.fake.put("shop", "one", "T05F");
    bench.fake.put("shop", "one-more", "T05F");
    bench.fake.put("other", "one", "T05F");
    bench.want([key("one"), key("none")]);
    bench
        .until("both answers", |objects| {
            objects.secret(&key("none")) != SecretState::Awaited && objects.secrets.len() == 1
        })
        .await;
    assert_eq!(certificate(&bench.objects, &key("one")), Some(&b"ONE"[..]));
    assert!(matches!(bench.objects.secret(&key("none")), SecretState::Missing(_)));
    assert_eq!(bench.objects.secret(&key("one-more")), SecretState::Awaited, "nobody asked for it");
    let asked = bench.fake.asked("secrets");
    let by_name = |request: &String| {
        request.contains("namespaces/shop/") && request.contains("fieldSelector=metadata.name%3D")
    };
    assert!(asked.iter().all(by_name), "{asked:?}");

    bench.fake.put("shop", "one", "VFdP");
    bench.fake.put("shop", "none", "TkVX");
    let second = tokio::time::timeout(
        Duration::from_secs(1),
        bench.until("the changes", |objects| {
            certificate(objects, &key("one")) == Some(b"TWO")
                && certificate(objects, &key("none")) == Some(b"NEW")
        }),
    );
    second.await.expect("within a second (I32)");
    bench.fake.remove("shop", "none");
    bench
        .until("that it is gone", |objects| matches!(objects.secret(&key("none")), SecretState::Missing(_)))
        .await;

    bench.want([key("one-more")]);
    bench
        .until("the other one", |objects| {
            objects.secrets.len() == 1
                && objects.missing_secrets.is_empty()
                && objects.secrets.contains_key(&key("one-more"))
        })
        .await;
    // What nobody needs any more is not heard of again either.
    bench.fake.put("shop", "one", "T05F");
    bench.fake.put("shop", "one-more", "TEFTVA==");
    bench.until("the last change", |objects| certificate(objects, &key("one-more")) == Some(b"LAST")).await;
    assert_eq!(bench.objects.secrets.len(), 1);
}

#[tokio::test]
async fn a_secret_that_may_not_be_read_is_not_waited_for() {
    let mut bench = Bench::new(None, &[("secrets", 403)]).await;
    bench.want([key("one")]);
    bench
        .until("the answer", |objects| {
            objects.secret(&key("one")) != SecretState::Awaited && !objects.source_problems.is_empty()
        })
        .await;
    let SecretState::Missing(reason) = bench.objects.secret(&key("one")) else { panic!("it is known") };
    assert!(reason.contains("refuses Secret (403)"), "{reason}");
    assert_eq!(bench.objects.source_problems[0].object.to_string(), "Agent watch of Secret shop/one");
    // Allowed meanwhile: it recovers by itself, and the problem goes.
    bench.fake.world().refused.clear();
    bench.fake.put("shop", "one", "T05F");
    bench.until("the Secret", |objects| certificate(objects, &key("one")) == Some(b"ONE")).await;
    bench.until("no problem", |objects| objects.source_problems.is_empty()).await;
}

#[tokio::test]
async fn many_needed_secrets_of_a_namespace_are_read_by_namespace() {
    let mut bench = Bench::new(None, &[]).await;
    let keys: Vec<ObjectKey> = (0..201).map(|n| key(&format!("s{n}"))).collect();
    for key in &keys[1..] {
        bench.fake.put("shop", &key.name, "T05F");
    }
    bench.fake.put("shop", "unneeded", "T05F");
    // Another namespace has no part in that.
    let other = ObjectKey::new("other", "one");
    bench.fake.put("other", "one", "T05F");
    bench.want(keys.iter().cloned().chain([other.clone()]));
    bench
        .until("all of them", |objects| objects.secrets.len() == 201 && objects.missing_secrets.len() == 1)
        .await;
    assert!(matches!(bench.objects.secret(&keys[0]), SecretState::Missing(_)));
    let asked = bench.fake.asked("secrets");
    assert!(asked.len() <= 8, "two lists, two watches, and little more: {asked:?}");
    assert!(
        asked.iter().all(|request| {
            let by_name = request.contains("fieldSelector=metadata.name%3Done");
            let by_type = request.contains("fieldSelector=type%3Dkubernetes.io%2Ftls");
            if request.contains("/namespaces/other/") { by_name } else { by_type }
        }),
        "{asked:?}"
    );
    bench.want(keys.iter().cloned());
    bench.until("those of one", |objects| !objects.secrets.contains_key(&other)).await;

    // One more of the same namespace is listed anew, one that nobody needs goes at once.
    bench.want(keys[2..].iter().cloned().chain([key("unneeded")]));
    bench
        .until("one for the other", |objects| {
            objects.secrets.contains_key(&key("unneeded")) && objects.secrets.len() == 200
        })
        .await;
    assert!(bench.objects.missing_secrets.is_empty());
    // Few again: by name again.
    bench.want([keys[2].clone()]);
    bench.until("only one", |objects| objects.secrets.len() == 1).await;
    bench.fake.put(&keys[2].namespace, &keys[2].name, "VFdP");
    bench.until("its change", |objects| certificate(objects, &keys[2]) == Some(b"TWO")).await;
    let asked = bench.fake.asked("secrets");
    assert!(
        asked.last().is_some_and(
            |request| request.contains("metadata.name%3Ds2&") || request.ends_with("metadata.name%3Ds2")
        ),
        "{asked:?}"
    );
}

#[tokio::test]
async fn where_a_namespace_may_not_be_listed_many_are_read_by_name() {
    let mut bench = Bench::new(None, &[]).await;
    bench.fake.world().by_name_only = Some("shop");
    let keys: Vec<ObjectKey> = (0..205).map(|n| key(&format!("s{n:03}"))).collect();
    for key in &keys[1..] {
        bench.fake.put("shop", &key.name, "T05F");
    }
    bench.want(keys.iter().cloned());
    let all = |objects: &Objects| {
        objects.secrets.len() == 204 && objects.secret(&key("s000")) != SecretState::Awaited
    };
    bench.until("all of them", all).await;
    assert!(matches!(bench.objects.secret(&keys[0]), SecretState::Missing(_)));
    bench.fake.put("shop", "s204", "VFdP");
    bench.until("a renewal", |objects| certificate(objects, &keys[204]) == Some(b"TWO")).await;
    let lists = bench.fake.asked("secrets").iter().filter(|request| request.contains("type%3D")).count();
    assert_eq!(lists, 1, "forbidden once, and not asked for again");
    assert!(bench.objects.source_problems.is_empty());
}

#[tokio::test]
async fn what_nobody_needs_is_forgotten_without_a_server_too() {
    let mut bench = Bench::new(None, &[]).await;
    bench.fake.put("shop", "one", "T05F");
    bench.fake.put("shop", "two", "T05F");
    bench.want([key("one"), key("two")]);
    bench.until("both", |objects| objects.secrets.len() == 2).await;
    bench.fake.serving.abort();
    bench
        .until("that nobody answers", |objects| {
            objects.source_problems.iter().any(|problem| problem.reason.contains("no API server answers"))
        })
        .await;
    assert_eq!(bench.objects.secrets.len(), 2, "what is known stays (S81)");
    bench.want([key("two")]);
    bench.until("one", |objects| objects.secrets.len() == 1).await;
    assert!(bench.objects.secrets.contains_key(&key("two")));
}
