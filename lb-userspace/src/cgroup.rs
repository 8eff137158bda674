//! Where the control groups are whose sockets are translated: a cgroup2 file system, wherever the
//! machine has it.
//!
//! Alone it is at `/sys/fs/cgroup`; beside the older kind at `/sys/fs/cgroup/unified`, as a rule.
//! A container sees its own control group at these places. What it sees of the whole node was
//! mounted into it elsewhere, and named with `--cgroup`.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const MAGIC: u64 = 0x6367_7270;

/// The control group to use: `asked`, or the first cgroup2 that is mounted below it; without
/// `asked`, the first that is mounted anywhere.
///
/// # Errors
/// When there is none.
pub(crate) fn root(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    let mounts = || std::fs::read_to_string("/proc/self/mounts").context("mounts cannot be read");
    match asked {
        Some(path) if is_cgroup2(path).with_context(|| format!("--cgroup {}", path.display()))? => {
            Ok(path.to_owned())
        }
        Some(path) => match mounted(&mounts()?, path) {
            Some(found) => Ok(found),
            None => bail!("--cgroup {}: no cgroup2 is mounted there or below", path.display()),
        },
        None => mounted(&mounts()?, Path::new("/")).context(
            "cgroup2 is mounted nowhere: name a control group with --cgroup, or use --socket-lb off",
        ),
    }
}

fn is_cgroup2(path: &Path) -> std::io::Result<bool> {
    Ok(u64::try_from(rustix::fs::statfs(path)?.f_type).is_ok_and(|kind| kind == MAGIC))
}

/// The first cgroup2 at or below a folder, from the text of /proc/mounts.
fn mounted(mounts: &str, below: &Path) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2" && Path::new(place).starts_with(below)).then(|| PathBuf::from(place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "proc /proc proc rw 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
        tmpfs /cgroups tmpfs ro 0 0\n\
        cgroup /cgroup/memory cgroup rw,memory 0 0\n\
        cgroup2 /cgroup/unified cgroup2 rw 0 0\n";

    #[test]
    fn what_is_mounted_below_the_folder_is_found_and_nothing_beside_it() {
        for (below, found) in [
            ("/", Some("/sys/fs/cgroup/unified")),
            ("/cgroup", Some("/cgroup/unified")),
            ("/cgroup/unified", Some("/cgroup/unified")),
            ("/cgroups", None),
        ] {
            assert_eq!(mounted(HYBRID, Path::new(below)).as_deref(), found.map(Path::new), "{below}");
        }
    }

    #[test]
    fn a_folder_without_one_is_told_with_the_flag() {
        let error = root(Some(Path::new("/proc/self"))).expect_err("no control group");
        assert_eq!(error.to_string(), "--cgroup /proc/self: no cgroup2 is mounted there or below");
        assert!(root(Some(Path::new("/nowhere"))).is_err());
    }
}
