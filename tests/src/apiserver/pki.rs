//! Throwaway keys of one control plane: a CA, the server's certificate, an administrator's, a
//! plain user's, and the key that signs service account tokens.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// A certificate and its key, as files.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// The files of one control plane.
#[derive(Debug)]
pub(super) struct Pki {
    pub(super) ca: PathBuf,
    pub(super) server: Pair,
    pub(super) admin: Pair,
    pub(super) user: Pair,
    pub(super) accounts: Accounts,
}

/// The keys of service account tokens.
#[derive(Debug)]
pub(super) struct Accounts {
    pub(super) public: PathBuf,
    pub(super) key: PathBuf,
}

impl Pki {
    /// Makes all keys and writes them into the folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn write(dir: &Path, address: IpAddr) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "weir-tests");
        let key = KeyPair::generate()?;
        let ca = dir.join("ca.crt");
        fs::write(&ca, params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);

        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            "127.0.0.1",
            "10.96.0.1",
            "fd00:10:96::1",
        ];
        let names = names.iter().map(ToString::to_string).chain([address.to_string()]).collect();
        let server = pair(dir, "server", &issuer, "kube-apiserver", None, names)?;
        let admin = pair(dir, "admin", &issuer, "admin", Some("system:masters"), Vec::new())?;
        let user = pair(dir, "user", &issuer, super::USER, None, Vec::new())?;
        let accounts = Accounts { public: dir.join("accounts.pub"), key: dir.join("accounts.key") };
        let key = KeyPair::generate()?;
        fs::write(&accounts.public, key.public_key_pem())?;
        fs::write(&accounts.key, key.serialize_pem())?;
        Ok(Self { ca, server, admin, user, accounts })
    }

    /// A kubeconfig for one of the pairs.
    pub(super) fn kubeconfig(&self, server: SocketAddr, who: &Pair) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: weir\n\
             clusters: [{{name: weir, cluster: {{server: \"https://{server}\", certificate-authority: {ca}}}}}]\n\
             users: [{{name: weir, user: {{client-certificate: {certificate}, client-key: {key}}}}}]\n\
             contexts: [{{name: weir, context: {{cluster: weir, user: weir}}}}]\n",
            ca = self.ca.display(),
            certificate = who.certificate.display(),
            key = who.key.display(),
        )
    }
}

fn pair(
    dir: &Path,
    name: &str,
    issuer: &Issuer<'_, KeyPair>,
    common_name: &str,
    organization: Option<&str>,
    alternative_names: Vec<String>,
) -> Result<Pair> {
    let mut params = CertificateParams::new(alternative_names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let made = Pair { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
    fs::write(&made.certificate, params.signed_by(&key, issuer)?.pem())?;
    fs::write(&made.key, key.serialize_pem())?;
    Ok(made)
}
