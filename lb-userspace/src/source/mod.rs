//! Where objects come from, and the compact form in which the agent keeps them.
//!
//! A source turns files or API watches into [`Change`]s. [`Objects::apply`] folds a change
//! into the set and answers which Services it touches; nothing here decides what an object
//! means.
//!
//! # How a source runs
//! There are two: [`dir::DirSource`] (manifests) and [`kube::KubeSource`] (the API server). An
//! agent has one of them. Both have `async fn run(self, tx: Batches, syncs: Arc<Syncs>)`:
//! - A message is a [`Batch`], and a batch is one atomic step: apply all its changes, then plan
//!   once. A changed file is one batch.
//! - A source first sends a [`Change::Replace`] for each kind that it serves, empty ones too;
//!   [`Objects::ready_l4`] tells when enough of them came.
//! - Secrets are not listed by the API server source, but asked for by name: whoever decides
//!   which are needed says so through a watch channel ([`kube::IngressOptions::secrets`]), and
//!   [`Objects::secret`] tells a Secret that is missing from one that has not come yet.
//! - `run` never gives up: what fails is told as [`Change::Problems`] and tried again. It returns
//!   when the receiver is gone. Dropping the future stops it.
//! - [`Syncs`] tells `weir status` how each kind stands; read it at any time.

use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use ipnet::IpNet;
use lb_common::abi::Proto;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use zeroize::Zeroizing;

pub mod dir;
pub mod fill;
pub mod kube;
pub mod objects;
pub mod project;
pub mod sync;

pub use sync::{SyncState, Syncs};

/// A fault found while an object was projected to its compact form; the model reports it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FieldProblem {
    pub field: String,
    pub reason: String,
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ServiceType {
    #[default]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// One entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Empty for the unnamed port of a one-port Service.
    pub name: String,
    pub proto: Proto,
    pub port: u16,
    /// 0: none.
    pub node_port: u16,
    /// `targetPort` where it is a number: what an ExternalName is asked on (I22). Endpoints have
    /// their ports in their slices.
    pub target_port: Option<u16>,
    pub app_protocol: Option<String>,
}

/// A Service, as far as either layer needs it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    pub key: ObjectKey,
    /// Seconds since the epoch; 0 when the object has no creation time (manifests).
    pub created: i64,
    pub kind: ServiceType,
    /// Label `service.kubernetes.io/service-proxy-name` is set: another proxy's (S1).
    pub foreign: bool,
    /// `spec.clusterIP` is "None" (S2).
    pub headless: bool,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    /// Of `status.loadBalancer.ingress`: those with an IP and `ipMode` VIP or none (S15).
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: Vec<String>,
    pub external_name: Option<String>,
    /// `spec.selector` is set: its endpoints are found by a controller, which removes what others
    /// write in its name (H38).
    pub selector: bool,
    pub ports: Vec<ServicePort>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    /// Seconds; `None` without `sessionAffinity: ClientIP`.
    pub affinity_seconds: Option<u32>,
    /// 0: none.
    pub health_check_node_port: u16,
    /// `metadata.uid`, kept where Events may refer to it: with a health check port.
    pub uid: String,
    pub publish_not_ready: bool,
    pub problems: Vec<FieldProblem>,
}

/// One endpoint of a slice: its first address (S5) and its conditions, defaults applied (S6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub addr: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Shared between endpoints: a node name is repeated thousands of times.
    pub node: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
    /// `hints.forZones` and `hints.forNodes` (S26).
    pub hint_zones: Vec<Arc<str>>,
    pub hint_nodes: Vec<Arc<str>>,
}

/// A port of a slice; those without a number are left out (S5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    pub name: String,
    pub proto: Proto,
    pub port: u16,
}

/// An EndpointSlice of IP addresses that belongs to a Service (S3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    pub key: ObjectKey,
    /// From label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: ObjectKey,
    /// Says of itself that the endpoint slice controller made it (H38). Anybody may write that:
    /// it counts only for a Service with a selector.
    pub managed: bool,
    /// Carries the label that hides it from L4 (S1): L7 serves headless Services (I19).
    pub headless: bool,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`, ns since the epoch (S59).
    pub trigger_time: Option<i64>,
    pub problems: Vec<FieldProblem>,
}

/// A Node, as far as the agent needs it. Only our own is kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    pub name: String,
    pub internal_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    /// `spec.podCIDRs` as text.
    pub pod_cidrs: Vec<String>,
    /// Label `topology.kubernetes.io/zone` (S28).
    pub zone: Option<String>,
    /// Deletion timestamp or taint `ToBeDeletedByClusterAutoscaler` (S55).
    pub leaving: bool,
}

/// A Pod of this node (API server), or any Pod (manifests).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    pub key: ObjectKey,
    pub node: Option<String>,
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    pub ready: bool,
    pub terminating: bool,
    pub labels: BTreeMap<String, String>,
    /// Container ports that carry a name: name, protocol, number.
    pub named_ports: Vec<(String, Proto, u16)>,
    pub problems: Vec<FieldProblem>,
}

/// Which port of a Service an Ingress means.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BackendPort {
    Number(u16),
    Name(String),
}

/// Where an Ingress sends requests to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IngressBackend {
    /// `backend.service`: a Service of the Ingress' own namespace.
    Service { name: String, port: BackendPort },
    /// `backend.resource`, or neither, or both, or what the API server would refuse: answers 503
    /// (I16). Says why; the Ingress' `problems` say so too.
    Unsupported(String),
}

/// `pathType` of an Ingress path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PathType {
    Exact,
    Prefix,
    ImplementationSpecific,
}

/// One entry of `rules[].http.paths`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IngressPath {
    /// Place in the object's list: entries before it may have been left out.
    pub index: usize,
    /// As written; empty when absent (`ImplementationSpecific` alone may leave it out).
    pub path: String,
    pub path_type: PathType,
    pub backend: IngressBackend,
}

/// One entry of `spec.rules`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IngressRule {
    /// Place in the object's list, as [`IngressPath::index`].
    pub index: usize,
    /// As written; empty: every host that no rule names (I8).
    pub host: String,
    /// `None`: no `http`, so the host goes to the default backend (I8).
    pub paths: Option<Vec<IngressPath>>,
}

/// One entry of `spec.tls`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IngressTls {
    /// Place in the object's list, as [`IngressPath::index`].
    pub index: usize,
    /// Each with its place, likewise.
    pub hosts: Vec<(usize, String)>,
    /// `None`: the default certificate (I29).
    pub secret: Option<String>,
}

/// An entry of `status.loadBalancer.ingress`: an address or a host name, in that order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum StatusAddress {
    Ip(IpAddr),
    Hostname(String),
}

/// An Ingress.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ingress {
    pub key: ObjectKey,
    /// `metadata.uid`: what Events refer to. Empty in manifests.
    pub uid: String,
    /// `metadata.generation`: counts changes of the spec (I70). 0 in manifests.
    pub generation: i64,
    /// Seconds since the epoch; 0 when the object has no creation time (manifests).
    pub created: i64,
    /// `metadata.deletionTimestamp` is set: it is gone once its finalizers are.
    pub ending: bool,
    pub class: Option<String>,
    /// Annotation `kubernetes.io/ingress.class` (I3).
    pub class_annotation: Option<String>,
    pub default_backend: Option<IngressBackend>,
    pub rules: Vec<IngressRule>,
    pub tls: Vec<IngressTls>,
    /// `status.loadBalancer.ingress`, as it stands (I69).
    pub status: Vec<StatusAddress>,
    /// The field manager of Weir's that wrote it, if one did: only then may it be taken away (I4).
    pub status_manager: Option<String>,
    pub problems: Vec<FieldProblem>,
}

/// An IngressClass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IngressClass {
    pub name: String,
    pub controller: String,
    /// Annotation `ingressclass.kubernetes.io/is-default-class` (I2).
    pub default: bool,
}

/// A Secret that an Ingress refers to. Nothing else of it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    pub key: ObjectKey,
    /// `type`, such as `kubernetes.io/tls`.
    pub kind: String,
    /// `data["tls.crt"]`: PEM.
    pub certificate: Option<Vec<u8>>,
    /// `data["tls.key"]`: PEM.
    pub private_key: Option<Zeroizing<Vec<u8>>>,
}

/// The key is in no output.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("key", &self.key).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// A ServiceCIDR: where ClusterIPs are taken from (S38).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceCidr {
    pub name: String,
    pub cidrs: Vec<IpNet>,
}

/// A Namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Namespace {
    pub name: String,
    /// `metadata.deletionTimestamp` is set: everything in it goes, Pods first and the rest when
    /// the last of them is gone.
    pub ending: bool,
}

/// An object in its compact form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    Namespace(Namespace),
    Ingress(Ingress),
    IngressClass(IngressClass),
    Secret(Secret),
    Service(Service),
    ServiceCidr(ServiceCidr),
    EndpointSlice(EndpointSlice),
    Node(Node),
    Pod(Pod),
}

/// What a source says.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all changes are the large one")]
pub enum Change {
    /// Added or changed.
    Upsert(Object),
    /// Deleted; of a Secret that was asked for by name: it is not there.
    Delete(ObjectRef),
    /// A Secret that was asked for by name cannot be read, and why. One that is known stays.
    Unreadable(ObjectRef, String),
    /// A Secret that nobody asks for any more: nothing of it is kept (H30).
    Forget(ObjectRef),
    /// All objects of a kind, after a first list or a relist: replaces whatever was known.
    Replace(Kind, Vec<Object>),
    /// The source's own problems, whole: an unreadable file, a refused watch.
    Problems(Vec<Problem>),
}

/// Changes that belong together: applied all, then planned once.
pub type Batch = Vec<Change>;

/// Where a source sends its batches.
pub type Batches = tokio::sync::mpsc::Sender<Batch>;

/// What the agent knows of the cluster.
#[derive(Clone, Default, Debug)]
pub struct Objects {
    /// Name of our Node: the only one that is kept.
    pub node_name: String,
    pub services: BTreeMap<ObjectKey, Arc<Service>>,
    pub slices: BTreeMap<ObjectKey, Arc<EndpointSlice>>,
    /// Slices by the Service they belong to.
    pub slices_of: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    pub node: Option<Arc<Node>>,
    pub pods: BTreeMap<ObjectKey, Arc<Pod>>,
    pub ingresses: BTreeMap<ObjectKey, Arc<Ingress>>,
    /// By name.
    pub ingress_classes: BTreeMap<String, Arc<IngressClass>>,
    /// Namespaces that are being deleted; of others nothing is kept.
    pub ending_namespaces: BTreeSet<String>,
    /// Ask [`Objects::secret`]: what is not in here may just not have come yet.
    pub secrets: BTreeMap<ObjectKey, Arc<Secret>>,
    /// Secrets that were asked for and are not to be had, and why.
    pub missing_secrets: BTreeMap<ObjectKey, String>,
    /// Ranges of ClusterIPs, by the ServiceCIDR that names them.
    pub service_cidrs: BTreeMap<String, Vec<IpNet>>,
    /// Kinds that have been listed in full at least once (S8).
    pub listed: BTreeSet<Kind>,
    pub source_problems: Vec<Problem>,
}

/// What is known of a Secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecretState<'a> {
    Known(&'a Arc<Secret>),
    /// The source answered that it is not to be had, and why: the default certificate takes its
    /// place (I31).
    Missing(&'a str),
    /// No answer came yet: whatever was served before goes on being served.
    Awaited,
}

/// What a change touches.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Touched {
    /// Services whose desired state may differ now.
    pub services: BTreeSet<ObjectKey>,
    pub ingresses: BTreeSet<ObjectKey>,
    pub secrets: BTreeSet<ObjectKey>,
    /// An IngressClass changed: every Ingress may be ours now, or not any more.
    pub ingress_classes: bool,
    /// Our Node changed: everything may differ.
    pub node: bool,
    /// Ranges of ClusterIPs changed.
    pub service_cidrs: bool,
    /// Pods changed: links of pods may have come or gone.
    pub pods: bool,
}

#[cfg(test)]
mod dir_l7_tests;
