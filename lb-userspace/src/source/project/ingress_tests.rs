use super::*;
use serde_json::{Value, json};

fn read(object: Value) -> Ingress {
    ingress(&serde_json::from_value(object).expect("an Ingress"))
}

fn of(spec: Value) -> Ingress {
    read(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
}

fn told(ingress: &Ingress) -> Vec<&str> {
    ingress.problems.iter().map(|problem| problem.field.as_str()).collect()
}

fn web() -> Value {
    json!({"service": {"name": "web", "port": {"number": 80}}})
}

#[test]
fn everything_that_routes_are_made_of_is_read() {
    let ingress = read(json!({
        "metadata": {"name": "my-ingress", "namespace": "shop", "uid": "u-1", "generation": 3,
                     "creationTimestamp": "2026-01-02T03:04:05Z",
                     "annotations": {"kubernetes.io/ingress.class": "old"}},
        "spec": {
            "ingressClassName": "weir",
            "defaultBackend": {"service": {"name": "fallback", "port": {"name": "http"}}},
            "rules": [
                {"host": "*.example.com", "http": {"paths": [
                    {"path": "/api", "pathType": "Prefix", "backend": web()},
                    {"path": "/api/x", "pathType": "Exact", "backend": web()},
                    {"pathType": "ImplementationSpecific", "backend": web()}]}},
                {"host": "bare.example.com"},
                {"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": web()}]}}],
            "tls": [{"hosts": ["*.example.com"], "secretName": "one"}, {"secretName": "two"}, {"hosts": ["a.b"]}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb.example.com"}, {"ip": "x"}, {}]}}}));
    assert_eq!(told(&ingress), Vec::<&str>::new());
    assert_eq!(ingress.key, ObjectKey::new("shop", "my-ingress"));
    assert_eq!((ingress.uid.as_str(), ingress.generation, ingress.created), ("u-1", 3, 1_767_323_045));
    assert_eq!((ingress.class.as_deref(), ingress.class_annotation.as_deref()), (Some("weir"), Some("old")));
    let service = |name: &str, port| IngressBackend::Service { name: name.into(), port };
    assert_eq!(ingress.default_backend, Some(service("fallback", BackendPort::Name("http".into()))));
    let path = |index, path: &str, path_type| {
        let backend = service("web", BackendPort::Number(80));
        IngressPath { index, path: path.into(), path_type, backend }
    };
    let rule = |index, host: &str, paths| IngressRule { index, host: host.into(), paths };
    assert_eq!(
        ingress.rules,
        [
            rule(
                0,
                "*.example.com",
                Some(vec![
                    path(0, "/api", PathType::Prefix),
                    path(1, "/api/x", PathType::Exact),
                    path(2, "", PathType::ImplementationSpecific)
                ])
            ),
            rule(1, "bare.example.com", None),
            rule(2, "", Some(vec![path(0, "/", PathType::Prefix)])),
        ]
    );
    let tls = |index, hosts: &[&str], secret: Option<&str>| IngressTls {
        index,
        hosts: hosts.iter().map(ToString::to_string).enumerate().collect(),
        secret: secret.map(str::to_owned),
    };
    assert_eq!(
        ingress.tls,
        [tls(0, &["*.example.com"], Some("one")), tls(1, &[], Some("two")), tls(2, &["a.b"], None)]
    );
    assert_eq!(
        ingress.status,
        [
            StatusAddress::Ip("192.0.2.1".parse().expect("an IP")),
            StatusAddress::Hostname("lb.example.com".into())
        ]
    );
}

#[test]
fn whose_a_status_is_follows_from_its_field_manager() {
    let of = |manager: &str, subresource: &str, fields: Value| {
        let entry = json!({"manager": manager, "operation": "Apply", "subresource": subresource,
            "apiVersion": "networking.k8s.io/v1", "fieldsType": "FieldsV1", "fieldsV1": fields});
        let foreign = json!({"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {}}});
        read(json!({"metadata": {"name": "a", "managedFields": [foreign, entry]}})).status_manager
    };
    let fields = json!({"f:status": {"f:loadBalancer": {"f:ingress": {}}}});
    assert_eq!(of("weir:x", "status", fields.clone()).as_deref(), Some("weir:x"));
    assert_eq!(of("nginx-ingress-controller", "status", fields.clone()), None);
    assert_eq!(of("weir:x", "", fields), None);
    assert_eq!(of("weir:x", "status", json!({"f:status": {"f:loadBalancer": {}}})), None);
}

#[test]
fn a_rule_that_the_api_server_would_refuse_is_ignored_alone() {
    let rule = |host: &str| json!({"host": host, "http": {"paths": [{"path": "/", "pathType": "Exact", "backend": web()}]}});
    let hosts = ["a.example", "A.example", "192.0.2.1", "[::1]", "b.*.example", "c.example:80", "d.example."];
    let ingress = of(json!({"rules": hosts.map(rule)}));
    let kept: Vec<&str> = ingress.rules.iter().map(|rule| rule.host.as_str()).collect();
    assert_eq!(kept, ["a.example"]);
    assert_eq!(told(&ingress), [1, 2, 3, 4, 5, 6].map(|i| format!("spec.rules[{i}].host")));
    assert!(ingress.problems[1].reason.contains("is an IP address"), "{:?}", ingress.problems[1]);
}

#[test]
fn a_path_that_the_api_server_would_refuse_is_ignored_alone() {
    for (name, path, fault) in [
        ("good", json!({"path": "/a", "pathType": "Exact"}), None),
        ("any path will do", json!({"path": "/a//b", "pathType": "ImplementationSpecific"}), None),
        ("no type", json!({"path": "/a"}), Some("pathType")),
        ("type in lower case", json!({"path": "/a", "pathType": "prefix"}), Some("pathType")),
        ("no path", json!({"pathType": "Exact"}), Some("path")),
        ("empty path", json!({"path": "", "pathType": "Prefix"}), Some("path")),
        ("relative", json!({"path": "a", "pathType": "Prefix"}), Some("path")),
        ("relative of any type", json!({"path": "^/a", "pathType": "ImplementationSpecific"}), Some("path")),
        ("two slashes", json!({"path": "/a//b", "pathType": "Prefix"}), Some("path")),
        ("encoded slash", json!({"path": "/a%2Fb", "pathType": "Exact"}), Some("path")),
        ("parent", json!({"path": "/a/..", "pathType": "Exact"}), Some("path")),
    ] {
        let mut path = path;
        path["backend"] = web();
        let last = json!({"path": "/last", "pathType": "Exact", "backend": web()});
        let ingress = of(json!({"rules": [{"host": "a.b", "http": {"paths": [path, last]}}]}));
        let fault = fault.map(|field| format!("spec.rules[0].http.paths[0].{field}"));
        assert_eq!(told(&ingress), fault.iter().collect::<Vec<_>>(), "{name}");
        let kept = ingress.rules[0].paths.as_ref().map_or(0, Vec::len);
        assert_eq!(kept, if fault.is_some() { 1 } else { 2 }, "{name}");
    }
    let empty = of(json!({"rules": [{"host": "a.b", "http": {"paths": []}}]}));
    assert_eq!(told(&empty), ["spec.rules[0].http.paths"]);
    assert_eq!(
        empty.rules[0].paths,
        Some(Vec::new()),
        "not the default backend's: that is a rule without http"
    );
}

#[test]
fn a_backend_that_cannot_be_served_keeps_its_path() {
    let service = |port: Value| json!({"service": {"name": "web", "port": port}});
    let resource = json!({"apiGroup": "k8s.example.com", "kind": "Bucket", "name": "icons"});
    for (name, backend, fault) in [
        ("resource", json!({"resource": resource}), "backend.resource"),
        ("both", json!({"resource": resource, "service": web()["service"]}), "backend"),
        ("neither", json!({}), "backend"),
        ("no name", json!({"service": {"port": {"number": 80}}}), "backend.service.name"),
        ("odd name", json!({"service": {"name": "../x", "port": {"number": 80}}}), "backend.service.name"),
        ("no port", json!({"service": {"name": "web"}}), "backend.service.port"),
        ("empty port", service(json!({})), "backend.service.port"),
        ("two ports", service(json!({"name": "http", "number": 80})), "backend.service.port"),
        ("port 65536", service(json!({"number": 65536})), "backend.service.port.number"),
        ("port -1", service(json!({"number": -1})), "backend.service.port.number"),
        ("number as name", service(json!({"name": "80"})), "backend.service.port.name"),
    ] {
        let paths = json!([{"path": "/", "pathType": "Prefix", "backend": backend}]);
        let ingress =
            of(json!({"defaultBackend": backend, "rules": [{"host": "a.b", "http": {"paths": paths}}]}));
        let last = fault.strip_prefix("backend").unwrap_or_default();
        assert_eq!(
            told(&ingress),
            [format!("spec.defaultBackend{last}"), format!("spec.rules[0].http.paths[0].{fault}")],
            "{name}"
        );
        assert!(ingress.problems.iter().all(|problem| problem.reason.contains("answers 503")), "{name}");
        let kept = &ingress.rules[0].paths.as_ref().expect("paths")[0];
        assert!(matches!(kept.backend, IngressBackend::Unsupported(_)), "{name}");
        assert!(matches!(ingress.default_backend, Some(IngressBackend::Unsupported(_))), "{name}");
    }
}

#[test]
fn tls_hosts_are_judged_one_by_one() {
    let ingress = of(json!({"tls": [
        {"hosts": ["good.example", "192.0.2.1"], "secretName": "one"},
        {"hosts": ["Bad.example"], "secretName": "two"},
        {"hosts": ["good.example"], "secretName": "not/a/name"}]}));
    let good = || "good.example".to_owned();
    let kept: Vec<_> = ingress.tls.iter().map(|tls| (tls.index, &tls.hosts, tls.secret.as_deref())).collect();
    assert_eq!(kept, [(0, &vec![(0, good())], Some("one")), (2, &vec![(0, good())], None)]);
    assert_eq!(told(&ingress), ["spec.tls[0].hosts[1]", "spec.tls[1].hosts[0]", "spec.tls[2].secretName"]);
}

/// What is told of it later names the field that was written.
#[test]
fn what_is_left_out_moves_no_index() {
    let path = |path: &str| json!({"path": path, "pathType": "Exact", "backend": web()});
    let ingress = of(json!({
        "rules": [
            {"host": "192.0.2.1"},
            {"host": "a.example", "http": {"paths": [path("no"), path("/yes"), path("no"), path("/too")]}}],
        "tls": [{"hosts": ["Bad.example"]}, {"hosts": ["Bad.example", "a.example"]}]}));
    let rule = &ingress.rules[0];
    let paths: Vec<usize> = rule.paths.iter().flatten().map(|path| path.index).collect();
    assert_eq!((rule.index, paths), (1, vec![1, 3]));
    assert_eq!((ingress.tls[0].index, ingress.tls[0].hosts[0].0), (1, 1));
}

#[test]
fn an_ingress_that_is_being_deleted_says_so() {
    let at = json!("2026-01-02T03:04:05Z");
    assert!(read(json!({"metadata": {"name": "web", "deletionTimestamp": at}})).ending);
    assert!(!of(json!({})).ending);
}

#[test]
fn a_class_that_cannot_be_is_no_absent_class() {
    let ingress = of(json!({"ingressClassName": ""}));
    assert_eq!((ingress.class.as_deref(), told(&ingress)), (Some(""), vec!["spec.ingressClassName"]));
    assert_eq!(of(json!({})).class, None);
}

#[test]
fn one_ingress_grows_no_further_than_its_bounds() {
    let path = |i: usize| json!({"path": format!("/{i}"), "pathType": "Exact", "backend": web()});
    let paths = |from: usize, count: usize| (from..from + count).map(path).collect::<Vec<_>>();
    let rule = |host: String, paths: Vec<Value>| json!({"host": host, "http": {"paths": paths}});
    let ingress = of(json!({"rules": [
        rule("a.b".into(), paths(0, PATHS - 1)), rule("b.b".into(), paths(0, 3)), rule("c.b".into(), paths(0, 1))]}));
    let kept: Vec<usize> = ingress.rules.iter().map(|rule| rule.paths.as_ref().map_or(0, Vec::len)).collect();
    assert_eq!(kept, [PATHS - 1, 1, 0]);
    assert_eq!(told(&ingress), ["spec.rules[1].http.paths", "spec.rules[2].http.paths"]);

    let rules: Vec<Value> = (0..RULES + 1).map(|i| json!({"host": format!("h{i}.b")})).collect();
    let ingress = of(json!({"rules": rules}));
    assert_eq!((ingress.rules.len(), told(&ingress)), (RULES, vec!["spec.rules"]));

    let hosts: Vec<String> = (0..TLS_HOSTS + 1).map(|i| format!("h{i}.b")).collect();
    let ingress = of(json!({"tls": [{"hosts": hosts}, {"hosts": ["x.b"], "secretName": "s"}]}));
    assert_eq!((ingress.tls.len(), ingress.tls[0].hosts.len()), (1, TLS_HOSTS));
    assert_eq!(told(&ingress), ["spec.tls[0].hosts", "spec.tls[1].hosts"]);
    let long = of(json!({"rules": [{"host": "x".repeat(1_000_000)}]}));
    assert!(long.problems[0].reason.len() < 300);
}
