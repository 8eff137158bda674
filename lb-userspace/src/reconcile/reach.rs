//! The node's own sets of addresses: which are for Services (S38), which are pods' (S43).
//!
//! Kept by key like all else: a Service touches its own addresses, a ServiceCIDR its own range.
//! What says "leave this alone" or "a Service has it" is written before the range that drops the
//! rest, and goes after it.

use super::{Reconciler, Round};
use crate::board::agent_problem;
use crate::plan::op::Op;
use crate::problem::ObjectKey;
use crate::source::{Service, ServiceType};
use ipnet::IpNet;
use lb_common::abi::{Addr, Held, Prefix, prefix_set};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What is wanted, what is there, and what differs.
#[derive(Debug, Default)]
pub(super) struct Reach {
    wanted: BTreeMap<Prefix, Held>,
    applied: BTreeMap<Prefix, Held>,
    dirty: BTreeSet<Prefix>,
    /// ClusterIPs by Service, and who serves them.
    addresses: BTreeMap<ObjectKey, (Held, Vec<IpAddr>)>,
    owners: BTreeMap<IpAddr, BTreeSet<(Held, ObjectKey)>>,
    cidrs: BTreeSet<IpNet>,
}

/// The prefix of a network in the set that `of` names for its family.
fn prefix(net: &IpNet, of: fn(&Addr) -> u32) -> Prefix {
    let addr = Addr::from(net.network());
    Prefix::new(of(&addr), addr, net.prefix_len())
}

impl Reach {
    /// `pods`: `--cluster-cidr`. A family that it does not name is all pods', so that nothing of
    /// it is masqueraded. `applied`: what an earlier agent left.
    pub(super) fn new(pods: Option<&[IpNet]>, applied: BTreeMap<Prefix, Held>) -> Self {
        let mut reach = Self::default();
        if let Some(pods) = pods {
            let mut nets: BTreeSet<IpNet> = pods.iter().map(IpNet::trunc).collect();
            for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
                if !pods.iter().any(|net| net.addr().is_ipv4() == any.is_ipv4()) {
                    nets.extend(IpNet::new(any, 0));
                }
            }
            reach.wanted.extend(nets.iter().map(|net| (prefix(net, prefix_set::pods), Held::MEMBER)));
        }
        reach.restore(applied);
        reach
    }

    /// Somebody else may have written to the map: this is what is there.
    pub(super) fn restore(&mut self, applied: BTreeMap<Prefix, Held>) {
        self.dirty.extend(self.wanted.keys().chain(applied.keys()));
        self.applied = applied;
    }

    pub(super) const fn applied(&self) -> &BTreeMap<Prefix, Held> {
        &self.applied
    }

    /// A Service as it is now.
    pub(super) fn note(&mut self, key: &ObjectKey, service: Option<&Service>) {
        let addressed = service.filter(|s| !s.headless && s.kind != ServiceType::ExternalName);
        let now = addressed.filter(|s| !s.cluster_ips.is_empty()).map(|service| {
            let held = if service.foreign { Held::FOREIGN } else { Held::TAKEN };
            (held, service.cluster_ips.clone())
        });
        if self.addresses.get(key) == now.as_ref() {
            return;
        }
        if let Some((held, ips)) = self.addresses.remove(key) {
            for ip in ips {
                if let Some(owners) = self.owners.get_mut(&ip) {
                    owners.remove(&(held, key.clone()));
                    if owners.is_empty() {
                        self.owners.remove(&ip);
                    }
                }
                self.settle(ip);
            }
        }
        if let Some((held, ips)) = now {
            for &ip in &ips {
                self.owners.entry(ip).or_default().insert((held, key.clone()));
                self.settle(ip);
            }
            self.addresses.insert(key.clone(), (held, ips));
        }
    }

    fn settle(&mut self, ip: IpAddr) {
        let prefix = prefix(&IpNet::from(ip), prefix_set::services);
        // Where two claim it, the other proxy's claim counts: it is left alone.
        match self.owners.get(&ip).and_then(|owners| owners.last()) {
            Some((held, _)) => self.wanted.insert(prefix, *held),
            None => self.wanted.remove(&prefix),
        };
        self.dirty.insert(prefix);
    }

    /// The ranges that ClusterIPs are taken from. One that is as narrow as an address says
    /// nothing that its Service does not.
    pub(super) fn set_cidrs(&mut self, cidrs: BTreeSet<IpNet>) {
        if self.cidrs == cidrs {
            return;
        }
        let whole = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
        for net in self.cidrs.difference(&cidrs).filter(|net| !whole(net)) {
            let prefix = prefix(net, prefix_set::services);
            self.wanted.remove(&prefix);
            self.dirty.insert(prefix);
        }
        for net in cidrs.difference(&self.cidrs).filter(|net| !whole(net)) {
            let prefix = prefix(net, prefix_set::services);
            self.wanted.insert(prefix, Held::MEMBER);
            self.dirty.insert(prefix);
        }
        self.cidrs = cidrs;
    }

    /// What is to be written, in order: narrow ones first, and wide ones go first.
    fn ops(&self) -> Vec<Op> {
        let differs = |prefix: &&Prefix| self.wanted.get(prefix) != self.applied.get(prefix);
        let gone = self.dirty.iter().filter(differs).filter(|prefix| !self.wanted.contains_key(prefix));
        // A prefix sorts by its length.
        let mut ops: Vec<Op> = gone.filter(|p| is_range(p)).map(|prefix| Op::DeletePrefix(*prefix)).collect();
        let puts = self.dirty.iter().rev().filter(differs);
        ops.extend(puts.filter_map(|prefix| Some(Op::PutPrefix(*prefix, *self.wanted.get(prefix)?))));
        let gone = self.dirty.iter().filter(differs).filter(|prefix| !self.wanted.contains_key(prefix));
        ops.extend(gone.filter(|p| !is_range(p)).map(|prefix| Op::DeletePrefix(*prefix)));
        ops
    }

    fn done(&mut self, op: &Op) {
        if let Op::PutPrefix(prefix, held) = op {
            self.applied.insert(*prefix, *held);
        } else if let Op::DeletePrefix(prefix) = op {
            self.applied.remove(prefix);
        }
    }
}

fn is_range(prefix: &Prefix) -> bool {
    prefix.len < Prefix::of(prefix.set, prefix.addr).len
}

impl Reconciler {
    /// Writes what has changed. What fails is told, and tried again in the next round.
    pub(super) fn update_reach(&mut self, round: &mut Round) {
        let ranges = self.objects.service_cidrs.values().flatten().chain(&self.service_cidrs);
        self.reach.set_cidrs(ranges.copied().collect());
        if self.reach.dirty.is_empty() {
            return;
        }
        let ops = self.reach.ops();
        let mut failed = None;
        // One after the other: no range may be there without what it must spare.
        for op in &ops {
            match self.datapath.apply(std::slice::from_ref(op)).pop() {
                Some(Err(error)) => {
                    failed = Some(error);
                    break;
                }
                Some(Ok(())) | None => self.reach.done(op),
            }
        }
        round.ops += ops.len() as u64;
        let problems = failed.map(|error| {
            round.failed += 1;
            agent_problem("datapath", format!("addresses of Services: {error}; tried again"))
        });
        if problems.is_none() {
            self.reach.dirty.clear();
        }
        self.problems.set_reach(problems.into_iter().collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, ip: &str, foreign: bool) -> Service {
        let cluster_ips = vec![ip.parse().expect(ip)];
        Service { key: ObjectKey::new("a", name), cluster_ips, foreign, ..Service::default() }
    }

    /// Carries out what is to be done; spells it.
    fn step(reach: &mut Reach) -> Vec<String> {
        let ops = reach.ops();
        ops.iter().for_each(|op| reach.done(op));
        reach.dirty.clear();
        assert_eq!(reach.wanted, reach.applied);
        let spell = |op: &Op| {
            if let Op::PutPrefix(prefix, held) = op {
                format!("+{}/{} {}", prefix.addr, prefix.bits(), held.0)
            } else if let Op::DeletePrefix(prefix) = op {
                format!("-{}/{}", prefix.addr, prefix.bits())
            } else {
                format!("{op:?}")
            }
        };
        ops.iter().map(spell).collect()
    }

    #[test]
    fn addresses_are_spared_before_their_range_is_closed_and_after_it_was() {
        let mut reach = Reach::default();
        let (web, dns) = (service("web", "10.96.0.9", false), service("dns", "10.96.0.10", true));
        reach.note(&web.key, Some(&web));
        reach.note(&dns.key, Some(&dns));
        reach.set_cidrs(["10.96.0.0/16".parse().expect("a range")].into());
        assert_eq!(step(&mut reach), ["+10.96.0.10/32 3", "+10.96.0.9/32 2", "+10.96.0.0/16 1"]);
        assert_eq!(step(&mut reach), Vec::<String>::new());
        // Another Service gets the address; then the other proxy claims it as well, and leaves.
        let next = service("next", "10.96.0.9", false);
        reach.note(&next.key, Some(&next));
        reach.note(&web.key, None);
        assert_eq!(step(&mut reach), Vec::<String>::new());
        let taken = service("taken", "10.96.0.9", true);
        reach.note(&taken.key, Some(&taken));
        assert_eq!(step(&mut reach), ["+10.96.0.9/32 3"]);
        reach.note(&taken.key, None);
        assert_eq!(step(&mut reach), ["+10.96.0.9/32 2"]);
        // An earlier agent left more than there is.
        let mut left = reach.applied.clone();
        left.insert(prefix(&"10.97.0.1/32".parse().expect("an address"), prefix_set::services), Held::TAKEN);
        reach.restore(left);
        assert_eq!(step(&mut reach), ["-10.97.0.1/32"]);
        reach.set_cidrs(BTreeSet::new());
        reach.note(&next.key, None);
        assert_eq!(step(&mut reach), ["-10.96.0.0/16", "-10.96.0.9/32"]);
    }

    #[test]
    fn a_family_that_cluster_cidr_leaves_out_is_all_pods() {
        let pods = ["10.244.1.7/16".parse().expect("a range")];
        let mut reach = Reach::new(Some(&pods), BTreeMap::new());
        assert_eq!(step(&mut reach), ["+10.244.0.0/16 1", "+::/0 1"]);
        assert_eq!(step(&mut Reach::new(None, reach.applied)), ["-::/0", "-10.244.0.0/16"]);
    }
}
