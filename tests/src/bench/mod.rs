//! Measurements: what Weir costs in the data path, and how long its control path takes.
//!
//! ```text
//!  l4:       rig (client ── node ── server) × variant ── worker (load, answers) ── figures
//!              ├ nothing, kube_proxy (nftables rules), agent (weir run)
//!  l7:       load ── nginx, HAProxy, weir run ── origin ── figures
//!  control:  cluster (10,000 Services as files) ── agent ── when is it in the maps?
//!  tls:      client ── the proxy's own handshakes, in one thread
//! ```
//!
//! Everything happens in namespaces, a cgroup and a bpffs of our own. A number is only as
//! good as the quiet of the machine: the load average is printed beside it, and what is
//! compared is measured in turns.

mod agent;
pub mod cluster;
pub mod control;
mod figures;
mod kube_proxy;
pub mod l4;
pub mod l7;
mod load;
mod maps;
mod profile;
mod rig;
mod server;
pub mod tls;
mod worker;

pub use worker::serve_if_asked;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Where results are written: `bench` in cargo's target folder.
fn results() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    target.join("bench")
}

/// Writes `NAME.json` and says where.
fn write(name: &str, value: &Value) -> Result<()> {
    let dir = results();
    fs::create_dir_all(&dir)?;
    let file = dir.join(format!("{name}.json"));
    fs::write(&file, serde_json::to_vec_pretty(value)?)
        .with_context(|| format!("writing {}", file.display()))?;
    println!("written: {}", file.display());
    Ok(())
}

/// What the numbers were measured on.
fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "cpu": model.map_or("unknown", |(_, model)| model),
    })
}

/// The load average of the last minute.
fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}
