//! The nodes' cgroups: one folder for each node in every hierarchy that the machine has, made
//! the node's root by a cgroup namespace. Works where cgroup v1 and v2 are mounted beside each
//! other, and where v2 is alone.

use super::plan::CGROUP;
use super::process::name_of;
use crate::wait::until;
use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the machine, and each node, has them.
const ROOT: &str = "/sys/fs/cgroup";
/// Where cgroup v2 is alone: the node's own processes.
const INNER: &str = "node";

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) mount_point: PathBuf,
    /// None of cgroup2; else the options that mount it: `cpu,cpuacct`, `none,name=systemd`.
    options: Option<String>,
}

impl Hierarchy {
    pub(super) fn is_v2(&self) -> bool {
        self.options.is_none()
    }
}

/// The hierarchies of the caller's mount namespace.
///
/// # Errors
/// When there is none.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let found = parse(&fs::read_to_string("/proc/self/mountinfo")?);
    if found.is_empty() {
        bail!("no cgroup hierarchy below {ROOT}");
    }
    Ok(found)
}

/// Reads `/proc/PID/mountinfo` (proc(5)).
fn parse(mounts: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount_point) = left.split(' ').nth(4).filter(|at| at.starts_with(ROOT)) else { continue };
        let mut right = right.split(' ');
        let options = match right.next() {
            Some("cgroup2") => None,
            Some("cgroup") => Some(mount_options(right.nth(1).unwrap_or_default())),
            _ => continue,
        };
        found.push(Hierarchy { mount_point: mount_point.into(), options });
    }
    found
}

/// What mounts a v1 hierarchy again, from its super options: `rw,name=systemd`.
fn mount_options(shown: &str) -> String {
    let kept: Vec<&str> = shown.split(',').filter(|word| !matches!(*word, "rw" | "ro" | "xattr")).collect();
    let named = kept.iter().all(|word| word.contains('='));
    if named { format!("none,{}", kept.join(",")) } else { kept.join(",") }
}

/// A node's folder in each hierarchy.
///
/// # Errors
/// When there is no hierarchy.
pub(super) fn folders(node: &str) -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?.iter().map(|one| one.mount_point.join(CGROUP).join(node)).collect())
}

/// Words that put what follows them into a node's cgroups, in the machine's namespaces.
///
/// # Errors
/// When there is no hierarchy.
pub(super) fn entering(node: &str) -> Result<Vec<String>> {
    let script =
        "while [ \"$1\" != -- ]; do echo $$ >\"$1/cgroup.procs\" || exit 1; shift; done; shift; exec \"$@\"";
    let mut words: Vec<String> = ["sh", "-c", script, "sh"].map(str::to_owned).into();
    words.extend(folders(node)?.iter().map(|folder| {
        // Of cgroup v2 alone, once the node runs: see `mount_own`.
        let inner = folder.join(INNER);
        let at = if inner.is_dir() { &inner } else { folder };
        at.display().to_string()
    }));
    words.push("--".into());
    Ok(words)
}

/// Makes a node's folders.
///
/// # Errors
/// When one cannot be made.
pub(super) fn make(node: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let parent = hierarchy.mount_point.join(CGROUP);
        let folder = parent.join(node);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        match &hierarchy.options {
            // A new cpuset is empty, and no process may enter it.
            Some(options) if options.split(',').any(|word| word == "cpuset") => {
                for (from, to) in [(&hierarchy.mount_point, &parent), (&parent, &folder)] {
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        fs::write(to.join(file), fs::read(from.join(file))?)
                            .with_context(|| to.join(file).display().to_string())?;
                    }
                }
            }
            Some(_) => {}
            None => {
                for at in [&hierarchy.mount_point, &parent] {
                    enable_controllers(at)?;
                }
            }
        }
    }
    Ok(())
}

/// Passes all controllers of a cgroup2 on to its children; where v1 has them there are none.
fn enable_controllers(at: &Path) -> Result<()> {
    let there = fs::read_to_string(at.join("cgroup.controllers"))?;
    for name in there.split_whitespace() {
        // Some, such as rdma or those of real-time scheduling, may be refused: the kubelet
        // tells what it misses.
        let _ = fs::write(at.join("cgroup.subtree_control"), format!("+{name}"));
    }
    Ok(())
}

/// Mounts the hierarchies anew, in a node's own cgroup and mount namespaces: each then begins
/// at the node's folder.
///
/// # Errors
/// When one cannot be mounted.
pub(super) fn mount_own(hierarchies: &[Hierarchy]) -> Result<()> {
    let alone = hierarchies.iter().any(|one| one.mount_point == Path::new(ROOT));
    if !alone {
        mount(Some("tmpfs"), ROOT, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    }
    for one in hierarchies {
        fs::create_dir_all(&one.mount_point)?;
        let kind = if one.options.is_some() { "cgroup" } else { "cgroup2" };
        mount(Some(kind), &one.mount_point, Some(kind), MsFlags::empty(), one.options.as_deref())
            .with_context(|| format!("mounting {}", one.mount_point.display()))?;
    }
    if alone {
        // A cgroup that has children with controllers may hold no process (cgroup-v2.rst, "No
        // Internal Process Constraint"): the kubelet's pods are children of this one.
        let own = Path::new(ROOT).join(INNER);
        fs::create_dir_all(&own)?;
        let every = fs::read_to_string(Path::new(ROOT).join("cgroup.procs"))?;
        for pid in every.lines() {
            fs::write(own.join("cgroup.procs"), pid)?;
        }
        enable_controllers(Path::new(ROOT))?;
    }
    Ok(())
}

/// The processes of a node: of its folders and of all below them.
///
/// # Errors
/// When there is no hierarchy.
pub(super) fn processes(node: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for folder in folders(node)? {
        collect(&folder, &mut found);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<u32>) {
    let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
    for child in children(folder) {
        collect(&child, found);
    }
}

/// Waits until a node has no process any more and removes its folders.
///
/// # Errors
/// When some process does not end.
pub(super) fn remove(node: &str) -> Result<()> {
    let folders = folders(node)?;
    until(&format!("{node}'s processes end"), Duration::from_secs(20), || {
        for folder in folders.iter().filter(|folder| folder.is_dir()) {
            if let Err(error) = remove_tree(folder) {
                let held = processes(node)?.into_iter();
                let held: Vec<String> =
                    held.map(|pid| format!("{} ({pid})", name_of(pid).unwrap_or_default())).collect();
                bail!("{}: {error}; in it: {}", folder.display(), held.join(", "));
            }
        }
        Ok(())
    })
}

/// Removes the folders that held the nodes', where they are empty.
///
/// # Errors
/// When there is no hierarchy.
pub(super) fn remove_parents() -> Result<()> {
    for hierarchy in hierarchies()? {
        // What is left is told by the last look.
        let _ = fs::remove_dir(hierarchy.mount_point.join(CGROUP));
    }
    Ok(())
}

/// The folders that are there.
///
/// # Errors
/// When there is no hierarchy.
pub(super) fn left() -> Result<Vec<PathBuf>> {
    let parents = hierarchies()?.into_iter().map(|one| one.mount_point.join(CGROUP));
    Ok(parents.filter(|parent| parent.exists()).collect())
}

fn remove_tree(folder: &Path) -> std::io::Result<()> {
    for child in children(folder) {
        remove_tree(&child)?;
    }
    fs::remove_dir(folder)
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_a_hybrid_machine_are_read() {
        let mounts = "\
24 1 0:21 / /sys rw - sysfs sysfs rw
25 24 0:22 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd
28 25 0:25 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
29 1 0:26 / /tmp/elsewhere rw - cgroup2 cgroup2 rw
";
        let found: Vec<(String, Option<String>)> = parse(mounts)
            .into_iter()
            .map(|one| (one.mount_point.display().to_string(), one.options))
            .collect();
        let wanted = [
            ("/sys/fs/cgroup/cpu,cpuacct", Some("cpu,cpuacct")),
            ("/sys/fs/cgroup/systemd", Some("none,name=systemd")),
            ("/sys/fs/cgroup/unified", None),
        ];
        assert_eq!(found, wanted.map(|(at, options)| (at.to_owned(), options.map(str::to_owned))));
    }

    #[test]
    fn pure_cgroup2_is_one_hierarchy() {
        let found = parse("30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(found, [Hierarchy { mount_point: ROOT.into(), options: None }]);
    }
}
