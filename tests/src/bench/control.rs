//! The control path: a cluster of manifests becomes map entries, one endpoint changes, the
//! agent starts again; how long each takes, and in how much memory.
//!
//! What counts is what the kernel's maps hold: they are read here through their pins,
//! without asking the agent. The agent's own metrics then say where the time went.

use super::agent::Agent;
use super::cluster::{self, Cluster, Service};
use super::figures::{print, quantile};
use super::maps::{self, Pinned};
use super::rig::Rig;
use super::{load_average, machine, write};
use crate::manifests::replace;
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What `bench control` is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Services in one file; their EndpointSlices in another.
    #[arg(long, default_value_t = 1000)]
    in_a_file: usize,
    /// Endpoint changes that are timed, of each sort.
    #[arg(long, default_value_t = 60)]
    changes: u32,
    /// Longest wait for the agent to be ready, in seconds.
    #[arg(long, default_value_t = 120)]
    patience: u64,
}

/// How the agent came up.
struct Start {
    ready: Duration,
    /// Until the kernel's map held every frontend.
    programmed: Duration,
    user: Duration,
    system: Duration,
    metrics: BTreeMap<String, f64>,
    rss_kib: u64,
    peak_kib: u64,
    anonymous_kib: u64,
}

/// Times of endpoint changes, in milliseconds.
struct Changes {
    what: String,
    /// From the new file to the frontend's new table.
    to_map: Vec<f64>,
    /// From the reconciler's hearing of it to the end of its round, on average.
    agent_mean: f64,
    cpu: Duration,
}

/// Runs all; prints and writes `control.json`.
///
/// # Errors
/// When the agent does not do what is timed.
pub fn run(options: &Options) -> Result<()> {
    let before = load_average();
    let rig = Rig::new(false, false)?;
    let dir = rig.scratch.dir().join("manifests");
    let cluster = Cluster { services: options.services, endpoints: options.endpoints, served: false };
    cluster::write(&dir, cluster, options.in_a_file)?;
    // The last Service's slice moves to a file of its own.
    let own = own_file(&dir, cluster, options.in_a_file)?;

    let mut agent = Agent::start(&rig.node, &rig.scratch, &dir)?;
    let cold = come_up(&mut agent, &rig, options)?;
    print_start("first start", &cold, options);
    let memory = maps::memory(&rig.scratch.bpffs())?;

    let mut series = Vec::new();
    for shared in [true, false] {
        let changes = change(&agent, &rig, &dir, &own, cluster, options, shared)?;
        println!(
            "one endpoint changed, {}: {} times, p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms; of it in the reconciler {:.2} ms; CPU {:.1} ms each",
            changes.what,
            changes.to_map.len(),
            quantile(&changes.to_map, 0.5),
            quantile(&changes.to_map, 0.99),
            quantile(&changes.to_map, 1.0),
            changes.agent_mean,
            changes.cpu.as_secs_f64() * 1000.0 / f64::from(options.changes),
        );
        series.push(changes);
    }
    let (rss, peak) = (agent.memory_kib("VmRSS")?, agent.memory_kib("VmHWM")?);
    println!("after the changes: resident {} MiB, peak {} MiB", rss / 1024, peak / 1024);

    drop(agent);
    let mut agent = Agent::start(&rig.node, &rig.scratch, &dir)?;
    let warm = come_up(&mut agent, &rig, options)?;
    print_start("killed and started again over the pinned maps", &warm, options);
    let check = check(&agent, &rig)?;
    println!("everything compared with what the kernel holds, once a minute: {:.0} ms", check * 1000.0);

    let total: u64 = memory.iter().map(|map| map.bytes).sum();
    println!("\nmemory of the maps: {} MiB", total >> 20);
    let mut table = vec![["map", "entries", "MiB"].map(str::to_owned).to_vec()];
    for map in memory.iter().filter(|map| map.bytes >= 1 << 20) {
        table.push(vec![map.name.clone(), map.entries.to_string(), (map.bytes >> 20).to_string()]);
    }
    print(&table);
    let after = load_average();
    println!("load average {before:.1} before, {after:.1} after");
    write(
        "control",
        &json!({
            "machine": machine(), "load_average": [before, after],
            "services": options.services, "endpoints": options.endpoints, "in_a_file": options.in_a_file,
            "cold": start_json(&cold), "warm": start_json(&warm), "check_s": check,
            "changes": series.iter().map(|changes| json!({
                "what": changes.what, "to_map_ms": changes.to_map,
                "p50_ms": quantile(&changes.to_map, 0.5), "p99_ms": quantile(&changes.to_map, 0.99),
                "reconciler_mean_ms": changes.agent_mean,
                "cpu_ms": changes.cpu.as_secs_f64() * 1000.0 / f64::from(options.changes),
            })).collect::<Vec<_>>(),
            "after_changes": { "rss_kib": rss, "peak_kib": peak },
            "maps": memory.iter().map(|map| json!({
                "map": map.name, "entries": map.entries, "bytes": map.bytes,
            })).collect::<Vec<_>>(),
        }),
    )
}

/// Waits until everything is programmed, and looks at what it took.
fn come_up(agent: &mut Agent, rig: &Rig, options: &Options) -> Result<Start> {
    let ready = agent.wait_ready(&rig.node, Duration::from_secs(options.patience))?;
    let pinned = Pinned::open(&rig.scratch.bpffs())?;
    let wanted = options.services as usize;
    wait::until("every Service has its frontend", Duration::from_secs(options.patience), || {
        let there = pinned.frontends()?;
        ensure!(there >= wanted, "{there} of {wanted} frontends are in the map");
        Ok(())
    })?;
    let programmed = agent.started.elapsed();
    let (user, system) = agent.cpu()?;
    Ok(Start {
        ready,
        programmed,
        user,
        system,
        rss_kib: agent.memory_kib("VmRSS")?,
        peak_kib: agent.memory_kib("VmHWM")?,
        anonymous_kib: agent.memory_kib("RssAnon")?,
        metrics: agent.metrics(&rig.node)?,
    })
}

/// Waits for the agent's comparison of everything with what the kernel holds; how many seconds
/// one takes.
fn check(agent: &Agent, rig: &Rig) -> Result<f64> {
    wait::until("the comparison once a minute", Duration::from_secs(90), || {
        let metrics = agent.metrics(&rig.node)?;
        let took = metrics.get("lb_reconcile_stage_seconds_total{stage=\"check\"}");
        took.copied().context("no comparison yet")
    })
}

fn print_start(what: &str, start: &Start, options: &Options) {
    println!(
        "\n{what}: {} Services × {} endpoints: ready after {:.2} s, in the maps after {:.2} s; CPU {:.2} s user, {:.2} s system",
        options.services,
        options.endpoints,
        start.ready.as_secs_f64(),
        start.programmed.as_secs_f64(),
        start.user.as_secs_f64(),
        start.system.as_secs_f64(),
    );
    println!(
        "resident {} MiB (anonymous {} MiB), peak {} MiB",
        start.rss_kib / 1024,
        start.anonymous_kib / 1024,
        start.peak_kib / 1024
    );
    let mut table = vec![["stage", "seconds"].map(str::to_owned).to_vec()];
    for (stage, seconds) in stages(start) {
        table.push(vec![stage, format!("{seconds:.3}")]);
    }
    print(&table);
}

/// Where the time of a start went, by the agent's own clock: all of it until the end of the
/// first round.
fn stages(start: &Start) -> Vec<(String, f64)> {
    let value = |name: &str| start.metrics.get(name).copied().unwrap_or(0.0);
    let heard = value("lb_reconcile_event_to_maps_seconds_sum");
    let mut stages = vec![("programs, maps, files read".to_owned(), start.ready.as_secs_f64() - heard)];
    let mut left = heard;
    for (name, seconds) in &start.metrics {
        let stage = name.strip_prefix("lb_reconcile_stage_seconds_total{stage=\"");
        if let Some(stage) = stage.and_then(|rest| rest.strip_suffix("\"}")) {
            stages.push((stage.to_owned(), *seconds));
            left -= seconds;
        }
    }
    stages.push(("rest of the round, waiting".to_owned(), left));
    stages
}

/// What the agent says about its own work.
fn told(metrics: &BTreeMap<String, f64>) -> BTreeMap<&str, f64> {
    let wanted = |name: &str| name.starts_with("lb_reconcile_") && !name.contains("_bucket");
    metrics.iter().filter(|(name, _)| wanted(name)).map(|(name, value)| (name.as_str(), *value)).collect()
}

fn start_json(start: &Start) -> Value {
    json!({
        "ready_s": start.ready.as_secs_f64(), "programmed_s": start.programmed.as_secs_f64(),
        "cpu_user_s": start.user.as_secs_f64(), "cpu_system_s": start.system.as_secs_f64(),
        "rss_kib": start.rss_kib, "rss_anonymous_kib": start.anonymous_kib, "peak_kib": start.peak_kib,
        "stages_s": stages(start).into_iter().collect::<BTreeMap<_, _>>(), "metrics": told(&start.metrics),
    })
}

/// Takes the last Service's slice out of its file and into one of its own.
fn own_file(dir: &Path, cluster: Cluster, in_a_file: usize) -> Result<PathBuf> {
    let services: Vec<Service> = cluster.services().collect();
    let chunks = services.chunks(in_a_file);
    let (number, last) = chunks.enumerate().next_back().context("a cluster without Services")?;
    let (own, others) = last.split_last().context("a file without Services")?;
    let others: Vec<Value> = others.iter().map(cluster::slice_object).collect();
    cluster::write_list(&dir.join(format!("slices-{number:03}.json")), &others)?;
    let file = dir.join("slice-own.json");
    cluster::write_list(&file, &[cluster::slice_object(own)])?;
    Ok(file)
}

/// Changes one endpoint of one Service over and over and times each change.
fn change(
    agent: &Agent,
    rig: &Rig,
    dir: &Path,
    own: &Path,
    cluster: Cluster,
    options: &Options,
    shared: bool,
) -> Result<Changes> {
    let pinned = Pinned::open(&rig.scratch.bpffs())?;
    let services: Vec<Service> = cluster.services().collect();
    // Of the first file, or the one in a file of its own.
    let mut of_file: Vec<Service> = if shared {
        services.iter().take(options.in_a_file).cloned().collect()
    } else {
        services.last().cloned().into_iter().collect()
    };
    let file = if shared { dir.join("slices-000.json") } else { own.to_path_buf() };
    let changed = of_file.len() / 2;
    let before = agent.metrics(&rig.node)?;
    let cpu = agent.cpu()?;
    let mut to_map = Vec::new();
    for n in 0..options.changes {
        let service = of_file.get_mut(changed).context("no Service to change")?;
        // 10.250.0.0/16: nobody else's endpoints.
        let address = Ipv4Addr::from(0x0afa_0000 + 1 + n + if shared { 0 } else { 10_000 });
        let last = service.endpoints.last_mut().context("no endpoint to change")?;
        *last = address;
        let service = service.clone();
        let objects: Vec<Value> = of_file.iter().map(cluster::slice_object).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let text = serde_json::to_string(&list)?;
        let old = pinned.frontend(service.address, 80)?.context("the Service has no frontend")?;
        replace(&file, &text)?;
        let written = Instant::now();
        let deadline = written + Duration::from_secs(30);
        while pinned.frontend(service.address, 80)?.as_ref() == Some(&old) {
            if Instant::now() > deadline {
                bail!("{}: not in the maps after 30 s; the agent's log:\n{}", service.name, agent.log_end());
            }
            std::thread::park_timeout(Duration::from_micros(100));
        }
        to_map.push(written.elapsed().as_secs_f64() * 1000.0);
        let found = pinned.backends(service.address, 80)?;
        ensure!(
            found.contains(&address) && found.len() == service.endpoints.len(),
            "{}: {address} is not among {found:?}",
            service.name
        );
    }
    let after = agent.metrics(&rig.node)?;
    let cpu_after = agent.cpu()?;
    let grown = |name: &str| after.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0);
    let (sum, count) =
        (grown("lb_reconcile_event_to_maps_seconds_sum"), grown("lb_reconcile_event_to_maps_seconds_count"));
    Ok(Changes {
        what: if shared {
            format!("in a file of {} slices", of_file.len())
        } else {
            "in a file of its own".into()
        },
        to_map,
        agent_mean: if count > 0.0 { sum * 1000.0 / count } else { 0.0 },
        cpu: (cpu_after.0 + cpu_after.1).saturating_sub(cpu.0 + cpu.1),
    })
}
