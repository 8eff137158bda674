//! Objects from the API server, by watches.
//!
//! Each kind is watched on its own, so that one that is refused stops no other: without Ingresses
//! Services go on. Secrets are read by name alone: see [`secrets`]. An object is
//! projected the moment it arrives. A relist is collected and sent as one replacement, so that
//! nothing shrinks while it runs (S8). When the server is away, what is known stays (S81) and
//! another address is tried.

use super::project::{self, MissingReady, Names};
use super::{Batches, Change, Object, Syncs};
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use ::kube::api::Api;
use ::kube::runtime::watcher;
use ::kube::{Client, Resource, ResourceExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use memory::Memory;
use secrets::Secrets;
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use watch::Whole;

mod connect;
mod memory;
mod secrets;
mod watch;

pub use connect::{ClientOptions, connect};
pub use memory::{remember_endpoints, remember_kubelet_server, remembered_endpoints};

/// How long an API server may take to say who it is.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How often a server that says nothing is asked whether it is still there. A watch without
/// events looks the same whether the server lives or its host is gone.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// What to watch, and where.
#[derive(Clone, Debug, Default)]
pub struct KubeOptions {
    pub client: ClientOptions,
    /// Our Node, and whose Pods are ours.
    pub node_name: String,
    /// `None`: nothing that only L7 needs is watched.
    pub ingress: Option<IngressOptions>,
}

/// What L7 needs.
#[derive(Clone, Debug)]
pub struct IngressOptions {
    /// `--watch-namespace`: Ingresses of this namespace alone.
    pub namespace: Option<String>,
    /// The Secrets that are needed; no other one is read (H40).
    pub secrets: tokio::sync::watch::Receiver<BTreeSet<ObjectKey>>,
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
        let mut backoff = Backoff::away();
        let mut secrets = Secrets::new(self.options.ingress.as_ref().map(|options| options.secrets.clone()));
        loop {
            let connected = tokio::select! {
                connected = connect::connect_to(&self.options.client) => connected,
                never = secrets.idle(teller) => match never {},
            };
            match connected {
                Ok((client, address)) => {
                    tracing::info!(address, "connected to the API server");
                    teller.syncs.set_origin(address);
                    teller.tell("apiserver", None).await;
                    backoff.reset();
                    self.watch_all(client, &mut secrets, teller).await;
                    tracing::warn!("the API server does not answer");
                }
                Err(error) => {
                    let reason = format!("no API server answers: {error:#}; what is known stays");
                    for kind in self.kinds() {
                        teller.syncs.failed(*kind, reason.clone());
                    }
                    teller.tell("apiserver", Some(reason)).await;
                    tokio::select! {
                        () = sleep(backoff.next()) => {}
                        never = secrets.idle(teller) => match never {},
                    }
                }
            }
        }
    }

    /// The kinds that are always watched, and those for L7.
    fn kinds(&self) -> &'static [Kind] {
        const ALL: [Kind; 9] = [
            Kind::Service,
            Kind::EndpointSlice,
            Kind::Node,
            Kind::Pod,
            Kind::ServiceCidr,
            Kind::Ingress,
            Kind::IngressClass,
            Kind::Secret,
            Kind::Namespace,
        ];
        if self.options.ingress.is_some() { &ALL } else { &ALL[..5] }
    }

    /// Watches everything until the server is gone.
    async fn watch_all(&self, client: Client, secrets: &mut Secrets, teller: &Teller) {
        let doubt = Notify::new();
        let watches = async {
            tokio::join!(
                self.watch_services(client.clone(), &doubt, teller),
                self.watch_slices(client.clone(), &doubt, teller),
                self.watch_node(client.clone(), &doubt, teller),
                self.watch_pods(client.clone(), &doubt, teller),
                self.watch_service_cidrs(client.clone(), &doubt, teller),
                self.watch_ingresses(client.clone(), &doubt, teller),
                self.watch_ingress_classes(client.clone(), &doubt, teller),
                self.watch_namespaces(client.clone(), &doubt, teller),
                secrets.follow(&client, &doubt, teller),
            )
        };
        tokio::select! {
            _ = watches => {}
            () = until_dead(&client, &doubt) => {}
        }
    }

    async fn watch_services(&self, client: Client, doubt: &Notify, teller: &Teller) {
        let project = |service: Service| Ok(Object::Service(project::service(&service)));
        let mut config = watcher::Config::default();
        if self.options.ingress.is_none() {
            // L4 has no use for headless ones: they are never even sent (S1). Another proxy's are
            // known by their addresses, which are left alone (S38).
            config = config.fields("spec.clusterIP!=None");
        }
        watch::watch(Whole { kind: Kind::Service, project }, Api::all(client), config, doubt, teller).await;
    }

    async fn watch_slices(&self, client: Client, doubt: &Notify, teller: &Teller) {
        let mut names = Names::default();
        let project = |slice: discovery::EndpointSlice| match project::slice(&slice, &mut names) {
            Some(slice) => Ok(Object::EndpointSlice(slice)),
            // One that was ours and lost its label must be forgotten.
            None => Err(reference(Kind::EndpointSlice, &slice)),
        };
        let mut config = watcher::Config::default();
        if self.options.ingress.is_none() {
            config = config.labels(&format!("!{}", project::HEADLESS_LABEL));
        }
        watch::watch(Whole { kind: Kind::EndpointSlice, project }, Api::all(client), config, doubt, teller)
            .await;
    }

    async fn watch_node(&self, client: Client, doubt: &Notify, teller: &Teller) {
        let project = |node: Node| Ok(Object::Node(project::node(&node)));
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.options.node_name));
        watch::watch(Whole { kind: Kind::Node, project }, Api::all(client), config, doubt, teller).await;
    }

    async fn watch_pods(&self, client: Client, doubt: &Notify, teller: &Teller) {
        let project = |pod: Pod| Ok(Object::Pod(project::pod(&pod, MissingReady::NotReady)));
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.options.node_name));
        watch::watch(Whole { kind: Kind::Pod, project }, Api::all(client), config, doubt, teller).await;
    }

    /// A server before 1.33 has none: then nothing is known of where ClusterIPs come from.
    async fn watch_service_cidrs(&self, client: Client, doubt: &Notify, teller: &Teller) {
        let project = |cidr: networking::ServiceCIDR| Ok(Object::ServiceCidr(project::service_cidr(&cidr)));
        let subject = Whole { kind: Kind::ServiceCidr, project };
        watch::watch(subject, Api::all(client), watcher::Config::default(), doubt, teller).await;
        pending().await
    }

    async fn watch_ingresses(&self, client: Client, doubt: &Notify, teller: &Teller) {
        let Some(options) = &self.options.ingress else { return pending().await };
        let api: Api<networking::Ingress> = match &options.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let project = |ingress| Ok(Object::Ingress(project::ingress(&ingress)));
        let subject = Whole { kind: Kind::Ingress, project };
        watch::watch(subject, api, watcher::Config::default(), doubt, teller).await;
    }

    async fn watch_ingress_classes(&self, client: Client, doubt: &Notify, teller: &Teller) {
        if self.options.ingress.is_none() {
            return pending().await;
        }
        let project =
            |class: networking::IngressClass| Ok(Object::IngressClass(project::ingress_class(&class)));
        let subject = Whole { kind: Kind::IngressClass, project };
        watch::watch(subject, Api::all(client), watcher::Config::default(), doubt, teller).await;
    }

    /// Which Namespaces are being deleted matters only between Ingresses of several.
    async fn watch_namespaces(&self, client: Client, doubt: &Notify, teller: &Teller) {
        let Some(options) = &self.options.ingress else { return pending().await };
        if options.namespace.is_some() {
            teller.send(vec![Change::Replace(Kind::Namespace, Vec::new())]).await;
            return pending().await;
        }
        let project = |namespace: Namespace| Ok(Object::Namespace(project::namespace(&namespace)));
        let subject = Whole { kind: Kind::Namespace, project };
        watch::watch(subject, Api::all(client), watcher::Config::default(), doubt, teller).await;
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
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { failures: 0, longest: Self::LONGEST }
    }
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);
    /// For a server that is away: an attempt costs nobody anything, and until one succeeds
    /// traffic goes to endpoints that may be gone. Pods that end stay for a few seconds.
    const AWAY: Duration = Duration::from_secs(2);

    /// For attempts to reach a server that does not answer at all.
    fn away() -> Self {
        Self { failures: 0, longest: Self::AWAY }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = Self::FIRST.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures += 1;
        jittered(pause)
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Between half and one and a half of a time.
pub(crate) fn jittered(time: Duration) -> Duration {
    // Each `RandomState` has keys of its own: random enough to spread retries.
    let random = RandomState::new().build_hasher().finish() % 1024;
    time / 2 + time * u32::try_from(random).unwrap_or_default() / 1024
}

#[cfg(test)]
#[path = "kube_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "kube_l7_tests.rs"]
mod l7_tests;
