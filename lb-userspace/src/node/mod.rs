//! What this node is: its addresses, its devices, and what each device is for.
//!
//! [`netlink`] reads the kernel's tables, [`watch`] follows them, and [`derive`] decides,
//! purely, from tables, options and this node's pods. Nothing here writes to the kernel.

mod classify;
mod netlink;
mod watch;

pub use classify::{Inputs, derive};
pub use netlink::{Address, Link, Route, Tables, read};
pub use watch::follow;

use crate::args::L4Config;
use crate::args::value::{Devices, NodePortAddresses};
pub use crate::datapath::{LinkClass, LinkPlan};

use crate::datapath::NodeFacts;
use crate::problem::Problem;

/// The answer: what the data path needs to know, and where it belongs.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeState {
    /// `config.node_ports` is empty here; the reconciler knows the range.
    pub facts: NodeFacts,
    /// By interface index.
    pub links: Vec<LinkPlan>,
    pub problems: Vec<Problem>,
}

/// The flags that decide about devices and addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    pub devices: Devices,
    pub pod_devices: bool,
    pub nodeport_addresses: NodePortAddresses,
}

impl From<&L4Config> for Options {
    fn from(config: &L4Config) -> Self {
        Self {
            devices: config.devices.clone(),
            pod_devices: config.pod_devices,
            nodeport_addresses: config.nodeport_addresses.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
