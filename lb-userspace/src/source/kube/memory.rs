//! Where the API servers were when last seen, kept over restarts.
//!
//! A node without kube-proxy must come up: the cluster IP of the API server works only once we
//! program it, so the agent must know a real address.

use crate::problem::ObjectKey;
use crate::source::{Change, EndpointSlice, Object};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const FILE: &str = "apiservers";

/// Keeps the addresses of the API servers in the state folder, one a line. Replaced as a whole,
/// so that a reader never sees half.
///
/// # Errors
/// When the folder cannot be written.
pub fn remember_endpoints(state_dir: &Path, addresses: &[SocketAddr]) -> io::Result<()> {
    let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
    std::fs::create_dir_all(state_dir)?;
    let new = state_dir.join(format!("{FILE}.new"));
    std::fs::write(&new, text)?;
    std::fs::rename(new, state_dir.join(FILE))
}

/// The addresses that were kept; none when there are none or they cannot be read.
pub fn remembered_endpoints(state_dir: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(state_dir.join(FILE)).unwrap_or_default();
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// Follows the slices of `default/kubernetes`.
#[derive(Debug)]
pub(super) struct Memory {
    state_dir: PathBuf,
    slices: BTreeMap<ObjectKey, Vec<SocketAddr>>,
    kept: Vec<SocketAddr>,
}

impl Memory {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            slices: BTreeMap::new(),
            kept: remembered_endpoints(state_dir),
        }
    }

    /// Looks at what is sent on, and keeps what it says about the API servers.
    pub(super) fn note(&mut self, batch: &[Change]) {
        let mut noted = false;
        for change in batch {
            match change {
                Change::Replace(crate::problem::Kind::EndpointSlice, objects) => {
                    self.slices.clear();
                    objects.iter().for_each(|object| self.put(object));
                    noted = true;
                }
                Change::Upsert(object @ Object::EndpointSlice(slice)) if is_api_server(slice) => {
                    self.put(object);
                    noted = true;
                }
                Change::Delete(object) => noted |= self.slices.remove(&object.key).is_some(),
                Change::Upsert(_)
                | Change::Replace(..)
                | Change::Unreadable(..)
                | Change::Forget(_)
                | Change::Problems(_) => {}
            }
        }
        if noted {
            self.keep();
        }
    }

    fn put(&mut self, object: &Object) {
        if let Object::EndpointSlice(slice) = object
            && is_api_server(slice)
        {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
            let addresses = ready
                .flat_map(|e| slice.ports.iter().map(|port| SocketAddr::new(e.addr, port.port)))
                .collect();
            self.slices.insert(slice.key.clone(), addresses);
        }
    }

    fn keep(&mut self) {
        let all: BTreeSet<SocketAddr> = self.slices.values().flatten().copied().collect();
        let all: Vec<SocketAddr> = all.into_iter().collect();
        // None is no news: the last ones seen may still be right.
        if all.is_empty() || all == self.kept {
            return;
        }
        match remember_endpoints(&self.state_dir, &all) {
            Ok(()) => self.kept = all,
            Err(error) => {
                tracing::warn!(%error, folder = %self.state_dir.display(), "API server addresses are not kept");
            }
        }
    }
}

fn is_api_server(slice: &EndpointSlice) -> bool {
    slice.service.namespace == "default" && slice.service.name == "kubernetes"
}
