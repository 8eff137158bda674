//! A Namespace: whether it is being deleted (I17).

use crate::source::Namespace;
use k8s_openapi::api::core::v1 as api;

/// Projects a Namespace to its compact form.
pub fn namespace(from: &api::Namespace) -> Namespace {
    Namespace {
        name: from.metadata.name.clone().unwrap_or_default(),
        ending: from.metadata.deletion_timestamp.is_some(),
    }
}
