//! The cases that must hold on the demo's manifests: who asks what from where, who may
//! answer, and what the addresses on both ends must look like.
//!
//! One table for the demo, the tests over manifests and the tests over a real API server.

pub mod certificates;
pub mod ingress;
mod table;

pub use table::all;

use crate::topology::{CLIENT, NODE1, Place, Topology};
use crate::wire::{Answer, Ask, Proto};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Addresses that only the running system knows.
#[derive(Clone, Debug)]
pub struct Assigned {
    /// The ClusterIP of `my-service`, which its manifest leaves out.
    pub my_service: IpAddr,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub from: Place,
    pub ask: Ask,
    pub expect: Expect,
}

/// What must come of a case.
#[derive(Clone, Debug)]
pub enum Expect {
    /// One of these pods answers, on this port, having seen the client as `source`.
    Answer { pods: &'static [&'static str], ports: &'static [u16], source: Source },
    /// Asked often, every one of these pods answers, and no other.
    Spread { pods: &'static [&'static str] },
    /// Asked often, always the same pod answers, from this place and from the other one.
    Sticky { also_from: Option<Place> },
    /// ECONNREFUSED in less than 100 ms.
    Refused,
}

/// How a server must see its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// By the client's own address (S41).
    Kept,
    /// By an address of node1: so that the reply comes back here (S44).
    Node,
    /// Either way is right.
    KeptOrNode,
}

/// What came of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub name: String,
    /// One line: what was asked, what answered, how; or what went wrong.
    pub said: Result<String, String>,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.said {
            Ok(line) => write!(f, "ok     {:<44} {line}", self.name),
            Err(line) => write!(f, "FAILED {:<44} {line}", self.name),
        }
    }
}

/// Questions that an [`Expect::Spread`] case puts: all on one of two pods by chance once in
/// 10^12 runs.
const SPREAD_QUESTIONS: u32 = 41;
const STICKY_QUESTIONS: u32 = 10;
/// A refusal is told at once, not by a timeout.
const REFUSAL_LIMIT_US: u64 = 100_000;

impl Case {
    /// Puts the question and judges the answer.
    pub fn run(&self, lab: &Topology) -> Outcome {
        let said = self.judge(lab).map_err(|error| format!("{error:#}"));
        Outcome { name: self.name.clone(), said }
    }

    fn judge(&self, lab: &Topology) -> Result<String> {
        let (from, to) = (&self.from, self.ask.to);
        match &self.expect {
            Expect::Answer { pods, ports, source } => {
                let answer = lab.at(from)?.ask(self.ask.clone())?;
                let how = self.check(lab, &answer, pods, *source)?;
                if let Some(server) = answer.server {
                    ensure!(ports.contains(&server.port()), "answered on port {}: {answer:?}", server.port());
                }
                let (pod, seen) = (answer.pod.context("pod")?, answer.seen.context("source")?);
                Ok(format!("{to} → {pod}, {how}, source {}", seen.ip()))
            }
            Expect::Spread { pods } => {
                let found = self.pods_that_answer(lab, from, SPREAD_QUESTIONS)?;
                let wanted: BTreeSet<String> = pods.iter().map(|pod| (*pod).to_owned()).collect();
                ensure!(found == wanted, "{to} answered by {found:?} and not {wanted:?}");
                Ok(format!("{to} → {}", pods.join(" and ")))
            }
            Expect::Sticky { also_from } => {
                let mut found = self.pods_that_answer(lab, from, STICKY_QUESTIONS)?;
                if let Some(other) = also_from {
                    found.extend(self.pods_that_answer(lab, other, STICKY_QUESTIONS)?);
                }
                ensure!(found.len() == 1, "{to}: one client was sent to {found:?}");
                let pods: Vec<String> = found.into_iter().collect();
                Ok(format!("{to} → always {}", pods.join(" ")))
            }
            Expect::Refused => {
                let answer = lab.at(from)?.ask(self.ask.clone())?;
                ensure!(answer.refused(), "not refused: {answer:?}");
                let took = answer.elapsed_us;
                ensure!(took < REFUSAL_LIMIT_US, "refused only after {took} µs");
                Ok(format!("{to} → connection refused after {took} µs"))
            }
        }
    }

    fn pods_that_answer(&self, lab: &Topology, from: &Place, times: u32) -> Result<BTreeSet<String>> {
        let answers = lab.at(from)?.ask_many(self.ask.clone(), times)?;
        answers.into_iter().map(|a| a.pod.clone().with_context(|| format!("no answer: {a:?}"))).collect()
    }

    /// Judges pod, source and the peer that the client sees; says how it went.
    fn check(&self, lab: &Topology, answer: &Answer, pods: &[&str], source: Source) -> Result<String> {
        let Some(pod) = &answer.pod else { bail!("no answer: {answer:?}") };
        ensure!(pods.contains(&pod.as_str()), "answered by {pod}: {answer:?}");
        // S50: the client sees the address that it asked, not the pod's.
        ensure!(answer.peer == Some(self.ask.to), "the client sees its peer as {:?}", answer.peer);
        let seen = answer.seen.context("no source")?.ip();
        let node = is_node1(lab, seen);
        let kept = self.own_addresses(lab).contains(&seen);
        let right = match source {
            Source::Kept => kept,
            Source::Node => node,
            Source::KeptOrNode => kept || node,
        };
        ensure!(right, "the server saw {seen}, expected {source:?}: {answer:?}");
        let path = match self.from {
            Place::Host | Place::Pod(_) => "at the socket",
            Place::Outside | Place::PodUnhooked(_) => "by packet",
        };
        Ok(if kept { path.into() } else { format!("{path}, masqueraded") })
    }

    fn own_addresses(&self, lab: &Topology) -> Vec<IpAddr> {
        match &self.from {
            Place::Outside => vec![CLIENT.0.into(), CLIENT.1.into()],
            Place::Host => node1_addresses(lab),
            Place::Pod(name) | Place::PodUnhooked(name) => {
                [false, true].into_iter().filter_map(|v6| lab.pod_ip(name, v6)).collect()
            }
        }
    }
}

/// The node's addresses: of its uplink, and the gateways on its pods' links.
fn node1_addresses(lab: &Topology) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = vec![NODE1.0.into(), NODE1.1.into()];
    all.extend(lab.gateways());
    all
}

fn is_node1(lab: &Topology, ip: IpAddr) -> bool {
    node1_addresses(lab).contains(&ip)
}

/// Runs all cases in order.
pub fn run(lab: &Topology, assigned: &Assigned, mut each: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for case in all(assigned) {
        let outcome = case.run(lab);
        each(&outcome);
        outcomes.push(outcome);
    }
    outcomes
}

/// Shorthand for the table.
pub(crate) fn case(name: String, from: Place, proto: Proto, to: SocketAddr, expect: Expect) -> Case {
    Case { name, from, ask: Ask::new(proto, to), expect }
}
