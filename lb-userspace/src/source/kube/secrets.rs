//! The Secrets that are needed, and no others (H40).
//!
//! Which are needed is decided elsewhere and read from a channel. A few are watched by name, one
//! watch each; many by namespace, and then everything else that comes along is dropped unread.
//! What is not needed any more is forgotten at once, connected or not (H30).

use super::watch::{Subject, watch};
use super::{Teller, reference};
use crate::problem::{Kind, ObjectKey, ObjectRef};
use crate::source::{Batch, Change, Object, project};
use ::kube::runtime::watcher;
use ::kube::{Api, Client, ResourceExt};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Secret;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// Up to so many are watched by name, beyond that by namespace; by name again below the second.
const BY_NAME: usize = 200;
const BY_NAME_AGAIN: usize = 150;
/// How often a namespace is listed again at most, because other Secrets of it are needed.
const LIST_EVERY: Duration = Duration::from_secs(1);

/// What one watch reads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Scope {
    Name(ObjectKey),
    Namespace(String),
}

impl Scope {
    fn config(&self) -> watcher::Config {
        let config = watcher::Config::default();
        match self {
            Self::Name(key) => config.fields(&format!("metadata.name={}", key.name)),
            Self::Namespace(_) => config.fields(&format!("type={}", project::TLS_TYPE)),
        }
    }

    fn namespace(&self) -> &str {
        match self {
            Self::Name(key) => &key.namespace,
            Self::Namespace(namespace) => namespace,
        }
    }

    /// How problems name the watch.
    fn part(&self) -> String {
        match self {
            Self::Name(key) => format!("watch of Secret {key}"),
            Self::Namespace(namespace) => format!("watch of Secrets in {namespace}"),
        }
    }
}

/// A watch that runs until this is dropped.
struct Running {
    names: BTreeSet<String>,
    _stop: oneshot::Sender<Infallible>,
}

/// Follows what is needed, over all connections.
#[derive(Debug)]
pub(super) struct Secrets {
    wanted: Option<Receiver<BTreeSet<ObjectKey>>>,
    /// What was needed at the last look: nothing was ever said of any other.
    held: BTreeSet<ObjectKey>,
    by_namespace: bool,
}

impl Secrets {
    pub(super) fn new(wanted: Option<Receiver<BTreeSet<ObjectKey>>>) -> Self {
        Self { wanted, held: BTreeSet::new(), by_namespace: false }
    }

    /// Forgets what is not needed any more while there is no server.
    pub(super) async fn idle(&mut self, teller: &Teller) -> Infallible {
        loop {
            self.renew(teller).await;
            self.changed().await;
        }
    }

    /// Watches what is needed, for ever.
    pub(super) async fn follow(&mut self, client: &Client, doubt: &Notify, teller: &Teller) {
        let mut watches = FuturesUnordered::new();
        let mut running: BTreeMap<Scope, Running> = BTreeMap::new();
        let mut started: BTreeMap<Scope, Instant> = BTreeMap::new();
        self.renew(teller).await;
        loop {
            let scopes = self.scopes();
            running.retain(|scope, watch| scopes.get(scope) == Some(&watch.names));
            started.retain(|scope, _| scopes.contains_key(scope));
            let now = Instant::now();
            let mut due: Option<Instant> = None;
            for (scope, names) in scopes {
                if running.contains_key(&scope) {
                    continue;
                }
                let at = started.get(&scope).map_or(now, |started| *started + LIST_EVERY);
                if at > now {
                    due = Some(due.map_or(at, |due| due.min(at)));
                    continue;
                }
                started.insert(scope.clone(), now);
                let (stop, stopped) = oneshot::channel();
                let api: Api<Secret> = Api::namespaced(client.clone(), scope.namespace());
                let subject = Wanted { scope: scope.clone(), names: names.clone() };
                let (config, part) = (scope.config(), scope.part());
                watches.push(async move {
                    tokio::select! {
                        // Looked at first: one that is stopped says nothing more.
                        biased;
                        _ = stopped => {}
                        () = watch(subject, api, config, doubt, teller) => {}
                    }
                    part
                });
                running.insert(scope, Running { names, _stop: stop });
            }
            tokio::select! {
                () = self.changed() => self.renew(teller).await,
                Some(part) = watches.next() => teller.tell(&part, None).await,
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            }
        }
    }

    async fn changed(&mut self) {
        let changed = match &mut self.wanted {
            Some(wanted) => wanted.changed().await.is_ok(),
            None => false,
        };
        // Nobody says any more: what was needed last stays.
        if !changed {
            pending::<()>().await;
        }
    }

    /// Takes what is needed now, and forgets what is not.
    async fn renew(&mut self, teller: &Teller) {
        let Some(wanted) = &mut self.wanted else { return };
        let now = wanted.borrow_and_update().clone();
        let gone = self.held.difference(&now);
        let gone = gone.map(|key| Change::Forget(ObjectRef { kind: Kind::Secret, key: key.clone() }));
        // Sent before it is noted: a new connection may cut in, and then it is said again.
        teller.send(gone.collect()).await;
        self.held = now;
    }

    /// The watches that are needed, each with the names that it is for.
    fn scopes(&mut self) -> BTreeMap<Scope, BTreeSet<String>> {
        let count = self.held.len();
        self.by_namespace = if self.by_namespace { count >= BY_NAME_AGAIN } else { count > BY_NAME };
        let mut scopes: BTreeMap<Scope, BTreeSet<String>> = BTreeMap::new();
        for key in &self.held {
            let scope = match self.by_namespace {
                true => Scope::Namespace(key.namespace.clone()),
                false => Scope::Name(key.clone()),
            };
            scopes.entry(scope).or_default().insert(key.name.clone());
        }
        scopes
    }
}

/// The needed Secrets of one watch.
struct Wanted {
    scope: Scope,
    names: BTreeSet<String>,
}

impl Wanted {
    fn reference(&self, name: &str) -> ObjectRef {
        ObjectRef { kind: Kind::Secret, key: ObjectKey::new(self.scope.namespace(), name) }
    }
}

impl Subject<Secret> for Wanted {
    fn kind(&self) -> Kind {
        Kind::Secret
    }

    fn part(&self) -> String {
        self.scope.part()
    }

    fn take(&mut self, secret: Secret) -> Option<Change> {
        let is_wanted = self.names.contains(&secret.name_any());
        // Projected either way: that overwrites what is not kept.
        let secret = project::secret(secret);
        is_wanted.then_some(Change::Upsert(Object::Secret(secret)))
    }

    fn lose(&mut self, secret: &Secret) -> Option<Change> {
        self.names.contains(&secret.name_any()).then(|| Change::Delete(reference(Kind::Secret, secret)))
    }

    fn list(&mut self, mut list: Vec<Change>) -> Batch {
        let mut absent = self.names.clone();
        for change in &list {
            if let Change::Upsert(Object::Secret(secret)) = change {
                absent.remove(&secret.key.name);
            }
        }
        list.extend(absent.iter().map(|name| Change::Delete(self.reference(name))));
        list
    }

    fn fail(&mut self, reason: &str) -> Batch {
        self.names.iter().map(|name| Change::Unreadable(self.reference(name), reason.to_owned())).collect()
    }
}
