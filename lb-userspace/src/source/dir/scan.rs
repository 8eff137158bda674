//! Which files there are, and whether one may have changed since it was last read.

use super::store::problem;
use crate::problem::Problem;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What changes when a file does: another inode, size or time. Links are followed, so the swap
/// of a mounted ConfigMap shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Print {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The print of a file; `None` when there is no such file.
pub(super) fn print(path: &Path) -> Option<Print> {
    let meta = std::fs::metadata(path).ok()?;
    meta.is_file().then(|| Print {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

/// Whether a file of a folder is a manifest, by its name.
pub(super) fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    !hidden && ["yaml", "yml", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// The files and folders that were asked for.
#[derive(Debug)]
pub(super) struct Roots(Vec<Root>);

#[derive(Debug)]
struct Root {
    path: PathBuf,
    /// Whether it could be read once.
    seen: bool,
    was_folder: bool,
    error: Option<String>,
}

impl Roots {
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        let root = |path: &PathBuf| Root { path: path.clone(), seen: false, was_folder: false, error: None };
        Self(paths.iter().map(root).collect())
    }

    /// Whether the path was asked for by name.
    pub(super) fn names(&self, path: &Path) -> bool {
        self.0.iter().any(|root| root.path == path)
    }

    pub(super) fn all_seen(&self) -> bool {
        self.0.iter().all(|root| root.seen)
    }

    /// Every file there is now.
    pub(super) fn list(&mut self) -> BTreeMap<PathBuf, Print> {
        let mut found = BTreeMap::new();
        for root in &mut self.0 {
            root.error = root.list(&mut found).err().map(|error| error.to_string());
        }
        found
    }

    /// Whether a file is missing only because its folder is: an unmounted folder does not delete
    /// objects. A file that was asked for by name and is gone does.
    pub(super) fn is_lost(&self, path: &Path) -> bool {
        let mut lost = self.0.iter().filter(|root| root.was_folder && root.error.is_some());
        lost.any(|root| path.parent() == Some(&root.path))
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let told = |root: &Root| {
            let error = root.error.as_ref()?;
            let then = match (root.seen, root.was_folder) {
                (false, _) => "nothing is programmed before it can be read",
                (true, true) => "its objects stay",
                (true, false) => "its objects are gone",
            };
            Some(problem(&root.path, String::new(), format!("cannot be read: {error}; {then}")))
        };
        self.0.iter().filter_map(told).collect()
    }
}

impl Root {
    fn list(&mut self, found: &mut BTreeMap<PathBuf, Print>) -> io::Result<()> {
        let meta = std::fs::metadata(&self.path)?;
        self.was_folder = meta.is_dir();
        if self.was_folder {
            for entry in std::fs::read_dir(&self.path)? {
                let path = entry?.path();
                if is_manifest(&path)
                    && let Some(print) = print(&path)
                {
                    found.insert(path, print);
                }
            }
        } else {
            found.extend(print(&self.path).map(|print| (self.path.clone(), print)));
        }
        self.seen = true;
        Ok(())
    }
}
