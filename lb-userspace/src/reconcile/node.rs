//! The node's part of a round: what the model must know before, what the data path must
//! know after.

use super::Reconciler;
use crate::args::value::NodePortAddresses;
use crate::board::agent_problem;
use crate::model::NodeView;
use crate::node::Inputs;
use crate::problem::{Kind, ObjectKey};
use crate::service_health::Wanted;
use lb_common::abi::Addr;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How soon a hook that could not be attached is tried again: a device may be on its way up.
const NODE_RETRY: Duration = Duration::from_secs(2);
/// How long an earlier agent's facts and hooks stay as they are for want of the list of Pods,
/// from the first round on. It may be refused for ever.
const POD_PATIENCE: Duration = Duration::from_secs(10);

/// What the node's part of a round knows of the pods here. Those that are no endpoint are
/// known from Pods alone, and flows through their links must not suffer from a restart (S80).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum PodWait {
    /// There has been no round yet.
    #[default]
    New,
    /// An earlier agent's facts and hooks stand until Pods are listed, or until then.
    Waiting(Instant),
    /// Waited for in vain, or on a node without flows: links that are not in the plan stay.
    Unlisted,
    /// All pods are known: links that are not in the plan go.
    Listed,
}

impl PodWait {
    pub(super) fn next(self, listed: bool, took_over: bool, now: Instant) -> Self {
        match self {
            _ if listed => Self::Listed,
            Self::New if took_over => Self::Waiting(now + POD_PATIENCE),
            Self::Waiting(due) if now < due => self,
            Self::New | Self::Waiting(_) | Self::Unlisted | Self::Listed => Self::Unlisted,
        }
    }
}

impl Reconciler {
    /// What Services are decided from.
    pub(super) fn update_view(&mut self) {
        let addresses = self.tables.local.iter().copied().filter(|ip| !ip.is_loopback());
        let node = self.objects.node.as_deref();
        self.view = NodeView {
            name: self.objects.node_name.clone(),
            zone: node.and_then(|node| node.zone.clone()),
            addresses: addresses.collect(),
            internal_ips: node.map(|node| node.internal_ips.clone()).unwrap_or_default(),
            external_ips: node.map(|node| node.external_ips.clone()).unwrap_or_default(),
        };
    }

    /// Facts and hooks. The range of node ports is that of the frontends now programmed, so
    /// this comes last in a round.
    pub(super) fn update_node(&mut self) {
        let before = self.pods;
        let listed = self.objects.listed.contains(&Kind::Pod);
        self.pods = before.next(listed, self.took_over, Instant::now());
        if let PodWait::Waiting(due) = self.pods {
            self.node_retry = Some(due);
            return;
        }
        if let Some(due) = self.following.waits(Instant::now()) {
            self.node_retry = Some(due);
            return;
        }
        let mut links_changed = self.facts.is_none() || self.pods != before;
        if self.node_retry.is_some_and(|due| due <= Instant::now()) {
            self.facts = None;
            links_changed = true;
        }
        if std::mem::take(&mut self.node_dirty) {
            self.inputs = self.gather();
            let state = crate::node::derive(&self.tables, &self.options, &self.inputs);
            self.problems.set_node(state.problems.clone());
            links_changed |= state.links != self.node.links;
            self.node = state;
        }
        self.node.facts.config.node_ports = self.planner.node_ports();
        self.node.facts.config.flags = self.following.flags();
        if self.facts.as_ref() == Some(&self.node.facts) && !links_changed {
            return;
        }
        let mut problems = Vec::new();
        match self.datapath.set_node(&self.node.facts) {
            Ok(()) => self.facts = Some(self.node.facts.clone()),
            Err(error) => {
                self.facts = None;
                problems.push(agent_problem(
                    "datapath",
                    format!("node facts cannot be written: {error:#}; tried again"),
                ));
            }
        }
        if links_changed {
            self.hooks = Arc::new(self.datapath.attach(&self.node.links, self.pods != PodWait::Listed));
            self.following.attached(Instant::now());
        }
        problems.extend(self.hooks.iter().filter_map(|hook| {
            let error = hook.error.as_deref()?;
            Some(agent_problem(&hook.hook, format!("{}: not attached: {error}; tried again", hook.place)))
        }));
        self.node_retry = (!problems.is_empty()).then(|| Instant::now() + NODE_RETRY);
        self.problems.set_datapath(problems);
    }

    /// Remembers the endpoints on this node of a Service's slices, whatever their state: a pod
    /// that is not ready any more still has open flows.
    pub(super) fn note_pods(&mut self, key: &ObjectKey) {
        let objects = &self.objects;
        let slices =
            objects.slices_of.get(key).into_iter().flatten().filter_map(|key| objects.slices.get(key));
        let here = slices
            .filter(|slice| !slice.headless)
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.node.as_deref() == Some(objects.node_name.as_str()));
        let local: BTreeSet<IpAddr> = here.map(|endpoint| endpoint.addr).collect();
        let before = if local.is_empty() {
            self.local_endpoints.remove(key)
        } else {
            self.local_endpoints.insert(key.clone(), local.clone())
        };
        self.node_dirty |= before.unwrap_or_default() != local;
    }

    /// Says which health checks are to be served, on the addresses of node ports (S54).
    pub(super) fn tell_checks(&self) {
        let of_node_ports = self.node.facts.addresses.iter().filter(|(_, address)| address.node_port == 1);
        let mut addresses: BTreeSet<IpAddr> = of_node_ports.map(|(addr, _)| IpAddr::from(*addr)).collect();
        if self.options.nodeport_addresses == NodePortAddresses::All {
            let any = |ip: IpAddr| Addr::from(ip).family().any().into();
            addresses = addresses.into_iter().map(any).collect();
        }
        self.health.send_if_modified(|wanted| {
            let same = wanted.addresses == addresses && wanted.checks == self.checks;
            if !same {
                *wanted = Arc::new(Wanted { addresses, checks: self.checks.clone() });
            }
            !same
        });
    }

    fn gather(&self) -> Inputs {
        let node = self.objects.node.as_deref();
        let ours = |name: &Option<String>| name.as_ref().is_none_or(|name| *name == self.objects.node_name);
        let pods = self.objects.pods.values().filter(|pod| !pod.host_network && ours(&pod.node));
        let mut pod_ips: BTreeSet<IpAddr> = pods.flat_map(|pod| pod.ips.iter().copied()).collect();
        pod_ips.extend(self.local_endpoints.values().flatten());
        Inputs {
            internal_ips: node.map(|node| node.internal_ips.clone()).unwrap_or_default(),
            pod_ips,
            pod_cidrs: node
                .iter()
                .flat_map(|node| &node.pod_cidrs)
                .filter_map(|cidr| cidr.parse().ok())
                .collect(),
        }
    }
}
