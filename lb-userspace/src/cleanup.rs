//! `weir cleanup`: removes what Weir put on this node, and nothing else (S83).

use crate::lock;
use anyhow::Context;
use std::path::Path;

/// Removes links, filters, maps and the state folder. Refuses while an agent runs.
///
/// # Errors
/// When an agent holds the node, or something cannot be removed.
pub fn run(bpffs: &Path, state_dir: &Path) -> anyhow::Result<()> {
    // Without a state folder no agent ran here, or its folder is another: pins still go.
    let lock = match state_dir.is_dir() {
        false => None,
        true => Some(lock::try_acquire(state_dir)?.with_context(|| {
            format!("an agent runs here (lock in {}): stop it first", state_dir.display())
        })?),
    };
    // An agent with another state folder uses the same maps.
    let _maps_lock = match bpffs.join("weir").is_dir() {
        false => None,
        true => Some(lock::try_acquire_maps(bpffs)?.with_context(|| {
            format!("an agent runs here (lock on {}): stop it first", bpffs.join("weir").display())
        })?),
    };
    let removed = crate::datapath::loader::cleanup(bpffs)?;
    for link in &removed.links {
        println!("removed link {link}");
    }
    for map in &removed.maps {
        println!("removed map {map}");
    }
    if lock.is_some() {
        remove_state(state_dir)?;
        println!("removed {}", state_dir.display());
    }
    if removed.links.is_empty() && removed.maps.is_empty() && lock.is_none() {
        println!("nothing to remove");
    }
    Ok(())
}

/// Removes the files that an agent makes, and the folder if nothing else is in it.
fn remove_state(state_dir: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(state_dir)? {
        let path = entry?.path();
        let names = ["lock", "apiservers", "kubelet-apiserver"];
        let ours = path.file_name().is_some_and(|name| names.iter().any(|ours| name == *ours))
            || path.extension().is_some_and(|extension| extension == "sock");
        if ours {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    match std::fs::remove_dir(state_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        // A mount point, such as a volume of the pod: empty is enough.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        result => result.with_context(|| format!("remove {}", state_dir.display())),
    }
}
