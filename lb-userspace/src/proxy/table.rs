//! The routing table that requests are looked up in.
//!
//! Immutable and swapped whole: a request sees one state of it from the first look to the
//! last. A new table shares every value that did not change with the one before; only the maps
//! of pointers are copied. Endpoints keep their state (requests in flight, ejection) as long as
//! they stay in their pool.

use crate::model::routes::{HostPattern, Pool, PoolKey, Protocol, Target, Update};
use crate::problem::ObjectKey;
use crate::proxy::matcher::{Hosts, Indexed};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// What is served where; certificates apart.
#[derive(Clone, Default)]
pub struct RoutingTable {
    exact: HashMap<Arc<str>, Arc<Indexed>>,
    /// By parent: `example.com` for `*.example.com`.
    wildcard: HashMap<Arc<str>, Arc<Indexed>>,
    any: Option<Arc<Indexed>>,
    pools: HashMap<PoolKey, Arc<PoolState>>,
}

/// A pool with the state of its endpoints.
pub struct PoolState {
    pub protocol: Protocol,
    pub endpoints: Box<[Arc<Endpoint>]>,
}

/// One endpoint of one pool, shared by all workers.
///
/// The counters are read and written without order among them: a choice that is made with a
/// number a moment old is still a good one.
#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    in_flight: AtomicU32,
    /// Milliseconds on the engine's clock; 0: not ejected.
    ejected_until: AtomicU64,
    refusals: AtomicU32,
}

/// Counts a request at its endpoint for as long as it lives.
#[derive(Debug)]
pub struct InFlight(Arc<Endpoint>);

impl RoutingTable {
    /// Returns the table after these steps. `whole`: what they do not name is dropped.
    /// Certificates and their names are passed over.
    #[must_use]
    pub fn updated(&self, updates: &[Update], whole: bool) -> Self {
        let mut next = if whole { Self::default() } else { self.clone() };
        for update in updates {
            match update {
                Update::Host(pattern, host) => {
                    let host = host.as_ref().map(|host| Arc::new(Indexed::new(Arc::clone(host))));
                    match pattern {
                        HostPattern::Exact(name) => put(&mut next.exact, name, host),
                        HostPattern::Wildcard(parent) => put(&mut next.wildcard, parent, host),
                        HostPattern::Any => next.any = host,
                    }
                }
                Update::Pool(key, pool) => {
                    let before = next.pools.get(key).or_else(|| self.pools.get(key));
                    let pool = pool.as_ref().map(|pool| Arc::new(PoolState::new(pool, before)));
                    put(&mut next.pools, key, pool);
                }
                Update::Name(..) | Update::Certificate(..) => {}
            }
        }
        next
    }

    /// The pool of a key; none: the model does not know of it, which is as good as empty.
    pub fn pool(&self, key: &PoolKey) -> Option<&Arc<PoolState>> {
        self.pools.get(key)
    }

    /// The Ingresses that routes come from and the Services that they lead to, if they do; some
    /// more than once.
    pub fn routes(&self) -> impl Iterator<Item = (&ObjectKey, Option<&ObjectKey>)> {
        let hosts = self.exact.values().chain(self.wildcard.values()).chain(&self.any);
        hosts.flat_map(|host| host.rules.iter().map(|rule| &rule.action).chain(&host.default)).map(|action| {
            match &action.target {
                Target::Pool(key) => (&*action.ingress, Some(&*key.service)),
                Target::Unavailable(_) => (&*action.ingress, None),
            }
        })
    }
}

fn put<K: Clone + Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, key: &K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    };
}

impl Hosts for RoutingTable {
    type Host = Arc<Indexed>;

    fn exact(&self, name: &str) -> Option<&Self::Host> {
        self.exact.get(name)
    }

    fn wildcard(&self, parent: &str) -> Option<&Self::Host> {
        self.wildcard.get(parent)
    }

    fn any(&self) -> Option<&Self::Host> {
        self.any.as_ref()
    }
}

impl PoolState {
    fn new(pool: &Pool, before: Option<&Arc<Self>>) -> Self {
        // Both lists are sorted (`Pool::endpoints`), so each known endpoint is found in steps.
        let known = |address: &SocketAddr| {
            let endpoints = &before?.endpoints;
            let at = endpoints.binary_search_by(|known| known.address.cmp(address)).ok()?;
            endpoints.get(at).cloned()
        };
        let mut addresses = pool.endpoints.clone();
        addresses.sort_unstable();
        addresses.dedup();
        let endpoints = addresses
            .iter()
            .map(|address| known(address).unwrap_or_else(|| Arc::new(Endpoint::new(*address))))
            .collect();
        Self { protocol: pool.protocol, endpoints }
    }
}

impl Endpoint {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            in_flight: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            refusals: AtomicU32::new(0),
        }
    }

    /// Requests that it works on now.
    pub fn load(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Tells whether requests go elsewhere while there is an elsewhere.
    pub fn is_ejected(&self, now: u64) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > now
    }

    /// Counts one request until the answer is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// It could not be connected to: it is left out for `time`, twice that at the next refusal
    /// in a row, and so on up to 32 times. Says whether it is by this: of requests that find
    /// out at the same time, or while it is left out already, only the first counts.
    pub fn refused(&self, now: u64, time: Duration) -> bool {
        if self.is_ejected(now) {
            return false;
        }
        let before = self.refusals.fetch_add(1, Ordering::Relaxed).min(5);
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.ejected_until.store(now.saturating_add(time.saturating_mul(1 << before)), Ordering::Relaxed);
        true
    }

    /// It took a connection.
    pub fn connected(&self) {
        if self.refusals.load(Ordering::Relaxed) != 0 {
            self.refusals.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn key(name: &str) -> PoolKey {
        PoolKey { service: Arc::new(ObjectKey::new("default", name)), port: 80 }
    }

    fn pool(addresses: &[&str]) -> Option<Arc<Pool>> {
        let endpoints = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Some(Arc::new(Pool { protocol: Protocol::Http1, endpoints }))
    }

    fn loads(table: &RoutingTable, name: &str) -> Vec<u32> {
        table.pool(&key(name)).unwrap().endpoints.iter().map(|endpoint| endpoint.load()).collect()
    }

    #[test]
    fn an_endpoint_keeps_its_state_over_updates() {
        let empty = RoutingTable::default();
        let first = empty.updated(&[Update::Pool(key("a"), pool(&["10.0.0.1:80", "10.0.0.2:80"]))], true);
        let held = first.pool(&key("a")).unwrap().endpoints[1].begin();
        assert_eq!(loads(&first, "a"), [0, 1]);

        for whole in [false, true] {
            let update = Update::Pool(key("a"), pool(&["10.0.0.2:80", "10.0.0.3:80"]));
            let second = first.updated(&[update], whole);
            assert_eq!(loads(&second, "a"), [1, 0], "whole: {whole}");
        }
        drop(held);
        assert_eq!(loads(&first, "a"), [0, 0]);
    }

    #[test]
    fn a_whole_update_drops_what_it_does_not_name() {
        let hosts = |name: &str| Update::Host(HostPattern::Exact(name.into()), Some(Arc::default()));
        let first = RoutingTable::default().updated(&[hosts("a.test"), hosts("b.test")], false);
        let three = first.updated(&[hosts("c.test")], false);
        assert!(["a.test", "b.test", "c.test"].iter().all(|name| three.exact(name).is_some()));
        assert!(first.updated(&[hosts("c.test")], true).exact("a.test").is_none());
        assert!(first.updated(&[hosts("c.test")], true).exact("c.test").is_some());
        let removed = Update::Host(HostPattern::Exact("a.test".into()), None);
        assert!(first.updated(&[removed], false).exact("a.test").is_none());
    }

    #[test]
    fn a_table_that_was_read_does_not_change() {
        let first = RoutingTable::default().updated(&[Update::Pool(key("a"), pool(&["10.0.0.1:80"]))], true);
        let second = first.updated(&[Update::Pool(key("a"), None)], false);
        assert!(first.pool(&key("a")).is_some());
        assert!(second.pool(&key("a")).is_none());
    }

    #[test]
    fn refusals_in_a_row_eject_for_longer() {
        let endpoint = Endpoint::new("10.0.0.1:80".parse().unwrap());
        let second = Duration::from_secs(1);
        endpoint.refused(10_000, second);
        assert!(endpoint.is_ejected(10_999) && !endpoint.is_ejected(11_000));
        endpoint.refused(11_000, second);
        assert!(endpoint.is_ejected(12_999) && !endpoint.is_ejected(13_000));
        // Several requests that are refused at once are one refusal.
        endpoint.connected();
        assert!(endpoint.refused(15_000, second));
        assert!((0..6).all(|_| !endpoint.refused(15_500, second)));
        assert!(!endpoint.is_ejected(16_000));
        for n in 1..50 {
            endpoint.refused(100_000 * n, second);
        }
        assert!(endpoint.is_ejected(4_931_999) && !endpoint.is_ejected(4_932_000));
        endpoint.connected();
        assert!(!endpoint.is_ejected(4_900_000));
        endpoint.refused(6_000_000, second);
        assert!(!endpoint.is_ejected(6_001_000));
    }
}
