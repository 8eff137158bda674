//! Ingress, IngressClass and Secret in manifests.

use super::dir::Manifests;
use super::fill::FillConfig;
use super::{BackendPort, IngressBackend, Objects, PathType, SecretState, Touched};
use crate::problem::ObjectKey;

/// The two manifests that the project began with, as they stand.
const SEED: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: my-service
spec:
  selector:
    app: my-app
  ports:
    - protocol: TCP
      port: 80
      targetPort: 8080
  type: ClusterIP
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: my-ingress
spec:
  rules:
  - host: example.com
    http:
      paths:
      - path: /api
        pathType: Prefix
        backend:
          service:
            name: api-service
            port:
              number: 80
      - path: /web
        pathType: Prefix
        backend:
          service:
            name: web-service
            port:
              number: 80
  tls:
  - hosts:
    - example.com
    secretName: tls-secret
";

struct Bench {
    manifests: Manifests,
    objects: Objects,
}

impl Bench {
    fn new() -> Self {
        let (manifests, first) = Manifests::new(FillConfig::default());
        let mut objects = Objects::new("node-1");
        objects.apply_all(first);
        Self { manifests, objects }
    }

    fn put(&mut self, text: &str) -> Touched {
        self.objects.apply_all(self.manifests.put("a.yaml", text))
    }

    fn problems(&self) -> Vec<String> {
        self.objects.source_problems.iter().map(ToString::to_string).collect()
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn tls(name: &str, data: &str) -> String {
    format!("apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata:\n  name: {name}\n{data}\n")
}

#[test]
fn the_seed_works_as_it_stands() {
    let mut bench = Bench::new();
    assert!(bench.objects.ready_l4() && bench.objects.ready_l7());
    let touched = bench.put(SEED);
    assert_eq!(touched.ingresses, [key("my-ingress")].into());
    assert_eq!(bench.problems(), Vec::<String>::new());
    let ingress = &bench.objects.ingresses[&key("my-ingress")];
    assert!(ingress.problems.is_empty(), "{:?}", ingress.problems);
    assert_eq!((ingress.class.as_deref(), ingress.class_annotation.as_deref()), (None, None));
    let [rule] = &ingress.rules[..] else { panic!("one rule: {:?}", ingress.rules) };
    assert_eq!(rule.host, "example.com");
    let paths: Vec<_> =
        rule.paths.iter().flatten().map(|p| (p.path.as_str(), p.path_type, &p.backend)).collect();
    let service = |name: &str| IngressBackend::Service { name: name.into(), port: BackendPort::Number(80) };
    let expected = [
        ("/api", PathType::Prefix, &service("api-service")),
        ("/web", PathType::Prefix, &service("web-service")),
    ];
    assert_eq!(paths, expected);
    assert_eq!(
        (ingress.tls[0].hosts.as_slice(), ingress.tls[0].secret.as_deref()),
        (&[(0, "example.com".to_owned())][..], Some("tls-secret"))
    );
    assert!(
        matches!(bench.objects.secret(&key("tls-secret")), SecretState::Missing(_)),
        "not awaited: all is read"
    );
}

#[test]
fn a_secret_comes_as_data_or_as_text_and_goes() {
    let mut bench = Bench::new();
    for (name, data, certificate) in [
        ("base64", "data: {tls.crt: T05F, tls.key: S0VZ}", "ONE"),
        ("text", "stringData: {tls.crt: TWO, tls.key: KEY}", "TWO"),
        ("text over base64", "data: {tls.crt: T05F, tls.key: S0VZ}\nstringData: {tls.crt: THREE}", "THREE"),
    ] {
        assert_eq!(bench.put(&tls("s", data)).secrets, [key("s")].into(), "{name}: {:?}", bench.problems());
        let SecretState::Known(secret) = bench.objects.secret(&key("s")) else { panic!("{name}: not there") };
        assert_eq!(secret.certificate.as_deref(), Some(certificate.as_bytes()), "{name}");
        assert_eq!(secret.private_key.as_ref().map(|key| key.as_slice()), Some(&b"KEY"[..]), "{name}");
    }
    assert_eq!(bench.put("").secrets, [key("s")].into());
    assert!(matches!(bench.objects.secret(&key("s")), SecretState::Missing(_)));
}

#[test]
fn a_broken_document_is_told_by_file_object_and_field_and_never_quotes_a_secret() {
    let whole = format!("{SEED}---\n{}", tls("tls-secret", "data: {tls.crt: T05F, tls.key: S0VZ}"));
    let class = "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: weir}\n";
    for (name, text, expected) in [
        (
            "port as text",
            SEED.replacen("number: 80", "number: http", 1),
            "File a.yaml: document 2, line 29: Ingress default/my-ingress: spec.rules[0].http.paths[0].backend.service.port.number: ",
        ),
        (
            "cut off before its rules",
            SEED[..SEED.find("  rules").unwrap_or_default()].to_owned(),
            "Ingress default/my-ingress: spec.rules: is missing, and spec.defaultBackend too",
        ),
        ("no YAML", SEED.replace("  - host: ", "  - host: ["), "Ingress default/my-ingress: is not YAML: "),
        ("class without controller", class.to_owned(), "IngressClass weir: spec.controller: is missing"),
        (
            "no base64",
            whole.replace("S0VZ", "hunter2_"),
            "Secret default/tls-secret: data.tls.key: cannot be read",
        ),
        (
            "number",
            whole.replace("S0VZ", "271828"),
            "Secret default/tls-secret: data.tls.key: cannot be read",
        ),
        (
            "no key",
            whole.replace(", tls.key: S0VZ", ""),
            "Secret default/tls-secret: data[tls.key]: is missing",
        ),
        (
            "no YAML in a Secret",
            whole.replace("S0VZ", "\"hunter2"),
            "Secret default/tls-secret: is not YAML; ",
        ),
        (
            "too large",
            whole.replace("S0VZ", &"S0VZ".repeat(400_000)),
            "Secret default/tls-secret: data: is more than 1048576 bytes",
        ),
    ] {
        let mut bench = Bench::new();
        bench.put(&whole);
        bench.put(&text);
        let problems = bench.problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{name}: {problems:?}");
        assert!(!problems[0].contains("hunter2") && !problems[0].contains("271828"), "{name}: {problems:?}");
        assert!(bench.objects.ingresses.contains_key(&key("my-ingress")), "{name}: its last version stays");
        if text.contains("tls.crt") {
            assert!(matches!(bench.objects.secret(&key("tls-secret")), SecretState::Known(_)), "{name}");
        }
    }
}

#[test]
fn what_is_wrong_inside_an_ingress_is_told_by_the_ingress() {
    let mut bench = Bench::new();
    bench.put(&SEED.replace("path: /web", "path: web"));
    assert_eq!(bench.problems(), Vec::<String>::new());
    let ingress = &bench.objects.ingresses[&key("my-ingress")];
    assert_eq!(ingress.problems[0].field, "spec.rules[0].http.paths[1].path");
    assert_eq!(ingress.rules[0].paths.as_ref().map(Vec::len), Some(1));
}
