//! Joins the L7 half: what the reconciler is given, and who looks names up for it.

use crate::args::{Config, SourceKind};
use crate::link::Link;
use crate::model::l7::{L7Options, Names, WantedNames, certificate};
use crate::model::routes::Certificate;
use crate::problem::ObjectKey;
use crate::reconcile::L7Parts;
use crate::resolve;
use crate::source::Secret;
use crate::status::Reports;
use anyhow::Context;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

/// The name in the certificate that stands in for others (I30): nobody can have it.
const NOBODY: &str = "ingress.weir.invalid";

/// The ends of what the L7 half says and hears.
pub(super) struct Ingress {
    pub(super) parts: Option<L7Parts>,
    /// Which Secrets are needed.
    pub(super) secrets: watch::Receiver<BTreeSet<ObjectKey>>,
    /// What came of looking names up.
    pub(super) names: watch::Receiver<Arc<Names>>,
    /// What the API server is to be told, where there is one.
    pub(super) reports: Option<Arc<Reports>>,
}

/// Builds the L7 half, as far as it is on. `proxies`: a supervisor links some.
pub(super) fn join(
    tasks: &mut JoinSet<()>,
    config: &Config,
    link: &Link,
    proxies: bool,
) -> anyhow::Result<Ingress> {
    let (needed, secrets) = watch::channel(BTreeSet::new());
    let (found, names) = watch::channel(Arc::default());
    let Some(l7) = &config.l7 else { return Ok(Ingress { parts: None, secrets, names, reports: None }) };
    let options = L7Options {
        controllers: l7.controllers.clone(),
        without_class: l7.watch_without_class,
        manifests: matches!(config.source.kind, SourceKind::Manifests { .. }),
        namespace: l7.watch_namespace.clone(),
        default_certificate: l7.default_certificate.clone(),
        external_names: l7.external_names,
        allow_endpoint_cidrs: config.model.allow_endpoint_cidrs.clone(),
    };
    let (wanted, looked_up) = watch::channel(WantedNames::new());
    if l7.external_names {
        tasks.spawn(resolve::run(resolve::System::new(), looked_up, found));
    }
    let reports = match &config.source.kind {
        SourceKind::Api(_) => Some(Arc::<Reports>::default()),
        SourceKind::Manifests { .. } => None,
    };
    let parts = L7Parts {
        options,
        link: link.clone(),
        self_signed: Arc::new(self_signed().context("the self-signed certificate")?),
        secrets: needed,
        names: wanted,
        reports: reports.clone(),
        proxies,
    };
    Ok(Ingress { parts: Some(parts), secrets, names, reports })
}

/// A certificate for names without one, made anew by each agent.
fn self_signed() -> anyhow::Result<Certificate> {
    let mut params = rcgen::CertificateParams::new(vec![NOBODY.to_string()])?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "Weir default certificate");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    let key = rcgen::KeyPair::generate()?;
    let secret = Secret {
        key: ObjectKey::default(),
        kind: "kubernetes.io/tls".into(),
        certificate: Some(params.self_signed(&key)?.pem().into_bytes()),
        private_key: Some(Zeroizing::new(key.serialize_pem().into_bytes())),
    };
    certificate(&secret).map_err(anyhow::Error::msg)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_self_signed_certificate_has_a_dns_name_and_is_another_each_time() {
        let (one, other) = (self_signed().unwrap(), self_signed().unwrap());
        assert_eq!(one.names, [NOBODY]);
        assert!(one.chain != other.chain && *one.key != *other.key);
    }
}
