//! Session tickets: keys of one process, rotated; and their binding to one certificate.
//!
//! A ticket says for which certificate it was made, as a number that is never used twice, and
//! is taken only there (H30): not across names with other certificates, and not after the
//! certificate was replaced or removed. rustls itself compares the server name as well. Keys
//! are made at random, live in memory only, make tickets for 6 h and open them for 6 h more.
//! Time is the monotonic clock's: a jump of the wall clock keeps no key alive (H60).

use super::crypto::TicketKey;
use arc_swap::ArcSwap;
use rustls::server::ProducesTickets;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a key makes tickets.
pub(super) const PERIOD: Duration = Duration::from_secs(6 * 60 * 60);

/// The keys, shared by all certificates.
pub(super) struct Tickets {
    keys: ArcSwap<Keys>,
    new_key: TicketKey,
    rolling: Mutex<()>,
}

struct Keys {
    current: Arc<dyn ProducesTickets>,
    previous: Option<Arc<dyn ProducesTickets>>,
    since: Instant,
}

impl Tickets {
    /// # Errors
    ///
    /// When the system has no randomness.
    pub(super) fn new(new_key: TicketKey, now: Instant) -> Result<Self, rustls::Error> {
        let keys = Keys { current: new_key()?, previous: None, since: now };
        Ok(Self { keys: ArcSwap::from_pointee(keys), new_key, rolling: Mutex::default() })
    }

    /// Replaces the key when it is old; forgets both when they are older still.
    pub(super) fn roll(&self, now: Instant) {
        let old = |keys: &Keys| now.saturating_duration_since(keys.since);
        if old(&self.keys.load()) < PERIOD {
            return;
        }
        let _one_at_a_time = self.rolling.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = self.keys.load_full();
        let age = old(&keys);
        if age < PERIOD {
            return;
        }
        match (self.new_key)() {
            Ok(current) => {
                let previous = (age < 2 * PERIOD).then(|| Arc::clone(&keys.current));
                self.keys.store(Arc::new(Keys { current, previous, since: now }));
            }
            // Tried again at the next handshake; an old key is better than no resumption for
            // the moment that the system has no randomness.
            Err(error) => tracing::warn!(%error, "no new key for session tickets"),
        }
    }

    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.load().current.encrypt(plain)
    }

    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.load();
        keys.current.decrypt(sealed).or_else(|| keys.previous.as_ref()?.decrypt(sealed))
    }
}

/// No key is in any output.
impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

/// Tickets of one certificate.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) tickets: Arc<Tickets>,
    /// Which certificate; no two have ever the same.
    pub(super) certificate: u64,
}

impl ProducesTickets for Bound {
    fn enabled(&self) -> bool {
        true
    }

    /// What clients are told; the keys decide.
    fn lifetime(&self) -> u32 {
        u32::try_from(2 * PERIOD.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut bound = Vec::with_capacity(8 + plain.len());
        bound.extend(self.certificate.to_be_bytes());
        bound.extend(plain);
        let sealed = self.tickets.seal(&bound);
        zeroize::Zeroize::zeroize(&mut bound);
        sealed
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let mut bound = self.tickets.open(cipher)?;
        if bound.get(..8)? != self.certificate.to_be_bytes() {
            return None;
        }
        bound.drain(..8);
        Some(bound)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::proxy::tls::crypto::CRYPTO;

    #[test]
    fn a_ticket_opens_at_its_certificate_alone_and_until_its_key_is_forgotten() {
        let start = Instant::now();
        let tickets = Arc::new(Tickets::new(CRYPTO.ticket_key, start).unwrap());
        let bound = |certificate| Bound { tickets: Arc::clone(&tickets), certificate };
        let sealed = bound(1).encrypt(b"session").unwrap();
        assert_eq!(bound(1).decrypt(&sealed).as_deref(), Some(&b"session"[..]));
        assert_eq!(bound(2).decrypt(&sealed), None, "another certificate");

        tickets.roll(start + PERIOD - Duration::from_secs(1));
        let same_key = bound(1).encrypt(b"later").unwrap();
        assert_eq!(same_key[..16], sealed[..16], "a key is named by its first bytes");
        tickets.roll(start + PERIOD);
        let new_key = bound(1).encrypt(b"new").unwrap();
        assert_ne!(new_key[..16], sealed[..16], "rotated");
        assert_eq!(bound(1).decrypt(&sealed).as_deref(), Some(&b"session"[..]), "the one before opens");
        tickets.roll(start + 2 * PERIOD);
        assert_eq!(bound(1).decrypt(&sealed), None, "forgotten");
        assert_eq!(bound(1).decrypt(&new_key).as_deref(), Some(&b"new"[..]));
    }

    #[test]
    fn after_a_long_idle_time_no_old_key_is_kept() {
        let start = Instant::now();
        let tickets = Arc::new(Tickets::new(CRYPTO.ticket_key, start).unwrap());
        let bound = Bound { tickets: Arc::clone(&tickets), certificate: 1 };
        let sealed = bound.encrypt(b"session").unwrap();
        tickets.roll(start + 3 * PERIOD);
        assert_eq!(bound.decrypt(&sealed), None);
    }

    #[test]
    fn a_changed_or_foreign_ticket_opens_nothing() {
        let tickets = Arc::new(Tickets::new(CRYPTO.ticket_key, Instant::now()).unwrap());
        let bound = Bound { tickets, certificate: 1 };
        let sealed = bound.encrypt(b"session").unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(bound.decrypt(&changed), None, "byte {at}");
            assert_eq!(bound.decrypt(&sealed[..at]), None, "{at} bytes");
        }
    }
}
