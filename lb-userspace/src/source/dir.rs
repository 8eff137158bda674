//! Objects from manifests: files and folders of YAML and JSON, watched.
//!
//! A folder is its `*.yaml`, `*.yml` and `*.json`, not those of folders below; a file is itself.
//! What changes within a few milliseconds is read together and sent as one batch. inotify only
//! says when to look; what counts is what is found then, and a slow look at everything covers
//! what inotify missed. Broken text costs nothing but itself: see [`store`].

use super::fill::{Draft, Fill, FillConfig};
use super::{Batch, Batches, Change, Syncs};
use crate::problem::{Kind, ObjectRef, Problem};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::Store;
use watch::{Hint, Watch};

mod parse;
mod scan;
mod store;
mod text;
mod watch;

pub use text::Manifests;

/// The kinds that a list is promised for.
const KINDS: [Kind; 7] = [
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Node,
    Kind::Pod,
    Kind::Ingress,
    Kind::IngressClass,
    Kind::Secret,
];

/// What to read, and what to fill in from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DirOptions {
    /// `--manifests`: files and folders.
    pub paths: Vec<PathBuf>,
    pub fill: FillConfig,
}

/// The manifests source.
#[derive(Debug)]
pub struct DirSource {
    options: DirOptions,
}

impl DirSource {
    pub fn new(mut options: DirOptions) -> Self {
        // inotify answers with absolute paths.
        for path in &mut options.paths {
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
        Self { options }
    }

    /// Sends what the files hold, then what changes in them, until nobody listens.
    pub async fn run(self, tx: Batches, syncs: Arc<Syncs>) {
        let paths: Vec<String> = self.options.paths.iter().map(|path| path.display().to_string()).collect();
        syncs.set_origin(paths.join(", "));
        // Watched before the first look, so that nothing falls between the two.
        let mut watch = Watch::new(&self.options.paths);
        let mut reader = Reader::new(self.options);
        let mut hint = Hint::All;
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                let batch = reader.look(&hint);
                (reader, batch)
            });
            let Ok((back, batch)) = looked.await else { return };
            reader = back;
            reader.report(&syncs, !batch.is_empty());
            if !batch.is_empty() && tx.send(batch).await.is_err() {
                return;
            }
            tokio::select! {
                next = watch.changed(reader.is_complete()) => hint = next,
                () = tx.closed() => return,
            }
        }
    }
}

/// Everything that is known of the files.
#[derive(Debug)]
struct Reader {
    options: DirOptions,
    store: Store,
    fill: Fill,
    prints: BTreeMap<PathBuf, scan::Print>,
    roots: scan::Roots,
    /// Drafts that wait for the first complete look.
    waiting: BTreeMap<ObjectRef, Option<Draft>>,
    complete: bool,
    told: Vec<Problem>,
}

impl Reader {
    fn new(options: DirOptions) -> Self {
        Self {
            fill: Fill::new(options.fill.clone()),
            store: Store::default(),
            prints: BTreeMap::new(),
            roots: scan::Roots::new(&options.paths),
            waiting: BTreeMap::new(),
            complete: false,
            told: Vec::new(),
            options,
        }
    }

    /// Whether every path could be read once: before that nothing is sent, since a folder that
    /// is mounted late would look like one whose Services are gone (S8).
    fn is_complete(&self) -> bool {
        self.complete
    }

    /// Looks at what may have changed and answers what did.
    fn look(&mut self, hint: &Hint) -> Batch {
        let drafts = match hint {
            Hint::All => self.look_at_all(),
            Hint::Some(paths) => self.look_at(paths),
        };
        let mut batch = Batch::new();
        if self.complete {
            batch = self.fill.apply(drafts);
        } else {
            self.waiting.extend(drafts);
            if self.roots.all_seen() {
                self.complete = true;
                let drafts = std::mem::take(&mut self.waiting).into_iter().collect();
                batch = lists(self.fill.apply(drafts));
            }
        }
        let mut problems = self.store.problems();
        problems.extend(self.roots.problems());
        if problems != self.told {
            self.told.clone_from(&problems);
            batch.push(Change::Problems(problems));
        }
        batch
    }

    fn look_at_all(&mut self) -> store::Drafts {
        let found = self.roots.list();
        let mut drafts = Vec::new();
        let known: Vec<Arc<Path>> = self.store.paths().cloned().collect();
        for path in known {
            if !found.contains_key(&*path) && !self.roots.is_lost(&path) {
                self.prints.remove(&*path);
                drafts.extend(self.store.remove(&path, &self.options.fill));
            }
        }
        for (path, print) in found {
            if self.prints.get(&path) != Some(&print) {
                drafts.extend(self.read(&path));
                self.prints.insert(path, print);
            }
        }
        drafts
    }

    /// Reads the files that are named, whatever their times say: two writes within one tick of
    /// the file system's clock look the same.
    fn look_at(&mut self, paths: &BTreeSet<PathBuf>) -> store::Drafts {
        if paths.iter().any(|path| self.roots.names(path) && scan::print(path).is_none()) {
            return self.look_at_all();
        }
        let mut drafts = Vec::new();
        for path in paths {
            match scan::print(path) {
                Some(print) => {
                    drafts.extend(self.read(path));
                    self.prints.insert(path.clone(), print);
                }
                None => {
                    self.prints.remove(path);
                    drafts.extend(self.store.remove(path, &self.options.fill));
                }
            }
        }
        drafts
    }

    fn read(&mut self, path: &Path) -> store::Drafts {
        match std::fs::read_to_string(path) {
            Ok(text) => self.store.put(path, &text, &self.options.fill),
            Err(error) => {
                self.store.unreadable(path, error.to_string());
                Vec::new()
            }
        }
    }

    fn report(&self, syncs: &Syncs, changed: bool) {
        for kind in KINDS {
            if !self.complete {
                let reasons: Vec<String> = self.roots.problems().iter().map(ToString::to_string).collect();
                syncs.failed(kind, reasons.join("; "));
            } else if changed {
                syncs.listed(kind);
            }
        }
    }
}

/// Turns the first changes into lists, one for each kind, empty ones too.
fn lists(changes: Vec<Change>) -> Batch {
    let mut lists = KINDS.map(|kind| (kind, Vec::new()));
    for change in changes {
        if let Change::Upsert(object) = change {
            let kind = object.reference().kind;
            if let Some((_, list)) = lists.iter_mut().find(|(of, _)| *of == kind) {
                list.push(object);
            }
        }
    }
    // No manifest says that a Namespace is being deleted.
    let namespaces = Change::Replace(Kind::Namespace, Vec::new());
    lists.into_iter().map(|(kind, list)| Change::Replace(kind, list)).chain([namespaces]).collect()
}

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;
