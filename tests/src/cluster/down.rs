//! Takes a cluster down: ends the processes that were written down and no others, removes
//! what they had, and then looks whether anything is left.

use super::control_plane::{API, BALANCER, CONTROLLERS, ETCD, SCHEDULER, end};
use super::inspect::BpfObjects;
use super::node::{remove_mount_points, switch_off};
use super::plan::{MOST_NODES, OUTSIDE, PREFIX, Place};
use super::state::{Lock, Run};
use super::{Cluster, cgroups};
use crate::go::say;
use crate::netns::{self, Netns};
use crate::wait::until;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The kernel frees programs and maps a while after their last user has gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes the cluster down and tells what it looked for afterwards.
///
/// # Errors
/// When something does not end, or something is left.
pub fn down() -> Result<()> {
    let begin = Instant::now();
    let run = Run::find()?;
    let lock = Lock::take(&run)?;
    let Some(state) = run.state()? else {
        say("no cluster is up");
        lock.clear()?;
        return report(&run, &[], &BpfObjects::default());
    };
    let bpf = bpf_of_all();
    remove(&run)?;
    lock.clear()?;
    say(&format!("down after {:.1} s", begin.elapsed().as_secs_f64()));
    report(&run, &state.made.into_iter().collect::<Vec<_>>(), &bpf)
}

/// Ends and removes everything, whether or not it came up whole.
///
/// # Errors
/// When something does not end.
pub(super) fn remove(run: &Run) -> Result<()> {
    let Some(state) = run.state()? else { return Ok(()) };
    end(run, BALANCER, false)?;
    std::thread::scope(|scope| {
        let nodes: Vec<_> =
            (1..=MOST_NODES).map(|number| scope.spawn(move || switch_off(run, Place { number }))).collect();
        nodes.into_iter().try_for_each(|node| match node.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    cgroups::remove_parents()?;
    // The API server would wait a minute for its watchers; its store goes in any case.
    for (name, kill) in [(SCHEDULER, true), (CONTROLLERS, true), (API, true), (ETCD, true)] {
        end(run, name, kill)?;
    }
    let outside = Path::new(netns::NETNS_DIR).join(OUTSIDE);
    if outside.exists() {
        netns::remove(&outside);
    }
    remove_mount_points(state.made.into_iter());
    run.remove()
}

/// What the nodes have, as far as it can be told: a node may be off.
fn bpf_of_all() -> BpfObjects {
    let mut all = BpfObjects::default();
    let Ok(cluster) = Cluster::attach() else { return all };
    for node in cluster.nodes().iter().filter(|node| node.is_on()) {
        match node.bpf() {
            Ok(found) => {
                all.programs.extend(found.programs);
                all.maps.extend(found.maps);
            }
            Err(error) => say(&format!("{}: its BPF objects cannot be listed: {error:#}", node.name())),
        }
    }
    all
}

/// Looks for what a cluster could have left, prints a line for each kind.
fn report(run: &Run, made: &[PathBuf], bpf: &BpfObjects) -> Result<()> {
    let mut left = 0;
    let mut tell = |what: &str, found: Vec<String>| {
        left += found.len();
        let list = if found.is_empty() { "none left".to_owned() } else { found.join(", ") };
        println!("{what:<22}{list}");
    };
    tell("network namespaces", namespaces());
    tell("mounts", mounts(run)?);
    tell("cgroups", cgroups::left()?.iter().map(|path| path.display().to_string()).collect());
    tell("processes", processes(run));
    let loaded = until("BPF objects go", PATIENCE, || {
        let left = bpf.still_loaded()?;
        ensure!(left.is_empty(), "{}", left.join(", "));
        Ok(())
    });
    let count = bpf.programs.len() + bpf.maps.len();
    tell(
        &format!("BPF objects (of {count})"),
        loaded.err().map(|error| error.to_string()).into_iter().collect(),
    );
    let files = made.iter().map(PathBuf::as_path).chain([run.root(), Path::new(super::state::MARK)]);
    let files = files.filter(|path| path.exists());
    tell("files", files.map(|path| path.display().to_string()).collect());
    if left > 0 {
        bail!("{left} left behind");
    }
    Ok(())
}

fn namespaces() -> Vec<String> {
    let names = (1..=MOST_NODES).map(|number| Place { number }.netns()).chain([OUTSIDE.to_owned()]);
    debug_assert!(OUTSIDE.starts_with(PREFIX));
    names.filter(|name| Netns::attach(name.as_str()).is_ok()).collect()
}

fn mounts(run: &Run) -> Result<Vec<String>> {
    let root = run.root().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
    Ok(mounts.lines().filter(|line| line.contains(&root)).map(str::to_owned).collect())
}

/// Processes whose command line names the run folder, which all of the cluster's do.
fn processes(run: &Run) -> Vec<String> {
    let root = run.root().display().to_string();
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let pids = pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != own);
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        words.into_iter().any(|word| word.contains(&root))
    })
    .collect()
}
