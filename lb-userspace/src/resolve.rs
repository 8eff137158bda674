//! Looks up the names that ExternalName Services stand for (I22).
//!
//! Each wanted name is asked for again when its time to live is over, and soon again when that
//! failed. Both families are asked for apart: a name server that is silent about one takes
//! nothing away, neither there nor from the other; its last addresses stay in use for a while.
//! One that says that there is nothing is believed at once. Anybody may write Services, so names
//! and lookups are shared out among namespaces. Which of the addresses may be used is decided in
//! the model.

use crate::model::l7::{Names, WantedNames};
use lb_common::abi::Family;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

mod quota;
mod system;

pub use system::System;

/// Lookups at the same time, and those for names of one namespace.
const AT_ONCE: usize = 32;
const AT_ONCE_OF_NAMESPACE: usize = 4;
/// Addresses of one name.
const ADDRESSES: usize = 256;
/// Longest wait for one lookup.
const PATIENCE: Duration = Duration::from_secs(10);
/// A time to live counts within these.
const TTL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The first pause after a failure, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// For how long the last addresses stay in use while lookups fail.
const STALE: Duration = Duration::from_secs(3600);

/// What a lookup gives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Addresses, and how long they are good for.
    Found(Vec<IpAddr>, Duration),
    /// There is no such name, or it has no address of the family.
    Gone(String),
    /// Nobody knows.
    Failed(String),
}

/// Something that looks names up.
pub trait Lookup: Send + Sync + 'static {
    fn lookup(&self, name: &str, family: Family) -> impl Future<Output = Answer> + Send;
}

/// How a name stands that is looked up.
#[derive(Debug)]
struct Followed {
    /// Whose quota it counts in.
    namespace: String,
    due: Instant,
    asked: bool,
    failures: u32,
    v4: Known,
    v6: Known,
}

/// The last addresses of one family.
#[derive(Debug, Default)]
struct Known {
    addresses: Vec<IpAddr>,
    /// When they were told.
    good: Option<Instant>,
}

/// Looks up what `wanted` holds and tells it to `found`, until nobody wants anything any more.
pub async fn run(
    lookup: impl Lookup,
    mut wanted: watch::Receiver<WantedNames>,
    found: watch::Sender<Arc<Names>>,
) {
    let lookup = Arc::new(lookup);
    let mut names: BTreeMap<String, Followed> = BTreeMap::new();
    let mut asking = JoinSet::new();
    let mut under_way: BTreeMap<String, usize> = BTreeMap::new();
    wanted.mark_changed();
    loop {
        while asking.len() < AT_ONCE
            && let Some(name) = next(&mut names, &under_way)
        {
            let namespace = names.get(&name).map(|state| state.namespace.clone()).unwrap_or_default();
            *under_way.entry(namespace.clone()).or_default() += 1;
            let lookup = Arc::clone(&lookup);
            asking.spawn(async move {
                let (v4, v6) = tokio::join!(
                    patiently(lookup.lookup(&name, Family::V4)),
                    patiently(lookup.lookup(&name, Family::V6))
                );
                (namespace, name, v4, v6)
            });
        }
        // While all lookups are under way, one that ends makes room.
        let due = waiting(&names, &under_way).map(|(_, state)| state.due).min();
        let due = due.filter(|_| asking.len() < AT_ONCE);
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let now_wanted = wanted.borrow_and_update().clone();
                follow(&mut names, &now_wanted, &found);
            }
            Some(Ok((namespace, name, v4, v6))) = asking.join_next() => {
                if let Some(count) = under_way.get_mut(&namespace) {
                    *count -= 1;
                    if *count == 0 {
                        under_way.remove(&namespace);
                    }
                }
                if let Some(state) = names.get_mut(&name) {
                    take(state, &name, v4, v6, &found);
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

async fn patiently(answer: impl Future<Output = Answer>) -> Answer {
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| Answer::Failed("no name server answers".into()))
}

/// Names that wait for their time, and whose namespace has not too many lookups under way.
fn waiting<'a>(
    names: &'a BTreeMap<String, Followed>,
    under_way: &'a BTreeMap<String, usize>,
) -> impl Iterator<Item = (&'a String, &'a Followed)> {
    let busy = |namespace: &String| under_way.get(namespace).copied().unwrap_or(0);
    names.iter().filter(move |(_, state)| !state.asked && busy(&state.namespace) < AT_ONCE_OF_NAMESPACE)
}

/// The name to ask for now: of the namespace with the fewest lookups under way, the one whose
/// time came first.
fn next(names: &mut BTreeMap<String, Followed>, under_way: &BTreeMap<String, usize>) -> Option<String> {
    let now = Instant::now();
    let due = waiting(names, under_way).filter(|(_, state)| state.due <= now);
    let (name, _) =
        due.min_by_key(|(_, state)| (under_way.get(&state.namespace).copied().unwrap_or(0), state.due))?;
    let name = name.clone();
    names.get_mut(&name)?.asked = true;
    Some(name)
}

/// Begins with new names and forgets old ones.
fn follow(names: &mut BTreeMap<String, Followed>, wanted: &WantedNames, found: &watch::Sender<Arc<Names>>) {
    let held = names.iter().map(|(name, state)| (name.as_str(), state.namespace.as_str())).collect();
    let quota::Admitted { names: admitted, refused } = quota::admit(wanted, &held);
    names.retain(|name, _| admitted.contains_key(name));
    for (name, namespace) in admitted {
        let fresh = || Followed {
            namespace: String::new(),
            due: Instant::now(),
            asked: false,
            failures: 0,
            v4: Known::default(),
            v6: Known::default(),
        };
        names.entry(name).or_insert_with(fresh).namespace = namespace;
    }
    change(found, |told| {
        told.retain(|name, _| names.contains_key(name));
        told.extend(refused.into_iter().map(|(name, reason)| (name, Err(reason))));
    });
}

/// Takes an answer: tells it, and decides when to ask again.
fn take(state: &mut Followed, name: &str, v4: Answer, v6: Answer, found: &watch::Sender<Arc<Names>>) {
    let now = Instant::now();
    let (mut lasts, mut failed, mut gone) = (None, None, None);
    for (known, answer) in [(&mut state.v4, v4), (&mut state.v6, v6)] {
        match answer {
            Answer::Found(addresses, time) => {
                *known = Known { addresses, good: Some(now) };
                lasts = Some(lasts.map_or(time, |least: Duration| least.min(time)));
            }
            Answer::Gone(reason) => {
                *known = Known::default();
                gone = gone.or(Some(reason));
            }
            Answer::Failed(reason) => {
                if known.good.is_some_and(|at| now - at > STALE) {
                    *known = Known::default();
                }
                if !known.addresses.is_empty() {
                    tracing::warn!(
                        name,
                        error = reason,
                        "a name cannot be looked up; its last addresses stay in use"
                    );
                }
                failed = failed.or(Some(reason));
            }
        }
    }
    let lasts = lasts.map(|lasts| lasts.clamp(TTL.0, TTL.1));
    state.asked = false;
    state.due = now
        + match lasts {
            Some(lasts) if failed.is_none() => {
                state.failures = 0;
                lasts
            }
            Some(lasts) => pause(state).min(lasts),
            None => pause(state),
        };
    let mut addresses: Vec<_> = state.v4.addresses.iter().chain(&state.v6.addresses).copied().collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ADDRESSES);
    let told = if addresses.is_empty() {
        Err(failed.or(gone).unwrap_or_else(|| "it has no address".into()))
    } else {
        Ok(addresses)
    };
    change(found, |names| {
        names.insert(name.to_string(), told);
    });
}

/// How long to wait after a failure: twice as long each time.
fn pause(state: &mut Followed) -> Duration {
    let pause = RETRY.0.saturating_mul(1 << state.failures.min(10));
    state.failures += 1;
    pause.min(RETRY.1)
}

/// Tells a change; none wakes nobody.
fn change(found: &watch::Sender<Arc<Names>>, edit: impl FnOnce(&mut Names)) {
    found.send_if_modified(|told| {
        let mut names = Names::clone(told);
        edit(&mut names);
        let differs = names != **told;
        if differs {
            *told = Arc::new(names);
        }
        differs
    });
}

#[cfg(test)]
mod tests;
