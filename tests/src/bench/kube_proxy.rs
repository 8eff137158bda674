//! The peer: rules of the shape that kube-proxy's nftables mode writes (Kubernetes 1.33 and
//! later, `pkg/proxy/nftables/proxier.go`), made without kube-proxy.
//!
//! A verdict map from address, protocol and port leads to the Service's chain, that by a
//! random number to an endpoint's chain, that to the translation; node ports go through an
//! `external` chain that marks for masquerading. Filter chains look at new connections. What
//! kube-proxy has for features that nobody uses here is there, empty.

use super::cluster::{Cluster, Port, Service};
use super::rig::NODE;
use crate::netns::Netns;
use anyhow::{Result, anyhow};
use std::fmt::Write;

/// Loads the rules into a node.
pub(super) fn install(node: &Netns, cluster: &Cluster) -> Result<()> {
    // The rules themselves would follow what nft said of them.
    node.nft(&rules(cluster)).map_err(|error| {
        let text = format!("{error:#}");
        anyhow!("{}", text.split("in:\n").next().unwrap_or(&text).chars().take(2000).collect::<String>())
    })
}

fn rules(cluster: &Cluster) -> String {
    let (mut chains, mut ips, mut services, mut nodeports) =
        (String::new(), Vec::new(), Vec::new(), Vec::new());
    for service in cluster.services() {
        ips.push(service.address.to_string());
        for port in &service.ports {
            let id = format!("{}/{}", service.name, port.name);
            chains += &service_chains(&id, &service, port);
            let proto = port.proto;
            services.push(format!("{} . {proto} . {} : goto service-{id}", service.address, port.port));
            if port.node_port != 0 {
                nodeports.push(format!("{proto} . {} : goto external-{id}", port.node_port));
            }
        }
    }
    let (ips, services, nodeports) = (elements(&ips), elements(&services), elements(&nodeports));
    format!(
        "table ip kube-proxy {{
  set cluster-ips {{ type ipv4_addr; {ips} }}
  set nodeport-ips {{ type ipv4_addr; elements = {{ {NODE} }} }}
  map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
  map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
{chains}
  map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {services} }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; {nodeports} }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }}
  chain masquerading {{
    meta mark and 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }}
  chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}
  chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
  chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
  chain nodeport-endpoints-check {{
    ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
  }}
  chain filter-prerouting {{
    type filter hook prerouting priority -110; ct state new jump firewall-check
  }}
  chain filter-input {{
    type filter hook input priority -110
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }}
  chain filter-forward {{
    type filter hook forward priority -110
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain filter-output {{
    type filter hook output priority -110
    ct state new jump service-endpoints-check
    ct state new jump firewall-check
  }}
  chain filter-output-post-dnat {{
    type filter hook output priority -90; ct state new jump cluster-ips-check
  }}
  chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
}}
"
    )
}

fn service_chains(id: &str, service: &Service, port: &Port) -> String {
    let mut text = String::new();
    let count = service.endpoints.len();
    let mut verdicts = Vec::new();
    for (n, endpoint) in service.endpoints.iter().enumerate() {
        let chain = format!("endpoint-{id}__{endpoint}/{}", port.target);
        let _ = writeln!(
            text,
            "  chain {chain} {{ ip saddr {endpoint} jump mark-for-masquerade; meta l4proto {} dnat to {endpoint}:{}; }}",
            port.proto, port.target
        );
        verdicts.push(format!("{n} : goto {chain}"));
    }
    // Pods are 10.244.0.0/16, so their own connects are not masqueraded.
    let _ = writeln!(
        text,
        "  chain service-{id} {{
    ip daddr {} {} dport {} ip saddr != 10.244.0.0/16 jump mark-for-masquerade
    numgen random mod {count} vmap {{ {} }}
  }}",
        service.address,
        port.proto,
        port.port,
        verdicts.join(", ")
    );
    if port.node_port != 0 {
        let _ = writeln!(text, "  chain external-{id} {{ jump mark-for-masquerade; goto service-{id}; }}");
    }
    text
}

fn elements(all: &[String]) -> String {
    if all.is_empty() { String::new() } else { format!("elements = {{ {} }}", all.join(", ")) }
}
