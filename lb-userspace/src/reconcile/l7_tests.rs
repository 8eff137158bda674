#![expect(clippy::unwrap_used, reason = "tests")]
use super::super::tests::{Rig, kernel, rig_with};
use super::*;
use crate::source::{
    BackendPort, Batch, Change, Ingress, IngressBackend, IngressPath, IngressRule, IngressTls, Object,
    PathType, Service,
};

struct Ends {
    rig: Rig,
    reports: Arc<Reports>,
    link: Link,
    secrets: watch::Receiver<BTreeSet<ObjectKey>>,
    names: watch::Receiver<WantedNames>,
}

fn start() -> Ends {
    let link = Link::default();
    let reports = Arc::<Reports>::default();
    let (needed, secrets) = watch::channel(BTreeSet::new());
    let (wanted, names) = watch::channel(WantedNames::new());
    let self_signed = Certificate {
        chain: vec![],
        key: Default::default(),
        names: vec!["nobody.invalid".into()],
        not_before: 0,
        not_after: i64::MAX,
    };
    let options = L7Options { manifests: true, external_names: true, ..L7Options::default() };
    let rig = rig_with(
        &kernel(),
        Some(L7Parts {
            options,
            link: link.clone(),
            self_signed: Arc::new(self_signed),
            secrets: needed,
            names: wanted,
            reports: Some(Arc::clone(&reports)),
            proxies: true,
        }),
    );
    Ends { rig, reports, link, secrets, names }
}

fn ingress(secret: Option<&str>) -> Object {
    let backend = IngressBackend::Service { name: "web".into(), port: BackendPort::Number(80) };
    let path = IngressPath { index: 0, path: "/".into(), path_type: PathType::Prefix, backend };
    let tls = secret.map(|secret| IngressTls {
        index: 0,
        hosts: vec![(0, "x.example".into())],
        secret: Some(secret.into()),
    });
    Object::Ingress(Ingress {
        key: ObjectKey::new("default", "a"),
        rules: vec![IngressRule { index: 0, host: "x.example".into(), paths: Some(vec![path]) }],
        tls: tls.into_iter().collect(),
        ..Ingress::default()
    })
}

fn lists(ingress: Object) -> Batch {
    vec![
        Change::Replace(Kind::Service, vec![]),
        Change::Replace(Kind::EndpointSlice, vec![]),
        Change::Replace(Kind::IngressClass, vec![]),
        Change::Replace(Kind::Ingress, vec![ingress]),
        Change::Replace(Kind::Namespace, vec![]),
    ]
}

#[test]
fn routes_go_out_without_nodes_and_services_without_ingresses() {
    let mut ends = start();
    ends.rig.take(vec![Change::Replace(Kind::Service, vec![]), Change::Replace(Kind::EndpointSlice, vec![])]);
    assert_eq!(ends.link.published(), 0);
    assert!(ends.rig.board.l7_waits_for().unwrap().contains("Ingress, IngressClass"));
    ends.rig.take(lists(ingress(None)));
    // No Node list yet: L4 waits, L7 does not.
    assert_eq!((ends.link.published(), ends.rig.board.snapshot().phase), (1, crate::board::Phase::Listing));
    assert_eq!(ends.rig.board.l7_waits_for(), None);
    assert!(ends.rig.board.problems().iter().any(|p| p.reason.contains("there is no Service default/web")));
    // The other way round.
    let mut ends = start();
    let listed = [Kind::Service, Kind::EndpointSlice, Kind::Node];
    ends.rig.take(listed.map(|kind| Change::Replace(kind, vec![])).into());
    assert_eq!((ends.link.published(), ends.rig.board.snapshot().phase), (0, crate::board::Phase::Synced));
}

#[test]
fn each_step_is_published_once_and_nothing_without_a_change() {
    let mut ends = start();
    ends.rig.take(lists(ingress(None)));
    ends.rig.reconciler.round();
    assert_eq!(ends.link.published(), 1);
    let service = Service { key: ObjectKey::new("default", "other"), ..Service::default() };
    ends.rig.take(vec![Change::Upsert(Object::Service(service))]);
    assert_eq!(ends.link.published(), 1, "a Service that no Ingress refers to");
    let gone = crate::problem::ObjectRef { kind: Kind::Ingress, key: ObjectKey::new("default", "a") };
    ends.rig.take(vec![Change::Delete(gone)]);
    assert_eq!(ends.link.published(), 2);
    assert!(ends.rig.board.problems().is_empty(), "{:?}", ends.rig.board.problems());
}

#[test]
fn the_first_table_waits_for_secrets_and_not_for_ever() {
    let key = ObjectKey::new("default", "s");
    let mut ends = start();
    ends.rig.take(lists(ingress(Some("s"))));
    assert_eq!(*ends.secrets.borrow(), BTreeSet::from([key.clone()]));
    assert_eq!(ends.link.published(), 0);
    assert!(ends.rig.board.l7_waits_for().unwrap().contains("Secrets"));
    assert!(ends.rig.reconciler.next_wake() <= Instant::now() + PATIENCE);
    let absent = crate::problem::ObjectRef { kind: Kind::Secret, key };
    ends.rig.take(vec![Change::Delete(absent)]);
    assert_eq!(ends.link.published(), 1);
    // A source that never answers.
    let mut ends = start();
    ends.rig.take(lists(ingress(Some("s"))));
    ends.rig.reconciler.l7.as_mut().unwrap().due = Some(Instant::now());
    ends.rig.reconciler.round();
    assert_eq!(ends.link.published(), 1);
}

/// Who gives way to whom is not known before the list of Namespaces; one that is refused is waited
/// for as long as a Secret is.
#[test]
fn the_first_table_waits_for_namespaces_and_not_for_ever() {
    let all_but_namespaces = || {
        let mut batch = lists(ingress(None));
        batch.pop();
        batch
    };
    let mut ends = start();
    ends.rig.take(all_but_namespaces());
    assert_eq!(ends.link.published(), 0);
    assert!(ends.rig.board.l7_waits_for().unwrap().contains("Namespaces"));
    ends.rig.take(vec![Change::Replace(Kind::Namespace, vec![])]);
    assert_eq!(ends.link.published(), 1);
    let mut ends = start();
    ends.rig.take(all_but_namespaces());
    ends.rig.reconciler.l7.as_mut().unwrap().due = Some(Instant::now());
    ends.rig.reconciler.round();
    assert_eq!(ends.link.published(), 1);
}

#[test]
fn names_are_wanted_and_what_they_lead_to_is_published() {
    let mut ends = start();
    let external = Service {
        key: ObjectKey::new("default", "web"),
        kind: crate::source::ServiceType::ExternalName,
        external_name: Some("origin.example".into()),
        ..Service::default()
    };
    ends.rig.take(lists(ingress(None)));
    ends.rig.take(vec![Change::Upsert(Object::Service(external))]);
    let expected = WantedNames::from([("origin.example".to_string(), ["default".to_string()].into())]);
    assert_eq!(*ends.names.borrow(), expected);
    let before = ends.link.published();
    let found = Names::from([("origin.example".to_string(), Ok(vec!["203.0.113.1".parse().unwrap()]))]);
    ends.rig.reconciler.set_names(Arc::new(found));
    ends.rig.reconciler.round();
    assert_eq!(ends.link.published(), before + 1);
    let routes = ends.rig.reconciler.l7.as_ref().unwrap().model.routes();
    assert_eq!(routes.pools.values().next().unwrap().endpoints.len(), 1);
}

/// `Sync` follows from it: said when requests are routed so, not when the table is on its way.
#[test]
fn routes_are_in_force_once_a_proxy_says_so() {
    let mut ends = start();
    let told = |ends: &Ends| -> Vec<bool> {
        ends.reports.take().into_iter().map(|report| report.in_force).collect()
    };
    ends.rig.take(lists(ingress(None)));
    assert_eq!((ends.link.published(), told(&ends)), (1, vec![false]));
    ends.rig.reconciler.set_in_force(1);
    assert_eq!(told(&ends), [true]);
    // A change is in the next table, and an older one's arrival says nothing of it.
    let Object::Ingress(mut changed) = ingress(None) else { panic!("an Ingress") };
    changed.rules[0].host = "y.example".into();
    ends.rig.take(vec![Change::Upsert(Object::Ingress(changed.clone()))]);
    assert_eq!((ends.link.published(), told(&ends)), (2, vec![false]));
    ends.rig.reconciler.set_in_force(1);
    assert_eq!(told(&ends), Vec::<bool>::new());
    ends.rig.reconciler.set_in_force(2);
    assert_eq!(told(&ends), [true]);
    // One that changes no route is in force as it comes.
    changed.generation += 1;
    ends.rig.take(vec![Change::Upsert(Object::Ingress(changed.clone()))]);
    assert_eq!((ends.link.published(), told(&ends)), (2, vec![true]));
    // Gone before its table arrived.
    changed.rules[0].host = "z.example".into();
    ends.rig.take(vec![Change::Upsert(Object::Ingress(changed))]);
    let gone = crate::problem::ObjectRef { kind: Kind::Ingress, key: ObjectKey::new("default", "a") };
    ends.rig.take(vec![Change::Delete(gone)]);
    ends.rig.reconciler.set_in_force(4);
    assert_eq!(told(&ends), Vec::<bool>::new());
}
