//! When to look at the files again.

use super::scan::is_manifest;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// What happens within this time of each other is read together; a file is seldom written in one
/// call.
const SETTLE: Duration = Duration::from_millis(25);
/// A file that is written without a pause is read anyway.
const SETTLE_AT_MOST: Duration = Duration::from_millis(250);
/// How often everything is looked at where inotify works, and where it does not or a path is
/// missing.
const LOOK: Duration = Duration::from_secs(10);
const LOOK_OFTEN: Duration = Duration::from_secs(1);

/// What may have changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Hint {
    All,
    Some(BTreeSet<PathBuf>),
}

/// inotify on the folders, and a slow clock.
#[derive(Debug)]
pub(super) struct Watch {
    roots: Vec<PathBuf>,
    events: mpsc::UnboundedReceiver<Hint>,
    inotify: Option<RecommendedWatcher>,
    /// Folders that are watched, with device and inode: one that was made anew is another.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

impl Watch {
    pub(super) fn new(roots: &[PathBuf]) -> Self {
        let (tx, events) = mpsc::unbounded_channel();
        let files = roots.to_vec();
        let handler = move |event: notify::Result<notify::Event>| {
            if let Some(hint) = hint(event, &files) {
                // The receiver is gone when the source has stopped.
                let _stopped = tx.send(hint);
            }
        };
        let inotify = notify::recommended_watcher(handler)
            .inspect_err(|error| tracing::warn!(%error, "no inotify: files are looked at every second"))
            .ok();
        let mut watch = Self { roots: roots.to_vec(), events, inotify, watched: BTreeMap::new() };
        watch.attach();
        watch
    }

    /// Watches the folders that are there, and answers whether that is all of them and whether
    /// one of them is new. A file is watched through its folder, since an editor replaces it.
    fn attach(&mut self) -> (bool, bool) {
        let Some(inotify) = &mut self.inotify else { return (false, false) };
        let (mut complete, mut renewed) = (true, false);
        for root in &self.roots {
            let folder = if root.is_dir() { root.as_path() } else { parent(root) };
            let id = std::fs::metadata(folder).map(|meta| (meta.dev(), meta.ino())).ok();
            if id.is_some() && self.watched.get(folder).copied() == id {
                continue;
            }
            match id.filter(|_| inotify.watch(folder, RecursiveMode::NonRecursive).is_ok()) {
                Some(id) => {
                    self.watched.insert(folder.to_path_buf(), id);
                    renewed = true;
                }
                None => {
                    self.watched.remove(folder);
                    complete = false;
                }
            }
        }
        (complete, renewed)
    }

    /// Waits until something may have changed.
    pub(super) async fn changed(&mut self, is_complete: bool) -> Hint {
        let (attached, renewed) = self.attach();
        if renewed {
            // What was written before the watch was there told nobody.
            return Hint::All;
        }
        let clock = Instant::now() + if is_complete && attached { LOOK } else { LOOK_OFTEN };
        let mut hint = match timeout_at(clock, self.events.recv()).await {
            Ok(Some(hint)) => hint,
            // No more events come: only the clock is left.
            Ok(None) => {
                tokio::time::sleep_until(clock).await;
                return Hint::All;
            }
            Err(_) => return Hint::All,
        };
        let end = Instant::now() + SETTLE_AT_MOST;
        while let Ok(Some(more)) = timeout_at(end.min(Instant::now() + SETTLE), self.events.recv()).await {
            hint = match (hint, more) {
                (Hint::Some(mut paths), Hint::Some(more)) => {
                    paths.extend(more);
                    Hint::Some(paths)
                }
                (Hint::All, _) | (_, Hint::All) => Hint::All,
            };
        }
        hint
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What an event means; `None` for what changes nothing, such as our own reading.
fn hint(event: notify::Result<notify::Event>, roots: &[PathBuf]) -> Option<Hint> {
    let Ok(event) = event else { return Some(Hint::All) };
    let matters = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    };
    if !matters {
        return None;
    }
    if event.need_rescan() || event.paths.is_empty() {
        return Some(Hint::All);
    }
    let in_folder = |path: &Path| path.parent().is_some_and(|folder| roots.iter().any(|root| root == folder));
    let mut files = BTreeSet::new();
    for path in event.paths {
        if roots.contains(&path) {
            // The folder itself, or a file asked for by name.
            if path.is_dir() {
                return Some(Hint::All);
            }
            files.insert(path);
        } else if in_folder(&path) {
            if is_manifest(&path) {
                files.insert(path);
            } else if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"..")) {
                // `..data` of a mounted ConfigMap, which its files point through.
                return Some(Hint::All);
            }
        }
    }
    (!files.is_empty()).then_some(Hint::Some(files))
}
