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
    use Change::{Delete, Replace, Upsert};
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
        ("a kind that is not kept", Delete(ObjectRef { kind: Kind::Secret, key: key("t") }), nothing.clone()),
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
