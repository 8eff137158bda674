//! The cryptography that handshakes are done with: named here and nowhere else in the proxy.
//!
//! It is passed to rustls explicitly; a default of the process is neither read nor set.
//! `docs/tls.md` says why it is this one.

use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::ProducesTickets;
use rustls::sign::SigningKey;
use std::sync::Arc;

/// Makes a ticketer with a new key of its own.
pub(super) type TicketKey = fn() -> Result<Arc<dyn ProducesTickets>, rustls::Error>;

/// What rustls does not bring itself.
#[derive(Clone, Copy)]
pub(super) struct Crypto {
    pub(super) provider: fn() -> CryptoProvider,
    pub(super) ticket_key: TicketKey,
    /// Reads a key in place: no copy of its DER is left behind.
    pub(super) load_key: fn(&PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error>,
}

pub(super) const CRYPTO: Crypto = Crypto {
    provider: rustls::crypto::aws_lc_rs::default_provider,
    ticket_key: rustls::crypto::aws_lc_rs::Ticketer::new,
    load_key: rustls::crypto::aws_lc_rs::sign::any_supported_type,
};

/// The cryptography as rustls takes it: for clients that are to have the same.
pub fn provider() -> CryptoProvider {
    (CRYPTO.provider)()
}
