//! The Secrets that are needed, and no others (H40).
//!
//! Which are needed is decided elsewhere and read from a channel. The few of a namespace are
//! watched by name, one watch each; where there are many the namespace is watched, and everything
//! else that comes along is dropped unread. Where that is forbidden they are watched by name all
//! the same. Each namespace is judged for itself: what one asks for changes nothing for another.
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

/// Up to so many of a namespace are watched by name, beyond that the namespace is; by name again
/// below the second.
const BY_NAME: usize = 200;
const BY_NAME_AGAIN: usize = 150;
/// The same for the sum over namespaces: beyond the first, those that need the most are watched
/// as a whole.
const ALL_BY_NAME: usize = 2_000;
const ALL_BY_NAME_AGAIN: usize = 1_500;
/// Watches by name in a namespace that may not be watched as a whole.
const FORBIDDEN_BY_NAME: usize = 1_000;
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
    /// Namespaces that are watched as a whole.
    whole: BTreeSet<String>,
    /// Namespaces of which this is forbidden.
    forbidden: BTreeSet<String>,
}

impl Secrets {
    pub(super) fn new(wanted: Option<Receiver<BTreeSet<ObjectKey>>>) -> Self {
        Self { wanted, held: BTreeSet::new(), whole: BTreeSet::new(), forbidden: BTreeSet::new() }
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
        self.forbidden.clear();
        self.renew(teller).await;
        loop {
            let (scopes, left_out) = self.scopes();
            teller.send(left_out).await;
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
                let watched = scope.clone();
                watches.push(async move {
                    let forbidden = tokio::select! {
                        // Looked at first: one that is stopped says nothing more.
                        biased;
                        _ = stopped => false,
                        () = watch(subject, api, config, doubt, teller) => true,
                    };
                    (watched, forbidden, part)
                });
                running.insert(scope, Running { names, _stop: stop });
            }
            tokio::select! {
                () = self.changed() => self.renew(teller).await,
                Some((scope, forbidden, part)) = watches.next() => {
                    teller.tell(&part, None).await;
                    if forbidden {
                        let namespace = scope.namespace();
                        tracing::info!(namespace, "Secrets may not be listed: they are read by name");
                        self.forbidden.insert(namespace.to_owned());
                    }
                }
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

    /// The watches that are needed, each with the names that it is for; and what is said of
    /// Secrets for which there is none.
    fn scopes(&mut self) -> (BTreeMap<Scope, BTreeSet<String>>, Batch) {
        let mut needed: BTreeMap<&str, usize> = BTreeMap::new();
        for key in &self.held {
            *needed.entry(&key.namespace).or_default() += 1;
        }
        self.forbidden.retain(|namespace| needed.contains_key(namespace.as_str()));
        needed.retain(|namespace, _| !self.forbidden.contains(*namespace));
        self.whole = as_a_whole(&self.whole, &needed);
        let mut scopes: BTreeMap<Scope, BTreeSet<String>> = BTreeMap::new();
        let mut left_out = Batch::new();
        let mut named: BTreeMap<&str, usize> = BTreeMap::new();
        for key in &self.held {
            let scope = if self.whole.contains(&key.namespace) {
                Scope::Namespace(key.namespace.clone())
            } else {
                let named = named.entry(&key.namespace).or_default();
                *named += 1;
                if *named > FORBIDDEN_BY_NAME {
                    let reason = format!(
                        "Secrets of namespace {} may not be listed, and more than {FORBIDDEN_BY_NAME} of it are \
                         not read by name",
                        key.namespace
                    );
                    let object = ObjectRef { kind: Kind::Secret, key: key.clone() };
                    left_out.push(Change::Unreadable(object, reason));
                    continue;
                }
                Scope::Name(key.clone())
            };
            scopes.entry(scope).or_default().insert(key.name.clone());
        }
        (scopes, left_out)
    }
}

/// The namespaces that are watched as a whole, from those that were and how many Secrets each
/// needs. First those that need many themselves; then, while there are too many watches by name,
/// whoever needs the most.
fn as_a_whole(before: &BTreeSet<String>, needed: &BTreeMap<&str, usize>) -> BTreeSet<String> {
    let (many, few): (Vec<_>, Vec<_>) = needed.iter().partition(|&(namespace, &count)| {
        if before.contains(*namespace) { count >= BY_NAME_AGAIN } else { count > BY_NAME }
    });
    let mut whole: BTreeSet<String> =
        many.into_iter().map(|(namespace, _)| (*namespace).to_owned()).collect();
    let mut by_name: usize = few.iter().map(|(_, count)| **count).sum();
    let mut few: Vec<_> =
        few.into_iter().map(|(namespace, count)| (before.contains(*namespace), *count, *namespace)).collect();
    few.sort_unstable();
    for (was, count, namespace) in few.into_iter().rev() {
        if by_name > if was { ALL_BY_NAME_AGAIN } else { ALL_BY_NAME } {
            by_name -= count;
            whole.insert(namespace.to_owned());
        }
    }
    whole
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

    fn yields(&self) -> bool {
        matches!(self.scope, Scope::Namespace(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(before: &[&str], needed: &[(&str, usize)]) -> Vec<String> {
        let before = before.iter().map(ToString::to_string).collect();
        as_a_whole(&before, &needed.iter().copied().collect()).into_iter().collect()
    }

    #[test]
    fn what_one_namespace_needs_changes_nothing_for_another() {
        assert_eq!(whole(&[], &[("a", 200), ("b", 201), ("c", 1)]), ["b"]);
        // Not at every step over the line.
        assert_eq!(whole(&["b"], &[("a", 200), ("b", 150)]), ["b"]);
        assert!(whole(&["b"], &[("a", 200), ("b", 149)]).is_empty());
    }

    #[test]
    fn of_too_many_watches_those_go_that_need_the_most() {
        let names: Vec<String> = (0..15).map(|n| format!("greedy-{n:02}")).collect();
        let mut needed: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 199)).collect();
        needed.push(("honest", 100));
        needed.push(("tiny", 3));
        let chosen = whole(&[], &needed);
        assert_eq!(chosen, names[9..], "six of them leave 1,894");
    }
}
