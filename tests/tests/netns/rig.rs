//! What the tests share: the demo's network, an agent in it, and its own copy of the
//! manifests.

use lab::agent::{Agent, Setup};
use lab::authority::Authority;
use lab::cases::{self, Assigned, Outcome, certificates, ingress};
use lab::manifests::{self, demo_dir, read_dir};
use lab::topology::Topology;
use lab::wait;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The demo's network, without an agent.
pub(crate) fn demo_lab() -> Topology {
    Topology::new(&manifests::pods(&read_dir(&demo_dir()).unwrap()).unwrap()).unwrap()
}

/// The demo's network and a copy of its manifests that a test may rewrite. Labs with an
/// agent run one at a time: their tests measure time, and one of them floods.
pub(crate) struct Rig {
    pub(crate) lab: Topology,
    pub(crate) manifests: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// One at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rig {
    pub(crate) fn new() -> Self {
        let alone = alone();
        let lab = demo_lab();
        let manifests = lab.scratch().dir().join("manifests");
        manifests::copy(&demo_dir(), &manifests).unwrap();
        Self { lab, manifests, _alone: alone }
    }

    pub(crate) fn setup(&self) -> Setup {
        Setup::manifests(&self.manifests)
    }

    /// As [`Self::setup`], with what the demo's Ingresses need: the Secret that `my-ingress`
    /// names, in a file of its own, and the servers outside.
    pub(crate) fn ingress(&self, authority: &Authority) -> (Setup, PathBuf) {
        let secret = self.manifests.join("tls-secret.yaml");
        manifests::write(&secret, &certificates::first(authority).unwrap()).unwrap();
        let name_server = ingress::serve_outside(&self.lab).unwrap();
        (self.setup().name_server(name_server), secret)
    }

    /// An agent that is ready.
    pub(crate) fn agent(&self) -> Agent<'_> {
        Agent::ready(&self.lab, self.setup()).unwrap()
    }
}

/// Runs the whole table and fails with every case that does not hold.
pub(crate) fn assert_cases(lab: &Topology, agent: &Agent<'_>) {
    let assigned = Assigned { my_service: agent.cluster_ip("default/my-service").unwrap() };
    assert_outcomes(&cases::run(lab, &assigned, |_| {}));
}

/// Fails with every case that did not hold.
pub(crate) fn assert_outcomes(outcomes: &[Outcome]) {
    let failed: Vec<String> =
        outcomes.iter().filter(|outcome| outcome.said.is_err()).map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), outcomes.len(), failed.join("\n"));
}

/// Lets time pass while something is observed: the duration is what is tested.
pub(crate) fn observe(for_so_long: Duration) {
    let end = Instant::now() + for_so_long;
    wait::until("the time is over", for_so_long + Duration::from_secs(5), || {
        anyhow::ensure!(Instant::now() >= end, "not yet");
        Ok(())
    })
    .unwrap();
}
