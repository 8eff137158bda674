//! Processes of pods, found by their cgroup; and clients put into a pod: in its network
//! namespace and its cgroup, so that every hook sees them as that pod's own.

use crate::cluster::Node;
use crate::cluster::process::name_of;
use crate::helper::Helper;
use crate::scratch::cgroup2_root;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The processes of a pod by its uid, the oldest first, without its sandbox's.
///
/// # Errors
/// When `/proc` cannot be read.
pub(super) fn processes_of(uid: &str) -> Result<Vec<u32>> {
    // In cgroupfs names as they are, in systemd's with underscores.
    let names = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    let mut found: Vec<u32> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            // A process may end while it is looked at.
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            names.iter().any(|name| cgroups.contains(name)) && name_of(*pid).as_deref() != Some("pause")
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// A client in a pod.
///
/// # Errors
/// When the pod has no process.
pub(super) fn client_in_pod(executable: &Path, uid: &str) -> Result<Helper> {
    let pid = *processes_of(uid)?.first().with_context(|| format!("pod {uid} has no process"))?;
    let netns = File::open(format!("/proc/{pid}/ns/net"))?;
    Helper::start_in(executable, &netns, Some(&cgroup_of(pid)?))
}

/// A client that is a process of a node itself.
///
/// # Errors
/// When the node is off.
pub(super) fn client_on_node(executable: &Path, node: &Node<'_>) -> Result<Helper> {
    let cgroup = cgroup_of(node.pid()?)?;
    Helper::start(executable, &node.netns()?, Some(&cgroup))
}

/// Where a process is in the tree of cgroup2, as this process sees it.
fn cgroup_of(pid: u32) -> Result<PathBuf> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
    Ok(cgroup2_root()?.join(path))
}
