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
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
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
pub(crate) struct Accounts {
    pub(crate) public: PathBuf,
    pub(crate) key: PathBuf,
}

/// An authority of its own, whose certificates are files of one folder.
pub(crate) struct Signer {
    dir: PathBuf,
    pub(crate) ca: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    /// Makes the authority and writes its certificate, `ca.crt`; its key is kept nowhere.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "weir-tests");
        let key = KeyPair::generate()?;
        let ca = dir.join("ca.crt");
        fs::write(&ca, params.self_signed(&key)?.pem())?;
        Ok(Self { dir: dir.to_owned(), ca, issuer: Issuer::new(params, key) })
    }

    /// The certificate of a server that answers under these names, as the API server does.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn api_server(&self, addresses: &[IpAddr]) -> Result<Pair> {
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
            "10.96.0.1",
            "fd00:10:96::1",
        ];
        let names = names.iter().map(ToString::to_string);
        let names = names.chain(addresses.iter().map(ToString::to_string)).collect();
        self.pair("server", "kube-apiserver", None, names)
    }

    /// The key that signs service account tokens.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn accounts(&self) -> Result<Accounts> {
        let accounts = Accounts { public: self.dir.join("accounts.pub"), key: self.dir.join("accounts.key") };
        let key = KeyPair::generate()?;
        fs::write(&accounts.public, key.public_key_pem())?;
        fs::write(&accounts.key, key.serialize_pem())?;
        Ok(accounts)
    }

    /// A certificate and its key, as `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn pair(
        &self,
        name: &str,
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
        let made = Pair {
            certificate: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
        };
        fs::write(&made.certificate, params.signed_by(&key, &self.issuer)?.pem())?;
        fs::write(&made.key, key.serialize_pem())?;
        Ok(made)
    }

    /// A kubeconfig for one of the pairs.
    pub(crate) fn kubeconfig(&self, server: SocketAddr, who: &Pair) -> String {
        kubeconfig(&self.ca, server, who)
    }
}

impl Pki {
    /// Makes all keys and writes them into the folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn write(dir: &Path, address: IpAddr) -> Result<Self> {
        let signer = Signer::new(dir)?;
        let server = signer.api_server(&[address])?;
        let admin = signer.pair("admin", "admin", Some("system:masters"), Vec::new())?;
        let user = signer.pair("user", super::USER, None, Vec::new())?;
        Ok(Self { accounts: signer.accounts()?, ca: signer.ca, server, admin, user })
    }

    /// A kubeconfig for one of the pairs.
    pub(super) fn kubeconfig(&self, server: SocketAddr, who: &Pair) -> String {
        kubeconfig(&self.ca, server, who)
    }
}

fn kubeconfig(ca: &Path, server: SocketAddr, who: &Pair) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: weir\n\
         clusters: [{{name: weir, cluster: {{server: \"https://{server}\", certificate-authority: {ca}}}}}]\n\
         users: [{{name: weir, user: {{client-certificate: {certificate}, client-key: {key}}}}}]\n\
         contexts: [{{name: weir, context: {{cluster: weir, user: weir}}}}]\n",
        ca = ca.display(),
        certificate = who.certificate.display(),
        key = who.key.display(),
    )
}
