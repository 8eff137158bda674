//! What an address is, whoever asks.

use std::net::IpAddr;

/// Why an address can be neither frontend nor endpoint: it means something else on each
/// node, or would take over traffic that belongs to the host or to a link (S14, H38).
pub(crate) fn special(ip: IpAddr) -> Option<&'static str> {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_unspecified() {
        Some("unspecified")
    } else if ip.is_loopback() {
        Some("loopback")
    } else if link_local {
        Some("link-local")
    } else if ip.is_multicast() {
        Some("multicast")
    } else if matches!(ip, IpAddr::V4(ip) if ip.is_broadcast()) {
        Some("broadcast")
    } else {
        None
    }
}
