//! From EndpointSlices to the endpoints of one Service port (S3 to S7, S13).
//!
//! A slice's port belongs to the Service port of the same name and protocol; the number comes
//! from the slice, so that a named target port may differ from slice to slice (S5).

use super::ModelOptions;
use crate::problem::{Kind, ObjectRef, Problem};
use crate::source::{Endpoint, EndpointSlice, ServicePort};
use lb_common::abi::{Addr, Family};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Endpoints by address and port (host order).
pub(super) type Endpoints<'a> = BTreeMap<(Addr, u16), &'a Endpoint>;

/// The union over all slices of what serves one port in one family, each address and port
/// once.
///
/// A pod's address may be used again while the slice of its former owner still says
/// "terminating": the entry that does not terminate wins (S4). Of two that agree in that, the
/// ready one, then the serving one, then the one of this node, so that the order of slices
/// never matters.
pub(super) fn of_port<'a>(
    slices: &[&'a EndpointSlice],
    port: &ServicePort,
    family: Family,
    node: &str,
    options: &ModelOptions,
) -> Endpoints<'a> {
    let mut found = Endpoints::new();
    for slice in slices {
        let ports =
            slice.ports.iter().filter(|p| p.name == port.name && p.proto == port.proto && p.port != 0);
        for number in ports.map(|p| p.port) {
            for endpoint in &slice.endpoints {
                let addr = Addr::from(endpoint.addr);
                if addr.family() != family || options.refuses_endpoint(endpoint.addr).is_some() {
                    continue;
                }
                let kept = found.entry((addr, number)).or_insert(endpoint);
                if precedence(endpoint, node) < precedence(kept, node) {
                    *kept = endpoint;
                }
            }
        }
    }
    found
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
