//! Looks up the names that ExternalName Services stand for (I22).
//!
//! Each wanted name is asked for in both families, again when its time to live is over, and
//! soon again when that failed. A name server that is silent takes nothing away: the last
//! addresses stay in use for a while. One that says that the name is gone is believed at once.
//! Which of the addresses may be used is decided in the model.

use crate::model::l7::Names;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// Names that are looked up; anybody may write Services.
const NAMES: usize = 1_000;
/// Lookups at the same time.
const AT_ONCE: usize = 16;
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
    /// There is no such name, or it has no address.
    Gone(String),
    /// Nobody knows.
    Failed(String),
}

/// Something that looks names up.
pub trait Lookup: Send + Sync + 'static {
    fn lookup(&self, name: String) -> impl Future<Output = Answer> + Send;
}

/// The name servers of `/etc/resolv.conf`.
#[derive(Debug)]
pub struct System(Result<TokioResolver, String>);

impl System {
    pub fn new() -> Self {
        let build = || {
            let mut builder = TokioResolver::builder_tokio()?;
            builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
            // Every answer is asked for when it is due, and kept here.
            builder.options_mut().cache_size = 0;
            builder.build()
        };
        Self(build().map_err(|error| format!("/etc/resolv.conf: {error}")))
    }
}

impl Default for System {
    fn default() -> Self {
        Self::new()
    }
}

impl Lookup for System {
    async fn lookup(&self, name: String) -> Answer {
        let resolver = match &self.0 {
            Ok(resolver) => resolver,
            Err(error) => return Answer::Failed(error.clone()),
        };
        // With its last dot: an ExternalName is absolute, and no search list applies.
        match resolver.lookup_ip(format!("{name}.")).await {
            Ok(found) => {
                let lasts = found.valid_until().saturating_duration_since(std::time::Instant::now());
                Answer::Found(found.iter().collect(), lasts)
            }
            Err(error) if error.is_nx_domain() => Answer::Gone("there is no such name".into()),
            Err(error) if error.is_no_records_found() => Answer::Gone("it has no address".into()),
            Err(error) => Answer::Failed(error.to_string()),
        }
    }
}

/// How a wanted name stands.
#[derive(Debug)]
struct Wanted {
    due: Instant,
    asked: bool,
    failures: u32,
    /// When the last good answer came.
    good: Option<Instant>,
}

/// Looks up what `wanted` holds and tells it to `found`, until nobody wants anything any more.
pub async fn run(
    lookup: impl Lookup,
    mut wanted: watch::Receiver<BTreeSet<String>>,
    found: watch::Sender<Arc<Names>>,
) {
    let lookup = Arc::new(lookup);
    let mut names: BTreeMap<String, Wanted> = BTreeMap::new();
    let mut asking = JoinSet::new();
    wanted.mark_changed();
    loop {
        let now = Instant::now();
        for (name, state) in names.iter_mut().filter(|(_, state)| !state.asked && state.due <= now) {
            if asking.len() == AT_ONCE {
                break;
            }
            state.asked = true;
            let (lookup, name) = (Arc::clone(&lookup), name.clone());
            asking.spawn(async move {
                let answer = timeout(PATIENCE, lookup.lookup(name.clone())).await;
                (name, answer.unwrap_or_else(|_| Answer::Failed("no name server answers".into())))
            });
        }
        let idle = names.values().filter(|state| !state.asked);
        // While all lookups are under way, one that ends makes room.
        let due = idle.map(|state| state.due).min().filter(|_| asking.len() < AT_ONCE);
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let now_wanted = wanted.borrow_and_update().clone();
                follow(&mut names, &now_wanted, &found);
            }
            Some(Ok((name, answer))) = asking.join_next() => {
                if let Some(state) = names.get_mut(&name) {
                    take(state, &name, answer, &found);
                }
            }
            () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
        }
    }
}

/// Begins with new names and forgets old ones.
fn follow(
    names: &mut BTreeMap<String, Wanted>,
    wanted: &BTreeSet<String>,
    found: &watch::Sender<Arc<Names>>,
) {
    let kept: BTreeSet<&String> = wanted.iter().take(NAMES).collect();
    names.retain(|name, _| kept.contains(name));
    for &name in &kept {
        let fresh = || Wanted { due: Instant::now(), asked: false, failures: 0, good: None };
        names.entry(name.clone()).or_insert_with(fresh);
    }
    change(found, |told| {
        told.retain(|name, _| wanted.contains(name));
        for name in wanted.iter().skip(NAMES) {
            told.insert(name.clone(), Err(format!("more than {NAMES} names are wanted")));
        }
    });
}

/// Takes an answer: tells it, and decides when to ask again.
fn take(state: &mut Wanted, name: &str, answer: Answer, found: &watch::Sender<Arc<Names>>) {
    let now = Instant::now();
    let told = match answer {
        Answer::Found(mut addresses, lasts) => {
            addresses.sort_unstable();
            addresses.dedup();
            addresses.truncate(ADDRESSES);
            (state.failures, state.good) = (0, Some(now));
            state.due = now + lasts.clamp(TTL.0, TTL.1);
            Some(Ok(addresses))
        }
        Answer::Gone(reason) => {
            later(state, now);
            state.good = None;
            Some(Err(reason))
        }
        Answer::Failed(reason) => {
            later(state, now);
            if state.good.is_some_and(|at| now - at <= STALE) {
                tracing::warn!(
                    name,
                    error = reason,
                    "a name cannot be looked up; its last addresses stay in use"
                );
                None
            } else {
                Some(Err(reason))
            }
        }
    };
    state.asked = false;
    if let Some(told) = told {
        change(found, |names| {
            names.insert(name.to_string(), told);
        });
    }
}

/// Asks again after a pause that doubles.
fn later(state: &mut Wanted, now: Instant) {
    let pause = RETRY.0.saturating_mul(1 << state.failures.min(10));
    state.failures += 1;
    state.due = now + pause.min(RETRY.1);
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
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::sync::Mutex;

    /// Answers from a script, and counts.
    #[derive(Clone, Default)]
    struct Script(Arc<Mutex<Played>>);

    type Played = (BTreeMap<String, Answer>, usize, usize);

    impl Script {
        fn set(&self, name: &str, answer: Answer) {
            self.0.lock().unwrap().0.insert(name.into(), answer);
        }

        fn asked(&self) -> usize {
            std::mem::take(&mut self.0.lock().unwrap().1)
        }
    }

    impl Lookup for Script {
        async fn lookup(&self, name: String) -> Answer {
            {
                let mut state = self.0.lock().unwrap();
                state.1 += 1;
                state.2 += 1;
                assert!(state.2 <= AT_ONCE);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            let mut state = self.0.lock().unwrap();
            state.2 -= 1;
            state.0.get(&name).cloned().unwrap_or(Answer::Gone("none".into()))
        }
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn found(texts: &[&str], seconds: u64) -> Answer {
        Answer::Found(addresses(texts), Duration::from_secs(seconds))
    }

    struct Rig {
        script: Script,
        wanted: watch::Sender<BTreeSet<String>>,
        names: watch::Receiver<Arc<Names>>,
    }

    fn start(wanted: &[String]) -> Rig {
        let script = Script::default();
        let (sender, receiver) = watch::channel(wanted.iter().cloned().collect());
        let (told, names) = watch::channel(Arc::default());
        tokio::spawn(run(script.clone(), receiver, told));
        Rig { script, wanted: sender, names }
    }

    impl Rig {
        fn told(&self, name: &str) -> Option<Result<Vec<IpAddr>, String>> {
            self.names.borrow().get(name).cloned()
        }

        async fn pass(&self, seconds: u64) {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_asked_for_again_when_its_time_is_over() {
        let rig = start(&["a".into()]);
        rig.script.set("a", found(&["203.0.113.1", "2001:db8::1", "203.0.113.1"], 30));
        rig.pass(1).await;
        assert_eq!(rig.told("a"), Some(Ok(addresses(&["203.0.113.1", "2001:db8::1"]))));
        rig.script.set("a", found(&["203.0.113.2"], 0));
        rig.pass(28).await;
        assert_eq!((rig.script.asked(), rig.told("a").unwrap().unwrap().len()), (1, 2));
        rig.pass(3).await;
        assert_eq!(rig.told("a"), Some(Ok(addresses(&["203.0.113.2"]))));
        // A time to live of 0 is no reason to hammer.
        rig.script.asked();
        rig.pass(60).await;
        assert!((10..=13).contains(&rig.script.asked()));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_takes_nothing_away_for_a_while_and_a_denial_does_at_once() {
        let rig = start(&["a".into(), "b".into()]);
        rig.script.set("a", found(&["203.0.113.1"], 5));
        rig.script.set("b", found(&["203.0.113.2"], 5));
        rig.pass(1).await;
        rig.script.set("a", Answer::Failed("silence".into()));
        rig.script.set("b", Answer::Gone("no such name".into()));
        rig.pass(60).await;
        assert_eq!(rig.told("a"), Some(Ok(addresses(&["203.0.113.1"]))));
        assert_eq!(rig.told("b"), Some(Err("no such name".into())));
        rig.script.set("b", found(&["203.0.113.3"], 5));
        rig.pass(70).await;
        assert_eq!(rig.told("b"), Some(Ok(addresses(&["203.0.113.3"]))));
        rig.pass(3700).await;
        assert_eq!(rig.told("a"), Some(Err("silence".into())));
        rig.script.set("a", found(&["203.0.113.4"], 5));
        rig.pass(70).await;
        assert_eq!(rig.told("a"), Some(Ok(addresses(&["203.0.113.4"]))));
    }

    #[tokio::test(start_paused = true)]
    async fn names_have_a_limit_and_go_when_nobody_wants_them() {
        let many: Vec<String> = (0..NAMES + 5).map(|n| format!("n{n:05}")).collect();
        let rig = start(&many);
        rig.pass(5).await;
        let refused = rig
            .names
            .borrow()
            .values()
            .filter(|told| matches!(told, Err(e) if e.contains("more than")))
            .count();
        assert_eq!((refused, rig.names.borrow().len()), (5, NAMES + 5));
        rig.wanted.send(["n00000".to_string()].into()).unwrap();
        rig.pass(1).await;
        assert_eq!(rig.names.borrow().keys().collect::<Vec<_>>(), ["n00000"]);
    }
}
