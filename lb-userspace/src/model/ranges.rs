//! `loadBalancerSourceRanges`: who may use a Service's load-balancer addresses (S51).

use super::{NodeView, limits};
use crate::source::{Service, ServiceType};
use ipnet::IpNet;
use lb_common::abi::{Addr, Family};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The ranges of a Service, read.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// IPv4, IPv6; `None`: everybody.
    families: [Option<BTreeSet<IpNet>>; 2],
    unreadable: Vec<String>,
}

impl Ranges {
    /// Reads the ranges. A family without an entry, or with a /0, is open to all. An entry that
    /// cannot be read lets nobody in and closes both families: a firewall with a fault must not
    /// be an open door.
    ///
    /// Where a range holds the node's own address, a client that shows the address which it
    /// asked for is let in: who has a load balancer's address as its own reaches it so.
    pub(super) fn of(service: &Service, node: &NodeView) -> Self {
        let mut ranges = Self::default();
        if service.kind != ServiceType::LoadBalancer {
            return ranges;
        }
        for text in &service.source_ranges {
            match text.trim().parse::<IpNet>() {
                Ok(net) if net.addr().to_canonical() == net.addr() => {
                    ranges.families[place(net.addr())].get_or_insert_default().insert(net.trunc());
                }
                Ok(_) | Err(_) => ranges.unreadable.push(text.clone()),
            }
        }
        if !ranges.unreadable.is_empty() {
            for family in &mut ranges.families {
                family.get_or_insert_default();
            }
        }
        for family in &mut ranges.families {
            if family.iter().flatten().any(|net| net.prefix_len() == 0) {
                *family = None;
            }
        }
        for (at, family) in ranges.families.iter_mut().enumerate() {
            let Some(nets) = family else { continue };
            if node.internal_ips.iter().any(|ip| nets.iter().any(|net| net.contains(ip))) {
                let own = service.load_balancer_ips.iter().filter(|ip| place(**ip) == at);
                nets.extend(own.map(|ip| IpNet::from(*ip)));
            }
        }
        ranges
    }

    /// What is wrong with them.
    pub(super) fn problems(&self, service: &Service) -> Vec<String> {
        let told = self.unreadable.iter().map(|text| {
            format!(
                "{text:?} is no range of addresses: it lets nobody in, and both families are closed to others"
            )
        });
        if service.load_balancer_ips.is_empty() { Vec::new() } else { told.collect() }
    }

    /// Whether so many ports together ask for more than there may be.
    pub(super) fn are_too_many(&self, ports: usize) -> bool {
        self.families.iter().flatten().any(|nets| nets.len() > share(ports))
    }

    /// Who may use the addresses of a family, where so many ports have any.
    pub(super) fn of_family(&self, family: Family, ports: usize) -> Option<BTreeSet<IpNet>> {
        let nets = self.families[usize::from(family == Family::V6)].as_ref()?;
        Some(nets.iter().take(share(ports)).copied().collect())
    }
}

fn share(ports: usize) -> usize {
    limits::RANGES / ports.max(1)
}

fn place(ip: IpAddr) -> usize {
    usize::from(Addr::from(ip).family() == Family::V6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::ObjectKey;

    fn service(ranges: &[&str]) -> Service {
        Service {
            key: ObjectKey::new("default", "web"),
            kind: ServiceType::LoadBalancer,
            load_balancer_ips: ["203.0.113.1", "2001:db8::1"].map(|ip| ip.parse().expect(ip)).into(),
            source_ranges: ranges.iter().map(|range| (*range).into()).collect(),
            ..Service::default()
        }
    }

    fn spelled(ranges: &Ranges, family: Family) -> String {
        ranges
            .of_family(family, 1)
            .map_or("all".into(), |nets| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn each_family_is_as_open_as_its_entries_say() {
        for (ranges, v4, v6, problems) in [
            (&[][..], "all", "all", 0),
            (&["10.0.0.0/8"][..], "10.0.0.0/8", "all", 0),
            (&[" 10.1.2.3/8 ", "10.0.0.0/8"][..], "10.0.0.0/8", "all", 0),
            (&["10.0.0.0/8", " 0.0.0.0/0 "][..], "all", "all", 0),
            (&["fd00::/8", "10.0.0.0/8"][..], "10.0.0.0/8", "fd00::/8", 0),
            (&["fd00::/8", "10.0.0.0/8", "::/0"][..], "10.0.0.0/8", "all", 0),
            (&["nonsense"][..], "", "", 1),
            (&["nonsense", "10.0.0.0/8"][..], "10.0.0.0/8", "", 1),
            (&["::ffff:10.0.0.0/104"][..], "", "", 1),
        ] {
            let service = service(ranges);
            let read = Ranges::of(&service, &NodeView::default());
            assert_eq!(
                [spelled(&read, Family::V4), spelled(&read, Family::V6)],
                [v4, v6].map(String::from),
                "{ranges:?}"
            );
            assert_eq!(read.problems(&service).len(), problems, "{ranges:?}");
        }
    }

    #[test]
    fn where_the_node_is_let_in_so_is_who_has_the_address_itself() {
        let ips = |list: &[&str]| list.iter().map(|ip| ip.parse().expect(ip)).collect();
        let node = NodeView { internal_ips: ips(&["192.0.2.1", "fd00::1"]), ..NodeView::default() };
        let read = Ranges::of(&service(&["192.0.2.0/24", "2001:db8:5::/48"]), &node);
        assert_eq!(spelled(&read, Family::V4), "192.0.2.0/24 203.0.113.1/32");
        assert_eq!(spelled(&read, Family::V6), "2001:db8:5::/48");
    }

    #[test]
    fn too_many_ranges_let_in_the_first_ones() {
        let many: Vec<String> =
            (0..=limits::RANGES / 2).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let read = Ranges::of(&service(&many), &NodeView::default());
        assert!(!read.are_too_many(1) && read.are_too_many(2));
        assert_eq!(read.of_family(Family::V4, 2).map(|nets| nets.len()), Some(limits::RANGES / 2));
    }
}
