//! kube-proxy and Weir side by side: the small run. The full one is `cargo xtask fuzz
//! differential`.

use lab::differential::{Plan, run};

/// Repeats a run; else each run has a seed of its own, which it prints.
const SEED: &str = "WEIR_DIFFERENTIAL_SEED";

#[test]
fn weir_answers_as_kube_proxy_does_under_its_profile() {
    let _alone = crate::rig::alone();
    let seed = match std::env::var(SEED) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_secs(),
    };
    println!("{SEED}={seed}");
    let report =
        run(Plan { seed, cases: 2_000, least: 0, sockets: false }, |line| println!("{line}")).unwrap();
    println!("{}\n{} cases in {:?}", report.coverage, report.cases, report.took);
    assert!(report.cases >= 2_000);
    assert!(report.differences.is_empty(), "{SEED}={seed}\n{}", report.differences.join("\n\n"));
}
