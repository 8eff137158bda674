//! Taking from the proxy's process what it does not need, before it reads a byte of a stranger.
//!
//! Called while the process has one thread: threads that are started later inherit the state
//! (H43). What was asked for is read back from the kernel, and said in the log.

use anyhow::{Context, bail, ensure};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, no_new_privs, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::fs::{File, Permissions};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

/// Closes every descriptor but the standard three and `kept`: whatever this process was
/// started with.
///
/// # Errors
/// When they cannot be listed.
pub(super) fn close_inherited(kept: BorrowedFd<'_>) -> anyhow::Result<()> {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .context("open files cannot be listed")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2 && *fd != kept.as_raw_fd())
        .collect();
    for fd in open {
        // The listing itself is among them, and closed already.
        let _closed = nix::unistd::close(fd);
    }
    Ok(())
}

/// Makes a file if it is not there, and lets user `id` write it: as its owner or, without
/// CAP_CHOWN, by its group.
pub(super) fn own(path: &Path, id: u32) -> std::io::Result<()> {
    let mut options = File::options();
    let file = match options.append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path) {
        Ok(file) => file,
        // Made by an earlier proxy, and nothing that root without CAP_DAC_OVERRIDE may open.
        Err(_) if path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.uid() == id) => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if rustix::process::getuid().is_root() && fchown(&file, Some(id), Some(id)).is_err() {
        // The owner of a file may give it to a group that it is in; `drop_all` leaves it again.
        set_thread_groups(&[Gid::from_raw(id)])?;
        fchown(&file, None, Some(id))?;
        file.set_permissions(Permissions::from_mode(0o660))?;
    }
    Ok(())
}

/// Lets the process open as many files as the system allows.
pub(super) fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        tracing::warn!(?current, ?maximum, "the limit of open files cannot be raised");
    }
}

/// Becomes user and group `id`, without a group, a capability or a way to get one back; leaves
/// no core. A process that is not root's keeps its user.
///
/// # Errors
/// When the kernel refuses, or says afterwards that it is not so.
pub(super) fn drop_all(id: u32) -> anyhow::Result<()> {
    let root = rustix::process::getuid().is_root();
    // Needs CAP_SETPCAP. Without it the set stays, and no_new_privs keeps it from being used.
    let bounded = remove_bounding_set();
    clear_ambient_capability_set().context("ambient capabilities")?;
    if root {
        ensure!(id != 0, "--proxy-user: the proxy does not run as root");
        let needed = "CAP_SETUID and CAP_SETGID are needed to leave the root user";
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        set_thread_groups(&[]).context(needed)?;
        set_thread_res_gid(gid, gid, gid).context(needed)?;
        set_thread_res_uid(uid, uid, uid).context(needed)?;
    }
    let none = CapabilitySet::empty();
    let nothing = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, nothing).context("capabilities")?;
    set_no_new_privs(true).context("no_new_privs")?;
    leave_no_core()?;
    verify(root, id)?;
    if !root {
        tracing::warn!(
            user = rustix::process::getuid().as_raw(),
            "the proxy is the agent's user, and could open what that user can: start weir as root"
        );
    }
    let user = rustix::process::getuid().as_raw();
    tracing::info!(
        user,
        bounding_set = if bounded { "empty" } else { "kept" },
        "the proxy has no privileges"
    );
    Ok(())
}

/// Keeps what this process knows, private keys among it, out of cores and from other processes
/// of its user.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn leave_no_core() -> anyhow::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("PR_SET_DUMPABLE")?;
    let zero = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, zero).context("RLIMIT_CORE")
}

fn remove_bounding_set() -> bool {
    CapabilitySet::all()
        .iter()
        .filter(|capability| capability_is_in_bounding_set(*capability).unwrap_or(false))
        .all(|capability| remove_capability_from_bounding_set(capability).is_ok())
}

/// Reads back what the kernel made of it.
fn verify(was_root: bool, id: u32) -> anyhow::Result<()> {
    let sets = capabilities(None)?;
    ensure!(
        sets.effective.is_empty() && sets.permitted.is_empty() && sets.inheritable.is_empty(),
        "capabilities are left: {sets:?}"
    );
    ensure!(no_new_privs()?, "no_new_privs is not in force");
    ensure!(dumpable_behavior()? != DumpableBehavior::Dumpable, "a core could be dumped");
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    for line in status.lines() {
        match line.split_once(':') {
            Some(("Uid" | "Gid", ids)) if was_root => {
                let all = ids.split_whitespace().all(|of| of.parse() == Ok(id));
                ensure!(all, "still another user or group: {line}");
            }
            Some(("Groups", groups)) if was_root && !groups.trim().is_empty() => {
                bail!("still in groups {}", groups.trim());
            }
            _ => {}
        }
    }
    if was_root {
        // The way back is shut.
        ensure!(set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_err(), "root can be had again");
    }
    Ok(())
}
