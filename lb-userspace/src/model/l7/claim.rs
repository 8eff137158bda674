//! From one Ingress to what it asks for: paths on hosts, certificates for names (I6 to I12, I28).
//!
//! Nothing here knows another Ingress; who gets what several ask for is decided in
//! [`super::merge`].

use super::budget::{Beyond, NAMES, PATH, PATHS, WITHOUT_HOSTS};
use super::tls::Names;
use crate::model::routes::{Certificate, HostPattern, PathKind};
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use crate::source::{BackendPort, Ingress, IngressBackend, IngressTls, PathType};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Precedence over what several ask for: an Ingress that stays before one that is being deleted,
/// then the older one, then the one whose namespace and name sort first (I17, H41).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rank {
    /// It is being deleted, or its Namespace is. Until it is gone it serves what nobody else
    /// asks for: a Namespace keeps its Ingresses until the last of its Pods is gone.
    pub(super) ending: bool,
    pub(super) created: i64,
    pub(super) key: Arc<ObjectKey>,
}

/// Where a request is to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Backend {
    Service(Arc<ObjectKey>, BackendPort),
    Unsupported(String),
}

/// A field of the Ingress, spelled only when something is to be told about it; indices are those
/// of the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    DefaultBackend,
    Path(usize, usize),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PathClaim {
    pub(super) kind: PathKind,
    /// As [`crate::model::routes::PathRule`] holds it.
    pub(super) path: Arc<str>,
    pub(super) backend: Backend,
    pub(super) field: Field,
}

/// What an Ingress asks for on one host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct HostClaim {
    pub(super) paths: Vec<PathClaim>,
    pub(super) default: Option<Backend>,
    /// Its `tls` section covers the host (I39).
    pub(super) tls: bool,
}

/// A certificate for a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NameClaim {
    /// What the Ingress refers to; `None`: the default certificate (I29).
    pub(super) secret: Option<ObjectKey>,
    /// The same where it can be served; `None`: the default certificate (I31).
    pub(super) serves: Option<ObjectKey>,
    /// Index into `spec.tls`.
    pub(super) index: usize,
}

/// All that an Ingress asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Claims {
    pub(super) rank: Rank,
    pub(super) hosts: BTreeMap<HostPattern, HostClaim>,
    /// By name; an Ingress may ask for one more than once.
    pub(super) names: BTreeMap<HostPattern, Vec<NameClaim>>,
    /// Secrets that it refers to.
    pub(super) secrets: BTreeSet<ObjectKey>,
    /// Services that it refers to, and which of their ports.
    pub(super) services: BTreeMap<Arc<ObjectKey>, BTreeSet<BackendPort>>,
    pub(super) problems: Vec<Problem>,
}

/// What is known of a Secret.
pub(super) enum Found<'a> {
    /// No answer came yet: nothing is told until one does.
    Awaited,
    Bad(&'a str),
    Good(&'a Certificate),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultBackend => f.write_str("spec.defaultBackend"),
            Self::Path(rule, path) => write!(f, "spec.rules[{rule}].http.paths[{path}]"),
        }
    }
}

/// The Secrets that an Ingress refers to: of its own namespace (I23).
pub(super) fn secrets(ingress: &Ingress) -> BTreeSet<ObjectKey> {
    let names = ingress.tls.iter().filter_map(|tls| tls.secret.as_ref());
    names.map(|name| ObjectKey::new(&ingress.key.namespace, name)).collect()
}

/// Reads one Ingress.
pub(super) fn claims<'a>(ingress: &Ingress, rank: Rank, find: impl Fn(&ObjectKey) -> Found<'a>) -> Claims {
    let mut reader = Reader {
        ingress,
        services: BTreeMap::new(),
        hosts: BTreeMap::new(),
        names: BTreeMap::new(),
        problems: Vec::new(),
    };
    for problem in &ingress.problems {
        reader.tell(problem.field.clone(), problem.reason.clone());
    }
    reader.rules();
    reader.tls(find);
    Claims {
        rank,
        hosts: reader.hosts,
        names: reader.names,
        secrets: secrets(ingress),
        services: reader.services,
        problems: reader.problems,
    }
}

/// What becomes of an Ingress that is beyond a limit: nothing, and that is told.
pub(super) fn refused(rank: Rank, beyond: Beyond) -> Claims {
    let reason = format!("with this Ingress, bytes of routes are beyond {beyond}: none of it is served");
    let problems = vec![problem(&rank.key, "spec", reason)];
    Claims {
        rank,
        hosts: BTreeMap::new(),
        names: BTreeMap::new(),
        secrets: BTreeSet::new(),
        services: BTreeMap::new(),
        problems,
    }
}

struct Reader<'a> {
    ingress: &'a Ingress,
    services: BTreeMap<Arc<ObjectKey>, BTreeSet<BackendPort>>,
    hosts: BTreeMap<HostPattern, HostClaim>,
    names: BTreeMap<HostPattern, Vec<NameClaim>>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn tell(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(problem(&self.ingress.key, field, reason));
    }

    /// The default backend takes what no rule of its hosts matches; of an Ingress without rules,
    /// whatever no host is for (I14).
    fn rules(&mut self) {
        let ingress = self.ingress;
        let default = ingress.default_backend.as_ref().map(|backend| self.backend(backend));
        if ingress.rules.is_empty() && default.is_some() {
            self.hosts.entry(HostPattern::Any).or_default().default.clone_from(&default);
        }
        let mut room = PATHS;
        for rule in &ingress.rules {
            let index = rule.index;
            let pattern = match pattern(&rule.host) {
                Ok(pattern) => pattern,
                Err(reason) => {
                    self.tell(format!("spec.rules[{index}].host"), format!("{reason}; the rule is ignored"));
                    continue;
                }
            };
            let mut paths = Vec::new();
            for path in rule.paths.iter().flatten() {
                let number = path.index;
                if room == 0 {
                    let reason = format!("more than {PATHS} paths: from here on they are not served");
                    self.tell(format!("spec.rules[{index}].http.paths[{number}]"), reason);
                    break;
                }
                room -= 1;
                let field = Field::Path(index, number);
                if let Some((kind, path_text)) = self.path(field, &path.path, path.path_type) {
                    let backend = self.backend(&path.backend);
                    paths.push(PathClaim { kind, path: path_text, backend, field });
                }
            }
            let claim = self.hosts.entry(pattern).or_default();
            claim.paths.append(&mut paths);
            claim.default.clone_from(&default);
        }
    }

    /// A Service of the Ingress' own namespace (I23).
    fn backend(&mut self, backend: &IngressBackend) -> Backend {
        match backend {
            IngressBackend::Service { name, port } => {
                let key = ObjectKey::new(&self.ingress.key.namespace, name);
                let key = match self.services.get_key_value(&key) {
                    Some((key, _)) => Arc::clone(key),
                    None => Arc::new(key),
                };
                self.services.entry(Arc::clone(&key)).or_default().insert(port.clone());
                Backend::Service(key, port.clone())
            }
            IngressBackend::Unsupported(reason) => Backend::Unsupported(reason.clone()),
        }
    }

    /// Judges a path (I12) and brings it into the form in which it is compared (I10).
    ///
    /// One that no request can be on is refused, and what looks like a regular expression where
    /// none is meant. `ImplementationSpecific` is Prefix here, so such a path is told, and
    /// compared as it stands.
    fn path(&mut self, field: Field, path: &str, path_type: PathType) -> Option<(PathKind, Arc<str>)> {
        let path = if path.is_empty() && path_type == PathType::ImplementationSpecific { "/" } else { path };
        let mut refuse = |reason: String| {
            self.tell(format!("{field}.path"), reason);
            None
        };
        if path.len() > PATH {
            return refuse(format!("longer than {PATH} bytes; the path is ignored"));
        }
        if !path.starts_with('/') {
            return refuse(format!("{path:?} does not begin with /; the path is ignored"));
        }
        if let Some(bad) = path.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '#' | '?')) {
            let reason = "which no path of a request holds: write it as %XX; the path is ignored";
            return refuse(format!("{path:?} holds {bad:?}, {reason}"));
        }
        if let Some(bad) = path.chars().find(|c| "*+^$()[]{}|\\".contains(*c)) {
            if path_type != PathType::ImplementationSpecific {
                return refuse(format!(
                    "{path:?} holds {bad:?}, as regular expressions do, and pathType {path_type:?} is none; the \
                     path is ignored"
                ));
            }
            let reason =
                "looks like a regular expression, and is compared as a Prefix, character by character";
            self.tell(format!("{field}.path"), format!("{path:?} {reason}"));
        }
        if path.contains('%') {
            // H32: what a request's path decodes to must be routed as the path itself is.
            let reason = "holds an escape, which the decoded form of a request's path lacks: requests on it answer 400";
            self.tell(format!("{field}.path"), format!("{path:?} {reason}"));
        }
        Some(match path_type {
            PathType::Exact => (PathKind::Exact, path.into()),
            PathType::Prefix | PathType::ImplementationSpecific => {
                (PathKind::Prefix, path.strip_suffix('/').unwrap_or(path).into())
            }
        })
    }

    fn tls<'a>(&mut self, find: impl Fn(&ObjectKey) -> Found<'a>) {
        let ingress = self.ingress;
        let mut listed = BTreeSet::new();
        let (mut without_hosts, mut room) = (0, NAMES);
        for tls in &ingress.tls {
            let index = tls.index;
            let secret = tls.secret.as_ref().map(|name| ObjectKey::new(&ingress.key.namespace, name));
            let found = secret.as_ref().map(&find);
            let certificate = match &found {
                Some(Found::Good(certificate)) => Some(*certificate),
                Some(Found::Bad(reason)) => {
                    let secret = secret.as_ref().map(ToString::to_string).unwrap_or_default();
                    let reason = format!("Secret {secret}: {reason}; the default certificate is served");
                    self.tell(format!("spec.tls[{index}].secretName"), reason);
                    None
                }
                Some(Found::Awaited) | None => None,
            };
            let patterns = if !tls.hosts.is_empty() {
                let patterns = self.listed(tls, certificate);
                listed.extend(patterns.iter().cloned());
                patterns
            } else if without_hosts < WITHOUT_HOSTS {
                without_hosts += 1;
                self.found(certificate, secret.is_none())
            } else {
                let reason = format!("more than {WITHOUT_HOSTS} entries have none: this one is ignored");
                self.tell(format!("spec.tls[{index}].hosts"), reason);
                continue;
            };
            let serves = secret.clone().filter(|_| certificate.is_some());
            for pattern in patterns {
                if room == 0 {
                    let reason = format!("more than {NAMES} names: from here on they are not served");
                    self.tell(format!("spec.tls[{index}].hosts"), reason);
                    break;
                }
                room -= 1;
                let (secret, serves) = (secret.clone(), serves.clone());
                self.names.entry(pattern).or_default().push(NameClaim { secret, serves, index });
            }
        }
        for (host, claim) in &mut self.hosts {
            let parent = match host {
                HostPattern::Exact(host) => host.split_once('.').map(|(_, parent)| parent),
                HostPattern::Wildcard(_) | HostPattern::Any => None,
            };
            let wildcard = parent.map(|parent| HostPattern::Wildcard(parent.into()));
            claim.tls |= listed.contains(host) || wildcard.is_some_and(|parent| listed.contains(&parent));
        }
    }

    /// The names that an entry of `spec.tls` lists.
    fn listed(&mut self, tls: &IngressTls, certificate: Option<&Certificate>) -> Vec<HostPattern> {
        let names = certificate.map(Names::of);
        let mut patterns = Vec::new();
        for (number, host) in &tls.hosts {
            let field = || format!("spec.tls[{}].hosts[{number}]", tls.index);
            match pattern(host) {
                Ok(HostPattern::Any) => self.tell(field(), "is empty; it is ignored"),
                Ok(pattern) => {
                    if names.as_ref().is_some_and(|names| !names.cover(&pattern)) {
                        let reason = format!("the certificate of the Secret does not name {pattern}");
                        self.tell(field(), format!("{reason}: it is served, and clients will refuse it"));
                    }
                    patterns.push(pattern);
                }
                Err(reason) => self.tell(field(), format!("{reason}; it is ignored")),
            }
        }
        patterns
    }

    /// The names that an entry without hosts is for: those rule hosts that the certificate names
    /// (I28), and with a rule for all hosts, all names of the certificate. Marks the hosts that
    /// it covers. While the certificate cannot be told, all rule hosts count as covered, and
    /// none of them claims a name.
    fn found(&mut self, certificate: Option<&Certificate>, by_default: bool) -> Vec<HostPattern> {
        let names = certificate.map(Names::of);
        let mut patterns = Vec::new();
        for (host, claim) in &mut self.hosts {
            let covered = match (host, &names) {
                (HostPattern::Any, _) | (_, None) => true,
                (_, Some(names)) => names.cover(host),
            };
            claim.tls |= covered;
            if *host == HostPattern::Any {
                let names = certificate.iter().flat_map(|certificate| &certificate.names);
                patterns.extend(names.filter_map(|name| pattern(name).ok()));
            } else if covered && (certificate.is_some() || by_default) {
                patterns.push(host.clone());
            }
        }
        patterns
    }
}

/// Reads a host as a rule writes it; empty means all (I6, I8).
///
/// # Errors
/// Why it is no host, as the beginning of a sentence.
pub(super) fn pattern(host: &str) -> Result<HostPattern, String> {
    if host.is_empty() {
        return Ok(HostPattern::Any);
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits is an address: no name under the root is.
    let address = |name: &str| name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    if host.len() > 253 || !name.split('.').all(label) || address(name) {
        let shown: String = host.chars().take(80).collect();
        return Err(format!("{shown:?} is not a DNS name, or one behind \"*.\""));
    }
    let name: Arc<str> = name.to_ascii_lowercase().into();
    Ok(if host.starts_with("*.") { HostPattern::Wildcard(name) } else { HostPattern::Exact(name) })
}

pub(super) fn problem(ingress: &ObjectKey, field: impl Into<String>, reason: impl Into<String>) -> Problem {
    let object = ObjectRef { kind: Kind::Ingress, key: ingress.clone() };
    Problem { object, field: field.into(), reason: reason.into() }
}
