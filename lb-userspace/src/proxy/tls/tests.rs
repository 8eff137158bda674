//! Handshakes with rustls's client over an in-memory connection.

#![expect(clippy::unwrap_used, reason = "tests")]

mod coverage;
mod hostile;
mod names;
mod resumption;

use super::crypto::CRYPTO;
use super::*;
use crate::model::routes::{Certificate, HostPattern, Update};
use crate::problem::ObjectKey;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

/// A self-signed certificate for the names.
pub(in crate::proxy) fn certificate(names: &[&str]) -> Arc<Certificate> {
    certificate_with(names, &KeyPair::generate().unwrap())
}

pub(super) fn certificate_with(names: &[&str], key: &KeyPair) -> Arc<Certificate> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let leaf = CertificateParams::new(names.clone()).unwrap().self_signed(key).unwrap();
    Arc::new(Certificate {
        chain: vec![leaf.der().to_vec()],
        key: Zeroizing::new(key.serialize_der()),
        names,
        not_before: 0,
        not_after: 4_000_000_000,
    })
}

pub(super) fn secret(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

pub(super) fn pattern(name: &str) -> HostPattern {
    match name.strip_prefix("*.") {
        Some(parent) => HostPattern::Wildcard(parent.into()),
        None if name == "*" => HostPattern::Any,
        None => HostPattern::Exact(name.into()),
    }
}

pub(in crate::proxy) fn name(name: &str, of: &str) -> Update {
    Update::Name(pattern(name), Some(secret(of)))
}

pub(in crate::proxy) fn told(name: &str, certificate: &Arc<Certificate>) -> Update {
    Update::Certificate(secret(name), Some(Arc::clone(certificate)))
}

/// An acceptor that was told this.
pub(super) fn acceptor(updates: &[Update]) -> Acceptor {
    let certificates = Certificates::new().unwrap();
    certificates.update(updates, true);
    Acceptor::new(certificates, Options::default())
}

/// Takes every certificate: tests compare it themselves.
#[derive(Debug)]
struct Any;

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = (CRYPTO.provider)().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = (CRYPTO.provider)().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        (CRYPTO.provider)().signature_verification_algorithms.supported_schemes()
    }
}

/// A client of one version, with a memory of sessions of its own.
pub(super) fn client(version: Version) -> ClientConfig {
    let version = match version {
        Version::Tls12 => &rustls::version::TLS12,
        Version::Tls13 => &rustls::version::TLS13,
    };
    ClientConfig::builder_with_provider(Arc::new((CRYPTO.provider)()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any))
        .with_no_client_auth()
}

/// What came of a handshake, on both sides.
pub(super) struct Done {
    /// The leaf that the client got.
    pub(super) leaf: Option<Vec<u8>>,
    pub(super) client: Result<Option<HandshakeKind>, rustls::Error>,
    pub(super) server: Result<Facts, Refused>,
}

/// Shakes hands for a name, then says one word in each direction.
pub(super) async fn shake(acceptor: &Acceptor, client: &ClientConfig, host: &str) -> Done {
    let (near, far) = duplex(64 << 10);
    let server = async {
        let (mut stream, facts) = acceptor.accept(far).await?;
        let mut word = [0; 4];
        // A client that refuses our certificate says no word.
        if stream.read_exact(&mut word).await.is_ok() {
            assert_eq!(&word, b"ping");
            stream.write_all(b"pong").await.unwrap();
            stream.shutdown().await.unwrap();
        }
        Ok(facts)
    };
    let (server, (leaf, client)) = tokio::join!(server, connect(near, client, host));
    Done { leaf, client, server }
}

type Seen = (Option<Vec<u8>>, Result<Option<HandshakeKind>, rustls::Error>);

async fn connect(near: DuplexStream, client: &ClientConfig, host: &str) -> Seen {
    let connector = TlsConnector::from(Arc::new(client.clone()));
    let name = ServerName::try_from(host.to_owned()).unwrap();
    match connector.connect(name, near).await {
        Ok(mut stream) => {
            stream.write_all(b"ping").await.unwrap();
            let mut word = Vec::new();
            stream.read_to_end(&mut word).await.unwrap();
            assert_eq!(word, b"pong");
            let session = stream.get_ref().1;
            let leaf = session.peer_certificates().and_then(|chain| chain.first());
            (leaf.map(|leaf| leaf.to_vec()), Ok(session.handshake_kind()))
        }
        Err(error) => {
            let Refused::Tls(error) = from_io(error) else { panic!("the connection ended in silence") };
            (None, Err(error))
        }
    }
}
