//! What one command leaves for the next: a folder outside of the checkout with the cluster's
//! keys, logs and disks, and in it `state.json`, which names every process that was started
//! and every folder that was made.
//!
//! There is one cluster at a time on a machine, since its names are fixed: [`MARK`] says
//! whose folder describes it, and is locked while a command changes something.

use super::plan::Plan;
use super::process::Identity;
use crate::go;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Holds the path of the run folder of the machine's cluster; empty or absent: there is none.
pub(super) const MARK: &str = "/run/weir-cluster";

/// What is there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// The machine's start that the processes belong to.
    pub boot: String,
    pub plan: Plan,
    /// By name: `etcd`, `kube-apiserver`, `node1`.
    pub processes: BTreeMap<String, Identity>,
    /// Folders and empty files that were made on the shared root file system, to mount on.
    pub made: BTreeSet<PathBuf>,
}

/// The folder of a cluster.
#[derive(Debug, Clone)]
pub struct Run {
    root: PathBuf,
}

impl Run {
    /// Below the cache folder, as `cargo xtask` finds it.
    ///
    /// # Errors
    /// When there is no place for a cache.
    pub fn find() -> Result<Self> {
        Ok(Self { root: home()?.join("run") })
    }

    /// In another place.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("log")
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// With every right.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    pub fn audit_log(&self) -> PathBuf {
        self.logs().join("audit.log")
    }

    /// The disks and settings of a node.
    pub fn node(&self, name: &str) -> PathBuf {
        self.root.join("nodes").join(name)
    }

    /// The program that made the cluster, kept for what runs on.
    pub fn program(&self) -> PathBuf {
        self.root.join("cluster")
    }

    fn file(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// The state of the cluster that is up; none when none is.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn state(&self) -> Result<Option<State>> {
        let text = match fs::read(self.file()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.file().display().to_string()),
        };
        let mut state: State =
            serde_json::from_slice(&text).with_context(|| self.file().display().to_string())?;
        if state.boot != boot()? {
            // All of them ended with the machine.
            state.processes.clear();
        }
        Ok(Some(state))
    }

    /// Changes the state; made when there is none.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        fs::create_dir_all(&self.root).with_context(|| self.root.display().to_string())?;
        let lock = File::create(self.root.join(".state"))?;
        lock.lock()?;
        let mut state = self.state()?.unwrap_or_default();
        state.boot = boot()?;
        change(&mut state);
        let temporary = self.root.join(".state.json");
        fs::write(&temporary, serde_json::to_vec_pretty(&state)?)?;
        Ok(fs::rename(&temporary, self.file())?)
    }

    /// Writes down a process that was started.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub fn keep(&self, name: &str, process: Identity) -> Result<()> {
        self.change(|state| {
            state.processes.insert(name.to_owned(), process);
        })
    }

    /// Strikes out a process that has ended.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub fn forget(&self, name: &str) -> Result<()> {
        self.change(|state| {
            state.processes.remove(name);
        })
    }

    /// Removes the folder.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.root.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Everything of clusters that is kept between them.
///
/// # Errors
/// When there is no place for a cache.
pub fn home() -> Result<PathBuf> {
    Ok(go::cache()?.join("cluster"))
}

/// The right to change the machine's cluster; given back when dropped.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes it at once.
    ///
    /// # Errors
    /// While another command has it, and when the machine's cluster is of another folder.
    pub fn take(run: &Run) -> Result<Self> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(MARK);
        let mut file = file.with_context(|| format!("opening {MARK} (run as root)"))?;
        if file.try_lock().is_err() {
            bail!("another command is at work on this machine's cluster ({MARK} is locked)");
        }
        let mut owner = String::new();
        file.read_to_string(&mut owner)?;
        let owner = Path::new(owner.trim());
        if !owner.as_os_str().is_empty() && owner != run.root() && owner.join("state.json").exists() {
            bail!("this machine's cluster is that of {}: end it first, with its WEIR_CACHE", owner.display());
        }
        Ok(Self(file))
    }

    /// Says whose cluster the machine's is from now on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark(&mut self, run: &Run) -> Result<()> {
        self.0.set_len(0)?;
        self.0.rewind()?;
        Ok(self.0.write_all(run.root().as_os_str().as_encoded_bytes())?)
    }

    /// Says that there is none.
    ///
    /// # Errors
    /// When the mark cannot be removed.
    pub fn clear(self) -> Result<()> {
        match fs::remove_file(MARK) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Differs between two starts of the machine.
fn boot() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_found_again_and_processes_of_an_earlier_start_are_not() -> Result<()> {
        let root = std::env::temp_dir().join(format!("weir-state-{}", std::process::id()));
        let run = Run { root: root.clone() };
        assert!(run.state()?.is_none());
        let own = Identity::of(std::process::id())?;
        run.change(|state| {
            state.plan.nodes = 2;
            state.processes.insert("etcd".into(), own);
        })?;
        let state = run.state()?.context("a state")?;
        assert_eq!((state.plan.nodes, state.processes.get("etcd")), (2, Some(&own)));
        let text = fs::read_to_string(run.file())?.replace(&boot()?, "another");
        fs::write(run.file(), text)?;
        let state = run.state()?.context("a state")?;
        assert_eq!((state.plan.nodes, state.processes.len()), (2, 0));
        run.remove()?;
        run.remove()?;
        assert!(!root.exists());
        Ok(())
    }
}
