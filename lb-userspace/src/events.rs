//! Events about Ingresses, as `kubectl describe` shows them (I70).
//!
//! Decided here, posted by [`crate::status`]: a normal `Sync` once for each generation whose
//! routes are in force, a warning for each problem. An Event's name follows from what it says, so
//! that another agent, or this one after a restart, does not say it again while it is there.

use crate::problem::{ObjectKey, Problem};
use crate::status::Report;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tokio::time::Instant;

/// When a warning that still holds is said again: the API server forgets Events after an hour.
const AGAIN: Duration = Duration::from_secs(3600);
/// Events that may wait; others are found again at the next check.
const WAITING: usize = 4096;
/// Posted at once, and a second after that.
const BURST: u32 = 50;
const RATE: u32 = 10;
/// The API's bounds on a note and on a name, in bytes.
const LONGEST_NOTE: usize = 1024;
const LONGEST_NAME: usize = 253;

/// One thing to say about an Ingress.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    pub ingress: ObjectKey,
    pub uid: String,
    pub generation: i64,
    pub warning: bool,
    pub reason: &'static str,
    pub text: String,
    /// Which Event it is: of the object, its generation where that matters, and the words.
    pub id: u64,
}

impl Note {
    fn sync(report: &Report) -> Self {
        Self::new(report, false, "Sync", "Routes are in force".to_owned())
    }

    fn warning(report: &Report, problem: &Problem) -> Self {
        let text = if problem.field.is_empty() {
            problem.reason.clone()
        } else {
            format!("{}: {}", problem.field, problem.reason)
        };
        Self::new(report, true, reason(&problem.field), cut(&text, LONGEST_NOTE))
    }

    fn new(report: &Report, warning: bool, reason: &'static str, text: String) -> Self {
        // A problem that outlives a change of something else is still the same.
        let generation = if warning { 0 } else { report.ingress.generation };
        let mut hasher = DefaultHasher::new();
        (&report.ingress.uid, warning, reason, &text, generation).hash(&mut hasher);
        Self {
            ingress: report.ingress.key.clone(),
            uid: report.ingress.uid.clone(),
            generation: report.ingress.generation,
            warning,
            reason,
            text,
            id: hasher.finish(),
        }
    }

    /// The object to create.
    pub fn event(&self, node: &str, now: Timestamp) -> Event {
        let suffix = format!(".{:016x}", self.id);
        let name = cut(&self.ingress.name, LONGEST_NAME - suffix.len());
        let name = name.trim_end_matches(['.', '-']);
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}{suffix}")),
                namespace: Some(self.ingress.namespace.clone()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            type_: Some(if self.warning { "Warning" } else { "Normal" }.into()),
            reason: Some(self.reason.into()),
            action: Some("Route".into()),
            note: Some(self.text.clone()),
            regarding: Some(ObjectReference {
                api_version: Some("networking.k8s.io/v1".into()),
                kind: Some("Ingress".into()),
                namespace: Some(self.ingress.namespace.clone()),
                name: Some(self.ingress.name.clone()),
                uid: Some(self.uid.clone()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some("weir.dev/ingress".into()),
            reporting_instance: Some(node.to_owned()),
            ..Event::default()
        }
    }
}

/// In one word, what a problem of a field is about.
fn reason(field: &str) -> &'static str {
    for (part, reason) in [
        ("annotations", "BadAnnotation"),
        ("ecretName", "BadCertificate"),
        ("tls", "BadTls"),
        ("ackend", "BadBackend"),
        ("host", "BadHost"),
        ("path", "BadPath"),
    ] {
        if field.contains(part) {
            return reason;
        }
    }
    "BadSpec"
}

/// A text cut to so many bytes, between two characters.
fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}

/// What has been said of one Ingress.
#[derive(Debug, Default)]
struct Said {
    uid: String,
    /// The generation whose `Sync` was said.
    generation: Option<i64>,
    /// Warnings that still hold, and when each was said.
    warnings: BTreeMap<u64, Instant>,
}

/// What has been said, and what is to be.
#[derive(Debug)]
pub struct Teller {
    said: BTreeMap<ObjectKey, Said>,
    waiting: BTreeMap<u64, Note>,
    tokens: u32,
    /// Until when tokens are counted.
    counted: Instant,
}

impl Teller {
    pub fn new(now: Instant) -> Self {
        Self { said: BTreeMap::new(), waiting: BTreeMap::new(), tokens: BURST, counted: now }
    }

    /// Takes a report. `known`: an earlier agent has dealt with this Ingress, so its `Sync` was
    /// said in its time.
    pub fn take(&mut self, report: &Report, known: bool, now: Instant) {
        let key = &report.ingress.key;
        self.waiting.retain(|_, note| note.ingress != *key);
        if !report.ours || report.ingress.uid.is_empty() {
            self.said.remove(key);
            return;
        }
        let generation = report.ingress.generation;
        let said = self.said.entry(key.clone()).or_default();
        if said.uid != report.ingress.uid {
            *said = Said {
                uid: report.ingress.uid.clone(),
                generation: known.then_some(generation),
                ..Said::default()
            };
        }
        let warnings: Vec<Note> =
            report.problems.iter().map(|problem| Note::warning(report, problem)).collect();
        let ids: BTreeSet<u64> = warnings.iter().map(|note| note.id).collect();
        said.warnings.retain(|id, at| ids.contains(id) && *at + AGAIN > now);
        let sync = (report.in_force && said.generation != Some(generation)).then(|| Note::sync(report));
        let new = warnings.into_iter().filter(|note| !said.warnings.contains_key(&note.id));
        for note in sync.into_iter().chain(new) {
            if self.waiting.len() < WAITING {
                self.waiting.insert(note.id, note);
            }
        }
    }

    /// Forgets the Ingresses that are not among these.
    pub fn keep(&mut self, keys: &BTreeSet<&ObjectKey>) {
        self.said.retain(|key, _| keys.contains(key));
        self.waiting.retain(|_, note| keys.contains(&note.ingress));
    }

    /// The next thing to say; `None`: nothing, or not yet.
    pub fn next(&mut self, now: Instant) -> Option<Note> {
        let ticks = now.saturating_duration_since(self.counted).as_millis() * u128::from(RATE) / 1000;
        let ticks = u32::try_from(ticks).unwrap_or(BURST);
        if ticks > 0 {
            self.tokens = self.tokens.saturating_add(ticks).min(BURST);
            self.counted = now;
        }
        self.tokens = self.tokens.checked_sub(u32::from(!self.waiting.is_empty()))?;
        self.waiting.pop_first().map(|(_, note)| note)
    }

    /// Notes that it was said of what [`Self::next`] gave.
    pub fn said(&mut self, note: &Note, now: Instant) {
        if let Some(said) = self.said.get_mut(&note.ingress).filter(|said| said.uid == note.uid) {
            if note.warning {
                said.warnings.insert(note.id, now);
            } else {
                said.generation = Some(note.generation);
            }
        }
    }

    /// When to ask for the next; `None`: nothing waits.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let pause = if self.tokens > 0 { Duration::ZERO } else { Duration::from_secs(1) / RATE };
        (!self.waiting.is_empty()).then_some(now + pause)
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
