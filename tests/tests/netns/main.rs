//! Real sockets over network namespaces, a real agent between them. Needs root:
//! `cargo xtask test netns`.

#![expect(clippy::unwrap_used, reason = "tests")]

mod plain;

use lab::manifests::{self, demo_dir, read_dir};
use lab::topology::Topology;

/// The demo's network, without an agent.
fn demo_lab() -> Topology {
    Topology::new(&manifests::pods(&read_dir(&demo_dir()).unwrap()).unwrap()).unwrap()
}
