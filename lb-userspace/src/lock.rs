//! One writer on a node: the lock in the state folder.
//!
//! A second agent, such as the new one of a rolling upgrade, stands by and takes over at
//! once when the first one goes, however it goes: the kernel drops the lock with the process.

use anyhow::Context;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
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
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("lock {} cannot be opened", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock { _file: file })),
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
    if let Some(lock) = try_acquire(state_dir)? {
        return Ok(lock);
    }
    standby();
    loop {
        // Polled, because a thread in a blocking flock() cannot be called off at shutdown.
        tokio::time::sleep(POLL).await;
        if let Some(lock) = try_acquire(state_dir)? {
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
        std::fs::remove_dir_all(dir).unwrap();
    }
}
