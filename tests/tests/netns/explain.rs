//! `weir explain` from the live tables.

use crate::rig::Rig;

#[test]
fn explain_tells_what_would_happen_and_why() {
    let rig = Rig::new();
    let agent = rig.agent();
    let my_service = agent.cluster_ip("default/my-service").unwrap();
    for (target, code, words) in [
        (format!("{my_service}:80"), 0, &["default/my-service", "10.244.1.10", "10.244.2.10"][..]),
        ("svc/default/my-service:80".into(), 0, &["default/my-service", "10.244.1.10", "10.244.2.10"]),
        ("172.30.0.1:30082".into(), 0, &["default/remote-app", "10.244.2.20"]),
        ("172.30.0.1:30082/udp".into(), 0, &["default/remote-app", "10.244.2.20"]),
        ("[fd00:10:96::a01]:80".into(), 0, &["default/my-dual", "fd00:10:244:1::10"]),
        ("10.96.10.10:80".into(), 3, &["default/no-endpoints"]),
        ("svc/default/no-endpoints:80".into(), 3, &["default/no-endpoints"]),
        ("svc/default/elsewhere:80".into(), 3, &["default/elsewhere"]),
        ("10.96.10.1:81".into(), 3, &[]),
    ] {
        let out = agent.verb(&["explain", &target]).unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        let all = format!("{target}: {}\n{said}{}", out.status, String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(code), "{all}");
        for word in words {
            assert!(said.contains(word), "{word} is missing: {all}");
        }
        let json = agent.json(&["explain", &target]).unwrap();
        assert!(json.is_object(), "{json}");
    }
}
