//! A ServiceCIDR (S38).

use crate::source::ServiceCidr;
use k8s_openapi::api::networking::v1 as api;

/// Projects a ServiceCIDR to its compact form. The API server checked it; what cannot be read is
/// left out. One that is being deleted counts until it is gone: Services may have its addresses.
pub fn service_cidr(from: &api::ServiceCIDR) -> ServiceCidr {
    let cidrs = from.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    ServiceCidr {
        name: from.metadata.name.clone().unwrap_or_default(),
        cidrs: cidrs
            .iter()
            .filter_map(|cidr| cidr.parse::<ipnet::IpNet>().ok())
            .map(|net| net.trunc())
            .collect(),
    }
}
