//! A Secret (I31, I32, H30, H40): the certificate, its key, and nothing else.

use crate::problem::ObjectKey;
use crate::source::Secret;
use k8s_openapi::api::core::v1 as api;
use zeroize::{Zeroize, Zeroizing};

/// Key of the certificate chain in a Secret of type `kubernetes.io/tls`.
pub const TLS_CERT: &str = "tls.crt";
/// Key of the private key there.
pub const TLS_KEY: &str = "tls.key";
/// The type of a Secret with both.
pub const TLS_TYPE: &str = "kubernetes.io/tls";

/// Projects a Secret to its compact form. The private key is moved, not copied, and everything
/// that is not kept is overwritten.
pub fn secret(from: api::Secret) -> Secret {
    let mut data = from.data.unwrap_or_default();
    // As the API server does when it is written (`stringData` is never read back).
    for (key, value) in from.string_data.unwrap_or_default() {
        if let Some(mut old) = data.insert(key, k8s_openapi::ByteString(value.into_bytes())) {
            old.0.zeroize();
        }
    }
    let certificate = data.remove(TLS_CERT).map(|value| value.0);
    let private_key = data.remove(TLS_KEY).map(|value| Zeroizing::new(value.0));
    for other in data.values_mut() {
        other.0.zeroize();
    }
    Secret {
        key: ObjectKey::new(
            from.metadata.namespace.unwrap_or_default(),
            from.metadata.name.unwrap_or_default(),
        ),
        kind: from.type_.filter(|kind| !kind.is_empty()).unwrap_or_else(|| "Opaque".into()),
        certificate,
        private_key,
    }
}
