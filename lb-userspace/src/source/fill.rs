//! What the API server and its controllers would have filled in, for objects that never met them.
//!
//! A Service gets its defaults, a cluster IP and node ports; one with a selector and no
//! EndpointSlice of its own gets its endpoints from the Pods. All of it is deterministic: the
//! address follows from the name alone unless two names fall on one address, and then the first
//! in order has it. Nothing that was given moves while the agent runs; after a restart only a
//! Service that had collided with another may, if a Service between the two was added or removed
//! meanwhile. An address written into a manifest always wins.

use super::project::Names;
use super::{Change, EndpointSlice, Ingress, IngressClass, Node, Object, Pod, Secret, Service};
use crate::problem::{Kind, ObjectKey, ObjectRef};
use assign::{Assigner, Wish};
use endpoints::Workloads;
use std::collections::{BTreeMap, BTreeSet};

mod assign;
mod draft;
mod endpoints;

pub use assign::ServiceCidr;
pub use draft::{ServiceDraft, Target};

/// What is filled in from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FillConfig {
    /// `--service-cidr`: the first one of a family is used; the first of all is the default family.
    pub service_cidrs: Vec<ServiceCidr>,
    /// `--nodeport-range`, both ends included.
    pub node_ports: (u16, u16),
}

impl Default for FillConfig {
    fn default() -> Self {
        let cidrs = ["10.96.0.0/16", "fd00:10:96::/112"];
        Self {
            service_cidrs: cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
            node_ports: (30_000, 32_767),
        }
    }
}

/// An object as its manifest has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Draft {
    Service(Box<ServiceDraft>),
    EndpointSlice(EndpointSlice),
    Node(Node),
    Pod(Pod),
    Ingress(Box<Ingress>),
    IngressClass(IngressClass),
    Secret(Secret),
    /// Read, and of no use here: an EndpointSlice that is none of ours (S1, S3).
    Unused,
}

/// The state that filling needs: drafts of Services, Pods, and who was given what.
#[derive(Debug)]
pub struct Fill {
    config: FillConfig,
    drafts: BTreeMap<ObjectKey, ServiceDraft>,
    assigner: Assigner,
    workloads: Workloads,
    /// Which Service each written slice belongs to, and the other way round.
    service_of: BTreeMap<ObjectKey, ObjectKey>,
    written: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Names of the slices that were made for a Service.
    made: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    names: Names,
}

impl Fill {
    pub fn new(config: FillConfig) -> Self {
        Self {
            assigner: Assigner::new(&config),
            config,
            drafts: BTreeMap::new(),
            workloads: Workloads::default(),
            service_of: BTreeMap::new(),
            written: BTreeMap::new(),
            made: BTreeMap::new(),
            names: Names::default(),
        }
    }

    pub fn config(&self) -> &FillConfig {
        &self.config
    }

    /// Takes drafts that came, changed or went (`None`) and answers what that changes in the
    /// objects, filled in.
    pub fn apply(&mut self, drafts: Vec<(ObjectRef, Option<Draft>)>) -> Vec<Change> {
        let mut changes = Vec::with_capacity(drafts.len());
        let mut dirty = BTreeSet::new();
        for (reference, draft) in drafts {
            match (reference.kind, draft) {
                (_, Some(Draft::Service(draft))) => {
                    self.assigner.claim(&reference.key, &draft.service, &mut dirty);
                    self.workloads.select(&reference.key, draft.selector.as_ref());
                    dirty.insert(reference.key.clone());
                    self.drafts.insert(reference.key, *draft);
                }
                (Kind::Service, _) => {
                    self.assigner.forget(&reference.key);
                    self.workloads.select(&reference.key, None);
                    self.drafts.remove(&reference.key);
                    dirty.insert(reference.key.clone());
                    changes.push(Change::Delete(reference));
                }
                (_, Some(Draft::EndpointSlice(slice))) => {
                    self.own(&slice.key, Some(&slice.service), &mut dirty);
                    changes.push(Change::Upsert(Object::EndpointSlice(slice)));
                }
                (Kind::EndpointSlice, _) => {
                    self.own(&reference.key, None, &mut dirty);
                    changes.push(Change::Delete(reference));
                }
                (_, Some(Draft::Pod(pod))) => {
                    self.workloads.put(pod.clone(), &mut dirty);
                    changes.push(Change::Upsert(Object::Pod(pod)));
                }
                (Kind::Pod, _) => {
                    self.workloads.remove(&reference.key, &mut dirty);
                    changes.push(Change::Delete(reference));
                }
                (_, Some(Draft::Node(node))) => changes.push(Change::Upsert(Object::Node(node))),
                (_, Some(Draft::Ingress(ingress))) => {
                    changes.push(Change::Upsert(Object::Ingress(*ingress)));
                }
                (_, Some(Draft::IngressClass(class))) => {
                    changes.push(Change::Upsert(Object::IngressClass(class)));
                }
                (_, Some(Draft::Secret(secret))) => changes.push(Change::Upsert(Object::Secret(secret))),
                (_, Some(Draft::Unused) | None) => changes.push(Change::Delete(reference)),
            }
        }
        // In order of names, so that who comes first at an address does not depend on files.
        for key in dirty {
            self.fill(&key, &mut changes);
        }
        changes
    }

    /// Notes which Service a written slice belongs to: written ones take over from made ones.
    fn own(&mut self, slice: &ObjectKey, service: Option<&ObjectKey>, dirty: &mut BTreeSet<ObjectKey>) {
        if let Some(old) = self.service_of.remove(slice) {
            if let Some(slices) = self.written.get_mut(&old) {
                slices.remove(slice);
                if slices.is_empty() {
                    self.written.remove(&old);
                }
            }
            dirty.insert(old);
        }
        if let Some(service) = service {
            self.service_of.insert(slice.clone(), service.clone());
            self.written.entry(service.clone()).or_default().insert(slice.clone());
            dirty.insert(service.clone());
        }
    }

    /// Fills in one Service and its endpoints.
    fn fill(&mut self, key: &ObjectKey, changes: &mut Vec<Change>) {
        let mut slices: Vec<EndpointSlice> = Vec::new();
        if let Some(draft) = self.drafts.get(key) {
            let mut service = draft.service.clone();
            self.assigner.assign(&Wish::of(draft), &mut service);
            if !self.written.contains_key(key) {
                slices = self.workloads.slices(draft, &mut self.names);
            }
            changes.push(Change::Upsert(Object::Service(service)));
        }
        let now: BTreeSet<ObjectKey> = slices.iter().map(|slice| slice.key.clone()).collect();
        let before =
            if now.is_empty() { self.made.remove(key) } else { self.made.insert(key.clone(), now.clone()) };
        for gone in before.unwrap_or_default().difference(&now) {
            changes.push(Change::Delete(ObjectRef { kind: Kind::EndpointSlice, key: gone.clone() }));
        }
        changes.extend(slices.into_iter().map(|slice| Change::Upsert(Object::EndpointSlice(slice))));
    }
}

/// Whether the API server would give it a cluster IP.
fn addressed(service: &Service) -> bool {
    !service.headless && service.kind != super::ServiceType::ExternalName
}

/// A hash that is the same in every run and on every machine (FNV-1a, then mixed).
fn stable_hash(parts: &[&str]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([b'/']) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

#[cfg(test)]
#[path = "fill_tests.rs"]
mod tests;
