//! `deploy/` against a real API server: everything in it is accepted, lands on the nodes that it
//! should, and its admission policies say what they should.

use anyhow::{Context, Result, bail, ensure};
use lab::apiserver::ApiServer;
use lab::deploy::{self, find, kubectl};
use lab::wait::until;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const ADMISSION: &str = "admissionregistration.k8s.io/v1";

/// Kinds of the Prometheus Operator: that the API server knows them is all; what is in them is
/// judged by [`alerts_ask_for_metrics_that_exist`] as far as it can be.
fn operator_kinds(server: &ApiServer) -> Result<()> {
    for (kind, plural) in [("PodMonitor", "podmonitors"), ("PrometheusRule", "prometheusrules")] {
        let schema = json!({ "type": "object", "properties": {
            "spec": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } });
        server.apply(&json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{plural}.monitoring.coreos.com") },
            "spec": {
                "group": "monitoring.coreos.com", "scope": "Namespaced",
                "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List") },
                "versions": [{ "name": "v1", "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": schema } }],
            },
        }))?;
    }
    until("the operator's kinds", PATIENCE, || {
        server.list("monitoring.coreos.com/v1", "PodMonitor", "default", "").map(drop)?;
        server.list("monitoring.coreos.com/v1", "PrometheusRule", "default", "").map(drop)
    })
}

#[test]
fn everything_is_accepted_and_a_second_time_nothing_changes() -> Result<()> {
    let server = ApiServer::start()?;
    let kubeconfig = server.kubeconfig();
    operator_kinds(&server)?;
    server.create_namespace("shop")?;
    for folder in deploy::installable()? {
        let path = folder.to_string_lossy().into_owned();
        // Of no use without the namespace of the others.
        let alone = folder.ends_with("admission");
        if alone {
            server.create_namespace("weir-system")?;
        }
        let apply = ["apply", "-k", &path];
        kubectl(Some(&kubeconfig), &apply)?;
        let again = kubectl(Some(&kubeconfig), &apply)?;
        let changed: Vec<&str> = again.lines().filter(|line| !line.ends_with(" unchanged")).collect();
        ensure!(!again.is_empty() && changed.is_empty(), "{path}: {changed:?}");
        kubectl(Some(&kubeconfig), &["delete", "-k", &path, "--timeout=60s"])?;
        if alone {
            kubectl(Some(&kubeconfig), &["delete", "namespace", "weir-system", "--timeout=60s"])?;
        }
    }
    Ok(())
}

/// The node that a DaemonSet made a Pod for.
fn target(pod: &Value) -> Result<&str> {
    let terms = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str().context("a Pod for no node")
}

/// The DaemonSets that put a Pod on each node.
fn placed(server: &ApiServer) -> Result<BTreeMap<String, Vec<String>>> {
    let mut placed = BTreeMap::<String, Vec<String>>::new();
    for pod in server.list("v1", "Pod", "weir-system", "app.kubernetes.io/name=weir")? {
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        let terms =
            &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let node = terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str();
        let owner = pod["metadata"]["ownerReferences"][0]["name"].as_str();
        let (node, owner) = (node.context("a Pod for no node")?, owner.context("a Pod of nobody")?);
        placed.entry(node.to_owned()).or_default().push(owner.to_owned());
    }
    Ok(placed)
}

#[test]
fn labels_of_nodes_choose_who_serves_them() -> Result<()> {
    let server = ApiServer::start()?;
    let kubeconfig = server.kubeconfig();
    for (name, label) in [("bare", None), ("with", Some("on")), ("without", Some("off"))] {
        server.create_node(name, &["192.0.2.1".parse()?])?;
        let mut words = vec!["label", "node", name, "kubernetes.io/os=linux"];
        let label = label.map(|label| format!("weir.dev/l7={label}"));
        words.extend(label.as_deref());
        kubectl(Some(&kubeconfig), &words)?;
    }
    let expect = |what: &str, wanted: [(&str, &str); 3]| {
        until(what, PATIENCE, || {
            let found = placed(&server)?;
            let wanted: BTreeMap<String, Vec<String>> =
                wanted.iter().map(|(node, set)| ((*node).to_owned(), vec![(*set).to_owned()])).collect();
            ensure!(found == wanted, "{found:?}");
            Ok(())
        })
    };
    let apply = |folder: &str| {
        let path = deploy::folder().join(folder);
        kubectl(Some(&kubeconfig), &["apply", "-k", &path.to_string_lossy()])
    };
    apply("")?;
    expect("base", [("bare", "weir"), ("with", "weir"), ("without", "weir-l4")])?;
    for pod in server.list("v1", "Pod", "weir-system", "app.kubernetes.io/name=weir")? {
        server.bind_pod(
            "weir-system",
            pod["metadata"]["name"].as_str().unwrap_or_default(),
            target(&pod)?,
        )?;
    }
    // A label that changes moves a node from one to the other.
    kubectl(Some(&kubeconfig), &["label", "node", "bare", "weir.dev/l7=off"])?;
    expect("a label", [("bare", "weir-l4"), ("with", "weir"), ("without", "weir-l4")])?;
    kubectl(Some(&kubeconfig), &["label", "node", "bare", "weir.dev/l7-"])?;
    apply("overlays/l7-nodes")?;
    expect("l7-nodes", [("bare", "weir-l4"), ("with", "weir"), ("without", "weir-l4")])
}

/// The container of a DaemonSet, and its Pod.
fn container<'a>(objects: &'a [Value], set: &str) -> Result<(&'a Value, &'a Value)> {
    let pod = &find(objects, "DaemonSet", set)?["spec"]["template"]["spec"];
    Ok((&pod["containers"][0], pod))
}

fn texts(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().filter_map(|one| Some(one.as_str()?.to_owned())).collect()
}

/// One truth with what the other layers run agents with (`cargo xtask test` hands it over).
#[test]
fn capabilities_are_those_that_everything_is_tested_with() -> Result<()> {
    let words = std::env::var("WEIR_BOUNDING_SET").context("run by `cargo xtask test api`")?;
    let tested: BTreeSet<String> =
        words.split(',').filter_map(|word| Some(word.strip_prefix('+')?.to_uppercase())).collect();
    let objects = deploy::objects(&deploy::folder())?;
    for (set, wanted) in
        [("weir", tested.clone()), ("weir-l4", ["BPF", "NET_ADMIN", "PERFMON"].map(str::to_owned).into())]
    {
        let (container, pod) = container(&objects, set)?;
        let security = &container["securityContext"];
        assert_eq!(texts(&security["capabilities"]["add"]), wanted, "{set}");
        assert!(wanted.is_subset(&tested), "{set}");
        assert_eq!(texts(&security["capabilities"]["drop"]), ["ALL".to_owned()].into(), "{set}");
        assert_eq!(security["privileged"], json!(false));
        assert_eq!(security["allowPrivilegeEscalation"], json!(false));
        assert_eq!(security["readOnlyRootFilesystem"], json!(true));
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        // A port would keep the second Pod of an update from being scheduled.
        assert_eq!((&container["ports"], &pod["hostNetwork"]), (&Value::Null, &json!(true)));
        // Another user than root could not read the token.
        let token = pod["volumes"].as_array().into_iter().flatten().find(|one| one["name"] == "token");
        assert_eq!(token.context("no token")?["projected"]["defaultMode"], json!(0o400));
        assert_eq!(pod["automountServiceAccountToken"], json!(false));
    }
    Ok(())
}

/// What every container is started with, as `weir` itself reads it.
#[test]
fn commands_and_variables_are_understood() -> Result<()> {
    let mut seen = 0;
    for folder in deploy::installable()? {
        let objects = deploy::objects(&folder)?;
        for set in objects.iter().filter(|one| one["kind"] == "DaemonSet") {
            let pod = &set["spec"]["template"]["spec"];
            let lists = [&pod["initContainers"], &pod["containers"]];
            for container in lists.into_iter().filter_map(Value::as_array).flatten() {
                let probes =
                    ["readinessProbe", "livenessProbe"].map(|probe| &container[probe]["exec"]["command"]);
                let own: Vec<Value> = ["command", "args"]
                    .iter()
                    .filter_map(|field| container[*field].as_array().cloned())
                    .flatten()
                    .collect();
                let own = Value::Array(own);
                for words in probes.into_iter().chain([&own]).filter_map(Value::as_array) {
                    understood(&folder, words, container)?;
                    seen += 1;
                }
            }
        }
    }
    ensure!(seen > 20, "only {seen} commands");
    Ok(())
}

fn understood(folder: &Path, words: &[Value], container: &Value) -> Result<()> {
    let mut words: Vec<String> = words.iter().filter_map(|word| Some(word.as_str()?.to_owned())).collect();
    if words.get(1).is_some_and(|verb| verb == "run") {
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().unwrap_or_default();
            let Some(flag) = name.strip_prefix("WEIR_") else { continue };
            let value = variable["value"].as_str().context("a flag without a value")?;
            let value = value.replace("$(HOST_IP)", "192.0.2.1");
            words.push(format!("--{}={value}", flag.to_lowercase().replace('_', "-")));
        }
        words.push("--node-name=node".into());
    }
    match weir::args::parse(words.iter().map(Into::into)) {
        Ok(_) => Ok(()),
        Err(error) => bail!("{}: {}: {error}", folder.display(), words.join(" ")),
    }
}

/// Names of metrics in an expression.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("lb_"))
}

#[test]
fn alerts_ask_for_metrics_that_exist() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lb-userspace/src");
    let mut text = String::new();
    for file in ["metrics.rs", "metrics/ingress.rs", "proxy/metrics/text.rs", "agent/supervised.rs"] {
        text.push_str(&std::fs::read_to_string(source.join(file))?);
    }
    let objects = deploy::objects(&deploy::folder().join("overlays/monitoring"))?;
    let rules = find(&objects, "PrometheusRule", "weir")?;
    let mut asked = BTreeSet::new();
    for rule in rules["spec"]["groups"][0]["rules"].as_array().into_iter().flatten() {
        let expression = rule["expr"].as_str().context("a rule without an expression")?;
        asked.extend(metrics(expression));
        assert!(
            rule["annotations"]["summary"].is_string() && rule["labels"]["severity"].is_string(),
            "{rule}"
        );
    }
    assert!(asked.len() > 8, "{asked:?}");
    for metric in asked {
        // A counter is registered without its ending.
        let name = metric.strip_suffix("_total").unwrap_or(metric);
        assert!(text.contains(&format!("\"{name}\"")), "{metric}");
    }
    Ok(())
}

fn ingress(class: &str, path: &str, kind: &str) -> Value {
    json!({ "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": { "name": "tried", "namespace": "default" },
        "spec": { "ingressClassName": class, "rules": [{ "host": "example.com", "http": { "paths": [
            { "path": path, "pathType": kind, "backend": { "service": { "name": "web", "port": { "number": 80 } } } }] } }] } })
}

fn service(addresses: &[&str], port: u16) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "tried", "namespace": "default" },
        "spec": { "externalIPs": addresses, "ports": [{ "port": port }] } })
}

/// Tries to write an object, without doing it; returns what policies say: warnings, or a refusal.
fn tried(server: &ApiServer, object: &Value) -> Result<String> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let kubectl = lab::apiserver::assets::locate(lab::apiserver::assets::Program::Kubectl)?;
    let mut command = Command::new(kubectl);
    command.env("KUBECONFIG", server.kubeconfig()).args(["apply", "--dry-run=server", "-f", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no input")?.write_all(object.to_string().as_bytes())?;
    let said = String::from_utf8(child.wait_with_output()?.stderr)?;
    // The API server has warnings of its own.
    Ok(said.lines().filter(|line| line.contains("ValidatingAdmissionPolicy")).collect())
}

#[test]
fn policies_warn_of_what_is_ignored_and_refuse_foreign_addresses() -> Result<()> {
    let server = ApiServer::start()?;
    let kubeconfig = server.kubeconfig();
    // No namespace of Weir's is needed: the policies outlive it, and may not lock the cluster then.
    let path = deploy::folder().join("overlays/admission");
    kubectl(Some(&kubeconfig), &["apply", "-k", &path.to_string_lossy()])?;
    for name in ["weir-ingress", "weir-external-ips"] {
        until(name, PATIENCE, || {
            let policy = server.get(ADMISSION, "ValidatingAdmissionPolicy", "", name)?.context("gone")?;
            let checked = &policy["status"]["typeChecking"];
            ensure!(!checked.is_null(), "not type-checked yet");
            ensure!(checked["expressionWarnings"].is_null(), "{checked}");
            Ok(())
        })?;
    }
    // In force some time after it was written.
    until("the policies", PATIENCE, || {
        ensure!(tried(&server, &service(&["192.0.2.7"], 80))?.contains("denied"), "a foreign address passes");
        ensure!(tried(&server, &ingress("weir", "/a|b", "Prefix"))?.contains("Warning"), "no warning");
        Ok(())
    })?;

    for (class, path, kind, said) in [
        ("weir", "/api", "Prefix", ""),
        ("weir", "/api/v1.2/~user", "Exact", ""),
        ("weir", "/a(b|c)", "Prefix", "character of regular"),
        ("weir", "/a.*", "Exact", "character of regular"),
        ("weir", "/a\\d", "Prefix", "character of regular"),
        ("weir", "/a(b|c)", "ImplementationSpecific", "compares it as a Prefix"),
        ("weir", "/api", "ImplementationSpecific", ""),
        ("weir", "/a?b", "Prefix", "write it as %XX"),
        ("weir", "/a b", "Prefix", "write it as %XX"),
        ("weir", "/ä", "Prefix", "write it as %XX"),
        ("weir", "/a%20b", "Prefix", "answer 400"),
        ("another", "/a(b|c)", "Prefix", ""),
    ] {
        let found = tried(&server, &ingress(class, path, kind))?;
        let good = if said.is_empty() { found.is_empty() } else { found.contains(said) };
        ensure!(good, "{class} {path} {kind}: {found:?}, wanted {said:?}");
    }

    let allow = |list: &str| {
        let path = "/spec/variables/0/expression";
        let patch = json!([{ "op": "replace", "path": path, "value": format!("'{list}'") }]).to_string();
        let policy = "validatingadmissionpolicy/weir-external-ips";
        let words = ["patch", policy, "--type=json", "-p", &patch];
        kubectl(Some(&kubeconfig), &words).map(drop)
    };
    // An object of before the policy, or before its list changed, may be written again.
    allow("192.0.2.0/24, 2001:db8::/64, nonsense")?;
    until("the list", PATIENCE, || {
        let said = tried(&server, &service(&["192.0.2.7"], 80))?;
        ensure!(said.is_empty(), "still refused: {said}");
        Ok(())
    })?;
    for (addresses, port, said) in [
        (&[][..], 22, ""),
        (&["192.0.2.7", "2001:db8::7"], 443, ""),
        (&["192.0.2.7", "198.51.100.1"], 443, "only addresses in [192.0.2.0/24, 2001:db8::/64, nonsense]"),
        (&["2001:db8:1::7"], 443, "only addresses in"),
        (&["192.0.2.7"], 22, "are ports of nodes"),
        (&["192.0.2.7"], 10250, "are ports of nodes"),
    ] {
        let found = tried(&server, &service(addresses, port))?;
        let good = if said.is_empty() { found.is_empty() } else { found.contains(said) };
        ensure!(good, "{addresses:?} {port}: {found:?}, wanted {said:?}");
    }
    server.apply(&service(&["192.0.2.7"], 80))?;
    allow("")?;
    until("the list", PATIENCE, || {
        ensure!(
            tried(&server, &service(&["192.0.2.7", "192.0.2.8"], 80))?.contains("denied"),
            "still allowed"
        );
        Ok(())
    })?;
    let mut kept = service(&["192.0.2.7"], 80);
    kept["metadata"]["labels"] = json!({ "changed": "yes" });
    ensure!(tried(&server, &kept)?.is_empty(), "what was there may stay");
    Ok(())
}
