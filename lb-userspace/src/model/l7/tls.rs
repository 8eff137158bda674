//! From a Secret to the certificate that it holds, or why it cannot be served (I31, I33).
//!
//! The time is an argument: a certificate is read once and judged again when its time comes.
//! No reason repeats a byte of the Secret.

use crate::model::routes::{Certificate, HostPattern};
use crate::source::Secret;
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeSet;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::FromDer;
use x509_parser::x509::AttributeTypeAndValue;
use zeroize::{Zeroize, Zeroizing};

/// The type of a Secret that holds a certificate.
const TLS: &str = "kubernetes.io/tls";
/// Certificates of one chain: a handshake carries them all.
const CHAIN: usize = 16;
/// Bytes of one chain, as DER.
const CHAIN_BYTES: usize = 128 << 10;
/// DNS names of one certificate that are known.
const NAMES: usize = 2_000;

/// Longest text of a certificate that is told, in characters.
const LABEL: usize = 200;

/// Reads a Secret, whatever the time.
///
/// # Errors
/// Why it cannot be served, as the beginning of a sentence.
pub(super) fn read(secret: &Secret) -> Result<Certificate, String> {
    if secret.kind != TLS {
        return Err(format!("it is of type {:.80}, and not {TLS}", secret.kind));
    }
    let certificate = secret.certificate.as_deref().ok_or("it has no tls.crt")?;
    let key = secret.private_key.as_deref().ok_or("it has no tls.key")?;
    let chain = chain(certificate)?;
    let key = private_key(key)?;
    let public = public_key(&key)?;
    let leaf = parse(&chain[0])?;
    if leaf.public_key().raw != public {
        let belongs = |der: &Vec<u8>| parse(der).is_ok_and(|other| other.public_key().raw == public);
        return Err(match chain.iter().position(belongs) {
            Some(index) => {
                format!("it has the leaf as certificate {} of tls.crt, and it must come first", index + 1)
            }
            None => "it has a tls.key that does not belong to the first certificate of tls.crt".into(),
        });
    }
    let validity = leaf.validity();
    let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let names = names(&leaf);
    Ok(Certificate { chain, key, names, not_before, not_after })
}

/// Why a certificate is not served at a time (seconds since the epoch), if so.
pub(super) fn untimely(certificate: &Certificate, now: i64) -> Option<&'static str> {
    if now > certificate.not_after {
        Some("it has expired")
    } else if now < certificate.not_before {
        Some("it is not valid yet")
    } else {
        None
    }
}

/// When the judgement of [`untimely`] may change next.
pub(super) fn next_change(certificate: &Certificate, now: i64) -> Option<i64> {
    let after = certificate.not_after.checked_add(1);
    [Some(certificate.not_before), after].into_iter().flatten().filter(|at| *at > now).min()
}

/// The names of a certificate, for many questions.
pub(super) struct Names<'a>(BTreeSet<&'a str>);

impl<'a> Names<'a> {
    pub(super) fn of(certificate: &'a Certificate) -> Self {
        Self(certificate.names.iter().map(String::as_str).collect())
    }

    /// Whether the certificate names every host of a pattern.
    pub(super) fn cover(&self, pattern: &HostPattern) -> bool {
        let wildcard = |parent: &str| self.0.contains(format!("*.{parent}").as_str());
        match pattern {
            HostPattern::Exact(host) => {
                self.0.contains(&**host) || host.split_once('.').is_some_and(|(_, parent)| wildcard(parent))
            }
            HostPattern::Wildcard(parent) => wildcard(parent),
            HostPattern::Any => false,
        }
    }
}

/// What a certificate says of itself, as ingress-nginx's metric has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issued {
    /// The first of its names; empty: it has none.
    pub host: String,
    /// Serial number of the issuer's name, which few have, and that of the certificate.
    pub identifier: String,
    pub issuer_common_name: String,
    pub issuer_organization: String,
    /// Decimal.
    pub serial_number: String,
    /// `RSA`, `ECDSA`, `Ed25519`.
    pub algorithm: &'static str,
}

/// Reads what there is to tell of a certificate; texts are cut.
pub(super) fn issued(certificate: &Certificate) -> Option<Issued> {
    let leaf = parse(certificate.chain.first()?).ok()?;
    let text = |text: &str| text.chars().take(LABEL).collect::<String>();
    let first = |attribute: Option<&AttributeTypeAndValue<'_>>| {
        attribute.and_then(|attribute| attribute.as_str().ok()).map(text).unwrap_or_default()
    };
    let issuer = leaf.issuer();
    let serial_number = text(&leaf.tbs_certificate.serial.to_string());
    Some(Issued {
        host: certificate.names.first().map(|name| text(name)).unwrap_or_default(),
        identifier: format!("{}-{serial_number}", first(issuer.iter_by_oid(&OID_X509_SERIALNUMBER).next())),
        issuer_common_name: first(issuer.iter_common_name().next()),
        issuer_organization: first(issuer.iter_organization().next()),
        serial_number,
        algorithm: match leaf.public_key().algorithm.algorithm.to_id_string().as_str() {
            "1.2.840.113549.1.1.1" => "RSA",
            "1.2.840.10045.2.1" => "ECDSA",
            "1.3.101.112" => "Ed25519",
            _ => "unknown",
        },
    })
}

fn chain(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut chain = Vec::new();
    let mut bytes = 0;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let der = certificate.map_err(|_| "it has a tls.crt that is not PEM")?;
        bytes += der.len();
        if chain.len() == CHAIN || bytes > CHAIN_BYTES {
            return Err(format!("it has more than {CHAIN} certificates or {CHAIN_BYTES} bytes of them"));
        }
        parse(&der)?;
        chain.push(der.to_vec());
    }
    if chain.is_empty() { Err("it has no certificate in tls.crt".into()) } else { Ok(chain) }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err("it has a tls.crt that holds something else than X.509 certificates".into()),
    }
}

/// PKCS#8, PKCS#1 or SEC1, the first one of the file.
fn private_key(pem: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        let (kind, mut der) = section.map_err(|_| "it has a tls.key that is not PEM")?;
        if matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey) {
            return Ok(Zeroizing::new(der));
        }
        der.zeroize();
    }
    Err("it has no private key in tls.key (PKCS#8, PKCS#1 or SEC1, not encrypted)".into())
}

/// DER of the public half, as a certificate holds it.
fn public_key(key: &[u8]) -> Result<Vec<u8>, String> {
    // The form is told from the bytes, here as in whoever serves it.
    let der = PrivateKeyDer::try_from(key).map_err(|_| "it has a tls.key of no known form")?;
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
        .map_err(|_| "it has a tls.key that is damaged or of a kind that is not served")?;
    let public = signing.public_key().ok_or("it has a tls.key of a kind that is not served")?;
    Ok(public.as_ref().to_vec())
}

fn names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(alternative)) = leaf.subject_alternative_name() else { return Vec::new() };
    let names = alternative.value.general_names.iter().filter_map(|name| {
        let GeneralName::DNSName(name) = name else { return None };
        Some(name.trim_end_matches('.').to_ascii_lowercase())
    });
    names.take(NAMES).collect()
}
