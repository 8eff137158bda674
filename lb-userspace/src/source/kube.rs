//! Objects from the API server, by watches.
//!
//! Each kind is watched on its own, so that one that is refused stops no other; an object is
//! projected the moment it arrives. A relist is collected and sent as one replacement, so that
//! nothing shrinks while it runs (S8). When the server is away, what is known stays (S81) and
//! another address is tried.

use super::project::{self, MissingReady, Names};
use super::{Batches, Change, Object, Syncs};
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use ::kube::api::Api;
use ::kube::runtime::watcher;
use ::kube::{Client, Resource, ResourceExt};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1 as discovery;
use memory::Memory;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

mod connect;
mod memory;
mod watch;

pub use connect::{ClientOptions, connect};
pub use memory::{remember_endpoints, remembered_endpoints};

/// How long an API server may take to say who it is.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How often a server that says nothing is asked whether it is still there. A watch without
/// events looks the same whether the server lives or its host is gone.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// What to watch, and where.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KubeOptions {
    pub client: ClientOptions,
    /// Our Node, and whose Pods are ours.
    pub node_name: String,
}

/// The API server source.
#[derive(Debug)]
pub struct KubeSource {
    options: KubeOptions,
}

impl KubeSource {
    pub fn new(options: KubeOptions) -> Self {
        Self { options }
    }

    /// Sends what the API server has, then what changes there, until nobody listens.
    pub async fn run(self, tx: Batches, syncs: Arc<Syncs>) {
        let teller = Teller::new(tx.clone(), syncs, Memory::new(&self.options.client.state_dir));
        tokio::select! {
            () = self.follow(&teller) => {}
            () = tx.closed() => {}
        }
    }

    async fn follow(&self, teller: &Teller) {
        let mut backoff = Backoff::default();
        loop {
            match connect::connect_to(&self.options.client).await {
                Ok((client, address)) => {
                    tracing::info!(address, "connected to the API server");
                    teller.syncs.set_origin(address);
                    teller.tell("apiserver", None).await;
                    backoff.reset();
                    self.watch_all(client, teller).await;
                    tracing::warn!("the API server does not answer");
                }
                Err(error) => {
                    let reason = format!("no API server answers: {error:#}; what is known stays");
                    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::Pod] {
                        teller.syncs.failed(kind, reason.clone());
                    }
                    teller.tell("apiserver", Some(reason)).await;
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    /// Watches every kind until the server is gone.
    async fn watch_all(&self, client: Client, teller: &Teller) {
        let node = &self.options.node_name;
        let doubt = Notify::new();
        let watches = async {
            tokio::join!(
                watch::watch(
                    Kind::Service,
                    Api::<Service>::all(client.clone()),
                    // Another proxy's and headless ones are never even sent (S1).
                    watcher::Config::default()
                        .labels(&format!("!{}", project::PROXY_NAME_LABEL))
                        .fields("spec.clusterIP!=None"),
                    |service: Service| Ok(Object::Service(project::service(&service))),
                    &doubt,
                    teller,
                ),
                self.watch_slices(client.clone(), &doubt, teller),
                watch::watch(
                    Kind::Node,
                    Api::<Node>::all(client.clone()),
                    watcher::Config::default().fields(&format!("metadata.name={node}")),
                    |node: Node| Ok(Object::Node(project::node(&node))),
                    &doubt,
                    teller,
                ),
                watch::watch(
                    Kind::Pod,
                    Api::<Pod>::all(client.clone()),
                    watcher::Config::default().fields(&format!("spec.nodeName={node}")),
                    |pod: Pod| Ok(Object::Pod(project::pod(&pod, MissingReady::NotReady))),
                    &doubt,
                    teller,
                ),
            )
        };
        tokio::select! {
            _ = watches => {}
            () = until_dead(&client, &doubt) => {}
        }
    }

    async fn watch_slices(&self, client: Client, doubt: &Notify, teller: &Teller) {
        let mut names = Names::default();
        let project = |slice: discovery::EndpointSlice| match project::slice(&slice, &mut names) {
            Some(slice) => Ok(Object::EndpointSlice(slice)),
            // One that was ours and lost its label must be forgotten.
            None => Err(reference(Kind::EndpointSlice, &slice)),
        };
        watch::watch(
            Kind::EndpointSlice,
            Api::<discovery::EndpointSlice>::all(client),
            watcher::Config::default().labels(&format!("!{}", project::HEADLESS_LABEL)),
            project,
            doubt,
            teller,
        )
        .await;
    }
}

/// Returns once the server has failed to answer twice in a row.
async fn until_dead(client: &Client, doubt: &Notify) {
    let mut missed = 0;
    while missed < 2 {
        let pause = if missed == 0 { jittered(ASK_EVERY) } else { Duration::from_secs(1) };
        // A watch that broke off is a reason to ask at once.
        let _asked_early = timeout(pause, doubt.notified()).await;
        missed = if connect::answers(client).await.is_ok() { 0 } else { missed + 1 };
    }
}

fn reference<K: Resource>(kind: Kind, object: &K) -> ObjectRef {
    let namespace = object.meta().namespace.clone().unwrap_or_default();
    ObjectRef { kind, key: ObjectKey { namespace, name: object.name_any() } }
}

/// Sends batches and problems on behalf of all watches.
struct Teller {
    tx: Batches,
    syncs: Arc<Syncs>,
    problems: Mutex<BTreeMap<String, Problem>>,
    memory: Mutex<Memory>,
}

impl Teller {
    fn new(tx: Batches, syncs: Arc<Syncs>, memory: Memory) -> Self {
        Self { tx, syncs, problems: Mutex::default(), memory: Mutex::new(memory) }
    }

    /// Keeps what slices say about the API servers themselves.
    fn note(&self, kind: Kind, batch: &[Change]) {
        if kind == Kind::EndpointSlice {
            self.memory.lock().unwrap_or_else(PoisonError::into_inner).note(batch);
        }
    }

    /// Sends a batch. Nobody listening is not told here: `run` ends by itself then.
    async fn send(&self, batch: Vec<Change>) {
        if !batch.is_empty() && self.tx.send(batch).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Says what is wrong with `part`, or that nothing is any more.
    async fn tell(&self, part: &str, reason: Option<String>) {
        let whole = {
            let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = match reason {
                None => problems.remove(part).is_some(),
                Some(reason) => {
                    let object = ObjectRef { kind: Kind::Agent, key: ObjectKey::new("", part) };
                    let problem = Problem { object, field: String::new(), reason };
                    let changed = problems.get(part) != Some(&problem);
                    if changed {
                        problems.insert(part.to_owned(), problem);
                    }
                    changed
                }
            };
            changed.then(|| problems.values().cloned().collect())
        };
        if let Some(problems) = whole {
            self.send(vec![Change::Problems(problems)]).await;
        }
    }
}

/// Pauses that double, each varied by half, so that a thousand nodes do not come back at once.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);

    fn next(&mut self) -> Duration {
        let pause = Self::FIRST.saturating_mul(1 << self.failures.min(16)).min(Self::LONGEST);
        self.failures += 1;
        jittered(pause)
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Between half and one and a half of a time.
fn jittered(time: Duration) -> Duration {
    // Each `RandomState` has keys of its own: random enough to spread retries.
    let random = RandomState::new().build_hasher().finish() % 1024;
    time / 2 + time * u32::try_from(random).unwrap_or_default() / 1024
}

#[cfg(test)]
#[path = "kube_tests.rs"]
mod tests;
