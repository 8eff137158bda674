//! Manifests as texts under names, without a file system: what tests feed in.

use super::lists;
use super::store::{Drafts, Store};
use crate::source::fill::{Fill, FillConfig};
use crate::source::{Batch, Change};
use std::path::Path;

/// The manifests source without its files: the same texts give the same batches.
#[derive(Debug)]
pub struct Manifests {
    store: Store,
    fill: Fill,
}

impl Manifests {
    /// Nothing yet, and the empty lists that a source sends first.
    pub fn new(config: FillConfig) -> (Self, Batch) {
        (Self { store: Store::default(), fill: Fill::new(config) }, lists(Vec::new()))
    }

    /// Takes the text that a file of that name has now.
    pub fn put(&mut self, name: &str, text: &str) -> Batch {
        let drafts = self.store.put(Path::new(name), text, self.fill.config());
        self.batch(drafts)
    }

    /// Takes a file away.
    pub fn remove(&mut self, name: &str) -> Batch {
        let drafts = self.store.remove(Path::new(name), self.fill.config());
        self.batch(drafts)
    }

    fn batch(&mut self, drafts: Drafts) -> Batch {
        let mut batch = self.fill.apply(drafts);
        batch.push(Change::Problems(self.store.problems()));
        batch
    }
}
