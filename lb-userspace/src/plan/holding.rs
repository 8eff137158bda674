//! What one Service id holds in the data path.

use super::maglev::Member;
use crate::model::PortKey;
use lb_common::abi::{Addr, BackendId, FrontendKey, Prefix, Table};
use std::collections::{BTreeMap, BTreeSet};

/// Everything under one Service id: of a Service port, of one that is gone but whose
/// frontends are still retired, or of one found in the maps at start that nobody claimed yet.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// Whose it is; none once the port is gone, or before it is claimed after a restart.
    pub(super) port: Option<PortKey>,
    /// The port is gone from its Service, and what it has is on its way out.
    pub(super) leaving: bool,
    /// Ids given to backends, put or not.
    pub(super) backends: BTreeMap<(Addr, u16), BackendId>,
    pub(super) tables: Vec<Stored>,
    /// Frontends in the maps that name this id, retired ones included.
    pub(super) frontends: BTreeSet<FrontendKey>,
    /// Source ranges in the maps.
    pub(super) prefixes: BTreeSet<Prefix>,
}

impl Holding {
    /// Nothing in the maps refers to the id any more.
    pub(super) fn is_spent(&self) -> bool {
        self.port.is_none()
            && self.backends.is_empty()
            && self.frontends.is_empty()
            && self.tables.is_empty()
            && self.prefixes.is_empty()
    }
}

/// A run of slots, with its Maglev table where it has one.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) table: Table,
    /// What it was built from; empty when it was found in the maps and not rewritten since.
    pub(super) members: Vec<Member>,
    /// The latest plan uses it, be it applied or not.
    pub(super) planned: bool,
}
