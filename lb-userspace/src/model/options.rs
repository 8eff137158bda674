//! What the operator decides about Services, whatever the objects say.

use crate::address::special;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// `--external-ips`: whether `spec.externalIPs` are served (S14, H36).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ExternalIps {
    #[default]
    On,
    Off,
    /// Only addresses inside these networks.
    Within(Vec<IpNet>),
}

/// The model's settings, fixed for the life of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ModelOptions {
    pub external_ips: ExternalIps,
    /// `--protected-ports`: ports of the node's own addresses that no frontend takes over (H36).
    pub protected_ports: BTreeSet<u16>,
    /// `--allow-endpoint-cidr`: endpoints that are accepted although they are loopback,
    /// link-local, multicast or unspecified (H38).
    pub allow_endpoint_cidrs: Vec<IpNet>,
    /// `--masquerade-external`: with `externalTrafficPolicy: Cluster`, endpoints see this node's
    /// address in place of the client's, wherever they are (S44).
    pub masquerade_external: bool,
}

impl ModelOptions {
    /// Why an address of `externalIPs` is not served, if so.
    pub(super) fn refuses_external(&self, ip: IpAddr) -> Option<&'static str> {
        match &self.external_ips {
            ExternalIps::On => None,
            ExternalIps::Off => Some("externalIPs are switched off by --external-ips"),
            ExternalIps::Within(nets) if nets.iter().any(|net| net.contains(&ip)) => None,
            ExternalIps::Within(_) => Some("outside the networks that --external-ips allows"),
        }
    }

    /// Why an endpoint's address is refused, if so (H38: CVE-2021-25740, CVE-2021-25737).
    pub(super) fn refuses_endpoint(&self, ip: IpAddr) -> Option<&'static str> {
        let reason = special(ip)?;
        if self.allow_endpoint_cidrs.iter().any(|net| net.contains(&ip.to_canonical())) {
            None
        } else {
            Some(reason)
        }
    }
}
