//! The operations of the data path. Their order in a plan is the order of their effect.

use lb_common::abi::{Backend, BackendId, Frontend, FrontendKey, Held, Prefix, ServiceId};

/// One write to the data path.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// Writes a backend under its id. Nothing refers to a new id yet.
    PutBackend(BackendId, Backend),
    /// Writes backend ids into consecutive blocks of the tables map, from `block` on.
    WriteTable { block: u32, ids: Vec<BackendId> },
    /// Adds or replaces a frontend: the atomic switch to the tables just written.
    PutFrontend(FrontendKey, Frontend),
    /// Forgets a frontend.
    DeleteFrontend(FrontendKey),
    /// Zeroes a backend; its id may be given out again after a pause.
    DeleteBackend(BackendId),
    /// Puts a prefix into its set, with what that says of its addresses.
    PutPrefix(Prefix, Held),
    /// Takes a prefix out of its set.
    DeletePrefix(Prefix),
    /// Forgets the counters of a Service id that may be given out again.
    DeleteService(ServiceId),
}
