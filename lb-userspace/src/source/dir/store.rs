//! Which file defines which object, and what a changed file changes.
//!
//! Of each object only its name and a hash of its text are kept here; the object itself lives
//! further on. So a file that is read again costs its own text, and of that only what differs is
//! read as an object.

use super::parse::{self, Document, Fault};
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem, bounded};
use crate::source::fill::{Draft, FillConfig};
use crate::source::project::Names;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

/// Objects that came, changed or went.
pub(super) type Drafts = Vec<(ObjectRef, Option<Draft>)>;

#[derive(Debug, Default)]
struct File {
    /// Hash of the text of each object that is in force or would be, were this file the first.
    objects: BTreeMap<ObjectRef, u64>,
    faults: Vec<Fault>,
    /// Why the file could not be read at all.
    unreadable: Option<String>,
}

/// Every file and the objects in it.
#[derive(Debug, Default)]
pub(super) struct Store {
    files: BTreeMap<Arc<Path>, File>,
    /// Files that define an object, in order of their paths: the first one counts.
    owners: BTreeMap<ObjectRef, Vec<Arc<Path>>>,
    /// Files and objects that there is something to tell about.
    faulty: BTreeSet<Arc<Path>>,
    contested: BTreeSet<ObjectRef>,
    names: Names,
}

impl Store {
    pub(super) fn paths(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.files.keys()
    }

    /// Takes the text of a file that is new or has changed.
    pub(super) fn put(&mut self, path: &Path, text: &str, config: &FillConfig) -> Drafts {
        let path = self.known(path);
        let mut old = self.files.remove(&path).unwrap_or_default();
        let contents = parse::contents(&path, text);
        let mut faults = contents.faults;
        let mut objects = BTreeMap::new();
        let mut changed = Vec::new();
        for document in contents.documents {
            if objects.contains_key(&document.object) {
                let mut fault = document.fault("is defined above already; this one is ignored".into());
                fault.hides = false;
                faults.push(fault);
                continue;
            }
            let hash = hash(&document.json);
            if old.objects.get(&document.object) != Some(&hash) {
                match document.read(config, &mut self.names) {
                    Ok(draft) => changed.push((document.object.clone(), draft)),
                    Err(fault) => {
                        faults.push(*fault);
                        continue;
                    }
                }
            }
            objects.insert(document.object, hash);
        }
        // What a broken document held is not gone: it keeps its last good version, and where
        // nobody can tell what it held, so does everything that the file held before. The same
        // where the last document is broken: the file may be cut off there.
        let blind = faults.iter().any(|fault| {
            fault.hides
                && (fault.object.is_none()
                    || (fault.place.item.is_none() && fault.place.document == contents.count))
        });
        for object in faults.iter().filter(|fault| fault.hides).filter_map(|fault| fault.object.as_ref()) {
            if let Some(hash) = old.objects.remove(object) {
                objects.entry(object.clone()).or_insert(hash);
            }
        }
        if blind {
            for (object, hash) in std::mem::take(&mut old.objects) {
                objects.entry(object).or_insert(hash);
            }
        }
        parse::locate(text, &mut faults);
        old.objects.retain(|object, _| !objects.contains_key(object));
        let mut drafts = Vec::new();
        for object in old.objects.into_keys() {
            self.disown(&path, object, config, &mut drafts);
        }
        for object in objects.keys() {
            self.own(&path, object);
        }
        changed.retain(|(object, _)| self.owner(object) == Some(&path));
        drafts.extend(changed.into_iter().map(|(object, draft)| (object, Some(draft))));
        if faults.is_empty() {
            self.faulty.remove(&path);
        } else {
            self.faulty.insert(Arc::clone(&path));
        }
        self.files.insert(path, File { objects, faults, unreadable: None });
        drafts
    }

    /// Notes that a file is there and cannot be read; its objects stay.
    pub(super) fn unreadable(&mut self, path: &Path, reason: String) {
        let path = self.known(path);
        self.faulty.insert(Arc::clone(&path));
        self.files.entry(path).or_default().unreadable = Some(reason);
    }

    /// Takes away a file that is gone.
    pub(super) fn remove(&mut self, path: &Path, config: &FillConfig) -> Drafts {
        let mut drafts = Vec::new();
        self.faulty.remove(path);
        if let Some((path, file)) = self.files.remove_entry(path) {
            for object in file.objects.into_keys() {
                self.disown(&path, object, config, &mut drafts);
            }
        }
        drafts
    }

    /// Everything that is wrong with the files themselves.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (path, file) in self.faulty.iter().filter_map(|path| self.files.get_key_value(path)) {
            let mut tell = |field: String, reason: String| problems.push(problem(path, field, reason));
            if let Some(reason) = &file.unreadable {
                tell(String::new(), format!("cannot be read: {reason}; the objects that it had stay"));
            }
            for fault in &file.faults {
                let stays = match &fault.object {
                    Some(object) if fault.hides && file.objects.contains_key(object) => {
                        "; its last good version stays"
                    }
                    Some(_) if fault.hides => "; the object is ignored",
                    None if fault.hides && !file.objects.is_empty() => "; the objects that the file had stay",
                    Some(_) | None => "",
                };
                let object = fault.object.as_ref().map_or(String::new(), |object| format!("{object}: "));
                tell(fault.place.to_string(), format!("{object}{}{stays}", fault.reason));
            }
        }
        for (object, owners) in self.contested.iter().filter_map(|object| self.owners.get_key_value(object)) {
            for path in owners.iter().skip(1) {
                let reason =
                    format!("{object}: is defined in {} already; this one is ignored", owners[0].display());
                problems.push(problem(path, String::new(), reason));
            }
        }
        bounded(problems)
    }

    /// The path as it is kept already, so that it is kept once.
    fn known(&self, path: &Path) -> Arc<Path> {
        self.files.get_key_value(path).map_or_else(|| Arc::from(path), |(path, _)| Arc::clone(path))
    }

    fn owner(&self, object: &ObjectRef) -> Option<&Arc<Path>> {
        self.owners.get(object).and_then(|owners| owners.first())
    }

    fn own(&mut self, path: &Arc<Path>, object: &ObjectRef) {
        if let Some(owners) = self.owners.get_mut(object) {
            if let Err(place) = owners.binary_search(path) {
                owners.insert(place, Arc::clone(path));
                self.contested.insert(object.clone());
            }
        } else {
            self.owners.insert(object.clone(), vec![Arc::clone(path)]);
        }
    }

    /// A file defines an object no more: the next one that does takes over, else it is gone.
    fn disown(&mut self, path: &Arc<Path>, object: ObjectRef, config: &FillConfig, drafts: &mut Drafts) {
        let Some(owners) = self.owners.get_mut(&object) else { return };
        let was_first = owners.first() == Some(path);
        owners.retain(|owner| owner != path);
        if owners.len() < 2 {
            self.contested.remove(&object);
        }
        let next = owners.first().cloned();
        if next.is_none() {
            self.owners.remove(&object);
        }
        if !was_first {
            return;
        }
        let Some(next) = next else { return drafts.push((object, None)) };
        match read_again(&next, &object, config, &mut self.names) {
            Some(draft) => drafts.push((object, Some(draft))),
            None => {
                // It changed meanwhile; its own turn comes, and then it must count as changed.
                if let Some(file) = self.files.get_mut(&next) {
                    file.objects.insert(object.clone(), 0);
                }
                drafts.push((object, None));
            }
        }
    }
}

/// Reads one object out of a file that has been read before.
fn read_again(path: &Path, object: &ObjectRef, config: &FillConfig, names: &mut Names) -> Option<Draft> {
    let text = std::fs::read_to_string(path).ok()?;
    let contents = parse::contents(path, &text);
    let found = contents.documents.iter().find(|document: &&Document<'_>| document.object == *object)?;
    found.read(config, names).ok()
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn problem(path: &Path, field: String, reason: String) -> Problem {
    let key = ObjectKey::new("", path.display().to_string());
    Problem { object: ObjectRef { kind: Kind::File, key }, field, reason }
}
