//! Keeps what Services give up to date, within what all of them may have together.

use super::claim::Rank;
use super::pools::{self, Offer};
use super::told::Finder;
use super::{Changes, Dirty, L7Model, both};
use crate::model::routes::PoolKey;
use crate::problem::ObjectKey;
use crate::source::{BackendPort, Objects};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl L7Model {
    /// Looks at Services anew, as those who refer to them ask for them.
    pub(super) fn reoffer(&mut self, objects: &Objects, dirty: &mut Dirty, changes: &mut Changes) {
        let mut before: BTreeMap<ObjectKey, Offer> = BTreeMap::new();
        // Who has a part is known once all have asked: what is kept until then is bounded as well.
        let mut room = self.services.limit().in_all;
        let mut again = BTreeSet::new();
        for key in std::mem::take(&mut dirty.services) {
            let old = self.offers.remove(&key).unwrap_or_default();
            let mut offer = self.offer(objects, &key);
            let endpoints = offer.endpoints();
            let rank = objects.services.get(&key).map(|service| service_rank(&key, service.created));
            self.services.put(&key, rank.filter(|_| offer != Offer::default()).map(|rank| (rank, endpoints)));
            if let Some(left) = room.checked_sub(endpoints) {
                room = left;
            } else {
                offer = offer.emptied();
                again.insert(key.clone());
            }
            self.offers.insert(key.clone(), offer);
            before.insert(key, old);
        }
        for key in self.services.settle() {
            let old = self.offers.get(&key).cloned().unwrap_or_default();
            before.entry(key.clone()).or_insert(old);
            again.insert(key);
        }
        for (key, old) in before {
            let mut offer = self.offers.remove(&key).unwrap_or_default();
            if again.contains(&key) {
                offer = self.offer(objects, &key);
            }
            if let Some(beyond) = self.services.refuses(&key) {
                offer = offer.refused(&key, beyond);
            }
            self.told.put(&Finder::Service(key.clone()), std::mem::take(&mut offer.problems));
            if old.ports != offer.ports {
                let users = self.service_users.get(&key).into_iter().flatten();
                let users = users.filter_map(|user| self.claims.get(user));
                dirty.hosts.extend(users.flat_map(|claims| claims.hosts.keys()).cloned());
            }
            let service = Arc::new(key.clone());
            for port in both(Some(&old.pools), Some(&offer.pools)) {
                let pool = offer.pools.get(port);
                if old.pools.get(port) != pool {
                    let key = PoolKey { service: Arc::clone(&service), port: *port };
                    changes.pools.insert(key, pool.cloned());
                }
            }
            if offer != Offer::default() {
                self.offers.insert(key, offer);
            }
        }
    }

    /// What a Service gives for the ports that are asked for; nothing when nobody asks.
    fn offer(&self, objects: &Objects, key: &ObjectKey) -> Offer {
        let users = self.service_users.get(key).into_iter().flatten();
        let users = users.filter_map(|user| self.claims.get(user));
        let asked: BTreeSet<BackendPort> =
            users.filter_map(|claims| claims.services.get(key)).flatten().cloned().collect();
        if asked.is_empty() {
            return Offer::default();
        }
        pools::offer(objects, &self.options, &self.guard, &self.input.names, key, &asked)
    }
}

/// A Service's place where Services share something.
fn service_rank(key: &ObjectKey, created: i64) -> Rank {
    Rank { ending: false, created, key: Arc::new(key.clone()) }
}
