//! The client's side of TLS: verifies where roots are given, else takes any certificate.

use super::{Shown, Tls, Version};
use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::io::Write;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::extensions::GeneralName;

/// Shakes hands over an open connection; `early` leaves together with the end of the handshake.
pub(super) async fn connect(
    tls: &Tls,
    version: Version,
    stream: TcpStream,
    early: &[u8],
) -> Result<TlsStream<TcpStream>> {
    let mut config = match &tls.roots {
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(root?)?;
            }
            ClientConfig::builder_with_provider(Arc::new(weir::proxy::tls::provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_no_client_auth()
        }
        None => any(rustls::DEFAULT_VERSIONS)?,
    };
    config.alpn_protocols = match version {
        Version::One | Version::WebSocket => vec![b"http/1.1".to_vec()],
        Version::Two => vec![b"h2".to_vec()],
        Version::Early => Vec::new(),
    };
    // Every connection shakes hands in full: what is told is the certificate of today.
    config.resumption = rustls::client::Resumption::disabled();
    let name = match &tls.name {
        Some(name) => ServerName::try_from(name.clone())?,
        None => ServerName::from(stream.peer_addr()?.ip()),
    };
    let mut held = Ok(());
    let connecting = TlsConnector::from(Arc::new(config)).connect_with(name, stream, |session| {
        // What is written before there are keys is held back until there are.
        held = session.writer().write_all(early);
    });
    let stream = connecting.await.context("TLS")?;
    held.context("TLS")?;
    Ok(stream)
}

/// What the server showed.
pub(super) fn shown(stream: &TlsStream<TcpStream>) -> Result<Shown> {
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().unwrap_or_default();
    let leaf = chain.first().context("no certificate")?;
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf)?;
    let mut names = Vec::new();
    if let Some(extension) = certificate.subject_alternative_name()? {
        for name in &extension.value.general_names {
            if let GeneralName::DNSName(name) = name {
                names.push((*name).to_owned());
            }
        }
    }
    Ok(Shown { names, serial: certificate.raw_serial_as_string() })
}

/// What ALPN agreed on.
pub(super) fn alpn(stream: &TlsStream<TcpStream>) -> Option<String> {
    stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
}

/// A client that takes any certificate whose key signs the handshake.
///
/// # Errors
/// When the cryptography has none of the versions.
pub(crate) fn any(versions: &[&'static SupportedProtocolVersion]) -> Result<ClientConfig> {
    any_with(weir::proxy::tls::provider(), versions)
}

/// The same with another choice of cryptography.
///
/// # Errors
/// When the cryptography has none of the versions.
pub(crate) fn any_with(
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig> {
    let provider = Arc::new(provider);
    Ok(ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any(provider)))
        .with_no_client_auth())
}

/// Takes any certificate whose key signs the handshake.
#[derive(Debug)]
struct Any(Arc<CryptoProvider>);

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
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
