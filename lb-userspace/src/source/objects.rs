//! Folding changes into the set of objects.
//!
//! [`Objects::apply`] keeps the maps and the index of slices by Service right and answers which
//! Services a change touches. An object that comes again unchanged touches nothing, so a relist
//! (S8, S81) costs a comparison and not a round over the cluster.

use super::{
    Change, EndpointSlice, Ingress, IngressClass, Namespace, Node, Object, Objects, Pod, Secret, SecretState,
    Service, ServiceCidr, Touched,
};
use crate::problem::{Kind, ObjectKey, ObjectRef};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why a Secret that was looked for is not known.
const NO_SECRET: &str = "there is no such Secret of type kubernetes.io/tls";

impl Object {
    /// Kind, namespace and name.
    pub fn reference(&self) -> ObjectRef {
        let (kind, key) = match self {
            Self::Service(service) => (Kind::Service, service.key.clone()),
            Self::EndpointSlice(slice) => (Kind::EndpointSlice, slice.key.clone()),
            Self::Node(node) => (Kind::Node, ObjectKey::new("", &node.name)),
            Self::Pod(pod) => (Kind::Pod, pod.key.clone()),
            Self::Ingress(ingress) => (Kind::Ingress, ingress.key.clone()),
            Self::IngressClass(class) => (Kind::IngressClass, ObjectKey::new("", &class.name)),
            Self::Secret(secret) => (Kind::Secret, secret.key.clone()),
            Self::ServiceCidr(cidr) => (Kind::ServiceCidr, ObjectKey::new("", &cidr.name)),
            Self::Namespace(namespace) => (Kind::Namespace, ObjectKey::new("", &namespace.name)),
        };
        ObjectRef { kind, key }
    }
}

impl Touched {
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.ingresses.is_empty()
            && self.secrets.is_empty()
            && !self.ingress_classes
            && !self.node
            && !self.service_cidrs
            && !self.pods
    }

    /// Adds what another change touched: a round may follow several changes.
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.ingresses.extend(other.ingresses);
        self.secrets.extend(other.secrets);
        self.ingress_classes |= other.ingress_classes;
        self.node |= other.node;
        self.pods |= other.pods;
        self.service_cidrs |= other.service_cidrs;
    }
}

impl Objects {
    /// An empty set for the node of that name.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self { node_name: node_name.into(), ..Self::default() }
    }

    /// Whether every kind that L4 is decided from has been listed in full (S8). Until then
    /// nothing may be planned: a restart would shrink maps that are in use.
    ///
    /// Pods are not among them: they say where links are, not what a Service is.
    pub fn ready_l4(&self) -> bool {
        [Kind::Service, Kind::EndpointSlice, Kind::Node].iter().all(|kind| self.listed.contains(kind))
    }

    /// Whether every kind that routes are decided from has been listed in full. Apart from
    /// [`Self::ready_l4`]: a refused Ingress watch never stops Services. Secrets are not among
    /// them, since which are read follows from the Ingresses.
    pub fn ready_l7(&self) -> bool {
        [Kind::Service, Kind::EndpointSlice, Kind::Ingress, Kind::IngressClass]
            .iter()
            .all(|kind| self.listed.contains(kind))
    }

    /// What is known of a Secret.
    pub fn secret(&self, key: &ObjectKey) -> SecretState<'_> {
        match (self.secrets.get(key), self.missing_secrets.get(key)) {
            (Some(secret), _) => SecretState::Known(secret),
            (None, Some(reason)) => SecretState::Missing(reason),
            (None, None) if self.listed.contains(&Kind::Secret) => SecretState::Missing(NO_SECRET),
            (None, None) => SecretState::Awaited,
        }
    }

    /// Folds one change in and answers what it touches.
    pub fn apply(&mut self, change: Change) -> Touched {
        let mut touched = Touched::default();
        match change {
            Change::Upsert(Object::Service(service)) => self.put_service(service, &mut touched),
            Change::Upsert(Object::EndpointSlice(slice)) => self.put_slice(slice, &mut touched),
            Change::Upsert(Object::Node(node)) => self.put_node(node, &mut touched),
            Change::Upsert(Object::Pod(pod)) => self.put_pod(pod, &mut touched),
            Change::Upsert(Object::Ingress(ingress)) => self.put_ingress(ingress, &mut touched),
            Change::Upsert(Object::IngressClass(class)) => self.put_ingress_class(class, &mut touched),
            Change::Upsert(Object::Secret(secret)) => self.put_secret(secret, &mut touched),
            Change::Upsert(Object::Namespace(namespace)) => self.put_namespace(namespace, &mut touched),
            Change::Upsert(Object::ServiceCidr(ServiceCidr { name, cidrs })) => {
                let before = self.service_cidrs.insert(name, cidrs.clone());
                touched.service_cidrs |= before.as_ref() != Some(&cidrs);
            }
            Change::Delete(object) => self.delete(&object, &mut touched),
            Change::Unreadable(object, reason) => {
                if !self.secrets.contains_key(&object.key) {
                    self.miss_secret(object.key, reason, &mut touched);
                }
            }
            Change::Forget(object) => {
                let known = self.secrets.remove(&object.key).is_some();
                if self.missing_secrets.remove(&object.key).is_some() || known {
                    touched.secrets.insert(object.key);
                }
            }
            Change::Replace(kind, objects) => self.replace(kind, objects, &mut touched),
            Change::Problems(problems) => self.source_problems = problems,
        }
        touched
    }

    /// Folds the changes of a batch in and answers what they touch together.
    pub fn apply_all(&mut self, batch: impl IntoIterator<Item = Change>) -> Touched {
        let mut touched = Touched::default();
        for change in batch {
            touched.merge(self.apply(change));
        }
        touched
    }

    fn put_service(&mut self, service: Service, touched: &mut Touched) {
        if self.services.get(&service.key).is_some_and(|old| **old == service) {
            return;
        }
        touched.services.insert(service.key.clone());
        self.services.insert(service.key.clone(), Arc::new(service));
    }

    /// A slice that moves to another Service touches both.
    fn put_slice(&mut self, slice: EndpointSlice, touched: &mut Touched) {
        if let Some(old) = self.slices.get(&slice.key) {
            if **old == slice {
                return;
            }
            if old.service != slice.service {
                let old = Arc::clone(old);
                self.forget_slice_of(&old);
                touched.services.insert(old.service.clone());
            }
        }
        touched.services.insert(slice.service.clone());
        self.slices_of.entry(slice.service.clone()).or_default().insert(slice.key.clone());
        self.slices.insert(slice.key.clone(), Arc::new(slice));
    }

    fn put_node(&mut self, node: Node, touched: &mut Touched) {
        if node.name != self.node_name || self.node.as_deref() == Some(&node) {
            return;
        }
        touched.node = true;
        self.node = Some(Arc::new(node));
    }

    fn put_pod(&mut self, pod: Pod, touched: &mut Touched) {
        if self.pods.get(&pod.key).is_some_and(|old| **old == pod) {
            return;
        }
        touched.pods = true;
        self.pods.insert(pod.key.clone(), Arc::new(pod));
    }

    fn put_ingress(&mut self, ingress: Ingress, touched: &mut Touched) {
        if self.ingresses.get(&ingress.key).is_some_and(|old| **old == ingress) {
            return;
        }
        touched.ingresses.insert(ingress.key.clone());
        self.ingresses.insert(ingress.key.clone(), Arc::new(ingress));
    }

    fn put_ingress_class(&mut self, class: IngressClass, touched: &mut Touched) {
        if self.ingress_classes.get(&class.name).is_some_and(|old| **old == class) {
            return;
        }
        touched.ingress_classes = true;
        self.ingress_classes.insert(class.name.clone(), Arc::new(class));
    }

    /// Touches the Ingresses in it where it begins to end, or a new one has taken its name.
    fn put_namespace(&mut self, namespace: Namespace, touched: &mut Touched) {
        let changed = if namespace.ending {
            self.ending_namespaces.insert(namespace.name.clone())
        } else {
            self.ending_namespaces.remove(&namespace.name)
        };
        if changed {
            let within = self.ingresses.range(ObjectKey::new(&namespace.name, "")..).map(|(key, _)| key);
            let within = within.take_while(|key| key.namespace == namespace.name);
            touched.ingresses.extend(within.cloned());
        }
    }

    fn put_secret(&mut self, secret: Secret, touched: &mut Touched) {
        if self.secrets.get(&secret.key).is_some_and(|old| **old == secret) {
            return;
        }
        touched.secrets.insert(secret.key.clone());
        self.missing_secrets.remove(&secret.key);
        self.secrets.insert(secret.key.clone(), Arc::new(secret));
    }

    fn miss_secret(&mut self, key: ObjectKey, reason: String, touched: &mut Touched) {
        if self.missing_secrets.get(&key) != Some(&reason) {
            touched.secrets.insert(key.clone());
            self.missing_secrets.insert(key, reason);
        }
    }

    fn delete(&mut self, object: &ObjectRef, touched: &mut Touched) {
        match object.kind {
            Kind::Service => {
                if self.services.remove(&object.key).is_some() {
                    touched.services.insert(object.key.clone());
                }
            }
            Kind::EndpointSlice => {
                if let Some(old) = self.slices.remove(&object.key) {
                    self.forget_slice_of(&old);
                    touched.services.insert(old.service.clone());
                }
            }
            Kind::Node => {
                if object.key.name == self.node_name && self.node.take().is_some() {
                    touched.node = true;
                }
            }
            Kind::Pod => touched.pods |= self.pods.remove(&object.key).is_some(),
            Kind::Ingress => {
                if self.ingresses.remove(&object.key).is_some() {
                    touched.ingresses.insert(object.key.clone());
                }
            }
            Kind::IngressClass => {
                touched.ingress_classes |= self.ingress_classes.remove(&object.key.name).is_some();
            }
            Kind::Secret => {
                if self.secrets.remove(&object.key).is_some() {
                    touched.secrets.insert(object.key.clone());
                }
                // Where all of them are listed, absence says it.
                if !self.listed.contains(&Kind::Secret) {
                    self.miss_secret(object.key.clone(), NO_SECRET.into(), touched);
                }
            }
            Kind::Namespace => {
                let gone = Namespace { name: object.key.name.clone(), ending: false };
                self.put_namespace(gone, touched);
            }
            Kind::ServiceCidr => {
                touched.service_cidrs |= self.service_cidrs.remove(&object.key.name).is_some();
            }
            Kind::ConfigMap | Kind::File | Kind::Agent => {}
        }
    }

    /// What is absent from the list is deleted, what is in it is put; so only what differs
    /// touches anything.
    fn replace(&mut self, kind: Kind, objects: Vec<Object>, touched: &mut Touched) {
        let kept: BTreeSet<ObjectKey> =
            objects.iter().map(Object::reference).filter(|r| r.kind == kind).map(|r| r.key).collect();
        for key in self.keys(kind) {
            if !kept.contains(&key) {
                self.delete(&ObjectRef { kind, key }, touched);
            }
        }
        for object in objects {
            debug_assert_eq!(object.reference().kind, kind, "a list holds one kind");
            touched.merge(self.apply(Change::Upsert(object)));
        }
        self.listed.insert(kind);
    }

    fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        fn of<T>(map: &BTreeMap<ObjectKey, T>) -> Vec<ObjectKey> {
            map.keys().cloned().collect()
        }
        match kind {
            Kind::Service => of(&self.services),
            Kind::EndpointSlice => of(&self.slices),
            Kind::Pod => of(&self.pods),
            Kind::Node => self.node.iter().map(|node| ObjectKey::new("", &node.name)).collect(),
            Kind::Ingress => of(&self.ingresses),
            Kind::IngressClass => self.ingress_classes.keys().map(|name| ObjectKey::new("", name)).collect(),
            Kind::Secret => of(&self.secrets),
            Kind::Namespace => self.ending_namespaces.iter().map(|name| ObjectKey::new("", name)).collect(),
            Kind::ServiceCidr => self.service_cidrs.keys().map(|name| ObjectKey::new("", name)).collect(),
            Kind::ConfigMap | Kind::File | Kind::Agent => Vec::new(),
        }
    }

    fn forget_slice_of(&mut self, slice: &EndpointSlice) {
        if let Some(slices) = self.slices_of.get_mut(&slice.service) {
            slices.remove(&slice.key);
            if slices.is_empty() {
                self.slices_of.remove(&slice.service);
            }
        }
    }
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
