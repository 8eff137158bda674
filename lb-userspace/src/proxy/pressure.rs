//! Whether the memory of the process's control group is nearly used up (H26).
//!
//! At 98 % of the limit new connections are closed as soon as they are accepted: what is open
//! comes first, and a process that the kernel kills for want of memory would lose all of it.
//! What the kernel can take back at once, file pages that nobody uses, does not count, as in
//! the kubelet's eviction. Without a limit, or without control groups, nothing is ever refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tracing::{info, warn};

/// Milliseconds for which an answer holds.
const FRESH: u64 = 100;
/// Parts of a hundred from which on memory is short.
const HIGH: u64 = 98;

/// The files of either version of control groups: limit, use, and the line of `memory.stat`.
const VERSIONS: [[&str; 3]; 2] = [
    ["memory.max", "memory.current", "inactive_file"],
    ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"],
];

/// Where either version tells what can be taken back.
const STAT: &str = "memory.stat";

/// Looks at a control group now and then; shared by all workers.
#[derive(Debug, Default)]
pub struct Pressure {
    folder: Option<PathBuf>,
    /// When it was looked at last, and one more: 0 is never.
    looked: AtomicU64,
    high: AtomicBool,
}

impl Pressure {
    /// Minds the control group of this folder; none: memory is never short.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, ..Self::default() }
    }

    /// Tells whether memory is short. `now`: milliseconds since some moment.
    pub fn is_high(&self, now: u64) -> bool {
        let Some(folder) = &self.folder else { return false };
        let looked = self.looked.load(Ordering::Relaxed);
        let due = looked == 0 || now.saturating_add(1).saturating_sub(looked) >= FRESH;
        // One of the workers looks; the others go by what was seen last.
        let stamp = now.saturating_add(1);
        if due && self.looked.compare_exchange(looked, stamp, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let high = read(folder).is_some_and(|(limit, used)| used / 100 >= limit / 100 * HIGH / 100);
            match (self.high.swap(high, Ordering::Relaxed), high) {
                (false, true) => warn!("memory is nearly used up: new connections are closed"),
                (true, false) => info!("there is memory again: new connections are served"),
                _ => {}
            }
        }
        self.high.load(Ordering::Relaxed)
    }
}

/// What is read of a group's folder.
pub(super) fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let named = VERSIONS.iter().flat_map(|[limit, used, _]| [limit, used]);
    named.copied().chain([STAT]).map(|name| folder.join(name))
}

/// Limit and use in bytes; none where there is no limit.
fn read(folder: &Path) -> Option<(u64, u64)> {
    VERSIONS.iter().find_map(|[limit, used, reclaimable]| {
        let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        let (limit, used) = (number(limit)?, number(used)?);
        let stat = fs::read_to_string(folder.join(STAT)).unwrap_or_default();
        let free = stat.lines().find_map(|line| line.strip_prefix(reclaimable)?.trim().parse().ok());
        Some((limit, used.saturating_sub(free.unwrap_or(0))))
    })
}

/// The folder of this process's control group, where memory can be limited.
pub fn own() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    candidates(&groups).into_iter().find(|folder| {
        VERSIONS.iter().any(|[limit, used, _]| folder.join(limit).is_file() && folder.join(used).is_file())
    })
}

/// Where the groups of `/proc/self/cgroup` may be found. In a container the path is that of
/// the host, and the group itself is mounted at the root, where it has no namespace of its own.
fn candidates(groups: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            _ if controllers.split(',').any(|one| one == "memory") => "/sys/fs/cgroup/memory",
            _ => continue,
        };
        found.push(Path::new(root).join(path.trim_start_matches('/')));
        found.push(PathBuf::from(root));
    }
    found
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_from_98_percent_of_the_limit_on() {
        for (version, [limit, used, reclaimable]) in VERSIONS.iter().enumerate() {
            for (most, now, free, high) in [
                ("1000000", 979_000, 0, false),
                ("1000000", 980_000, 0, true),
                ("1000000", 999_999, 50_000, false),
                ("1000000", 2_000_000, 0, true),
                ("max", 2_000_000, 0, false),
                // What the old version says where there is no limit.
                ("9223372036854771712", 2_000_000, 0, false),
            ] {
                let folder = tempfile::tempdir().unwrap();
                fs::write(folder.path().join(limit), format!("{most}\n")).unwrap();
                fs::write(folder.path().join(used), format!("{now}\n")).unwrap();
                fs::write(folder.path().join("memory.stat"), format!("anon 5\n{reclaimable} {free}\n"))
                    .unwrap();
                let pressure = Pressure::new(Some(folder.path().into()));
                assert_eq!(pressure.is_high(0), high, "version {version}: {now} of {most}, {free} free");
            }
        }
    }

    #[test]
    fn it_is_looked_at_now_and_then() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, number: u64| fs::write(folder.path().join(name), number.to_string()).unwrap();
        put("memory.max", 1_000_000);
        put("memory.current", 100_000);
        let pressure = Pressure::new(Some(folder.path().into()));
        assert!(!pressure.is_high(5));
        put("memory.current", 999_000);
        assert!(!pressure.is_high(6), "an answer holds for a while");
        assert!(pressure.is_high(6 + FRESH));
        put("memory.current", 100_000);
        assert!(!pressure.is_high(7 + 2 * FRESH));
        assert!(!Pressure::default().is_high(0));
    }

    #[test]
    fn groups_of_either_version_are_found() {
        let paths = |text: &str| -> Vec<String> {
            candidates(text).iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(paths("0::/kubepods/pod1\n"), ["/sys/fs/cgroup/kubepods/pod1", "/sys/fs/cgroup"]);
        assert_eq!(paths("0::/\n"), ["/sys/fs/cgroup/", "/sys/fs/cgroup"]);
        assert_eq!(
            paths("5:cpu:/a\n4:memory,x:/a:b\n"),
            ["/sys/fs/cgroup/memory/a:b", "/sys/fs/cgroup/memory"]
        );
        assert!(paths("nonsense").is_empty());
    }
}
