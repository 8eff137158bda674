//! One writer on a node: the lock in the state folder, and that on the maps' own folder, which
//! agents share whatever their state folders are.
//!
//! A second agent, such as the new one of a rolling upgrade, stands by and takes over at
//! once when the first one goes, however it goes: the kernel drops the lock with the process.

use anyhow::Context;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// How soon a standby notices that it is needed.
const POLL: Duration = Duration::from_millis(50);

/// Held for as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Creates the state folder, for root alone.
///
/// # Errors
/// When it cannot be created.
pub fn prepare(state_dir: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("state folder {} cannot be created (--state-dir)", state_dir.display()))
}

/// Takes the lock; `None` while another agent holds it.
///
/// # Errors
/// When the file cannot be opened or the file system has no locks.
pub fn try_acquire(state_dir: &Path) -> anyhow::Result<Option<Lock>> {
    let path = state_dir.join("lock");
    let told = || format!("lock {} cannot be opened", path.display());
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path).with_context(told)?;
    // An older version's file: whoever can open it can hold it.
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).with_context(told)?;
    try_lock(&path, file)
}

/// Takes the lock on the folder of all pins below `bpffs`; `None` while another agent holds
/// it. The folder is made where it is not there.
///
/// # Errors
/// When the folder cannot be made or opened, or the file system has no locks.
pub fn try_acquire_maps(bpffs: &Path) -> anyhow::Result<Option<Lock>> {
    let folder = bpffs.join("weir");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).with_context(|| {
        format!("create {}: is a bpf file system mounted there (--bpffs)?", folder.display())
    })?;
    let file = File::open(&folder).with_context(|| format!("open {}", folder.display()))?;
    try_lock(&folder, file)
}

fn try_lock(path: &Path, file: File) -> anyhow::Result<Option<Lock>> {
    match file.try_lock() {
        Ok(()) => {
            let ours = file.metadata().map(|meta| (meta.dev(), meta.ino()))?;
            let there = std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
            // Removed by a cleanup after it was opened: the lock guards nothing.
            Ok(there.is_ok_and(|there| there == ours).then_some(Lock { _file: file }))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{} cannot be locked", path.display()))
        }
    }
}

/// Waits for the lock; `standby` is called once if there is somebody to wait for.
///
/// # Errors
/// As [`try_acquire`].
pub async fn acquire(state_dir: &Path, standby: impl FnOnce()) -> anyhow::Result<Lock> {
    wait(|| try_acquire(state_dir), standby).await
}

/// Waits for the lock on the maps, likewise.
///
/// # Errors
/// As [`try_acquire_maps`].
pub async fn acquire_maps(bpffs: &Path, standby: impl FnOnce()) -> anyhow::Result<Lock> {
    wait(|| try_acquire_maps(bpffs), standby).await
}

async fn wait(
    attempt: impl Fn() -> anyhow::Result<Option<Lock>>,
    standby: impl FnOnce(),
) -> anyhow::Result<Lock> {
    if let Some(lock) = attempt()? {
        return Ok(lock);
    }
    standby();
    loop {
        // Polled, because a thread in a blocking flock() cannot be called off at shutdown.
        tokio::time::sleep(POLL).await;
        if let Some(lock) = attempt()? {
            return Ok(lock);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn the_second_waits_and_takes_over() {
        let dir = std::env::temp_dir().join(format!("weir-lock-{}", std::process::id()));
        prepare(&dir).unwrap();
        let first = acquire(&dir, || panic!("nobody to wait for")).await.unwrap();
        assert!(try_acquire(&dir).unwrap().is_none());
        let (told, standby) = tokio::sync::oneshot::channel();
        let second = tokio::spawn({
            let dir = dir.clone();
            async move { acquire(&dir, move || told.send(()).unwrap()).await.unwrap() }
        });
        standby.await.unwrap();
        assert!(!second.is_finished());
        drop(first);
        drop(second.await.unwrap());
        assert_eq!(std::fs::metadata(dir.join("lock")).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_maps_have_one_writer_whatever_the_state_folders_are() {
        let dir = std::env::temp_dir().join(format!("weir-maps-lock-{}", std::process::id()));
        let first = try_acquire_maps(&dir).unwrap().unwrap();
        assert!(try_acquire_maps(&dir).unwrap().is_none());
        drop(first);
        let opened = File::open(dir.join("weir")).unwrap();
        std::fs::remove_dir(dir.join("weir")).unwrap();
        assert!(try_lock(&dir.join("weir"), opened).unwrap().is_none(), "a removed folder guards nothing");
        drop(try_acquire_maps(&dir).unwrap().unwrap());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
