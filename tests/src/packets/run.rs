//! Runs rows on a data path and says where it does something else than the row.

use super::build::Link;
use super::row::{Arrival, Expected, Hook, Row, Step};
use super::show;
use super::world::{Routes, facts_of};
use anyhow::{Context, Result, bail, ensure};
use lb_common::abi::{Flow, FlowKey, PassReason, Ticks};
use lb_common::packet::Frame;
use lb_common::path::{self, Origin, Scratch, Tables, Verdict};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use weir::datapath::sim::Sim;
use weir::datapath::{Capacity, Datapath};
use weir::plan::op::Op;

/// What the maps hold about flows, without times: confirmed or not, tuple, what it becomes.
pub type Flows = BTreeMap<(bool, FlowKey), Flow>;

/// Sizes that no row comes near.
pub const CAPACITY: Capacity = Capacity {
    frontends: 256,
    backends: 256,
    table_blocks: 256,
    flows: 8192,
    transient: 8192,
    services: 256,
    prefixes: 256,
};

/// The seed that the loader gives the programs.
pub const HASH_SEED: u32 = weir::datapath::loader::HASH_SEED;

/// What a hook said of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    Pass,
    Redirect,
    Drop,
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub code: Code,
    /// Counters that went up, and by how much.
    pub counted: BTreeMap<u32, u64>,
    pub bytes: Vec<u8>,
    /// Where it is sent; the kernel's test-run does not tell.
    pub verdict: Option<Verdict>,
}

/// A data path under test.
pub trait Runner {
    /// Forgets everything, then stands on the node of every row.
    ///
    /// # Errors
    /// When the data path refuses.
    fn reset(&mut self, row: &Row) -> Result<()>;

    /// # Errors
    /// When an operation is refused.
    fn apply(&mut self, ops: &[Op]) -> Result<()>;

    /// # Errors
    /// When the data path's clock cannot be moved.
    fn wait(&mut self, seconds: u64) -> Result<()>;

    /// Runs the socket-buffer hook.
    ///
    /// # Errors
    /// When the program cannot be run at all.
    fn run(&mut self, hook: Hook, device: u32, frame: &[u8]) -> Result<Outcome>;

    /// Runs XDP.
    ///
    /// # Errors
    /// When the program cannot be run at all.
    fn early(&mut self, device: u32, frame: &[u8]) -> Result<Outcome>;

    /// # Errors
    /// When the maps cannot be read.
    fn flows(&mut self) -> Result<Flows>;
}

/// The simulator.
pub struct Simulated {
    pub sim: Sim,
    capacity: Capacity,
    sockets: Vec<SocketAddr>,
    connected: Vec<(SocketAddr, SocketAddr)>,
    scratch: Scratch,
}

impl Default for Simulated {
    fn default() -> Self {
        Self::of(CAPACITY)
    }
}

impl Simulated {
    /// With maps of other sizes.
    pub fn of(capacity: Capacity) -> Self {
        Self {
            sim: Sim::new(capacity),
            capacity,
            sockets: Vec::new(),
            connected: Vec::new(),
            scratch: Scratch::default(),
        }
    }
}

impl Simulated {
    fn outcome(&self, verdict: Verdict, counters: &[u64], count: bool, bytes: Vec<u8>) -> Outcome {
        if count {
            self.sim.count(verdict.slot());
        }
        let code = match verdict {
            Verdict::Pass(_) => Code::Pass,
            Verdict::Redirect(..) | Verdict::Answer(_) => Code::Redirect,
            Verdict::Drop(_) => Code::Drop,
        };
        let counted = went_up(counters, &self.sim.memory.counters.borrow());
        Outcome { code, counted, bytes, verdict: Some(verdict) }
    }

    fn routes(&self, length: usize, early: bool) -> Routes<'_> {
        Routes { length, early, sockets: &self.sockets, connected: &self.connected }
    }
}

/// Counters that differ between two readings.
pub fn went_up(before: &[u64], after: &[u64]) -> BTreeMap<u32, u64> {
    (0..)
        .zip(before.iter().zip(after))
        .filter(|(_, (b, a))| b != a)
        .map(|(slot, (b, a))| (slot, a - b))
        .collect()
}

impl Runner for Simulated {
    fn reset(&mut self, row: &Row) -> Result<()> {
        self.sim = Sim::new(self.capacity);
        self.sim.memory.settings.hash_seed = HASH_SEED;
        self.sim.memory.settings.snat = row.snat.ranges();
        self.sim.memory.settings.flags = row.snat.settings();
        (self.sockets, self.connected) = (row.sockets.clone(), row.connected.clone());
        self.sim.set_foreign(&row.foreign)?;
        self.sim.set_node(&facts_of(row))
    }

    fn apply(&mut self, ops: &[Op]) -> Result<()> {
        self.sim.apply(ops).into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(())
    }

    fn wait(&mut self, seconds: u64) -> Result<()> {
        self.sim.memory.advance_seconds(seconds);
        Ok(())
    }

    fn run(&mut self, hook: Hook, _: u32, frame: &[u8]) -> Result<Outcome> {
        let before = self.sim.memory.counters.borrow().clone();
        let link = hook.link();
        let mut bytes = frame.to_vec();
        bytes.resize(frame.len() + 64, 0);
        let mut scratch = self.scratch;
        let mut packet = Frame::new(&mut bytes, frame.len(), link.len());
        let routes = self.routes(frame.len().saturating_sub(link.len()), false);
        let verdict = match hook {
            Hook::Outside | Hook::OutsideL3 => {
                path::ingress(&mut packet, &self.sim, &routes, &mut scratch, Origin::Outside)
            }
            Hook::Inside | Hook::InsideL3 => {
                path::ingress(&mut packet, &self.sim, &routes, &mut scratch, Origin::Inside)
            }
            Hook::Egress | Hook::EgressL3 => path::egress(&mut packet, &self.sim, &mut scratch),
        };
        let output = packet.bytes().to_vec();
        // What one packet leaves in working memory must mean nothing to the next.
        self.scratch = scratch;
        Ok(self.outcome(verdict, &before, true, output))
    }

    fn early(&mut self, _: u32, frame: &[u8]) -> Result<Outcome> {
        let before = self.sim.memory.counters.borrow().clone();
        let mut bytes = frame.to_vec();
        let mut scratch = self.scratch;
        let mut packet = Frame::new(&mut bytes, frame.len(), Link::Ethernet.len());
        let routes = self.routes(frame.len().saturating_sub(Link::Ethernet.len()), true);
        let verdict = path::early(&mut packet, &self.sim, &routes, &mut scratch);
        let output = packet.bytes().to_vec();
        self.scratch = scratch;
        Ok(self.outcome(verdict, &before, !matches!(verdict, Verdict::Pass(_)), output))
    }

    fn flows(&mut self) -> Result<Flows> {
        let flows = self.sim.memory.flows.borrow();
        let transient = self.sim.memory.transient.borrow();
        let confirmed = flows.iter().map(|(key, flow)| ((true, *key), timeless(*flow)));
        Ok(confirmed
            .chain(transient.iter().map(|(key, (_, flow))| ((false, *key), timeless(*flow))))
            .collect())
    }
}

/// An entry without the time when it was seen.
pub fn timeless(flow: Flow) -> Flow {
    Flow { seen: Ticks(0), ..flow }
}

/// What one step of a row left behind, to be compared between data paths.
#[derive(Clone, PartialEq, Debug)]
pub struct Trace {
    pub step: usize,
    pub outcome: Outcome,
    pub flows: Flows,
}

/// Compares two data paths that ran the same row.
///
/// # Errors
/// At the first step after which they differ.
pub fn same(row: &Row, one: &[Trace], other: &[Trace]) -> Result<()> {
    ensure!(one.len() == other.len(), "row `{}`: {} steps and {}", row.name, one.len(), other.len());
    for (number, (one, other)) in (1..).zip(one.iter().zip(other)) {
        let at = format!("row `{}`, packet {number}", row.name);
        let (a, b) = (&one.outcome, &other.outcome);
        ensure!(a.code == b.code, "{at}: {:?} and {:?}", a.code, b.code);
        ensure!(a.counted == b.counted, "{at}: counted {:?} and {:?}", names(&a.counted), names(&b.counted));
        if a.code != Code::Drop {
            ensure!(a.bytes == b.bytes, "{at}: {}", show::difference(&a.bytes, &b.bytes, Link::Ethernet));
        }
        ensure!(
            one.flows == other.flows,
            "{at}: flows differ:\n{}and\n{}",
            show_flows(&one.flows),
            show_flows(&other.flows)
        );
    }
    Ok(())
}

/// Entries of flow memory, one a line.
pub fn show_flows(flows: &Flows) -> String {
    flows.iter().fold(String::new(), |text, ((confirmed, key), flow)| {
        let place = if *confirmed { "confirmed" } else { "transient" };
        format!("{text}  {place} {key:?} becomes {flow:?}\n")
    })
}

/// Runs a row's packets through the socket-buffer hooks and compares with what it expects.
///
/// # Errors
/// At the first packet of which something else became.
pub fn play(runner: &mut dyn Runner, row: &Row) -> Result<Vec<Trace>> {
    walk(runner, row, |runner, arrival| {
        let outcome = runner.run(arrival.hook, arrival.device, &arrival.input)?;
        check(arrival, &outcome)?;
        Ok(outcome)
    })
}

/// Runs a row with XDP in front of tc: what XDP does not finish it must not touch, and what
/// it finishes must be the same packet at the network layer.
///
/// # Errors
/// At the first packet of which something else became, or that XDP should have finished, or
/// should not have.
pub fn play_early(runner: &mut dyn Runner, row: &Row) -> Result<Vec<Trace>> {
    walk(runner, row, |runner, arrival| {
        if arrival.hook != Hook::Outside {
            return runner.run(arrival.hook, arrival.device, &arrival.input);
        }
        let outcome = runner.early(arrival.device, &arrival.input)?;
        ensure!(
            arrival.early == (outcome.code != Code::Pass),
            "XDP said {:?}, the row says that it {}",
            outcome.code,
            if arrival.early { "finishes this packet" } else { "leaves this packet to tc" }
        );
        if outcome.code == Code::Pass {
            ensure!(outcome.bytes == arrival.input, "XDP changed a packet that it passed on");
            let outcome = runner.run(arrival.hook, arrival.device, &arrival.input)?;
            check(arrival, &outcome)?;
            return Ok(outcome);
        }
        let l3 = Link::Ethernet.len();
        let mut same = outcome.clone();
        // XDP writes the neighbour's hardware address, tc leaves that to the kernel.
        same.bytes.splice(..l3, arrival.output.iter().take(l3).copied());
        check(arrival, &same)?;
        Ok(same)
    })
}

fn walk(
    runner: &mut dyn Runner,
    row: &Row,
    mut packet: impl FnMut(&mut dyn Runner, &Arrival) -> Result<Outcome>,
) -> Result<Vec<Trace>> {
    runner.reset(row)?;
    let mut traces = Vec::new();
    let mut number = 0;
    for (step, what) in row.steps.iter().enumerate() {
        match what {
            Step::Ops(ops) => runner.apply(ops)?,
            Step::Wait(seconds) => runner.wait(*seconds)?,
            Step::Packet(arrival) => {
                number += 1;
                let outcome = packet(runner, arrival).with_context(|| {
                    let input = show::describe(&arrival.input, arrival.hook.link());
                    format!("row `{}`, packet {number} ({:?}):\n{input}", row.name, arrival.hook)
                })?;
                traces.push(Trace { step, outcome, flows: runner.flows()? });
            }
        }
    }
    Ok(traces)
}

fn check(arrival: &Arrival, outcome: &Outcome) -> Result<()> {
    let (code, slot) = match arrival.expected {
        Expected::Pass(reason) => (Code::Pass, reason.slot()),
        Expected::Redirect(reason, _) => (Code::Redirect, reason.slot()),
        Expected::Answer(reason) => (Code::Redirect, reason.slot()),
        Expected::Drop(reason) => (Code::Drop, reason.slot()),
    };
    let mut counted = BTreeMap::from([(slot, 1)]);
    for reason in &arrival.notes {
        *counted.entry(reason.slot()).or_default() += 1;
    }
    if outcome.code != code || outcome.counted != counted {
        let (wanted, was) = (names(&counted), names(&outcome.counted));
        bail!("expected {:?} counting {wanted:?}, was {:?} counting {was:?}", arrival.expected, outcome.code);
    }
    if let (Expected::Redirect(_, device), Some(Verdict::Redirect(_, route))) =
        (arrival.expected, outcome.verdict)
    {
        ensure!(route.ifindex == device, "sent to device {}, expected {device}", route.ifindex);
    }
    if code != Code::Drop && outcome.bytes != arrival.output {
        bail!("{}", show::difference(&arrival.output, &outcome.bytes, arrival.hook.link()));
    }
    Ok(())
}

/// Labels of counters.
pub fn names(counted: &BTreeMap<u32, u64>) -> Vec<&'static str> {
    use lb_common::abi::{DropReason, Reason};
    let all = PassReason::ALL
        .iter()
        .map(|r| (r.slot(), r.label()))
        .chain(DropReason::ALL.iter().map(|r| (r.slot(), r.label())))
        .chain(Reason::ALL.iter().map(|r| (r.slot(), r.label())));
    all.filter(|(slot, _)| counted.contains_key(slot)).map(|(_, label)| label).collect()
}
