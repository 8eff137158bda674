//! From EndpointSlices to the endpoints of one Service port (S3 to S7, S13).
//!
//! A slice's port belongs to the Service port of the same name and protocol; the number comes
//! from the slice, so that a named target port may differ from slice to slice (S5).

use super::ModelOptions;
use crate::problem::{Kind, ObjectRef, Problem};
use crate::source::{Endpoint, EndpointSlice, ServicePort};
use lb_common::abi::{Addr, Family, Proto};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Endpoints by address and port (host order).
pub(super) type Endpoints<'a> = BTreeMap<(Addr, u16), &'a Endpoint>;

/// What the slices of a Service offer, by the name and protocol that a Service port asks with.
pub(super) struct Offers<'a> {
    offers: BTreeMap<(&'a str, Proto), Vec<Offer<'a>>>,
}

/// One port of one slice.
struct Offer<'a> {
    number: u16,
    endpoints: &'a [Endpoint],
    /// How many of them are IPv4, and IPv6. All of a slice are of one family (S5); nothing
    /// relies on it.
    families: [usize; 2],
}

impl Offer<'_> {
    fn count(&self, family: Family) -> usize {
        self.families[usize::from(family == Family::V6)]
    }
}

impl<'a> Offers<'a> {
    pub(super) fn of(slices: &[&'a EndpointSlice]) -> Self {
        let mut offers: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for slice in slices {
            let v4 = slice.endpoints.iter().filter(|e| Addr::from(e.addr).is_v4()).count();
            let families = [v4, slice.endpoints.len() - v4];
            for port in slice.ports.iter().filter(|port| port.port != 0) {
                let offer = Offer { number: port.port, endpoints: &slice.endpoints, families };
                offers.entry((&*port.name, port.proto)).or_default().push(offer);
            }
        }
        Self { offers }
    }

    fn of_port<'b>(&'b self, port: &'b ServicePort, family: Family) -> impl Iterator<Item = &'b Offer<'b>> {
        let offers = self.offers.get(&(&*port.name, port.proto));
        offers.into_iter().flatten().filter(move |offer| offer.count(family) > 0)
    }

    /// How many endpoints one port has in one family, at most.
    pub(super) fn count(&self, port: &ServicePort, family: Family) -> usize {
        self.of_port(port, family).map(|offer| offer.count(family)).sum()
    }

    /// The union over all slices of what serves one port in one family, each address and port
    /// once. Of those only the first `most` are looked at, in the order of slices.
    ///
    /// A pod's address may be used again while the slice of its former owner still says
    /// "terminating": the entry that does not terminate wins (S4). Of two that agree in that, the
    /// ready one, then the serving one, then the one of this node, so that the order of slices
    /// never matters.
    pub(super) fn endpoints<'b>(
        &'b self,
        port: &'b ServicePort,
        family: Family,
        most: usize,
        node: &str,
        options: &ModelOptions,
    ) -> Endpoints<'b> {
        let all = self.of_port(port, family).flat_map(|o| o.endpoints.iter().map(|e| (o.number, e)));
        let of_family = all.filter(|(_, endpoint)| Addr::from(endpoint.addr).family() == family);
        let mut found = Endpoints::new();
        for (number, endpoint) in of_family.take(most) {
            if options.refuses_endpoint(endpoint.addr).is_some() {
                continue;
            }
            let kept = found.entry((Addr::from(endpoint.addr), number)).or_insert(endpoint);
            if precedence(endpoint, node) < precedence(kept, node) {
                *kept = endpoint;
            }
        }
        found
    }
}

/// Smaller wins. The fields after the node only make the answer independent of the order.
fn precedence<'a>(endpoint: &'a Endpoint, node: &str) -> impl Ord + use<'a> {
    (
        endpoint.terminating,
        Reverse(endpoint.ready),
        Reverse(endpoint.serving),
        Reverse(is_local(endpoint, node)),
        (&endpoint.node, &endpoint.hint_nodes, &endpoint.hint_zones),
    )
}

/// Whether an endpoint is on this node (S7). One without a node is on none.
pub(super) fn is_local(endpoint: &Endpoint, node: &str) -> bool {
    endpoint.node.as_deref() == Some(node)
}

/// What is wrong with slices: found when they were read, or refused here (H38).
pub(super) fn problems(slices: &[&EndpointSlice], options: &ModelOptions) -> Vec<Problem> {
    let mut problems = Vec::new();
    for slice in slices {
        let object = ObjectRef { kind: Kind::EndpointSlice, key: slice.key.clone() };
        problems.extend(slice.problems.iter().map(|p| Problem {
            object: object.clone(),
            field: p.field.clone(),
            reason: p.reason.clone(),
        }));
        for (index, endpoint) in slice.endpoints.iter().enumerate() {
            if let Some(reason) = options.refuses_endpoint(endpoint.addr) {
                problems.push(Problem {
                    object: object.clone(),
                    field: format!("endpoints[{index}].addresses[0]"),
                    reason: format!("{} is {reason}: this endpoint is not used", endpoint.addr),
                });
            }
        }
    }
    problems
}
