//! The lab's own corner of the machine: a cgroup subtree, a bpffs mount, a folder.
//!
//! Hooks attached to the root cgroup of a shared machine would translate everybody's
//! connects, and pins in the machine's bpffs would meet those of a real agent; so each lab
//! has its own of both (decision 13). Everything is named after the process that made it:
//! what a killed process leaves behind is found by its dead id and removed.

use crate::netns::{self, sys};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Everything that a lab makes carries this prefix, then the process id.
const PREFIX: &str = "weir";
const RUN_DIR: &str = "/run/weir-lab";

/// A private cgroup, bpffs and folder.
#[derive(Debug)]
pub struct Scratch {
    id: String,
    dir: PathBuf,
    cgroup: PathBuf,
}

impl Scratch {
    /// Makes them, after removing what dead processes left.
    ///
    /// # Errors
    /// Without root, or without a cgroup2 mount.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Mutex<()> = Mutex::new(());
        {
            let _one_at_a_time = SWEEP.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            sweep();
        }
        let id = format!("{PREFIX}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(RUN_DIR).join(&id);
        let cgroup = cgroup2_root()?.join(&id);
        let made = Self { id, dir, cgroup };
        fs::create_dir_all(made.bpffs())
            .context("run as root: the lab makes namespaces, cgroups and mounts")?;
        fs::create_dir_all(made.dir.join("logs"))?;
        fs::create_dir_all(made.dir.join("state"))?;
        sys::mount_fs("bpf", &made.bpffs()).context("mounting a private bpffs")?;
        fs::create_dir(&made.cgroup).with_context(|| format!("making {}", made.cgroup.display()))?;
        Ok(made)
    }

    /// Unique on this machine; the prefix of the names of the lab's namespaces.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A private bpffs.
    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// A child of the lab's cgroup, made when asked for the first time.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn cgroup(&self, name: &str) -> Result<PathBuf> {
        let path = self.cgroup.join(name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_cgroup(&self.cgroup);
        if let Err(error) = remove_dir(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// Opens `cgroup.procs` of a cgroup, to move processes there.
pub(crate) fn procs_file(cgroup: &Path) -> Result<File> {
    let path = cgroup.join("cgroup.procs");
    File::options().write(true).open(&path).with_context(|| format!("opening {}", path.display()))
}

/// Where cgroup2 is mounted: not always at `/sys/fs/cgroup`.
pub(crate) fn cgroup2_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        if right.split(' ').next() == Some("cgroup2")
            && let Some(mount_point) = left.split(' ').nth(4)
        {
            return Ok(PathBuf::from(mount_point));
        }
    }
    bail!("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// Removes what labs of processes that are gone left behind.
fn sweep() {
    for entry in read_dir(Path::new(netns::NETNS_DIR)) {
        if left_behind(&entry) {
            netns::remove(&entry);
        }
    }
    if let Ok(root) = cgroup2_root() {
        read_dir(&root).iter().filter(|entry| left_behind(entry)).for_each(|entry| remove_cgroup(entry));
    }
    for entry in read_dir(Path::new(RUN_DIR)) {
        if left_behind(&entry)
            && let Err(error) = remove_dir(&entry)
        {
            eprintln!("cannot remove {}: {error}", entry.display());
        }
    }
}

fn read_dir(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// True for a name of ours whose process is gone.
fn left_behind(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let pid = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.split('-').next());
    pid.and_then(|pid| pid.parse().ok()).is_some_and(|pid| !sys::alive(pid))
}

/// Ends the processes of a cgroup subtree and removes it. Attached programs go with it.
fn remove_cgroup(path: &Path) {
    if !path.exists() {
        return;
    }
    // `cgroup.kill` came with Linux 5.14; the lab needs a newer one anyway.
    if let Err(error) = fs::write(path.join("cgroup.kill"), "1") {
        eprintln!("cannot end the processes of {}: {error}", path.display());
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(error) = remove_cgroup_dirs(path) {
        if Instant::now() > deadline {
            eprintln!("cannot remove {}: {error}", path.display());
            return;
        }
        std::thread::yield_now();
    }
}

fn remove_cgroup_dirs(path: &Path) -> std::io::Result<()> {
    for child in read_dir(path).into_iter().filter(|child| child.is_dir()) {
        remove_cgroup_dirs(&child)?;
    }
    fs::remove_dir(path)
}

fn remove_dir(path: &Path) -> std::io::Result<()> {
    let bpffs = path.join("bpf");
    // Not mounted when a lab died before it came that far.
    let _ = sys::unmount(&bpffs);
    fs::remove_dir_all(path)
}
