//! What the parts of a running agent tell each other about themselves: small, always at
//! hand, never waited for. The reconciler writes, health, metrics and admin read.

use crate::datapath::{Hook, LinkPlan};
use crate::link::Link;
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use crate::proxy::control::{Scheme, Status, View};
use crate::takeover::Takeover;
use arc_swap::ArcSwap;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How far the agent has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing is known yet.
    #[default]
    Starting,
    /// Another agent holds the node's lock.
    Standby,
    /// Waiting for the first complete lists (S8).
    Listing,
    /// Everything known has been programmed at least once.
    Synced,
}

/// The state after a round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    pub phase: Phase,
    /// Our Node is known, and neither deleted nor about to be (S55).
    pub node_eligible: bool,
    pub node_addresses: Vec<String>,
    pub links: Arc<Vec<LinkPlan>>,
    pub hooks: Arc<Vec<Hook>>,
    /// Hooks are still those of an earlier agent: which pods are here is not yet known.
    pub awaiting_pods: bool,
    pub services: usize,
    pub frontends: usize,
    pub backends: usize,
    pub rounds: u64,
    pub last_round_micros: u64,
    /// Services whose plan could not be carried out whole and is tried again.
    pub pending_ops: usize,
    /// What a kube-proxy left.
    pub takeover: Takeover,
    pub problems: Arc<Vec<Problem>>,
}

impl Snapshot {
    /// Services are in force: this agent's, or those that an earlier one left.
    pub fn serving(&self) -> bool {
        match self.phase {
            Phase::Starting | Phase::Standby => false,
            Phase::Listing => self.frontends > 0,
            Phase::Synced => true,
        }
    }

    /// The first sync is applied and every hook is attached.
    pub fn ready(&self) -> bool {
        self.phase == Phase::Synced
            && !self.awaiting_pods
            && self.hooks.iter().all(|hook| hook.error.is_none())
    }
}

/// How far the L7 half has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum L7Phase {
    /// `--l7 off`, or no agent yet.
    #[default]
    Off,
    /// Waiting for the first complete lists.
    Listing,
    /// Waiting for Secrets, looked-up names and Namespaces.
    Awaiting,
    /// Routes have been published.
    Synced,
}

/// The state of the L7 half after a round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct L7Snapshot {
    pub phase: L7Phase,
    /// Kinds whose first complete list is awaited.
    pub missing: Vec<Kind>,
    pub ingresses: usize,
    pub hosts: usize,
    pub pools: usize,
    pub certificates: usize,
    pub last_round_micros: u64,
}

/// The board itself.
#[derive(Debug, Default)]
pub struct Board {
    snapshot: ArcSwap<Snapshot>,
    l7: ArcSwap<L7Snapshot>,
    /// Where routes go; unset where no proxy is to be waited for.
    link: OnceLock<Link>,
    /// Milliseconds since the epoch of the oldest change not yet applied; 0: none (S56).
    pending_since: AtomicU64,
    /// The same of the moment since which a round is owed; 0: none is.
    owed_since: AtomicU64,
    /// The same of the last complete round.
    applied_at: AtomicU64,
    /// Problems of listeners, by their name.
    listeners: Mutex<BTreeMap<String, Listener>>,
    /// What the supervisor tells of itself and the proxies; `None`: there is none.
    surroundings: Mutex<Option<Status>>,
    /// Problems of other parts, by their name.
    parts: Mutex<BTreeMap<String, String>>,
    /// Sockets of `healthCheckNodePort` by Service and address, and why one is not open.
    health_ports: Mutex<BTreeMap<(ObjectKey, SocketAddr), Result<(), String>>>,
}

/// A listening socket of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Listener {
    pub name: String,
    pub address: String,
    /// Why it does not listen, if so; tried again.
    pub error: Option<String>,
}

impl Board {
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    /// The L7 half.
    pub fn l7(&self) -> Arc<L7Snapshot> {
        self.l7.load_full()
    }

    pub fn publish_l7(&self, snapshot: L7Snapshot) {
        self.l7.store(Arc::new(snapshot));
    }

    /// From now on L7 is not ready before a proxy routes by what is published here (I72).
    pub fn await_proxies(&self, link: Link) {
        // The first one stays: there is one link for the life of an agent.
        let _again = self.link.set(link);
    }

    /// Why L7 does not serve yet; `None`: it does, or is off.
    pub fn l7_waits_for(&self) -> Option<String> {
        let l7 = self.l7();
        match l7.phase {
            L7Phase::Off => None,
            L7Phase::Listing => {
                let kinds: Vec<String> = l7.missing.iter().map(Kind::to_string).collect();
                Some(format!("waiting for the first complete lists: {}", kinds.join(", ")))
            }
            L7Phase::Awaiting => Some("waiting for Secrets, looked-up names and Namespaces".into()),
            L7Phase::Synced if self.link.get().is_some_and(|link| !link.serving()) => {
                Some("waiting for a proxy".into())
            }
            L7Phase::Synced => None,
        }
    }

    /// A change was heard of.
    pub fn heard(&self) {
        begin(&self.pending_since);
        begin(&self.owed_since);
    }

    /// Nothing that was heard of can be applied yet, since its lists are not complete: what
    /// an earlier agent left stands, and is as good as ever (S81).
    pub fn nothing_to_apply(&self) {
        self.pending_since.store(0, Ordering::Relaxed);
    }

    pub fn round_begins(&self) {
        begin(&self.owed_since);
    }

    /// A round is over, whatever came of it.
    pub fn round_ends(&self) {
        self.owed_since.store(0, Ordering::Relaxed);
    }

    /// For how long a round has been owed: long only if the reconciler is stuck.
    pub fn owed_for(&self) -> Duration {
        since(&self.owed_since)
    }

    /// Everything heard of so far is applied, or not (`complete`).
    pub fn applied(&self, complete: bool) {
        if complete {
            self.pending_since.store(0, Ordering::Relaxed);
            self.applied_at.store(now_ms(), Ordering::Relaxed);
        } else {
            begin(&self.pending_since);
        }
    }

    /// For how long a change has been waiting.
    pub fn pending_for(&self) -> Duration {
        since(&self.pending_since)
    }

    /// Milliseconds since the epoch of the last complete round; 0: none yet.
    pub fn applied_at(&self) -> u64 {
        self.applied_at.load(Ordering::Relaxed)
    }

    pub fn set_listener(&self, listener: Listener) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).insert(listener.name.clone(), listener);
    }

    pub fn listeners(&self) -> Vec<Listener> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// How the supervisor says that things stand.
    pub fn set_surroundings(&self, status: Status) {
        let mut seen = [0_usize; 2];
        for listener in &status.listeners {
            let (flag, seen) = match listener.name.scheme {
                Scheme::Http => ("--http-listen", &mut seen[0]),
                Scheme::Https => ("--https-listen", &mut seen[1]),
            };
            *seen += 1;
            let name = if *seen == 1 { flag.to_string() } else { format!("{flag} ({seen})") };
            let address = listener.bound.unwrap_or(listener.name.address).to_string();
            self.set_listener(Listener { name, address, error: listener.error.clone() });
        }
        *self.surroundings.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// Supervisor and proxies, if this agent has any.
    pub fn surroundings(&self) -> Option<Status> {
        self.surroundings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what is wrong with a part of the agent; `None`: nothing is.
    pub fn set_part(&self, name: &str, problem: Option<String>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            None => drop(parts.remove(name)),
            Some(problem) => {
                if parts.get(name) != Some(&problem) {
                    tracing::warn!(part = name, reason = problem, "problem");
                    parts.insert(name.to_owned(), problem);
                }
            }
        }
    }

    /// Says whether a Service's health check is served at an address; `None`: not any more.
    pub fn set_health_port(&self, service: &ObjectKey, at: SocketAddr, state: Option<Result<(), String>>) {
        let mut ports = self.health_ports.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (service.clone(), at);
        match state {
            None => drop(ports.remove(&key)),
            Some(state) => {
                if let Err(error) = &state
                    && ports.get(&key) != Some(&state)
                {
                    tracing::warn!(%service, address = %at, error, "healthCheckNodePort is not open");
                }
                ports.insert(key, state);
            }
        }
    }

    /// Sockets of `healthCheckNodePort` that are open, and that are not.
    pub fn health_ports(&self) -> [u32; 2] {
        let ports = self.health_ports.lock().unwrap_or_else(PoisonError::into_inner);
        let open = ports.values().filter(|state| state.is_ok()).count();
        [open, ports.len() - open].map(|count| u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// All problems: those of the last round, the listeners', the processes' and the other parts'.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.snapshot().problems.to_vec();
        problems.extend(self.listeners().into_iter().filter_map(|listener| {
            Some(agent_problem(
                &listener.name,
                format!("{}: {}; tried again", listener.address, listener.error?),
            ))
        }));
        let surroundings = self.surroundings().unwrap_or_default();
        problems.extend(surroundings.trouble.map(|trouble| agent_problem("--l7", trouble)));
        let seen = surroundings.proxies.iter().find_map(|proxy| match &proxy.view {
            View::Open { reason } => {
                Some(format!("the proxy sees the files that its user may see: {reason}"))
            }
            View::Confined { .. } | View::Untold => None,
        });
        problems.extend(seen.map(|seen| agent_problem("--l7", seen)));
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        problems.extend(parts.iter().map(|(name, problem)| agent_problem(name, problem.clone())));
        let ports = self.health_ports.lock().unwrap_or_else(PoisonError::into_inner);
        problems.extend(ports.iter().filter_map(|((service, at), state)| {
            Some(Problem {
                object: ObjectRef { kind: Kind::Service, key: service.clone() },
                field: "spec.healthCheckNodePort".into(),
                reason: format!("{at}: {}; tried again", state.as_ref().err()?),
            })
        }));
        problems
    }
}

/// Starts a wait, unless it has begun.
fn begin(since: &AtomicU64) {
    let _earlier = since.compare_exchange(0, now_ms(), Ordering::Relaxed, Ordering::Relaxed);
}

fn since(at: &AtomicU64) -> Duration {
    match at.load(Ordering::Relaxed) {
        0 => Duration::ZERO,
        at => Duration::from_millis(now_ms().saturating_sub(at)),
    }
}

/// A problem of the agent itself, told under the flag's name.
pub fn agent_problem(field: &str, reason: String) -> Problem {
    Problem {
        object: ObjectRef { kind: Kind::Agent, key: ObjectKey::new("", "weir") },
        field: field.to_string(),
        reason,
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
impl Board {
    /// Makes everything that waits wait for so much longer.
    pub(crate) fn age(&self, by: Duration) {
        for since in [&self.pending_since, &self.owed_since] {
            let earlier = since.load(Ordering::Relaxed).saturating_sub(by.as_millis() as u64);
            since.store(earlier, Ordering::Relaxed);
        }
    }
}
