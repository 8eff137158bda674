//! What L7 should serve: virtual hosts, pools of endpoints, certificates.
//!
//! The model's answer for L7, and what the proxy process is fed with. [`Routes`] is the whole
//! of it; an [`Update`] is one step from one set of routes to the next, and carries a whole
//! value, never a difference inside one. Applying the same updates again changes nothing.

use crate::problem::ObjectKey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Which names a virtual host or a certificate is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum HostPattern {
    /// One name: lower case, no port, no trailing dot.
    Exact(Arc<str>),
    /// `*.example.com`, held as `example.com`: names with exactly one more label (I6).
    Wildcard(Arc<str>),
    /// Every name that nothing else is for (I8); the default certificate (I30).
    Any,
}

impl HostPattern {
    /// The wildcard that a name is covered by when there is nothing for itself.
    pub fn above(&self) -> Option<Self> {
        match self {
            Self::Exact(name) => name.split_once('.').map(|(_, parent)| Self::Wildcard(parent.into())),
            Self::Wildcard(_) | Self::Any => None,
        }
    }
}

/// The routes of one host pattern. The most specific pattern owns a request: what matches no
/// rule here goes to `default`, never to a less specific host (I7).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct VirtualHost {
    /// In order of precedence: longest path first, Exact before Prefix (I11). The first that
    /// matches wins.
    pub rules: Vec<PathRule>,
    /// Takes what no rule matches (I14); without it the answer is 404.
    pub default: Option<Action>,
}

/// How a rule's path is compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PathKind {
    /// Byte by byte (I9).
    Exact,
    /// Element by element (I10). The path is held without its trailing slash; `/` is empty.
    Prefix,
}

/// One rule of a virtual host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathRule {
    pub kind: PathKind,
    pub path: Arc<str>,
    pub action: Action,
}

/// What becomes of a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Action {
    /// The Ingress that says so.
    pub ingress: Arc<ObjectKey>,
    pub target: Target,
    /// Over HTTP, the status of the redirect to HTTPS (I39); `None`: served over both.
    pub https_redirect: Option<u16>,
}

/// Where a request goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Target {
    /// To an endpoint of the pool; 503 while it has none (I15).
    Pool(PoolKey),
    /// 503, with the reason that `weir explain` gives: a missing Service or port, an
    /// unsupported kind (I15, I16).
    Unavailable(String),
}

/// A port of a Service, as its number there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PoolKey {
    pub service: Arc<ObjectKey>,
    pub port: u16,
}

/// What is spoken to endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.1, upgrades included.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge, over plain TCP (`appProtocol: kubernetes.io/h2c`).
    H2c,
}

/// The endpoints behind a Service port that a request may be sent to.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pool {
    pub protocol: Protocol,
    /// Ready ones, else those that serve while they terminate (I20). Sorted, no two equal.
    pub endpoints: Vec<SocketAddr>,
}

/// A certificate and its key, checked to belong together.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// DER of the private key, in PKCS#8, PKCS#1 or SEC1 form.
    pub key: Zeroizing<Vec<u8>>,
    /// DNS names of the leaf, lower case, wildcards as they stand.
    pub names: Vec<String>,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
}

/// The key is in no output.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("names", &self.names)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// All that L7 serves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Routes {
    pub hosts: BTreeMap<HostPattern, Arc<VirtualHost>>,
    pub pools: BTreeMap<PoolKey, Arc<Pool>>,
    /// Which certificate a name is served with, by Secret. `Any`: the default certificate.
    pub names: BTreeMap<HostPattern, ObjectKey>,
    pub certificates: BTreeMap<ObjectKey, Arc<Certificate>>,
}

/// One step from one set of routes to the next; `None` removes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Update {
    Host(HostPattern, Option<Arc<VirtualHost>>),
    Pool(PoolKey, Option<Arc<Pool>>),
    Name(HostPattern, Option<ObjectKey>),
    Certificate(ObjectKey, Option<Arc<Certificate>>),
}

impl Routes {
    /// Takes one step.
    pub fn apply(&mut self, update: Update) {
        fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        match update {
            Update::Host(key, value) => put(&mut self.hosts, key, value),
            Update::Pool(key, value) => put(&mut self.pools, key, value),
            Update::Name(key, value) => put(&mut self.names, key, value),
            Update::Certificate(key, value) => put(&mut self.certificates, key, value),
        }
    }

    /// The steps from nothing to these routes: what a new proxy is fed with.
    pub fn updates(&self) -> Vec<Update> {
        let pools = self.pools.iter().map(|(k, v)| Update::Pool(k.clone(), Some(Arc::clone(v))));
        let hosts = self.hosts.iter().map(|(k, v)| Update::Host(k.clone(), Some(Arc::clone(v))));
        let certificates =
            self.certificates.iter().map(|(k, v)| Update::Certificate(k.clone(), Some(Arc::clone(v))));
        let names = self.names.iter().map(|(k, v)| Update::Name(k.clone(), Some(v.clone())));
        pools.chain(hosts).chain(certificates).chain(names).collect()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(parent) => write!(f, "*.{parent}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl fmt::Display for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}
