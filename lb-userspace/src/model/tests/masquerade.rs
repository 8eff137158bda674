//! Whose clients take the node's address (S44).

use super::*;
use crate::source::TrafficPolicy;

#[test]
fn external_clients_are_masqueraded_where_asked_and_never_under_local() {
    for (asked, policy, masquerades) in [
        (false, TrafficPolicy::Cluster, false),
        (true, TrafficPolicy::Cluster, true),
        (true, TrafficPolicy::Local, false),
    ] {
        let mut objects = Objects::default();
        put_service(&mut objects, Service { external_policy: policy, ..service("a", "10.96.0.1") });
        put_slice(&mut objects, slice("s", "a", &["10.0.0.1 ready here"]));
        let options = ModelOptions { masquerade_external: asked, ..ModelOptions::default() };
        let model = from_scratch(options, &objects);
        let state = model.state(&key("a")).unwrap();
        assert_eq!(only_port(state).masquerades, masquerades, "{asked} {policy:?}");
    }
}
