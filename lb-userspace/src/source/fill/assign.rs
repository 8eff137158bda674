//! Cluster IPs and node ports for Services whose manifest names none.
//!
//! The place follows from a hash of the name, the next free one is taken where it is occupied.
//! As in the API server, the low end of each range is left to those who choose by hand and used
//! only when the rest is full.

use super::{FillConfig, ServiceDraft, stable_hash};
use crate::problem::ObjectKey;
use crate::source::project::parse_ip;
use crate::source::{FieldProblem, Service};
use lb_common::abi::Family;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range that cluster IPs come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceCidr {
    base: IpAddr,
    prefix: u8,
}

impl ServiceCidr {
    pub fn family(&self) -> Family {
        Family::from(self.base)
    }

    /// How many addresses are used: the API server takes no more than 2^20 of a range either.
    fn size(&self) -> u64 {
        let bits = match self.base {
            IpAddr::V4(_) => 32 - self.prefix,
            IpAddr::V6(_) => 128 - self.prefix,
        };
        1 << bits.min(20)
    }

    fn at(&self, offset: u64) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().wrapping_add(offset)))
            }
            IpAddr::V6(base) => {
                IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().wrapping_add(u128::from(offset))))
            }
        }
    }
}

impl FromStr for ServiceCidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a range such as 10.96.0.0/16");
        let (ip, prefix) = text.trim().split_once('/').ok_or_else(bad)?;
        let (ip, prefix) = (parse_ip(ip)?, prefix.parse::<u8>().map_err(|_| bad())?);
        let (base, width) = match ip {
            IpAddr::V4(ip) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                (IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask)), 32)
            }
            IpAddr::V6(ip) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                (IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask)), 128)
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return Err(bad()),
        };
        if width - prefix < 2 {
            return Err(format!("{text:?} is too small for cluster IPs"));
        }
        Ok(Self { base, prefix })
    }
}

impl fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// What one Service needs.
pub(super) struct Wish<'a> {
    key: &'a ObjectKey,
    families: &'a [Family],
    unassigned: &'a [Family],
    node_ports: bool,
}

impl<'a> Wish<'a> {
    pub(super) fn of(draft: &'a ServiceDraft) -> Self {
        Self {
            key: &draft.service.key,
            families: &draft.families,
            unassigned: &draft.unassigned,
            node_ports: draft.wants_node_ports,
        }
    }
}

/// Who has which number of a range.
#[derive(Debug)]
struct Pool<T> {
    /// Written in a manifest; two may write the same, which the model tells.
    written: BTreeMap<T, BTreeSet<ObjectKey>>,
    given: BTreeMap<T, ObjectKey>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { written: BTreeMap::new(), given: BTreeMap::new() }
    }
}

impl<T: Ord + Copy> Pool<T> {
    /// Notes a written claim; who had been given the place must move.
    fn write(&mut self, at: T, key: &ObjectKey) -> Option<ObjectKey> {
        self.written.entry(at).or_default().insert(key.clone());
        self.given.remove(&at)
    }

    fn unwrite(&mut self, at: T, key: &ObjectKey) {
        if let Some(keys) = self.written.get_mut(&at) {
            keys.remove(key);
            if keys.is_empty() {
                self.written.remove(&at);
            }
        }
    }

    fn is_free(&self, at: T) -> bool {
        !self.written.contains_key(&at) && !self.given.contains_key(&at)
    }

    /// The first free place from `hash` on: in `[band, end)` first, then in `[start, band)`.
    fn probe(&self, range: (u64, u64, u64), hash: u64, at: impl Fn(u64) -> T) -> Option<T> {
        let (start, band, end) = range;
        for (low, high) in [(band, end), (start, band)] {
            let size = high.saturating_sub(low);
            for step in 0..size {
                let place = at(low + (hash.wrapping_add(step)) % size);
                if self.is_free(place) {
                    return Some(place);
                }
            }
        }
        None
    }
}

/// What a Service wrote and was given.
#[derive(Debug, Default)]
struct Holding {
    written_ips: Vec<IpAddr>,
    written_ports: Vec<u16>,
    given_ips: BTreeMap<Family, IpAddr>,
    /// By port number: protocols of one number share a node port.
    given_ports: BTreeMap<u16, u16>,
}

/// Gives addresses and node ports, and remembers them for the run.
#[derive(Debug)]
pub(super) struct Assigner {
    cidrs: Vec<ServiceCidr>,
    node_ports: (u16, u16),
    ips: Pool<IpAddr>,
    ports: Pool<u16>,
    holdings: BTreeMap<ObjectKey, Holding>,
}

impl Assigner {
    pub(super) fn new(config: &FillConfig) -> Self {
        Self {
            cidrs: config.service_cidrs.clone(),
            node_ports: config.node_ports,
            ips: Pool::default(),
            ports: Pool::default(),
            holdings: BTreeMap::new(),
        }
    }

    /// Notes what a manifest wrote. Whoever was given one of these before joins `evicted`.
    pub(super) fn claim(&mut self, key: &ObjectKey, service: &Service, evicted: &mut BTreeSet<ObjectKey>) {
        let holding = self.holdings.entry(key.clone()).or_default();
        for ip in std::mem::take(&mut holding.written_ips) {
            self.ips.unwrite(ip, key);
        }
        for port in std::mem::take(&mut holding.written_ports) {
            self.ports.unwrite(port, key);
        }
        holding.written_ips.clone_from(&service.cluster_ips);
        holding
            .written_ports
            .extend(service.ports.iter().map(|port| port.node_port).filter(|port| *port != 0));
        if service.health_check_node_port != 0 {
            holding.written_ports.push(service.health_check_node_port);
        }
        let (ips, ports) = (holding.written_ips.clone(), holding.written_ports.clone());
        let mut moved = BTreeSet::new();
        moved.extend(ips.iter().filter_map(|ip| self.ips.write(*ip, key)));
        moved.extend(ports.iter().filter_map(|port| self.ports.write(*port, key)));
        for other in &moved {
            if let Some(holding) = self.holdings.get_mut(other) {
                holding.given_ips.retain(|_, ip| !ips.contains(ip));
                holding.given_ports.retain(|_, port| !ports.contains(port));
            }
        }
        evicted.extend(moved);
    }

    /// Takes back all that a Service wrote and was given.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        let Some(holding) = self.holdings.remove(key) else { return };
        holding.written_ips.iter().for_each(|ip| self.ips.unwrite(*ip, key));
        holding.written_ports.iter().for_each(|port| self.ports.unwrite(*port, key));
        holding.given_ips.values().for_each(|ip| drop(self.ips.given.remove(ip)));
        holding.given_ports.values().for_each(|port| drop(self.ports.given.remove(port)));
    }

    /// Completes a Service with what it holds, is given now, or cannot get (told).
    pub(super) fn assign(&mut self, wish: &Wish<'_>, service: &mut Service) {
        let mut holding = self.holdings.remove(wish.key).unwrap_or_default();
        self.assign_ips(wish, &mut holding, service);
        self.assign_ports(wish, &mut holding, service);
        self.holdings.insert(wish.key.clone(), holding);
    }

    fn assign_ips(&mut self, wish: &Wish<'_>, holding: &mut Holding, service: &mut Service) {
        let pool = &mut self.ips;
        holding.given_ips.retain(|family, ip| {
            let kept = wish.unassigned.contains(family);
            if !kept {
                pool.given.remove(ip);
            }
            kept
        });
        for wanted in wish.unassigned {
            let known = holding.given_ips.get(wanted).copied();
            let ip = known.or_else(|| {
                let cidr = self.cidrs.iter().find(|cidr| cidr.family() == *wanted)?;
                let hash = stable_hash(&[&wish.key.namespace, &wish.key.name]);
                // Never the network's address, the broadcast one, or the first, which is the
                // API server's own Service in every cluster.
                let end = cidr.size() - u64::from(*wanted == Family::V4);
                pool.probe(banded(2.min(end), end, 16, 256), hash, |offset| cidr.at(offset))
            });
            match ip {
                Some(ip) => {
                    pool.given.insert(ip, wish.key.clone());
                    holding.given_ips.insert(*wanted, ip);
                    service.cluster_ips.push(ip);
                }
                None => service.problems.push(FieldProblem {
                    field: "spec.clusterIPs".into(),
                    reason: "no address is left in --service-cidr; the Service has none in this family"
                        .into(),
                }),
            }
        }
        let order = |ip: &IpAddr| wish.families.iter().position(|wanted| *wanted == Family::from(*ip));
        service.cluster_ips.sort_by_key(order);
    }

    fn assign_ports(&mut self, wish: &Wish<'_>, holding: &mut Holding, service: &mut Service) {
        let wanting: BTreeSet<u16> = service
            .ports
            .iter()
            .filter(|port| wish.node_ports && port.node_port == 0)
            .map(|port| port.port)
            .collect();
        let pool = &mut self.ports;
        holding.given_ports.retain(|port, node_port| {
            let kept = wanting.contains(port);
            if !kept {
                pool.given.remove(node_port);
            }
            kept
        });
        let (first, last) = self.node_ports;
        let range = banded(u64::from(first), u64::from(last) + 1, 32, 128);
        for number in wanting {
            let known = holding.given_ports.get(&number).copied();
            let node_port = known.or_else(|| {
                let hash = stable_hash(&[&wish.key.namespace, &wish.key.name, &number.to_string()]);
                pool.probe(range, hash, |place| u16::try_from(place).unwrap_or(u16::MAX))
            });
            if let Some(node_port) = node_port {
                pool.given.insert(node_port, wish.key.clone());
                holding.given_ports.insert(number, node_port);
            }
            for (i, port) in service.ports.iter_mut().enumerate() {
                if port.port != number || port.node_port != 0 {
                    continue;
                }
                match node_port {
                    Some(node_port) => port.node_port = node_port,
                    None => service.problems.push(FieldProblem {
                        field: format!("spec.ports[{i}].nodePort"),
                        reason: "no port is left in --nodeport-range; the port has no node port".into(),
                    }),
                }
            }
        }
    }
}

/// Start, end of the band for written numbers, and end of a range, as the API server cuts it: one
/// part in `part`, at least 16, at most `most`; none in a range that is too small.
fn banded(start: u64, end: u64, part: u64, most: u64) -> (u64, u64, u64) {
    let size = end - start;
    let band = if size < 32 { 0 } else { (size / part).clamp(16, most) };
    (start, start + band, end)
}
