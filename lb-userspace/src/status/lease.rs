//! Which agent of the cluster writes: the one that holds the Lease.
//!
//! Times are this machine's own: a Lease that is seen unchanged for its whole length is free,
//! whatever clocks say. Nobody else may write in the same moment, so a holder stops well before
//! others may take over.

use ::kube::api::{Api, PostParams};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;
use tokio::time::Instant;

/// The Lease's name, in the namespace that the agent runs in.
pub(super) const NAME: &str = "weir-status";
/// How long a Lease is good without a sign of life (I69).
const LENGTH: Duration = Duration::from_secs(30);
/// How often the holder gives one.
pub(super) const RENEW_EVERY: Duration = Duration::from_secs(10);
/// When a holder that cannot give one stops writing.
const STOP_AFTER: Duration = Duration::from_secs(20);
/// A Lease is never waited for longer, whatever is written in it.
const LONGEST: Duration = Duration::from_secs(300);

/// The Lease as it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Observed {
    /// Empty: nobody.
    holder: String,
    length: Duration,
    /// The resource version.
    version: String,
    transitions: i32,
    /// When this version was first seen.
    since: Instant,
}

/// What to do about it now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// It is free, or our node's: write ourselves in.
    Take,
    /// Somebody holds it until then, unless something is heard.
    Wait(Instant),
}

/// One candidate.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Node and a number: an agent is not the one before it on the same node.
    us: String,
    node: String,
    observed: Option<Observed>,
    /// Until when this agent may write, unless renewed.
    leads_until: Option<Instant>,
}

impl Candidate {
    pub(super) fn new(node: &str) -> Self {
        let number = RandomState::new().build_hasher().finish();
        Self { us: format!("{node}_{number:016x}"), node: node.to_owned(), observed: None, leads_until: None }
    }

    /// Takes what was read; `None`: there is no Lease.
    pub(super) fn see(&mut self, lease: Option<&Lease>, now: Instant) {
        let Some(lease) = lease else {
            self.observed = None;
            return;
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.observed.as_ref().is_some_and(|observed| observed.version == version) {
            return;
        }
        let spec = lease.spec.as_ref();
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
        self.observed = Some(Observed {
            holder: spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
            length: seconds.map_or(LENGTH, Duration::from_secs).min(LONGEST),
            version,
            transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or(0),
            since: now,
        });
    }

    pub(super) fn step(&self, now: Instant) -> Step {
        match &self.observed {
            // There is one agent on a node: one that held the Lease before us is no more.
            Some(seen) if !seen.holder.is_empty() && !self.is_of_our_node(&seen.holder) => {
                let free = seen.since + seen.length;
                if free > now { Step::Wait(free) } else { Step::Take }
            }
            Some(_) | None => Step::Take,
        }
    }

    fn is_of_our_node(&self, holder: &str) -> bool {
        holder.rsplit_once('_').is_some_and(|(node, _)| node == self.node)
    }

    /// Until when this agent may write, if it may.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        self.leads_until
    }

    /// Whether somebody else holds the Lease, as far as is known.
    pub(super) fn is_taken(&self) -> bool {
        self.observed.as_ref().is_some_and(|seen| !seen.holder.is_empty() && seen.holder != self.us)
    }

    /// Writes ourselves in, or another time of the same. Whoever was quicker wins: the server
    /// compares versions.
    ///
    /// # Errors
    /// The server's; a conflict means that somebody was quicker.
    pub(super) async fn take(&mut self, api: &Api<Lease>) -> Result<(), ::kube::Error> {
        // Counted from before the request: others count from when they see its effect.
        let asked = Instant::now();
        let lease = self.lease(&self.us, Timestamp::now());
        let written = match &self.observed {
            None => api.create(&PostParams::default(), &lease).await,
            Some(_) => api.replace(NAME, &PostParams::default(), &lease).await,
        };
        let written = written.inspect_err(|error| {
            if lost(error) {
                self.leads_until = None;
            }
        })?;
        self.see(Some(&written), Instant::now());
        self.leads_until = Some(asked + STOP_AFTER);
        Ok(())
    }

    /// Gives it away, so that another agent need not wait.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn release(&mut self, api: &Api<Lease>) -> Result<(), ::kube::Error> {
        self.leads_until = None;
        let lease = self.lease("", Timestamp::now());
        let written = api.replace(NAME, &PostParams::default(), &lease).await?;
        self.see(Some(&written), Instant::now());
        Ok(())
    }

    fn lease(&self, holder: &str, now: Timestamp) -> Lease {
        let changes_hands = self.observed.as_ref().is_some_and(|seen| seen.holder != holder);
        let transitions = self.observed.as_ref().map_or(0, |seen| seen.transitions);
        Lease {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                resource_version: self.observed.as_ref().map(|seen| seen.version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: i32::try_from(LENGTH.as_secs()).ok(),
                lease_transitions: Some(transitions.saturating_add(i32::from(changes_hands))),
                renew_time: Some(MicroTime(now)),
                acquire_time: changes_hands.then_some(MicroTime(now)),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// Whether an error means that the Lease is another's now, or gone.
fn lost(error: &::kube::Error) -> bool {
    matches!(error, ::kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str, seconds: i32) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.into()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(seconds),
                ..LeaseSpec::default()
            }),
        }
    }

    #[tokio::test]
    async fn a_lease_is_taken_when_free_ours_or_unchanged_for_its_length() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (name, seen, now, expected) in [
            ("there is none", None, 0, Step::Take),
            ("nobody's", Some(lease("", "1", 30)), 0, Step::Take),
            ("ours, from before a restart", Some(lease("us_1", "1", 30)), 0, Step::Take),
            ("another node's of a like name", Some(lease("us_1_1", "1", 30)), 0, Step::Wait(at(30))),
            ("another's", Some(lease("them", "1", 30)), 29, Step::Wait(at(30))),
            ("another's, silent", Some(lease("them", "1", 30)), 30, Step::Take),
            ("another's, for ages", Some(lease("them", "1", i32::MAX)), 300, Step::Take),
            ("another's, of no length", Some(lease("them", "1", -5)), 30, Step::Take),
        ] {
            let mut candidate = Candidate::new("us");
            candidate.see(seen.as_ref(), start);
            assert_eq!(candidate.step(at(now)), expected, "{name}");
        }
    }

    #[tokio::test]
    async fn only_a_new_version_is_a_sign_of_life() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut candidate = Candidate::new("us");
        candidate.see(Some(&lease("them", "1", 30)), start);
        candidate.see(Some(&lease("them", "1", 30)), at(20));
        assert_eq!(candidate.step(at(25)), Step::Wait(at(30)), "read again, not renewed");
        candidate.see(Some(&lease("them", "2", 30)), at(25));
        assert_eq!(candidate.step(at(40)), Step::Wait(at(55)));
        assert!(candidate.is_taken());
        candidate.see(Some(&lease("", "3", 30)), at(41));
        assert_eq!((candidate.step(at(41)), candidate.is_taken()), (Step::Take, false));
        candidate.see(None, at(42));
        assert_eq!(candidate.step(at(42)), Step::Take);
    }

    #[tokio::test]
    async fn what_is_written_counts_changes_of_hands() {
        let now = Timestamp::UNIX_EPOCH;
        let mut candidate = Candidate::new("us");
        let spec = |candidate: &Candidate, holder| candidate.lease(holder, now).spec.expect("a spec");
        assert_eq!(spec(&candidate, "us").lease_transitions, Some(0));
        candidate.see(Some(&lease("them", "7", 30)), Instant::now());
        let taken = candidate.lease("us", now);
        assert_eq!(taken.metadata.resource_version.as_deref(), Some("7"), "or two could take it");
        assert_eq!(taken.spec.as_ref().and_then(|spec| spec.lease_transitions), Some(1));
        candidate.see(Some(&lease("us", "8", 30)), Instant::now());
        assert_eq!(spec(&candidate, "us").acquire_time, None);
        let successor = lease("us_1", "9", 30);
        candidate.see(Some(&successor), Instant::now());
        assert!(candidate.is_taken(), "by the next agent of our own node");
    }

    #[test]
    fn a_holder_stops_before_another_may_begin() {
        assert!(RENEW_EVERY < STOP_AFTER && STOP_AFTER < LENGTH);
    }
}
