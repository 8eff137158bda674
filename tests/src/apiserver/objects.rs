//! What a test does with objects: apply, look, wait, and play the kubelet for Pods.

use super::{Connection, PATIENCE};
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use kube::Client;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Who owns the fields that tests apply.
const OWNER: &str = "weir-tests";
/// Kinds without a namespace, among those that tests use.
const CLUSTER_WIDE: [&str; 8] = [
    "Namespace",
    "Node",
    "IngressClass",
    "ServiceCIDR",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "ValidatingAdmissionPolicy",
];

/// A Pod as a test wants it to be: running on a node, with these addresses.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub node: String,
    pub addresses: Vec<IpAddr>,
    /// Named container ports: name, number, protocol.
    pub ports: Vec<(String, u16, String)>,
}

impl Connection {
    /// Creates or changes an object, as `kubectl apply --server-side` does; a `status` in it
    /// is merged in as a kubelet or a controller does: applying could not hold a Node with
    /// two internal addresses, whose schema says that each type is there once.
    ///
    /// # Errors
    /// With the API server's refusal.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let id = Id::of(object)?;
        let mut object = object.clone();
        let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
        self.on(id, |api, id| async move {
            let params = PatchParams::apply(OWNER).force();
            let mut applied = api.patch(&id.name, &params, &Patch::Apply(&object)).await?;
            if let Some(status) = status {
                let patch = Patch::Merge(json!({ "status": status }));
                applied = api.patch_status(&id.name, &PatchParams::default(), &patch).await?;
            }
            Ok(serde_json::to_value(applied)?)
        })
    }

    /// Applies each document of a YAML text.
    ///
    /// # Errors
    /// As [`Self::apply`], or when the text is not YAML.
    pub fn apply_yaml(&self, text: &str) -> Result<()> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
        documents
            .iter()
            .filter(|document| !document.is_null())
            .try_for_each(|object| self.apply(object).map(drop))
    }

    /// Looks for an object. `kind` as in a manifest, with its `apiVersion`.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        self.on(Id::new(api_version, kind, namespace, name), |api, id| async move {
            Ok(api.get_opt(&id.name).await?.map(serde_json::to_value).transpose()?)
        })
    }

    /// Lists the objects of a namespace (empty: of all) that carry the labels of a selector (`a=b,c=d`).
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn list(&self, api_version: &str, kind: &str, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let params = ListParams::default().labels(selector);
        self.on(Id::new(api_version, kind, namespace, ""), |api, _| async move {
            api.list(&params).await?.items.into_iter().map(|item| Ok(serde_json::to_value(item)?)).collect()
        })
    }

    /// Deletes an object at once; one that is not there is as good.
    ///
    /// # Errors
    /// With the API server's refusal.
    pub fn delete(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.delete_with(Id::new(api_version, kind, namespace, name), DeleteParams::default().grace_period(0))
    }

    /// Creates a Node with these internal addresses, Ready.
    ///
    /// # Errors
    /// With the API server's refusal.
    pub fn create_node(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let addresses: Vec<Value> =
            addresses.iter().map(|ip| json!({ "type": "InternalIP", "address": ip })).collect();
        let labels = json!({ "kubernetes.io/hostname": name });
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels },
            "status": { "addresses": addresses, "conditions": [{ "type": "Ready", "status": "True" }] },
        }))
        .map(drop)
    }

    /// Creates a namespace.
    ///
    /// # Errors
    /// With the API server's refusal.
    pub fn create_namespace(&self, name: &str) -> Result<()> {
        self.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }))
            .map(drop)
    }

    /// Creates a Pod and reports it running and ready, as its kubelet would. Its node must be
    /// there: the EndpointSlice controller passes over Pods of unknown nodes.
    ///
    /// # Errors
    /// With the API server's refusal.
    pub fn run_pod(&self, pod: &Pod) -> Result<()> {
        let ports: Vec<Value> = pod
            .ports
            .iter()
            .map(
                |(name, port, protocol)| json!({ "name": name, "containerPort": port, "protocol": protocol }),
            )
            .collect();
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": pod.namespace, "name": pod.name, "labels": pod.labels },
            "spec": {
                "nodeName": pod.node,
                "containers": [{ "name": "main", "image": "none", "ports": ports }],
            },
        }))?;
        self.report_running(&pod.namespace, &pod.name, &pod.addresses)
    }

    /// Gives a Pod a node, as the scheduler does.
    ///
    /// # Errors
    /// With the API server's refusal.
    pub fn bind_pod(&self, namespace: &str, name: &str, node: &str) -> Result<()> {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "namespace": namespace, "name": name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        self.on(Id::new("v1", "Pod", namespace, name), |api, id| async move {
            let _: Value =
                api.create_subresource("binding", &id.name, &PostParams::default(), &binding).await?;
            Ok(())
        })
    }

    /// Reports a Pod running, with these addresses, its containers ready.
    ///
    /// # Errors
    /// With the API server's refusal.
    pub fn report_running(&self, namespace: &str, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let all: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .map(|kind| json!({ "type": kind, "status": "True" }));
        let status = json!({
            "phase": "Running", "podIP": addresses.first(), "podIPs": all, "conditions": conditions,
        });
        self.patch_pod_status(namespace, name, status)
    }

    /// Reports a Pod's readiness probe.
    ///
    /// # Errors
    /// With the API server's refusal.
    pub fn set_ready(&self, namespace: &str, name: &str, ready: bool) -> Result<()> {
        let status = if ready { "True" } else { "False" };
        let conditions = json!([{ "type": "Ready", "status": status }]);
        self.patch_pod_status(namespace, name, json!({ "conditions": conditions }))
    }

    /// Asks a Pod to end: it stays, terminating, until [`Self::remove_pod`] ends it.
    ///
    /// # Errors
    /// With the API server's refusal.
    pub fn terminate_pod(&self, namespace: &str, name: &str) -> Result<()> {
        self.delete_with(Id::new("v1", "Pod", namespace, name), DeleteParams::default().grace_period(3600))
    }

    /// Removes a Pod at once, as its kubelet does when all containers have ended.
    ///
    /// # Errors
    /// With the API server's refusal.
    pub fn remove_pod(&self, namespace: &str, name: &str) -> Result<()> {
        self.delete("v1", "Pod", namespace, name)
    }

    /// Waits until the EndpointSlices of a Service hold exactly these ready addresses.
    ///
    /// # Errors
    /// When that is not so after a minute; says what is there.
    pub fn wait_ready_endpoints(&self, namespace: &str, service: &str, wanted: &[IpAddr]) -> Result<()> {
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        until(&format!("endpoints of {namespace}/{service}"), PATIENCE, || {
            let ready = self.ready_endpoints(namespace, service)?;
            ensure!(ready == wanted, "ready are {ready:?}, wanted {wanted:?}");
            Ok(())
        })
    }

    /// The ready addresses in the EndpointSlices of a Service, sorted, each once.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn ready_endpoints(&self, namespace: &str, service: &str) -> Result<Vec<IpAddr>> {
        let selector = format!("kubernetes.io/service-name={service}");
        let slices = self.list("discovery.k8s.io/v1", "EndpointSlice", namespace, &selector)?;
        let mut ready = Vec::new();
        for endpoint in slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten() {
            if endpoint["conditions"]["ready"] == json!(true) {
                for address in endpoint["addresses"].as_array().into_iter().flatten() {
                    ready.push(address.as_str().unwrap_or_default().parse()?);
                }
            }
        }
        ready.sort_unstable();
        ready.dedup();
        Ok(ready)
    }

    fn patch_pod_status(&self, namespace: &str, name: &str, status: Value) -> Result<()> {
        self.on(Id::new("v1", "Pod", namespace, name), |api, id| async move {
            let patch = json!({ "status": status });
            api.patch_status(&id.name, &PatchParams::default(), &Patch::Strategic(&patch)).await?;
            Ok(())
        })
    }

    fn delete_with(&self, id: Id, params: DeleteParams) -> Result<()> {
        self.on(id, |api, id| async move {
            match api.delete(&id.name, &params).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn on<T, F>(
        &self,
        id: Id,
        request: impl FnOnce(Api<DynamicObject>, Id) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>>,
    {
        let what = id.to_string();
        self.ask(move |client| request(id.api(client), id)).context(what)
    }
}

/// Names an object.
#[derive(Debug, Clone)]
struct Id {
    group: String,
    version: String,
    kind: String,
    /// Empty: cluster-wide.
    namespace: String,
    name: String,
}

impl Id {
    fn new(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let namespace = if CLUSTER_WIDE.contains(&kind) { "" } else { namespace };
        let [group, version, kind, namespace, name] =
            [group, version, kind, namespace, name].map(str::to_owned);
        Self { group, version, kind, namespace, name }
    }

    fn of(object: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let api_version = text(&object["apiVersion"]).context("an object without apiVersion")?;
        let kind = text(&object["kind"]).context("an object without kind")?;
        let name = text(&object["metadata"]["name"]).context("an object without a name")?;
        let namespace = text(&object["metadata"]["namespace"]).unwrap_or_else(|| "default".into());
        Ok(Self::new(&api_version, &kind, &namespace, &name))
    }

    fn api(&self, client: Client) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(&self.group, &self.version, &self.kind));
        if self.namespace.is_empty() {
            Api::all_with(client, &resource)
        } else {
            Api::namespaced_with(client, &self.namespace, &resource)
        }
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}
