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

/// What the kubelet of this node is told, as far as `weir init-node` found it.
const KUBELET: &str = "kubelet-apiserver";

/// Keeps the URL of the API server that the node's kubelet uses, for an agent that may not read
/// the kubelet's files; `None`: it is not known any more.
///
/// # Errors
/// When the folder cannot be written.
pub fn remember_kubelet_server(state_dir: &Path, url: Option<&str>) -> io::Result<()> {
    match url {
        Some(url) => replace(state_dir, KUBELET, &format!("{url}\n")),
        None => match std::fs::remove_file(state_dir.join(KUBELET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// The URL that was kept, if it is one.
pub(super) fn remembered_kubelet_server(state_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(state_dir.join(KUBELET)).ok()?;
    let url = text.trim();
    url.starts_with("https://").then(|| url.to_owned())
}

/// Keeps the addresses of the API servers in the state folder, one a line.
///
/// # Errors
/// When the folder cannot be written.
pub fn remember_endpoints(state_dir: &Path, addresses: &[SocketAddr]) -> io::Result<()> {
    let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
    replace(state_dir, FILE, &text)
}

/// As a whole, so that a reader never sees half.
fn replace(state_dir: &Path, name: &str, text: &str) -> io::Result<()> {
    std::fs::create_dir_all(state_dir)?;
    let new = state_dir.join(format!("{name}.new"));
    std::fs::write(&new, text)?;
    std::fs::rename(new, state_dir.join(name))
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
