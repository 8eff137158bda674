//! Which certificate a server name is served with: exact, then one label of wildcard, then
//! the default (I28, I30).
//!
//! Lookups read an immutable table that an update replaces whole, so they take no lock and a
//! new handshake sees the new table at once (I32); connections go on. A certificate's key is
//! read at its first handshake and kept as rustls needs it, once for all names. What an update
//! removes is held by handshakes under way at most; no connection keeps it (H30).

use super::crypto::{CRYPTO, Crypto};
use super::tickets::{Bound, Tickets};
use super::{UnknownName, name_covers, one_label_up};
use crate::model::routes::{Certificate, HostPattern, Update};
use crate::problem::ObjectKey;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// What may be known of a certificate for as long as somebody likes: not its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The Secret that it comes from.
    pub secret: ObjectKey,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
    names: Box<[Box<str>]>,
}

impl Identity {
    /// The first of its names; empty: it has none.
    pub fn first_name(&self) -> &str {
        self.names.first().map_or("", AsRef::as_ref)
    }

    /// Says whether the certificate itself names `host`.
    pub fn names(&self, host: &str) -> bool {
        self.names.iter().any(|name| name_covers(name, host))
    }
}

/// When a certificate that is served ends, and whether it can be used at all.
#[derive(Clone, Debug)]
pub struct Expiry {
    pub identity: Arc<Identity>,
    /// Its key could not be read: its names are served with the default certificate (I31).
    pub unusable: bool,
}

/// A certificate as handshakes use it.
struct Served {
    identity: Arc<Identity>,
    /// Of chain and key: what is told again unchanged keeps its tickets.
    digest: Box<[u8]>,
    /// Binds tickets.
    number: u64,
    /// Until the first handshake.
    material: Mutex<Option<Arc<Certificate>>>,
    /// From the first handshake on. `None`: unusable.
    config: OnceLock<Option<Arc<ServerConfig>>>,
}

/// A name's certificate; `None`: that of its Secret is missing or unusable.
type Slot = Option<Arc<Served>>;

/// What lookups read.
#[derive(Default)]
struct Table {
    exact: HashMap<Arc<str>, Slot>,
    /// By what follows `*.`.
    wildcard: HashMap<Arc<str>, Slot>,
    default: Slot,
}

impl Table {
    /// The most specific name's certificate: a name whose own one is missing is not served
    /// with that of a less specific name, which may be another tenant's.
    fn own(&self, host: &str) -> Option<&Slot> {
        self.exact.get(host).or_else(|| self.wildcard.get(one_label_up(host)?))
    }
}

/// What was told so far.
#[derive(Default)]
struct Told {
    names: BTreeMap<HostPattern, ObjectKey>,
    certificates: BTreeMap<ObjectKey, Arc<Served>>,
    count: u64,
}

/// All certificates. Begins without any: handshakes are refused until there is one for them.
pub struct Certificates {
    table: ArcSwap<Table>,
    told: Mutex<Told>,
    tickets: Arc<Tickets>,
    /// What all certificates have in common.
    base: ServerConfig,
    crypto: Crypto,
}

/// The certificate for a handshake.
pub(super) struct Chosen {
    pub(super) config: Arc<ServerConfig>,
    pub(super) identity: Arc<Identity>,
    pub(super) by_default: bool,
}

impl Certificates {
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn new() -> Result<Arc<Self>, rustls::Error> {
        Self::with(CRYPTO)
    }

    /// With another cryptography than the proxy's: for comparisons.
    pub(super) fn with(crypto: Crypto) -> Result<Arc<Self>, rustls::Error> {
        let mut base = ServerConfig::builder_with_provider(Arc::new((crypto.provider)()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Single(None)));
        base.require_ems = true;
        base.max_early_data_size = 0;
        base.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        base.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(Self {
            table: ArcSwap::default(),
            told: Mutex::default(),
            tickets: Arc::new(Tickets::new(crypto.ticket_key, Instant::now())?),
            base,
            crypto,
        }))
    }

    /// Takes what updates say of names and certificates; `whole`: there is nothing but what
    /// they say. A certificate told again unchanged stays as it is.
    pub fn update(&self, updates: &[Update], whole: bool) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if whole {
            told.names.clear();
            std::mem::take(&mut told.certificates)
        } else if updates.iter().any(|u| matches!(u, Update::Name(..) | Update::Certificate(..))) {
            BTreeMap::new()
        } else {
            return;
        };
        for update in updates {
            match update {
                Update::Name(name, Some(secret)) => {
                    told.names.insert(name.clone(), secret.clone());
                }
                Update::Name(name, None) => {
                    told.names.remove(name);
                }
                Update::Certificate(secret, Some(certificate)) => {
                    let digest = self.digest(certificate);
                    let old = told.certificates.get(secret).or_else(|| before.get(secret));
                    let served = match old {
                        Some(old) if old.digest == digest => Arc::clone(old),
                        _ => {
                            told.count += 1;
                            Arc::new(Served::new(secret, certificate, digest, told.count))
                        }
                    };
                    told.certificates.insert(secret.clone(), served);
                }
                Update::Certificate(secret, None) => {
                    told.certificates.remove(secret);
                }
                Update::Host(..) | Update::Pool(..) => {}
            }
        }
        self.table.store(Arc::new(told.table()));
        drop(told);
        self.tidy();
    }

    /// Forgets session ticket keys that are old: for the case that no handshake comes by.
    pub fn tidy(&self) {
        self.tickets.roll(Instant::now());
    }

    /// Certificates, by Secret.
    pub fn expiries(&self) -> Vec<Expiry> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let expiry = |served: &Arc<Served>| Expiry {
            identity: Arc::clone(&served.identity),
            unusable: matches!(served.config.get(), Some(None)),
        };
        told.certificates.values().map(expiry).collect()
    }

    /// Chooses by server name; `None`: the handshake is refused.
    pub(super) fn choose(self: &Arc<Self>, sni: Option<&str>, unknown: UnknownName) -> Option<Chosen> {
        self.tidy();
        let table = self.table.load();
        match sni.and_then(|name| table.own(name)) {
            Some(Some(served)) => {
                if let Some(chosen) = self.chosen(served, false) {
                    return Some(chosen);
                }
            }
            Some(None) => {}
            None if unknown == UnknownName::Refuse => return None,
            None => {}
        }
        self.chosen(table.default.as_ref()?, true)
    }

    fn chosen(&self, served: &Arc<Served>, by_default: bool) -> Option<Chosen> {
        let config = served.config.get_or_init(|| self.configure(served)).clone()?;
        Some(Chosen { config, identity: Arc::clone(&served.identity), by_default })
    }

    /// The Secret that a server name is served with; `None`: the default certificate's, or none.
    pub fn secret_of(&self, host: &str) -> Option<ObjectKey> {
        let table = self.table.load();
        Some(table.own(host)?.as_ref()?.identity.secret.clone())
    }

    /// Says whether a handshake for `host` would get the certificate of `secret`; `None`:
    /// there is no certificate but the default for it.
    pub(super) fn is_of(&self, host: &str, secret: &ObjectKey) -> Option<bool> {
        let table = self.table.load();
        let served = table.own(host)?.as_ref()?;
        if matches!(served.config.get(), Some(None)) {
            return None;
        }
        Some(served.identity.secret == *secret)
    }

    fn configure(&self, served: &Served) -> Option<Arc<ServerConfig>> {
        let material = served.material.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let key = PrivateKeyDer::try_from(material.key.as_slice())
            .map_err(|error| rustls::Error::General(error.to_owned()))
            .and_then(|key| (self.crypto.load_key)(&key));
        let chain = material.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let key = key.map(|key| CertifiedKey::new(chain, key)).and_then(|key| match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(key),
            Err(error) => Err(error),
        });
        match key {
            Ok(key) => {
                let mut config = self.base.clone();
                config.cert_resolver = Arc::new(Single(Some(Arc::new(key))));
                config.ticketer =
                    Arc::new(Bound { tickets: Arc::clone(&self.tickets), certificate: served.number });
                Some(Arc::new(config))
            }
            Err(error) => {
                tracing::warn!(
                    secret = %served.identity.secret, %error,
                    "unusable certificate: its names are served with the default one",
                );
                None
            }
        }
    }

    /// Of everything that makes the certificate what it is.
    fn digest(&self, certificate: &Certificate) -> Box<[u8]> {
        let suites = &self.base.crypto_provider().cipher_suites;
        let Some(hash) = suites.iter().find_map(|suite| Some(suite.tls13()?.common.hash_provider)) else {
            return Box::default();
        };
        let mut context = hash.start();
        for part in certificate.chain.iter().map(Vec::as_slice).chain([certificate.key.as_slice()]) {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        context.finish().as_ref().into()
    }
}

impl Served {
    fn new(secret: &ObjectKey, certificate: &Arc<Certificate>, digest: Box<[u8]>, number: u64) -> Self {
        let identity = Identity {
            secret: secret.clone(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            names: certificate.names.iter().map(|name| name.as_str().into()).collect(),
        };
        Self {
            identity: Arc::new(identity),
            digest,
            number,
            material: Mutex::new(Some(Arc::clone(certificate))),
            config: OnceLock::new(),
        }
    }
}

impl Told {
    fn table(&self) -> Table {
        let mut table = Table::default();
        for (name, secret) in &self.names {
            let slot = self.certificates.get(secret).cloned();
            match name {
                HostPattern::Exact(name) => {
                    table.exact.insert(Arc::clone(name), slot);
                }
                HostPattern::Wildcard(parent) => {
                    table.wildcard.insert(Arc::clone(parent), slot);
                }
                HostPattern::Any => table.default = slot,
            }
        }
        table
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.load();
        f.debug_struct("Certificates")
            .field("exact", &table.exact.len())
            .field("wildcard", &table.wildcard.len())
            .field("default", &table.default.as_ref().map(|served| &served.identity.secret))
            .finish_non_exhaustive()
    }
}

/// The one certificate of a configuration.
#[derive(Debug)]
struct Single(Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for Single {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}
