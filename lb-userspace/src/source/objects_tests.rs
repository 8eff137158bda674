use super::*;
use crate::problem::Problem;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn service(name: &str, affinity: u32) -> Object {
    Object::Service(Service { key: key(name), affinity_seconds: Some(affinity), ..Service::default() })
}

fn slice(name: &str, service: &str, version: i64) -> Object {
    Object::EndpointSlice(EndpointSlice {
        key: key(name),
        service: key(service),
        managed: true,
        headless: false,
        ports: Vec::new(),
        endpoints: Vec::new(),
        trigger_time: Some(version),
        problems: Vec::new(),
    })
}

fn node(name: &str, zone: &str) -> Object {
    Object::Node(Node { name: name.into(), zone: Some(zone.into()), ..Node::default() })
}

fn pod(name: &str, ready: bool) -> Object {
    Object::Pod(Pod {
        key: key(name),
        node: None,
        ips: Vec::new(),
        host_network: false,
        ready,
        terminating: false,
        labels: BTreeMap::new(),
        named_ports: Vec::new(),
        problems: Vec::new(),
    })
}

fn gone(kind: Kind, name: &str) -> Change {
    let key = if kind == Kind::Node { ObjectKey::new("", name) } else { key(name) };
    Change::Delete(ObjectRef { kind, key })
}

fn services(names: &[&str]) -> Touched {
    Touched { services: names.iter().map(|name| key(name)).collect(), ..Touched::default() }
}

#[test]
fn each_change_touches_exactly_what_it_may_alter() {
    use Change::{Replace, Upsert};
    let nothing = Touched::default();
    let only_node = Touched { node: true, ..Touched::default() };
    let only_pods = Touched { pods: true, ..Touched::default() };
    let steps: Vec<(&str, Change, Touched)> = vec![
        ("new Service", Upsert(service("a", 1)), services(&["a"])),
        ("same Service again", Upsert(service("a", 1)), nothing.clone()),
        ("changed Service", Upsert(service("a", 2)), services(&["a"])),
        ("slice before its Service", Upsert(slice("s1", "b", 1)), services(&["b"])),
        ("same slice again", Upsert(slice("s1", "b", 1)), nothing.clone()),
        ("slice moves", Upsert(slice("s1", "c", 1)), services(&["b", "c"])),
        ("slice leaves", gone(Kind::EndpointSlice, "s1"), services(&["c"])),
        ("unknown slice leaves", gone(Kind::EndpointSlice, "s1"), nothing.clone()),
        ("unknown Service leaves", gone(Kind::Service, "zz"), nothing.clone()),
        ("another node", Upsert(node("other", "z1")), nothing.clone()),
        ("our node", Upsert(node("me", "z1")), only_node.clone()),
        ("our node unchanged", Upsert(node("me", "z1")), nothing.clone()),
        ("our node's zone", Upsert(node("me", "z2")), only_node.clone()),
        ("another node leaves", gone(Kind::Node, "other"), nothing.clone()),
        ("our node leaves", gone(Kind::Node, "me"), only_node.clone()),
        ("a pod", Upsert(pod("p", true)), only_pods.clone()),
        ("same pod", Upsert(pod("p", true)), nothing.clone()),
        ("pod leaves", gone(Kind::Pod, "p"), only_pods),
        (
            "relist: a differs, b is new",
            Replace(Kind::Service, vec![service("a", 3), service("b", 1)]),
            services(&["a", "b"]),
        ),
        ("relist: the same", Replace(Kind::Service, vec![service("a", 3), service("b", 1)]), nothing.clone()),
        ("relist: b vanished", Replace(Kind::Service, vec![service("a", 3)]), services(&["b"])),
        (
            "slices listed",
            Replace(Kind::EndpointSlice, vec![slice("s1", "a", 1), slice("s2", "a", 1)]),
            services(&["a"]),
        ),
        (
            "relist: s2 moved, s1 as it was",
            Replace(Kind::EndpointSlice, vec![slice("s1", "a", 1), slice("s2", "b", 1)]),
            services(&["a", "b"]),
        ),
        ("relist: s1 vanished", Replace(Kind::EndpointSlice, vec![slice("s2", "b", 1)]), services(&["a"])),
        ("nodes listed", Replace(Kind::Node, vec![node("x", ""), node("me", "z1")]), only_node.clone()),
        ("nodes without us", Replace(Kind::Node, vec![node("x", "")]), only_node),
        ("a kind that is not kept", gone(Kind::ConfigMap, "t"), nothing.clone()),
        ("problems", Change::Problems(Vec::new()), nothing),
    ];
    let mut objects = Objects::new("me");
    for (name, change, expected) in steps {
        assert_eq!(objects.apply(change), expected, "{name}");
    }
    assert_eq!(objects.slices_of, BTreeMap::from([(key("b"), BTreeSet::from([key("s2")]))]));
}

#[test]
fn nothing_is_ready_before_each_kind_was_listed_even_if_empty() {
    let mut objects = Objects::new("me");
    objects.apply(Change::Upsert(service("a", 1)));
    for kind in [Kind::EndpointSlice, Kind::Node, Kind::Service] {
        assert!(!objects.ready_l4(), "before {kind}");
        objects.apply(Change::Replace(kind, Vec::new()));
    }
    assert!(objects.ready_l4());
}

fn secret(name: &str, certificate: &str) -> Object {
    let certificate = Some(certificate.as_bytes().to_vec());
    Object::Secret(Secret {
        key: key(name),
        kind: "kubernetes.io/tls".into(),
        certificate,
        private_key: None,
    })
}

#[test]
fn a_missing_secret_is_told_from_one_that_has_not_come_yet() {
    let reference = |name: &str| ObjectRef { kind: Kind::Secret, key: key(name) };
    let refused = |name: &str| Change::Unreadable(reference(name), "refused".into());
    let touches = |is: bool| Touched {
        secrets: if is { [key("a")].into() } else { BTreeSet::new() },
        ..Touched::default()
    };
    // What is known after each step: a certificate, why there is none, or that it is awaited.
    let steps: [(&str, Change, &str, bool); 12] = [
        (
            "it is not there",
            gone(Kind::Secret, "a"),
            "there is no such Secret of type kubernetes.io/tls",
            true,
        ),
        ("still not", gone(Kind::Secret, "a"), "there is no such Secret of type kubernetes.io/tls", false),
        ("it may not be read", refused("a"), "refused", true),
        ("it comes", Change::Upsert(secret("a", "one")), "=one", true),
        ("the same again", Change::Upsert(secret("a", "one")), "=one", false),
        ("unreadable: the last one stays", refused("a"), "=one", false),
        ("it changes", Change::Upsert(secret("a", "two")), "=two", true),
        ("it goes", gone(Kind::Secret, "a"), "there is no such Secret of type kubernetes.io/tls", true),
        ("nobody needs it", Change::Forget(reference("a")), "", true),
        ("nobody ever did", Change::Forget(reference("a")), "", false),
        ("it comes back", Change::Upsert(secret("a", "two")), "=two", true),
        ("nobody needs it again", Change::Forget(reference("a")), "", true),
    ];
    let mut objects = Objects::new("me");
    assert_eq!(objects.secret(&key("a")), SecretState::Awaited);
    for (name, change, expected, touched) in steps {
        assert_eq!(objects.apply(change), touches(touched), "{name}");
        let state = match objects.secret(&key("a")) {
            SecretState::Known(secret) => {
                format!("={}", String::from_utf8_lossy(secret.certificate.as_deref().unwrap_or_default()))
            }
            SecretState::Missing(reason) => reason.to_owned(),
            SecretState::Awaited => String::new(),
        };
        assert_eq!(state, expected, "{name}");
    }
    assert!(objects.secrets.is_empty() && objects.missing_secrets.is_empty(), "nothing is left of it");

    // A source that lists all of them says by that which are missing.
    objects.apply(Change::Replace(Kind::Secret, vec![secret("b", "x")]));
    assert!(matches!(objects.secret(&key("a")), SecretState::Missing(_)));
    objects.apply(gone(Kind::Secret, "b"));
    assert!(matches!(objects.secret(&key("b")), SecretState::Missing(_)));
    assert!(objects.missing_secrets.is_empty());
}

#[test]
fn ingresses_and_classes_touch_routes_and_no_service() {
    let ingress = |class: &str| Ingress { key: key("web"), class: Some(class.into()), ..Ingress::default() };
    let class = |controller: &str| IngressClass {
        name: "weir".into(),
        controller: controller.into(),
        default: false,
    };
    let (upsert, web) = (
        |i| Change::Upsert(Object::Ingress(i)),
        Touched { ingresses: [key("web")].into(), ..Touched::default() },
    );
    let mut objects = Objects::new("me");
    assert_eq!(objects.apply(upsert(ingress("weir"))), web);
    assert_eq!(objects.apply(upsert(ingress("weir"))), Touched::default());
    assert_eq!(objects.apply(upsert(ingress("other"))), web);
    assert_eq!(objects.apply(Change::Replace(Kind::Ingress, Vec::new())), web);
    let classes = Touched { ingress_classes: true, ..Touched::default() };
    let put = |controller| Change::Upsert(Object::IngressClass(class(controller)));
    assert_eq!(objects.apply(put("a/b")), classes);
    assert_eq!(objects.apply(put("a/b")), Touched::default());
    assert_eq!(objects.apply(put("a/c")), classes);
    let name = ObjectKey::new("", "weir");
    assert_eq!(objects.apply(Change::Delete(ObjectRef { kind: Kind::IngressClass, key: name })), classes);
}

#[test]
fn routes_wait_for_their_kinds_and_services_do_not_wait_for_them() {
    let mut objects = Objects::new("me");
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        objects.apply(Change::Replace(kind, Vec::new()));
    }
    assert!(objects.ready_l4() && !objects.ready_l7());
    objects.apply(Change::Replace(Kind::Ingress, Vec::new()));
    assert!(!objects.ready_l7());
    objects.apply(Change::Replace(Kind::IngressClass, Vec::new()));
    assert!(objects.ready_l7(), "Secrets are asked for by what the Ingresses say");
}

#[test]
fn a_namespace_that_ends_touches_the_ingresses_in_it() {
    let mut objects = Objects::new("me");
    let named = |namespace: &str, name: &str| ObjectKey::new(namespace, name);
    for key in [named("a", "x"), named("ab", "x"), named("b", "x"), named("b", "y")] {
        objects.apply(Change::Upsert(Object::Ingress(Ingress { key, ..Ingress::default() })));
    }
    let namespace = |name: &str, ending| Object::Namespace(Namespace { name: name.into(), ending });
    let of = |keys: &[ObjectKey]| Touched { ingresses: keys.iter().cloned().collect(), ..Touched::default() };
    assert_eq!(objects.apply(Change::Upsert(namespace("a", false))), Touched::default());
    assert_eq!(objects.apply(Change::Upsert(namespace("a", true))), of(&[named("a", "x")]));
    assert_eq!(objects.apply(Change::Upsert(namespace("a", true))), Touched::default());
    // A relist: one is gone, and another one ends.
    let list = vec![namespace("b", true), namespace("ab", false)];
    let both = of(&[named("a", "x"), named("b", "x"), named("b", "y")]);
    assert_eq!(objects.apply(Change::Replace(Kind::Namespace, list)), both);
    assert_eq!(objects.ending_namespaces, ["b".to_owned()].into());
}

#[test]
fn problems_of_the_source_are_replaced_whole() {
    let problem = |reason: &str| Problem {
        object: ObjectRef { kind: Kind::File, key: ObjectKey::new("", "x.yaml") },
        field: String::new(),
        reason: reason.into(),
    };
    let mut objects = Objects::new("me");
    objects.apply(Change::Problems(vec![problem("one"), problem("two")]));
    objects.apply(Change::Problems(vec![problem("two")]));
    assert_eq!(objects.source_problems, vec![problem("two")]);
}

/// xorshift64*: enough to vary a test, and the seed repeats it.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn name(&mut self, prefix: &str, of: u64) -> String {
        format!("{prefix}{}", self.roll(of))
    }

    fn object(&mut self, kind: Kind) -> Object {
        if kind == Kind::Service {
            let name = self.name("svc", 6);
            service(&name, self.roll(3) as u32)
        } else if kind == Kind::EndpointSlice {
            let (name, of) = (self.name("slice", 8), self.name("svc", 6));
            slice(&name, &of, self.roll(3) as i64)
        } else if kind == Kind::Node {
            let name = self.name("node", 3);
            node(&name, &self.name("zone", 2))
        } else {
            let name = self.name("pod", 5);
            pod(&name, self.roll(2) == 0)
        }
    }
}

/// Everything that the desired state of one Service is decided from.
fn seen_by(objects: &Objects, service: &ObjectKey) -> (Option<Arc<Service>>, Vec<Arc<EndpointSlice>>) {
    let slices = objects.slices_of.get(service).into_iter().flatten();
    (objects.services.get(service).cloned(), slices.map(|key| Arc::clone(&objects.slices[key])).collect())
}

#[test]
fn incremental_equals_from_scratch_and_untouched_services_are_unchanged() {
    const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::Pod];
    for seed in 1..=200 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut objects = Objects::new("node0");
        let mut truth: BTreeMap<ObjectRef, Object> = BTreeMap::new();
        for step in 0..60 {
            let kind = KINDS[dice.roll(4) as usize];
            let change = match dice.roll(5) {
                0 => {
                    let list: BTreeMap<_, _> =
                        (0..dice.roll(6)).map(|_| dice.object(kind)).map(|o| (o.reference(), o)).collect();
                    truth.retain(|reference, _| reference.kind != kind);
                    truth.extend(list.clone());
                    Change::Replace(kind, list.into_values().collect())
                }
                1 => {
                    let reference = dice.object(kind).reference();
                    truth.remove(&reference);
                    Change::Delete(reference)
                }
                _ => {
                    let object = dice.object(kind);
                    truth.insert(object.reference(), object.clone());
                    Change::Upsert(object)
                }
            };
            let before = objects.clone();
            let touched = objects.apply(change);

            let mut scratch = Objects::new("node0");
            scratch.apply_all(truth.values().cloned().map(Change::Upsert));
            assert_eq!(objects.services, scratch.services, "seed {seed} step {step}");
            assert_eq!(objects.slices, scratch.slices, "seed {seed} step {step}");
            assert_eq!(objects.slices_of, scratch.slices_of, "seed {seed} step {step}");
            assert_eq!(objects.node, scratch.node, "seed {seed} step {step}");
            assert_eq!(objects.pods, scratch.pods, "seed {seed} step {step}");
            for n in 0..6 {
                let service = key(&format!("svc{n}"));
                let same = seen_by(&before, &service) == seen_by(&objects, &service);
                assert_eq!(!same, touched.services.contains(&service), "seed {seed} step {step} {service}");
            }
            assert_eq!(before.node != objects.node, touched.node, "seed {seed} step {step}");
            assert_eq!(before.pods != objects.pods, touched.pods, "seed {seed} step {step}");
        }
    }
}
