//! What netfilter does on this node beside Weir: the flows that it translates, whose rules
//! make it do so, and the table that keeps it at that (S82).
//!
//! kube-proxy's flows live in netfilter's conntrack, and outlive its rules as long as the
//! kernel looks at packets for NAT at all. [`conntrack`] reads and ends such flows, [`tables`]
//! keeps the kernel looking and finds kube-proxy's rules, [`legacy`] those of iptables-legacy;
//! [`wire`] is how the first two talk to the kernel. Nothing here decides.

mod conntrack;
mod legacy;
mod tables;
mod wire;

pub use conntrack::{Tcp, Translated};
pub use tables::TABLE;

use lb_common::abi::FlowKey;
use std::io;
use std::path::Path;
use wire::Channel;

/// Where the kernel shows that it tracks connections at all.
const TRACKING: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// netfilter of this network namespace.
#[derive(Debug, Default)]
pub struct Netfilter {
    channel: Option<Channel>,
}

impl Netfilter {
    /// TCP and UDP flows whose destination netfilter translates.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or when the kernel lacks ctnetlink.
    pub fn translated(&mut self) -> io::Result<Vec<Translated>> {
        // To ask would load the module, and from then on every packet would be tracked.
        if !Path::new(TRACKING).exists() {
            return Ok(Vec::new());
        }
        self.with(conntrack::translated)
    }

    /// Forgets flows, by the tuples of their first packets.
    ///
    /// # Errors
    /// The last one that there was; those that are gone already are fine.
    pub fn forget(&mut self, originals: &[FlowKey]) -> io::Result<()> {
        if originals.is_empty() {
            return Ok(());
        }
        self.with(|channel| {
            let forgotten = originals.iter().map(|original| conntrack::forget(channel, original));
            forgotten.fold(Ok(()), Result::and)
        })
    }

    /// Keeps netfilter from giving the tuples of these flows, which it sees no packets of, to
    /// others for so many seconds. Answers those that it keeps from now on; where connections
    /// are not tracked, there is nobody to keep them from.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or when conntrack is full.
    pub fn reserve(&mut self, originals: Vec<FlowKey>, seconds: u32) -> io::Result<Vec<FlowKey>> {
        if !Path::new(TRACKING).exists() {
            return Ok(Vec::new());
        }
        self.with(|channel| {
            let mut kept = Vec::new();
            for original in originals {
                if conntrack::reserve(channel, &original, seconds)? {
                    kept.push(original);
                }
            }
            Ok(kept)
        })
    }

    /// What kube-proxy has in the kernel: tables, and chains in tables of others.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or when the kernel lacks nf_tables.
    pub fn kube_proxy(&mut self) -> io::Result<Vec<String>> {
        let mut found = self.with(tables::kube_proxy)?;
        found.extend(legacy::kube_proxy()?);
        Ok(found)
    }

    /// Whether our table is there.
    ///
    /// # Errors
    /// As [`Self::kube_proxy`].
    pub fn held(&mut self) -> io::Result<bool> {
        self.with(tables::held)
    }

    /// Makes our table, or takes it away; what is so already is left.
    ///
    /// # Errors
    /// As [`Self::kube_proxy`].
    pub fn hold(&mut self, wanted: bool) -> io::Result<()> {
        self.with(|channel| match (tables::held(channel)?, wanted) {
            (false, true) => tables::make(channel),
            (true, false) => tables::remove(channel),
            (true, true) | (false, false) => Ok(()),
        })
    }

    /// A channel that failed may still have answers in it: the next question gets a new one.
    fn with<T>(&mut self, ask: impl FnOnce(&mut Channel) -> io::Result<T>) -> io::Result<T> {
        let mut channel = match self.channel.take() {
            Some(channel) => channel,
            None => Channel::open()?,
        };
        let answer = ask(&mut channel)?;
        self.channel = Some(channel);
        Ok(answer)
    }
}
