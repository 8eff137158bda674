//! What the L7 half has published, and which Ingresses lead nowhere: in own names, and where
//! ingress-nginx has the same value in its names as well, so that dashboards fill (I75).

use super::{counters, gauges};
use crate::model::l7::{Issued, Orphan};
use crate::problem::ObjectKey;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use std::collections::BTreeMap;
use std::fmt::Error;

/// Series of objects, of each kind: what is beyond is counted and has none of its own.
pub const SERIES: usize = 100;
/// Of the labels `class` and `controller_class`, as the proxy's metrics have it.
const CLASS: &str = "weir";

/// What the L7 half has published.
#[derive(Clone, Debug, Default)]
pub struct L7Reading {
    pub ingresses: usize,
    pub hosts: usize,
    pub rules: usize,
    pub pools: usize,
    pub endpoints: usize,
    pub certificates: usize,
    /// Secrets that are referred to and cannot be served (I31).
    pub unusable_secrets: usize,
    /// Seconds since the epoch.
    pub first_expiry: Option<i64>,
    /// Publications so far.
    pub generation: u64,
    /// Ingresses that lead nowhere: how many, and the first [`SERIES`] by name.
    pub orphans: BTreeMap<Orphan, (usize, Vec<ObjectKey>)>,
    /// Certificates that are served, by Secret: the first [`SERIES`] to end.
    pub issued: Vec<(ObjectKey, Issued)>,
}

impl L7Reading {
    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let rows = [
            ("ingress", self.ingresses),
            ("host", self.hosts),
            ("rule", self.rules),
            ("pool", self.pools),
            ("endpoint", self.endpoints),
            ("certificate", self.certificates),
        ];
        gauges(
            encoder,
            "lb_l7_published_count",
            "What the routes hold, by kind",
            rows.map(|(kind, n)| ([("kind", kind)], u32::try_from(n).unwrap_or(u32::MAX))),
        )?;
        let bad = u32::try_from(self.unusable_secrets).unwrap_or(u32::MAX);
        gauges(
            encoder,
            "lb_l7_unusable_secrets_count",
            "Secrets that Ingresses refer to and that cannot be served",
            [([("why", "bad")], bad)],
        )?;
        if let Some(at) = self.first_expiry {
            let mut family = encoder.encode_descriptor(
                "lb_l7_first_certificate_expiry_timestamp_seconds",
                "When the first of the served certificates expires",
                None,
                MetricType::Gauge,
            )?;
            ConstGauge::new(at).encode(family.encode_family(&[("of", "served")])?)?;
        }
        counters(
            encoder,
            "lb_l7_publications",
            "Steps from one table of routes to the next",
            [([("what", "routes")], self.generation)],
        )?;
        self.orphans(encoder)?;
        self.issued(encoder)
    }

    fn orphans(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let count = |orphan| self.orphans.get(&orphan).map_or(0, |(count, _)| *count);
        gauges(
            encoder,
            "lb_l7_orphan_ingresses_count",
            "Ingresses with a backend that leads nowhere",
            Orphan::ALL.map(|orphan| {
                let count = u32::try_from(count(orphan)).unwrap_or(u32::MAX);
                ([("type", orphan.label())], count)
            }),
        )?;
        let each =
            self.orphans.iter().flat_map(|(orphan, (_, keys))| keys.iter().map(move |key| (orphan, key)));
        gauges(
            encoder,
            "nginx_ingress_controller_orphan_ingress",
            "Ingresses with a backend that leads nowhere: the first hundred of each type",
            each.map(|(orphan, key)| {
                let labels = [
                    ("controller_class", CLASS),
                    ("namespace", key.namespace.as_str()),
                    ("ingress", key.name.as_str()),
                    ("type", orphan.label()),
                ];
                (labels, 1)
            }),
        )
    }

    fn issued(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        gauges(
            encoder,
            "nginx_ingress_controller_ssl_certificate_info",
            "Who issued the certificates that are served: the first hundred to end",
            self.issued.iter().map(|(secret, issued)| {
                let labels = [
                    ("class", CLASS),
                    ("namespace", secret.namespace.as_str()),
                    ("secret_name", secret.name.as_str()),
                    ("host", issued.host.as_str()),
                    ("identifier", issued.identifier.as_str()),
                    ("issuer_common_name", issued.issuer_common_name.as_str()),
                    ("issuer_organization", issued.issuer_organization.as_str()),
                    ("serial_number", issued.serial_number.as_str()),
                    ("public_key_algorithm", issued.algorithm),
                ];
                (labels, 1)
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, Reading};

    #[test]
    fn orphans_and_issuers_are_told_in_the_names_of_ingress_nginx() {
        let orphans = BTreeMap::from([(Orphan::NoService, (250, vec![ObjectKey::new("shop", "web")]))]);
        let issued = Issued {
            host: "a.example".into(),
            identifier: "-7".into(),
            issuer_common_name: "An \"authority\"".into(),
            issuer_organization: String::new(),
            serial_number: "7".into(),
            algorithm: "ECDSA",
        };
        let issued = vec![(ObjectKey::new("shop", "tls"), issued)];
        let l7 = Some(L7Reading { orphans, issued, ..L7Reading::default() });
        let text = Metrics::default().text(Some(Reading { l7, ..Reading::default() }));
        for line in [
            "lb_l7_orphan_ingresses_count{type=\"no-service\"} 250",
            "lb_l7_orphan_ingresses_count{type=\"no-endpoint\"} 0",
            "nginx_ingress_controller_orphan_ingress{controller_class=\"weir\",namespace=\"shop\",\
             ingress=\"web\",type=\"no-service\"} 1",
            "nginx_ingress_controller_ssl_certificate_info{class=\"weir\",namespace=\"shop\",\
             secret_name=\"tls\",host=\"a.example\",identifier=\"-7\",\
             issuer_common_name=\"An \\\"authority\\\"\",issuer_organization=\"\",serial_number=\"7\",\
             public_key_algorithm=\"ECDSA\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
