//! What L7 should serve, decided from objects alone.
//!
//! Ingresses that are ours ask for paths on hosts and for certificates for names
//! ([`claim`]); what several ask for goes to the first in line ([`merge`]); Services give
//! endpoints ([`pools`]), Secrets certificates ([`tls`]). [`L7Model`] keeps all answers,
//! recomputes those that a change touches, and says how the routes differ: an endpoint that
//! changes costs its pools, and no route. The same objects always give the same routes,
//! whatever the way there. Time, looked-up names and addresses of nodes are arguments.

use super::routes::{Certificate, HostPattern, Pool, PoolKey, Routes, Update, VirtualHost};
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use crate::source::{BackendPort, Ingress, Objects, Secret, SecretState, Touched};
use budget::{Ledger, Limit};
use claim::{Claims, Found, Rank};
use ipnet::IpNet;
use ownership::Classes;
use pools::{Guard, Offer};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use told::{Finder, Told};

mod budget;
mod claim;
mod merge;
mod offers;
mod ownership;
mod pools;
#[cfg(test)]
mod tests;
mod tls;
mod told;

pub use tls::Issued;

/// Looked-up names of ExternalName Services (lower case, no trailing dot): their addresses, or
/// why there are none. One that is absent is not looked up yet.
pub type Names = BTreeMap<String, Result<Vec<IpAddr>, String>>;

/// Names that have to be looked up, each with the namespaces of the Services that stand for it.
pub type WantedNames = BTreeMap<String, BTreeSet<String>>;

/// What the operator decides, fixed for the life of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct L7Options {
    /// `--ingress-controller` (I1).
    pub controllers: BTreeSet<String>,
    /// `--watch-ingress-without-class` (I2).
    pub without_class: bool,
    /// Objects come from manifests: nobody filled in a default class.
    pub manifests: bool,
    /// `--watch-namespace` (I5).
    pub namespace: Option<String>,
    /// `--default-ssl-certificate` (I30).
    pub default_certificate: Option<ObjectKey>,
    /// `--external-names` (I22).
    pub external_names: bool,
    /// `--allow-endpoint-cidr`: lifts H38.
    pub allow_endpoint_cidrs: Vec<IpNet>,
}

/// What may change besides the objects.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct L7Input {
    /// Seconds since the epoch.
    pub now: i64,
    /// Addresses of nodes, as far as they are known (H38).
    pub node_addresses: BTreeSet<IpAddr>,
    pub names: Arc<Names>,
    /// Served where there is no other (I30).
    pub self_signed: Option<Arc<Certificate>>,
}

/// Why some requests of an Ingress lead nowhere, told apart as ingress-nginx does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Orphan {
    /// A backend's Service is not there.
    NoService,
    /// A backend's Service has no such port, or nothing behind it.
    NoEndpoint,
}

impl Orphan {
    pub const ALL: [Self; 2] = [Self::NoService, Self::NoEndpoint];

    pub fn label(self) -> &'static str {
        match self {
            Self::NoService => "no-service",
            Self::NoEndpoint => "no-endpoint",
        }
    }
}

/// Reads the certificate of a Secret, whatever the time.
///
/// # Errors
/// Why it cannot be served, as the beginning of a sentence.
pub fn certificate(secret: &Secret) -> Result<Certificate, String> {
    tls::read(secret)
}

/// Name of the self-signed certificate: no Secret has it.
fn self_signed_key() -> ObjectKey {
    ObjectKey::new("", "self-signed")
}

/// A Secret that somebody refers to.
#[derive(Debug)]
enum Held {
    Awaited,
    Bad(String),
    Read {
        certificate: Arc<Certificate>,
        /// Why it is not served at the time of the last round, if so.
        untimely: Option<&'static str>,
    },
}

/// The answers so far, and who depends on what.
#[derive(Debug)]
pub struct L7Model {
    options: L7Options,
    input: L7Input,
    /// `None` before the first round.
    classes: Option<Classes>,
    guard: Guard,
    /// Which Ingresses have a part in the routes, and which Services in the endpoints, that
    /// there may be.
    ingresses: Ledger,
    services: Ledger,
    claims: BTreeMap<ObjectKey, Claims>,
    /// Who asks for what, in order of precedence.
    on_host: BTreeMap<HostPattern, BTreeSet<Rank>>,
    on_name: BTreeMap<HostPattern, BTreeSet<Rank>>,
    /// Ingresses by the Service, and by the Secret, that they refer to.
    service_users: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    secret_users: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    offers: BTreeMap<ObjectKey, Offer>,
    held: BTreeMap<ObjectKey, Held>,
    /// When a certificate may have to be judged again.
    next_time: Option<i64>,
    told: Told,
    /// The certificate for names without one.
    default: Option<ObjectKey>,
    routes: Routes,
    /// Something was recomputed since the Problems were last asked for.
    recomputed: bool,
}

/// What is to be recomputed.
#[derive(Default)]
struct Dirty {
    hosts: BTreeSet<HostPattern>,
    names: BTreeSet<HostPattern>,
    services: BTreeSet<ObjectKey>,
    secrets: BTreeSet<ObjectKey>,
}

impl L7Model {
    pub fn new(options: L7Options) -> Self {
        Self::limited(options, budget::ROUTES, budget::ALL_ENDPOINTS)
    }

    /// The same under other limits.
    fn limited(options: L7Options, routes: Limit, endpoints: Limit) -> Self {
        Self {
            options,
            input: L7Input::default(),
            classes: None,
            guard: Guard::default(),
            ingresses: Ledger::new(routes),
            services: Ledger::new(endpoints),
            claims: BTreeMap::new(),
            on_host: BTreeMap::new(),
            on_name: BTreeMap::new(),
            service_users: BTreeMap::new(),
            secret_users: BTreeMap::new(),
            offers: BTreeMap::new(),
            held: BTreeMap::new(),
            next_time: None,
            told: Told::default(),
            default: None,
            routes: Routes::default(),
            recomputed: false,
        }
    }

    /// Recomputes what is touched and returns how the routes differ, in an order in which what
    /// is pointed to is there before and goes after.
    ///
    /// `touched` is what changed in `objects` since the last call; what changed in `input` is
    /// found here.
    pub fn update(&mut self, objects: &Objects, input: &L7Input, touched: &Touched) -> Vec<Update> {
        let mut dirty = Dirty::default();
        let mut ingresses = touched.ingresses.clone();
        self.take_input(objects, input, touched, &mut dirty);
        let first = self.classes.is_none();
        if first || touched.ingress_classes {
            let classes = Classes::of(objects, &self.options);
            if self.classes.as_ref() != Some(&classes) {
                self.classes = Some(classes);
                ingresses.extend(objects.ingresses.keys().cloned());
                ingresses.extend(self.claims.keys().cloned());
            }
        }
        dirty.secrets.extend(touched.secrets.iter().filter(|key| self.held.contains_key(*key)).cloned());
        if first {
            dirty.secrets.extend(self.options.default_certificate.clone());
        }
        for key in &dirty.secrets {
            self.hold(objects, key);
            ingresses.extend(self.secret_users.get(key).into_iter().flatten().cloned());
        }
        for key in &ingresses {
            let owned = self.ours(objects, key);
            let asks = owned.map(|ingress| (rank(objects, ingress), budget::weight(ingress)));
            self.ingresses.put(key, asks);
        }
        ingresses.extend(self.ingresses.settle());
        for key in &ingresses {
            self.reclaim(objects, key, &mut dirty);
        }
        for key in &dirty.secrets {
            if !self.secret_users.contains_key(key) && self.options.default_certificate.as_ref() != Some(key)
            {
                self.held.remove(key);
            }
        }
        let mut changes = Changes::default();
        let recomputed = first || !ingresses.is_empty() || !dirty.secrets.is_empty();
        dirty
            .services
            .extend(touched.services.iter().filter(|key| self.service_users.contains_key(*key)).cloned());
        self.recomputed |= recomputed || !dirty.services.is_empty();
        self.reoffer(objects, &mut dirty, &mut changes);
        for pattern in &dirty.hosts {
            self.remerge_host(pattern, &mut changes);
        }
        self.mark_names(&mut dirty);
        self.certify(&mut dirty, &mut changes);
        for pattern in &dirty.names {
            self.remerge_name(pattern, &mut changes);
        }
        let updates = changes.into_updates();
        for update in &updates {
            self.routes.apply(update.clone());
        }
        updates
    }

    /// Finds what a change of the input touches.
    fn take_input(&mut self, objects: &Objects, input: &L7Input, touched: &Touched, dirty: &mut Dirty) {
        let api = ObjectKey::new(pools::API_SERVER.0, pools::API_SERVER.1);
        if self.classes.is_none()
            || self.input.node_addresses != input.node_addresses
            || touched.services.contains(&api)
        {
            let guard = Guard::of(objects, &self.options, &input.node_addresses);
            if self.guard != guard {
                self.guard = guard;
                dirty.services.extend(self.service_users.keys().cloned());
            }
        }
        if !Arc::ptr_eq(&self.input.names, &input.names) {
            let differs = |name: &String| self.input.names.get(name) != input.names.get(name);
            let named =
                self.offers.iter().filter(|(_, offer)| offer.external_name.as_ref().is_some_and(differs));
            dirty.services.extend(named.map(|(key, _)| key.clone()));
        }
        // A clock that was set back counts as any other change of the time.
        if input.now < self.input.now || self.next_time.is_some_and(|at| at <= input.now) {
            let changed = self.held.iter().filter(|(_, held)| match held {
                Held::Read { certificate, untimely } => tls::untimely(certificate, input.now) != *untimely,
                Held::Awaited | Held::Bad(_) => false,
            });
            dirty.secrets.extend(changed.map(|(key, _)| key.clone()));
            self.next_time = self
                .held
                .values()
                .filter_map(|held| match held {
                    Held::Read { certificate, .. } => tls::next_change(certificate, input.now),
                    Held::Awaited | Held::Bad(_) => None,
                })
                .min();
        }
        self.input = input.clone();
    }

    /// The Ingress, if it is ours.
    fn ours<'a>(&self, objects: &'a Objects, key: &ObjectKey) -> Option<&'a Ingress> {
        let ingress = objects.ingresses.get(key)?;
        self.classes.as_ref()?.own(ingress, &self.options).then_some(&**ingress)
    }

    /// Reads one Ingress anew and marks what its claims touch.
    fn reclaim(&mut self, objects: &Objects, key: &ObjectKey, dirty: &mut Dirty) {
        let owned = self.ours(objects, key);
        let beyond = self.ingresses.refuses(key);
        for secret in owned.filter(|_| beyond.is_none()).map(claim::secrets).unwrap_or_default() {
            if !self.held.contains_key(&secret) {
                self.hold(objects, &secret);
                dirty.secrets.insert(secret);
            }
        }
        let mut new = owned.map(|ingress| {
            let rank = rank(objects, ingress);
            if let Some(beyond) = beyond {
                return claim::refused(rank, beyond);
            }
            claim::claims(ingress, rank, |secret| match self.held.get(secret) {
                Some(Held::Read { certificate, untimely: None }) => Found::Good(certificate),
                Some(Held::Read { untimely: Some(reason), .. }) => Found::Bad(reason),
                Some(Held::Bad(reason)) => Found::Bad(reason),
                Some(Held::Awaited) | None => Found::Awaited,
            })
        });
        let problems = new.as_mut().map(|new| std::mem::take(&mut new.problems)).unwrap_or_default();
        self.told.put(&Finder::Ingress(key.clone()), problems);
        let old = self.claims.remove(key);
        if old != new {
            self.relink(key, old.as_ref(), new.as_ref(), dirty);
        }
        if let Some(new) = new {
            self.claims.insert(key.clone(), new);
        }
    }

    /// Keeps the indices right when the claims of an Ingress differ, and marks what they touch.
    fn relink(&mut self, key: &ObjectKey, old: Option<&Claims>, new: Option<&Claims>, dirty: &mut Dirty) {
        let moved = old.map(|claims| &claims.rank) != new.map(|claims| &claims.rank);
        for pattern in both(old.map(|c| &c.hosts), new.map(|c| &c.hosts)) {
            let (before, after) =
                (old.and_then(|c| c.hosts.get(pattern)), new.and_then(|c| c.hosts.get(pattern)));
            if moved || before != after {
                index(
                    &mut self.on_host,
                    pattern,
                    old.filter(|_| before.is_some()),
                    new.filter(|_| after.is_some()),
                );
                dirty.hosts.insert(pattern.clone());
            }
        }
        for pattern in both(old.map(|c| &c.names), new.map(|c| &c.names)) {
            let (before, after) =
                (old.and_then(|c| c.names.get(pattern)), new.and_then(|c| c.names.get(pattern)));
            if moved || before != after {
                index(
                    &mut self.on_name,
                    pattern,
                    old.filter(|_| before.is_some()),
                    new.filter(|_| after.is_some()),
                );
                dirty.names.insert(pattern.clone());
            }
        }
        for service in both(old.map(|c| &c.services), new.map(|c| &c.services)) {
            let (before, after) =
                (old.and_then(|c| c.services.get(service)), new.and_then(|c| c.services.get(service)));
            if before != after {
                link(&mut self.service_users, service, key, after.is_some());
                dirty.services.insert((**service).clone());
            }
        }
        let empty = BTreeSet::new();
        let secrets = |claims: Option<&Claims>| claims.map_or(&empty, |claims| &claims.secrets).clone();
        for secret in secrets(old).symmetric_difference(&secrets(new)) {
            link(&mut self.secret_users, secret, key, new.is_some_and(|c| c.secrets.contains(secret)));
            dirty.secrets.insert(secret.clone());
        }
    }

    /// Reads a Secret.
    fn hold(&mut self, objects: &Objects, key: &ObjectKey) {
        let now = self.input.now;
        let held = match objects.secret(key) {
            SecretState::Awaited => Held::Awaited,
            SecretState::Missing(reason) => Held::Bad(reason.to_string()),
            SecretState::Known(secret) => match tls::read(secret) {
                Err(reason) => Held::Bad(reason),
                Ok(certificate) => {
                    let again = tls::next_change(&certificate, now);
                    self.next_time = [self.next_time, again].into_iter().flatten().min();
                    Held::Read {
                        untimely: tls::untimely(&certificate, now),
                        certificate: Arc::new(certificate),
                    }
                }
            },
        };
        self.held.insert(key.clone(), held);
    }

    fn remerge_host(&mut self, pattern: &HostPattern, changes: &mut Changes) {
        let ranks = self.on_host.get(pattern).into_iter().flatten();
        let claims = ranks.filter_map(|rank| self.claims.get(&*rank.key));
        let claims: Vec<_> = claims.filter_map(|claims| Some((claims, claims.hosts.get(pattern)?))).collect();
        let resolve = |service: &ObjectKey, port: &BackendPort| {
            let offer = self.offers.get(service).and_then(|offer| offer.ports.get(port));
            offer.cloned().unwrap_or_else(|| Err(format!("there is no Service {service}")))
        };
        let (host, problems) = merge::host(pattern, &claims, &resolve);
        let host = (!claims.is_empty()).then(|| Arc::new(host));
        self.told.put(&Finder::Host(pattern.clone()), problems);
        if self.routes.hosts.get(pattern) != host.as_ref() {
            changes.hosts.insert(pattern.clone(), host);
        }
    }

    /// Brings the certificates up to date, and decides which one is the default (I30).
    fn certify(&mut self, dirty: &mut Dirty, changes: &mut Changes) {
        let usable = |held: Option<&Held>| match held {
            Some(Held::Read { certificate, untimely: None }) => Some(Arc::clone(certificate)),
            Some(Held::Read { .. } | Held::Awaited | Held::Bad(_)) | None => None,
        };
        let mut put = |key: &ObjectKey, certificate: Option<Arc<Certificate>>| {
            if self.routes.certificates.get(key) != certificate.as_ref() {
                changes.certificates.insert(key.clone(), certificate);
            }
        };
        for key in &dirty.secrets {
            put(key, usable(self.held.get(key)));
        }
        let wanted = self.options.default_certificate.as_ref();
        let given = wanted.filter(|key| usable(self.held.get(*key)).is_some());
        let own = self.input.self_signed.clone().filter(|_| given.is_none());
        let default = given.cloned().or_else(|| own.as_ref().map(|_| self_signed_key()));
        put(&self_signed_key(), own);
        let problem = wanted.and_then(|key| {
            let reason = match self.held.get(key) {
                Some(Held::Bad(reason)) => reason.as_str(),
                Some(Held::Read { untimely, .. }) => (*untimely)?,
                Some(Held::Awaited) | None => return None,
            };
            Some(Problem {
                object: ObjectRef { kind: Kind::Secret, key: key.clone() },
                field: "--default-ssl-certificate".into(),
                reason: format!("{reason}; a self-signed certificate is served in its place"),
            })
        });
        self.told.put(&Finder::DefaultCertificate, problem.into_iter().collect());
        if self.routes.names.get(&HostPattern::Any) != default.as_ref() {
            dirty.names.extend(self.on_name.keys().cloned());
            changes.names.insert(HostPattern::Any, default.clone());
            self.default = default;
        }
    }

    /// Whose certificate a name has depends on who holds the host.
    fn mark_names(&self, dirty: &mut Dirty) {
        for host in &dirty.hosts {
            match host {
                HostPattern::Exact(_) if !self.on_name.contains_key(host) => {}
                HostPattern::Exact(_) => drop(dirty.names.insert(host.clone())),
                HostPattern::Wildcard(_) => {
                    let covered = self
                        .on_name
                        .keys()
                        .filter(|name| *name == host || name.above().as_ref() == Some(host));
                    dirty.names.extend(covered.cloned());
                }
                HostPattern::Any => {}
            }
        }
    }

    /// The first in line on a host, or on the wildcard above it.
    fn holder(&self, pattern: &HostPattern) -> Option<&Rank> {
        let first = |pattern: &HostPattern| self.on_host.get(pattern)?.first();
        first(pattern).or_else(|| first(&pattern.above()?))
    }

    fn remerge_name(&mut self, pattern: &HostPattern, changes: &mut Changes) {
        let ranks = self.on_name.get(pattern).into_iter().flatten();
        let claims: Vec<_> = ranks
            .filter_map(|rank| Some((rank, self.claims.get(&*rank.key)?.names.get(pattern)?)))
            .flat_map(|(rank, claims)| claims.iter().map(move |claim| (rank, claim)))
            .collect();
        let (claim, problems) = merge::name(pattern, &claims, self.holder(pattern));
        let key = claim.and_then(|claim| claim.serves.clone().or_else(|| self.default.clone()));
        self.told.put(&Finder::Name(pattern.clone()), problems);
        if self.routes.names.get(pattern) != key.as_ref() {
            changes.names.insert(pattern.clone(), key);
        }
    }

    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// What is wrong with which object, each once, and not too many of one object.
    pub fn problems(&self) -> Vec<Problem> {
        self.told.all()
    }

    /// The Problems of each object of which they may differ since this was last asked; `None`
    /// where nothing was recomputed.
    pub fn take_problems(&mut self) -> Option<BTreeMap<ObjectRef, Vec<Problem>>> {
        std::mem::take(&mut self.recomputed).then(|| self.told.take_changed())
    }

    /// How many of the Secrets that are needed cannot be served.
    pub fn unusable_secrets(&self) -> usize {
        let usable = |held: &Held| matches!(held, Held::Awaited | Held::Read { untimely: None, .. });
        self.held.values().filter(|held| !usable(held)).count()
    }

    /// The Secrets that have to be read (H40).
    pub fn wanted_secrets(&self) -> BTreeSet<ObjectKey> {
        self.held.keys().cloned().collect()
    }

    /// The names that have to be looked up (I22).
    pub fn wanted_names(&self) -> WantedNames {
        let mut wanted = WantedNames::new();
        for (service, offer) in &self.offers {
            if let Some(name) = &offer.external_name {
                wanted.entry(name.clone()).or_default().insert(service.namespace.clone());
            }
        }
        wanted
    }

    /// Whether some Secret or name has not been answered for yet.
    pub fn awaits(&self) -> bool {
        let names = &self.input.names;
        self.held.values().any(|held| matches!(held, Held::Awaited))
            || self
                .offers
                .values()
                .filter_map(|offer| offer.external_name.as_ref())
                .any(|n| !names.contains_key(n))
    }

    /// When the time alone changes something, in seconds since the epoch.
    pub fn next_time(&self) -> Option<i64> {
        self.next_time
    }

    pub fn is_ours(&self, ingress: &ObjectKey) -> bool {
        self.claims.contains_key(ingress)
    }

    /// The Ingresses that lead nowhere with some of their requests, and why.
    pub fn orphans(&self) -> BTreeSet<(Orphan, &ObjectKey)> {
        let mut orphans = BTreeSet::new();
        for (key, claims) in &self.claims {
            for (service, ports) in &claims.services {
                let offer = self.offers.get(&**service).filter(|offer| offer.exists);
                let Some(offer) = offer else {
                    orphans.insert((Orphan::NoService, key));
                    continue;
                };
                let leads = |port| {
                    let number = offer.ports.get(port).and_then(|number| number.as_ref().ok());
                    let pool = number.and_then(|number| offer.pools.get(number));
                    pool.is_some_and(|pool| !pool.endpoints.is_empty())
                };
                if !ports.iter().all(leads) {
                    orphans.insert((Orphan::NoEndpoint, key));
                }
            }
        }
        orphans
    }

    /// Who issued the certificates of Secrets that are served: the first `most` to end.
    pub fn issued(&self, most: usize) -> Vec<(ObjectKey, Issued)> {
        let mut served: Vec<_> = self.routes.certificates.iter().collect();
        served.retain(|(key, _)| **key != self_signed_key());
        served.sort_by_key(|(_, certificate)| certificate.not_after);
        let issued = |(key, certificate): (&ObjectKey, &Arc<Certificate>)| {
            Some((key.clone(), tls::issued(certificate)?))
        };
        served.into_iter().take(most).filter_map(issued).collect()
    }

    /// The Ingresses that are ours (I4, I69).
    pub fn owned(&self) -> impl Iterator<Item = &ObjectKey> {
        self.claims.keys()
    }
}

/// How routes differ, by key.
#[derive(Default)]
struct Changes {
    pools: BTreeMap<PoolKey, Option<Arc<Pool>>>,
    certificates: BTreeMap<ObjectKey, Option<Arc<Certificate>>>,
    hosts: BTreeMap<HostPattern, Option<Arc<VirtualHost>>>,
    names: BTreeMap<HostPattern, Option<ObjectKey>>,
}

impl Changes {
    /// Makes before breaks.
    fn into_updates(self) -> Vec<Update> {
        let (made, gone): (Vec<_>, Vec<_>) = self
            .pools
            .into_iter()
            .map(|(key, value)| Update::Pool(key, value))
            .chain(self.certificates.into_iter().map(|(key, value)| Update::Certificate(key, value)))
            .partition(|update| !matches!(update, Update::Pool(_, None) | Update::Certificate(_, None)));
        let hosts = self.hosts.into_iter().map(|(key, value)| Update::Host(key, value));
        let names = self.names.into_iter().map(|(key, value)| Update::Name(key, value));
        made.into_iter().chain(hosts).chain(names).chain(gone).collect()
    }
}

/// The keys of two maps.
fn both<'a, K: Ord, V>(old: Option<&'a BTreeMap<K, V>>, new: Option<&'a BTreeMap<K, V>>) -> BTreeSet<&'a K> {
    old.into_iter().chain(new).flat_map(BTreeMap::keys).collect()
}

/// Replaces an Ingress' place in a line.
fn index(
    lines: &mut BTreeMap<HostPattern, BTreeSet<Rank>>,
    pattern: &HostPattern,
    old: Option<&Claims>,
    new: Option<&Claims>,
) {
    let line = lines.entry(pattern.clone()).or_default();
    if let Some(old) = old {
        line.remove(&old.rank);
    }
    line.extend(new.map(|new| new.rank.clone()));
    if line.is_empty() {
        lines.remove(pattern);
    }
}

/// Puts a user down, or takes it off.
fn link(
    users: &mut BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    used: &ObjectKey,
    user: &ObjectKey,
    uses: bool,
) {
    if uses {
        users.entry(used.clone()).or_default().insert(user.clone());
    } else if let Some(of) = users.get_mut(used) {
        of.remove(user);
        if of.is_empty() {
            users.remove(used);
        }
    }
}

/// An Ingress' place in all lines.
fn rank(objects: &Objects, ingress: &Ingress) -> Rank {
    let ending = ingress.ending || objects.ending_namespaces.contains(&ingress.key.namespace);
    Rank { ending, created: ingress.created, key: Arc::new(ingress.key.clone()) }
}
