//! Endpoints of Services from Pods, as the endpoint controller would have made them.
//!
//! Pods are indexed by each of their labels, Services by the first pair of their selector, so
//! that a change costs what it touches.

use super::{ServiceDraft, Target};
use crate::problem::ObjectKey;
use crate::source::project::Names;
use crate::source::{Endpoint, EndpointSlice, Pod, SlicePort};
use lb_common::abi::Family;
use std::collections::{BTreeMap, BTreeSet};

/// Namespace, label, value.
type Pair = (String, String, String);

/// Pods, and the selectors that look at them.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    pods: BTreeMap<ObjectKey, Pod>,
    pods_with: BTreeMap<Pair, BTreeSet<ObjectKey>>,
    selectors: BTreeMap<ObjectKey, BTreeMap<String, String>>,
    services_with: BTreeMap<Pair, BTreeSet<ObjectKey>>,
}

fn pair(namespace: &str, (label, value): (&String, &String)) -> Pair {
    (namespace.to_owned(), label.clone(), value.clone())
}

fn unlink(index: &mut BTreeMap<Pair, BTreeSet<ObjectKey>>, pair: Pair, key: &ObjectKey) {
    if let Some(keys) = index.get_mut(&pair) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(&pair);
        }
    }
}

fn matches(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    selector.iter().all(|(label, value)| pod.labels.get(label) == Some(value))
}

impl Workloads {
    /// Notes what a Service selects; `None`: nothing.
    pub(super) fn select(&mut self, service: &ObjectKey, selector: Option<&BTreeMap<String, String>>) {
        if let Some(first) = self.selectors.remove(service).as_ref().and_then(BTreeMap::first_key_value) {
            unlink(&mut self.services_with, pair(&service.namespace, first), service);
        }
        if let Some(selector) = selector
            && let Some(first) = selector.first_key_value()
        {
            let first = pair(&service.namespace, first);
            self.services_with.entry(first).or_default().insert(service.clone());
            self.selectors.insert(service.clone(), selector.clone());
        }
    }

    /// Notes a Pod; the Services that selected it before or do now join `dirty`.
    pub(super) fn put(&mut self, pod: Pod, dirty: &mut BTreeSet<ObjectKey>) {
        self.remove(&pod.key, dirty);
        self.selecting(&pod, dirty);
        for label in &pod.labels {
            self.pods_with.entry(pair(&pod.key.namespace, label)).or_default().insert(pod.key.clone());
        }
        self.pods.insert(pod.key.clone(), pod);
    }

    pub(super) fn remove(&mut self, key: &ObjectKey, dirty: &mut BTreeSet<ObjectKey>) {
        let Some(pod) = self.pods.remove(key) else { return };
        self.selecting(&pod, dirty);
        for label in &pod.labels {
            unlink(&mut self.pods_with, pair(&key.namespace, label), key);
        }
    }

    fn selecting(&self, pod: &Pod, dirty: &mut BTreeSet<ObjectKey>) {
        for label in &pod.labels {
            let services = self.services_with.get(&pair(&pod.key.namespace, label));
            for service in services.into_iter().flatten() {
                if self.selectors.get(service).is_some_and(|selector| matches(selector, pod)) {
                    dirty.insert(service.clone());
                }
            }
        }
    }

    /// The slices of a Service: one for each family and each outcome of its named ports, which
    /// may differ from Pod to Pod. No slice where no Pod is.
    pub(super) fn slices(&self, draft: &ServiceDraft, names: &mut Names) -> Vec<EndpointSlice> {
        let Some(selector) = &draft.selector else { return Vec::new() };
        let key = &draft.service.key;
        let sets = selector.iter().map(|label| self.pods_with.get(&pair(&key.namespace, label)));
        let Some(candidates) = sets.min_by_key(|set| set.map_or(0, BTreeSet::len)).flatten() else {
            return Vec::new();
        };
        // By family and resolved ports.
        type Resolved = Vec<(usize, u16)>;
        let mut groups: BTreeMap<(usize, Resolved), Vec<Endpoint>> = BTreeMap::new();
        let pods = candidates.iter().filter_map(|key| self.pods.get(key));
        for pod in pods.filter(|pod| matches(selector, pod)) {
            let ports = resolve(draft, pod);
            for (order, wanted) in draft.families.iter().enumerate() {
                if let Some(endpoint) = endpoint(draft, pod, *wanted, names) {
                    groups.entry((order, ports.clone())).or_default().push(endpoint);
                }
            }
        }
        let mut count: BTreeMap<usize, usize> = BTreeMap::new();
        let slice = |((order, ports), endpoints): ((usize, Resolved), Vec<Endpoint>)| {
            let number = count.entry(order).and_modify(|number| *number += 1).or_insert(1);
            EndpointSlice {
                key: ObjectKey::new(&key.namespace, made_name(&key.name, draft.families[order], *number)),
                service: key.clone(),
                managed: true,
                headless: draft.service.headless,
                ports: ports
                    .into_iter()
                    .map(|(i, number)| SlicePort {
                        name: draft.service.ports[i].name.clone(),
                        proto: draft.service.ports[i].proto,
                        port: number,
                    })
                    .collect(),
                endpoints,
                trigger_time: None,
                problems: Vec::new(),
            }
        };
        groups.into_iter().map(slice).collect()
    }
}

/// A name that no manifest can use: `:` is not allowed in object names.
fn made_name(service: &str, family: Family, number: usize) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    if number == 1 { format!("{service}:{family}") } else { format!("{service}:{family}:{number}") }
}

/// Index of the Service's port and the Pod's port number. A name that the Pod does not have
/// leaves the port out for this Pod.
fn resolve(draft: &ServiceDraft, pod: &Pod) -> Vec<(usize, u16)> {
    let number = |i: usize, target: &Target| match target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => {
            let proto = draft.service.ports[i].proto;
            let named = pod.named_ports.iter().find(|(other, of, _)| other == name && *of == proto);
            named.map(|(_, _, number)| *number)
        }
    };
    draft.targets.iter().enumerate().filter_map(|(i, target)| Some((i, number(i, target)?))).collect()
}

fn endpoint(draft: &ServiceDraft, pod: &Pod, wanted: Family, names: &mut Names) -> Option<Endpoint> {
    let addr = pod.ips.iter().copied().find(|ip| Family::from(*ip) == wanted)?;
    Some(Endpoint {
        addr,
        ready: draft.service.publish_not_ready || (pod.ready && !pod.terminating),
        serving: pod.ready,
        terminating: pod.terminating,
        node: pod.node.as_deref().map(|name| names.share(name)),
        zone: None,
        hint_zones: Vec::new(),
        hint_nodes: Vec::new(),
    })
}
