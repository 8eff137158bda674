//! The way to a set of objects does not matter, and what is hostile costs only itself.

use super::*;
use proptest::prelude::*;

/// One change of the objects.
#[derive(Clone, Debug)]
enum Step {
    Ingress(Box<Ingress>),
    NoIngress(ObjectKey),
    Service(Box<Service>),
    NoService(ObjectKey),
    Slice(EndpointSlice),
    NoSlice(ObjectKey),
    Class(IngressClass),
    NoClass(String),
    Secret(usize),
    NoSecret(ObjectKey),
    Namespace(Namespace),
    Names(Names),
    Nodes(BTreeSet<IpAddr>),
    Time(i64),
}

/// Certificates of these tests, made once: good for `a.example` and `*.b.example`; the same but
/// only for a while; and one whose key is another's.
fn secrets() -> &'static [Secret] {
    static MADE: std::sync::OnceLock<Vec<Secret>> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let make = |namespace: &str, name: &str, years: (i32, i32), foreign: bool| {
            let names = vec!["a.example".to_string(), "*.b.example".to_string()];
            let mut params = rcgen::CertificateParams::new(names).unwrap();
            params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
            params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            let other = rcgen::KeyPair::generate().unwrap();
            let pem = if foreign { other.serialize_pem() } else { key.serialize_pem() };
            Secret {
                key: ObjectKey::new(namespace, name),
                kind: "kubernetes.io/tls".into(),
                certificate: Some(params.self_signed(&key).unwrap().pem().into_bytes()),
                private_key: Some(zeroize::Zeroizing::new(pem.into_bytes())),
            }
        };
        vec![
            make("x", "s", (2000, 2100), false),
            make("x", "s", (2030, 2031), false),
            make("x", "s", (2000, 2100), true),
            make("y", "s", (2000, 2100), false),
            make("y", "t", (2000, 2031), false),
        ]
    })
}

fn any_key() -> impl Strategy<Value = ObjectKey> {
    (prop::sample::select(vec!["x", "y"]), prop::sample::select(vec!["a", "b"]))
        .prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
}

fn any_backend() -> impl Strategy<Value = IngressBackend> {
    prop::sample::select(vec!["a:80", "a:http", "b:80", "b:81", "c:80", "none"]).prop_map(backend)
}

fn any_host() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "",
        "a.example",
        "A.example",
        "*.b.example",
        "x.b.example",
        "bad_.example",
        "*",
    ])
    .prop_map(Into::into)
}

fn any_path() -> impl Strategy<Value = IngressPath> {
    let paths = vec!["", "/", "/a", "/a/", "/a/b", "/(x)", "a"];
    let types = vec![PathType::Exact, PathType::Prefix, PathType::ImplementationSpecific];
    (prop::sample::select(paths), prop::sample::select(types), any_backend()).prop_map(
        |(path, path_type, backend)| IngressPath { index: 0, path: path.into(), path_type, backend },
    )
}

fn any_tls() -> impl Strategy<Value = IngressTls> {
    let secret = prop::sample::select(vec![None, Some("s"), Some("t"), Some("gone")]);
    (prop::collection::vec(any_host(), 0..3), secret).prop_map(|(hosts, secret)| IngressTls {
        index: 0,
        hosts: hosts.into_iter().enumerate().collect(),
        secret: secret.map(Into::into),
    })
}

fn any_ingress() -> impl Strategy<Value = Ingress> {
    let rule = (any_host(), prop::option::of(prop::collection::vec(any_path(), 0..4)))
        .prop_map(|(host, paths)| IngressRule { index: 0, host, paths });
    let class = || prop::sample::select(vec![None, None, Some("weir"), Some("other")]);
    (
        any_key(),
        (0..3_i64, prop::bool::weighted(0.2)),
        (class(), class()),
        prop::option::of(any_backend()),
        prop::collection::vec(rule, 0..4),
        prop::collection::vec(any_tls(), 0..3),
    )
        .prop_map(|(key, (created, ending), (class, annotation), default_backend, rules, tls)| Ingress {
            key,
            created,
            ending,
            class: class.map(Into::into),
            class_annotation: annotation.map(Into::into),
            default_backend,
            rules: placed(rules),
            tls: tls.into_iter().enumerate().map(|(index, tls)| IngressTls { index, ..tls }).collect(),
            ..Ingress::default()
        })
}

/// Gives each rule and path its place.
fn placed(mut rules: Vec<IngressRule>) -> Vec<IngressRule> {
    for (index, rule) in rules.iter_mut().enumerate() {
        rule.index = index;
        for (index, path) in rule.paths.iter_mut().flatten().enumerate() {
            path.index = index;
        }
    }
    rules
}

fn any_service() -> impl Strategy<Value = Service> {
    let protocol = prop::sample::select(vec![None, Some("kubernetes.io/h2c"), Some("https")]);
    let port = (80..82_u16, protocol).prop_map(|(number, protocol)| ServicePort {
        app_protocol: protocol.map(Into::into),
        ..port(if number == 80 { "http" } else { "other" }, number)
    });
    let external = prop::sample::select(vec![None, None, None, Some("n.example"), Some("m.example")]);
    (any_key(), prop::collection::vec(port, 0..3), external, any::<bool>()).prop_map(
        |(key, ports, external, selector)| Service {
            key,
            ports,
            selector,
            kind: if external.is_some() { ServiceType::ExternalName } else { ServiceType::ClusterIp },
            external_name: external.map(Into::into),
            ..Service::default()
        },
    )
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let address =
        prop::sample::select(vec!["10.0.0.1", "10.0.0.2-", "10.0.0.2~", "2001:db8::1", "127.0.0.1"]);
    let ports = prop::sample::select(vec!["http", "other", ""]);
    (any_key(), any_key(), any::<bool>(), prop::collection::vec(address, 0..4), ports).prop_map(
        |(key, service, managed, endpoints, name)| EndpointSlice {
            key,
            service,
            managed,
            ports: vec![SlicePort { name: name.into(), proto: Proto::TCP, port: 8080 }],
            ..slice("x", &endpoints)
        },
    )
}

fn any_addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    let addresses = vec!["10.0.0.1", "203.0.113.1", "203.0.113.2", "127.0.0.1"];
    let address = prop::sample::select(addresses).prop_map(|text| text.parse().unwrap());
    prop::collection::vec(address, 0..3)
}

fn any_step() -> impl Strategy<Value = Step> {
    let class =
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(weir, ours, default)| IngressClass {
            name: if weir { "weir" } else { "other" }.into(),
            controller: if ours { "weir.dev/ingress" } else { "x/y" }.into(),
            default,
        });
    let found = any_addresses().prop_map(Ok).boxed();
    let found = prop_oneof![3 => found, 1 => Just(Err("no such name".to_string()))];
    let names = prop::sample::select(vec!["n.example".to_string(), "m.example".to_string()]);
    prop_oneof![
        6 => any_ingress().prop_map(|ingress| Step::Ingress(Box::new(ingress))),
        1 => any_key().prop_map(Step::NoIngress),
        4 => any_service().prop_map(|service| Step::Service(Box::new(service))),
        1 => any_key().prop_map(Step::NoService),
        4 => any_slice().prop_map(Step::Slice),
        1 => any_key().prop_map(Step::NoSlice),
        1 => class.prop_map(Step::Class),
        1 => prop::sample::select(vec!["weir", "other"]).prop_map(|name| Step::NoClass(name.into())),
        3 => (0..5_usize).prop_map(Step::Secret),
        1 => prop::sample::select(vec!["x/s", "y/s", "y/t"]).prop_map(|text| Step::NoSecret(key(text))),
        2 => (prop::sample::select(vec!["x", "y"]), any::<bool>())
            .prop_map(|(name, ending)| Step::Namespace(Namespace { name: name.into(), ending })),
        1 => prop::collection::btree_map(names, found, 0..3).prop_map(Step::Names),
        1 => any_addresses().prop_map(|ips| Step::Nodes(ips.into_iter().collect())),
        2 => prop::sample::select(vec![NOW, NOW + 120_000_000, NOW + 200_000_000]).prop_map(Step::Time),
    ]
}

fn take(objects: &mut Objects, input: &mut L7Input, step: Step) -> Touched {
    use crate::source::{Change, Object};
    let gone = |kind, key| Change::Delete(ObjectRef { kind, key });
    let change = match step {
        Step::Ingress(ingress) => Change::Upsert(Object::Ingress(*ingress)),
        Step::NoIngress(key) => gone(Kind::Ingress, key),
        Step::Service(service) => Change::Upsert(Object::Service(*service)),
        Step::NoService(key) => gone(Kind::Service, key),
        Step::Slice(slice) => Change::Upsert(Object::EndpointSlice(slice)),
        Step::NoSlice(key) => gone(Kind::EndpointSlice, key),
        Step::Class(class) => Change::Upsert(Object::IngressClass(class)),
        Step::NoClass(name) => gone(Kind::IngressClass, ObjectKey::new("", name)),
        Step::Secret(index) => Change::Upsert(Object::Secret(secrets()[index].clone())),
        Step::NoSecret(key) => gone(Kind::Secret, key),
        Step::Namespace(namespace) => Change::Upsert(Object::Namespace(namespace)),
        Step::Names(names) => {
            input.names = Arc::new(names);
            return Touched::default();
        }
        Step::Nodes(addresses) => {
            input.node_addresses = addresses;
            return Touched::default();
        }
        Step::Time(now) => {
            input.now = now;
            return Touched::default();
        }
    };
    objects.apply(change)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn incremental_equals_from_scratch(
        steps in prop::collection::vec(any_step(), 1..40),
        together in 1..4_usize,
        flag: bool,
        tight: bool,
    ) {
        let default = flag.then(|| key("y/t"));
        let options = L7Options { default_certificate: default, ..options() };
        let mut objects = Objects::default();
        objects.listed.insert(Kind::Secret);
        let own = tls::read(&secrets()[0]).unwrap();
        let mut input = L7Input { now: NOW, self_signed: Some(Arc::new(own)), ..L7Input::default() };
        // Under tight limits somebody is cut all the time.
        let limit = |of_namespace, in_all| Limit { of_namespace, in_all };
        let limits = if tight { (limit(900, 1_300), limit(2, 3)) } else { (budget::ROUTES, budget::ALL_ENDPOINTS) };
        let made = || L7Model::limited(options.clone(), limits.0, limits.1);
        let mut model = made();
        let mut followed = Routes::default();
        let mut told: BTreeMap<ObjectRef, Vec<Problem>> = BTreeMap::new();
        for batch in steps.chunks(together) {
            let mut touched = Touched::default();
            for step in batch {
                touched.merge(take(&mut objects, &mut input, step.clone()));
            }
            for update in model.update(&objects, &input, &touched) {
                followed.apply(update);
            }
            told.extend(model.take_problems().unwrap_or_default());
            let mut fresh = made();
            fresh.update(&objects, &input, &everything(&objects));
            prop_assert_eq!(model.routes(), fresh.routes());
            prop_assert_eq!(&followed, fresh.routes());
            prop_assert_eq!(model.problems(), fresh.problems());
            prop_assert_eq!(told.values().flatten().cloned().collect::<Vec<_>>(), fresh.problems());
            prop_assert_eq!(model.wanted_secrets(), fresh.wanted_secrets());
            prop_assert_eq!(model.wanted_names(), fresh.wanted_names());
            // Nothing points to what is not there.
            for action in fresh.routes().hosts.values().flat_map(|host| {
                host.rules.iter().map(|rule| &rule.action).chain(&host.default)
            }) {
                if let Target::Pool(pool) = &action.target {
                    prop_assert!(fresh.routes().pools.contains_key(pool), "{}", pool);
                }
            }
            for certificate in fresh.routes().names.values() {
                prop_assert!(fresh.routes().certificates.contains_key(certificate), "{}", certificate);
            }
            prop_assert!(model.update(&objects, &input, &everything(&objects)).is_empty());
        }
    }
}
