//! Conversations made up at random: mostly right, often wrong in one place.
//!
//! An episode is a few dozen packets of some clients over one set of Services, from one seed.
//! The simulator runs it and the model judges every packet; a sample runs in the kernel too
//! and must come out the same, byte by byte, flow by flow. A failing episode is made shorter
//! as long as it still fails, then told with its seed.

use super::build::{Body, Extension, Packet, Sum, tcp, udp};
use super::kernel::Kernel;
use super::model::{Front, Model};
use super::row::{Endpoint, Hook, Row, Service, Snat, Step};
use super::run::{Code, Flows, Outcome, Runner, Simulated, names, show_flows};
use super::show;
use super::world::{ETH0, POD0};
use anyhow::{Context, Result, bail, ensure};
use lb_common::abi::Proto;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use weir::plan::op::Op;

/// Packets of one episode.
const LENGTH: usize = 40;

/// SplitMix64 (Steele, Lea, Flood, 2014).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    fn below(&mut self, n: usize) -> usize {
        (self.draw() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// The Services of every episode, programmed once, and the model's view of them.
#[derive(Debug)]
pub struct Stage {
    row: Row,
    ops: Vec<Op>,
    fronts: Vec<Front>,
}

impl Stage {
    pub fn new(snat: Snat) -> Self {
        let mut row = Row::new("fuzz");
        row.snat = snat;
        let mut fronts = Vec::new();
        for (proto, number) in [(Proto::TCP, 6), (Proto::UDP, 17)] {
            for (frontends, locals, remotes) in [
                (
                    &["10.96.0.1:80", "203.0.113.80:80", "192.0.2.1:30080"][..],
                    &["10.244.1.5:8080", "10.244.1.6:8080"][..],
                    &[][..],
                ),
                (
                    &["[fd00:96::1]:80", "[2001:db8:1::1]:30080"],
                    &["[fd00:1::5]:8080", "[fd00:1::6]:8080"],
                    &[],
                ),
                (
                    &["10.96.0.2:80", "192.0.2.1:30082"],
                    &["10.244.1.5:9090"],
                    &["10.244.2.5:8080", "10.244.2.6:8080"],
                ),
                (&["[fd00:96::2]:80"], &[], &["[fd00:2::5]:8080", "[fd00:2::6]:8080"]),
                // The backend of another Service: replies must not mix (S34).
                (&["10.96.0.3:80"], &["10.244.1.5:8080"], &[]),
                (&["10.96.0.9:80", "[fd00:96::9]:80"], &[], &[]),
            ] {
                let mut service = Service::new(proto);
                service = frontends.iter().fold(service, |service, at| service.external(at));
                service = locals.iter().fold(service, |service, at| service.local(at));
                service = remotes.iter().fold(service, |service, at| service.remote(at));
                let service = row.service(service);
                let backends: Vec<_> =
                    service.endpoints.iter().map(|Endpoint { at, local, .. }| (*at, *local)).collect();
                for at in frontends {
                    fronts.push(Front {
                        at: super::build::at(at),
                        proto: number,
                        backends: backends.clone(),
                    });
                }
            }
        }
        let ops = row
            .steps
            .iter()
            .flat_map(|step| match step {
                Step::Ops(ops) => ops.clone(),
                Step::Wait(_) | Step::Packet(_) => Vec::new(),
            })
            .collect();
        Self { row, ops, fronts }
    }

    /// Puts the Services on a data path that forgets all else.
    ///
    /// # Errors
    /// When it refuses.
    pub fn set(&self, runner: &mut dyn Runner) -> Result<()> {
        runner.reset(&self.row)?;
        runner.apply(&self.ops)
    }

    fn model(&self) -> Model {
        let ranges = self.row.snat.ranges();
        Model::new(self.fronts.clone(), ranges.map(|range| (range.first, range.last)).to_vec())
    }
}

/// A frame and where it meets the data path.
pub type Frame = (Hook, Vec<u8>);

/// A client and whom it talks to.
#[derive(Clone, Debug)]
struct Talk {
    hook: Hook,
    client: SocketAddr,
    front: SocketAddr,
    proto: u8,
    /// From a pod straight to a backend, whose address `front` is.
    straight: bool,
    /// How far a connection has come.
    stage: u8,
}

/// Makes the next packet of an episode; the model knows where flows went.
struct Speaker<'a> {
    chance: Chance,
    talks: Vec<Talk>,
    fronts: &'a [Front],
    /// Pieces of packets whose first ones are under way.
    pieces: Vec<Frame>,
}

impl Speaker<'_> {
    fn next(&mut self, model: &Model) -> Frame {
        if self.talks.is_empty() || (self.talks.len() < 8 && self.chance.one_in(5)) {
            let talk = self.begin();
            self.talks.push(talk);
        }
        if !self.pieces.is_empty() && self.chance.one_in(2) {
            let index = self.chance.below(self.pieces.len());
            // The network doubles one now and then.
            let double = self.chance.one_in(4);
            return if double { self.pieces[index].clone() } else { self.pieces.swap_remove(index) };
        }
        let index = self.chance.below(self.talks.len());
        let (hook, packet) = self.speak(index, model);
        if packet.payload.len() > 8 && self.chance.one_in(6) {
            return self.cut(hook, packet);
        }
        let packet = if self.chance.one_in(3) { self.mutate(packet) } else { packet };
        let mut bytes = packet.bytes();
        if self.chance.one_in(25) {
            for _ in 0..=self.chance.below(3) {
                let at = self.chance.below(bytes.len());
                bytes[at] ^= 1 << self.chance.below(8);
            }
        }
        (hook, bytes)
    }

    fn begin(&mut self) -> Talk {
        let front = &self.fronts[self.chance.below(self.fronts.len())];
        let inside = self.chance.one_in(3);
        let number = self.chance.below(4);
        let client = match (front.at.is_ipv4(), inside) {
            (true, false) => format!("198.51.100.{}:{}", 1 + number / 2, 4000 + number),
            (true, true) => format!("10.244.1.{}:{}", 5 + number, 5000 + number),
            (false, false) => format!("[2001:db8:ffff::{}]:{}", 1 + number / 2, 4000 + number),
            (false, true) => format!("[fd00:1::{}]:{}", 5 + number, 5000 + number),
        };
        let hook = if inside { Hook::Inside } else { Hook::Outside };
        let (mut at, mut straight) = (front.at, false);
        if inside && !front.backends.is_empty() && self.chance.one_in(4) {
            (at, straight) = (self.chance.pick(&front.backends).0, true);
        }
        let client = super::build::at(&client);
        Talk { hook, client, front: at, proto: front.proto, straight, stage: 0 }
    }

    fn speak(&mut self, index: usize, model: &Model) -> (Hook, Packet) {
        let talk = self.talks[index].clone();
        let there = if talk.straight {
            Some((talk.client, talk.front))
        } else {
            model.translation(talk.client, talk.front, talk.proto)
        };
        let (client, front) = (talk.client.to_string(), talk.front.to_string());
        let size = self.chance.pick(&[0, 1, 2, 7, 64, 200]);
        let payload: Vec<u8> = (0..size).map(|_| self.chance.draw() as u8).collect();
        let back = match there {
            Some((source, backend)) if self.chance.below(5) < 2 => Some((source, backend)),
            _ => None,
        };
        let hook = match back {
            None => talk.hook,
            // A source of ours comes back by ingress.
            Some((source, _)) if source.ip() != talk.client.ip() => talk.hook,
            Some(_) => Hook::Egress,
        };
        let ends =
            back.map_or((client, front), |(source, backend)| (backend.to_string(), source.to_string()));
        if talk.proto == 17 {
            return (hook, udp(&ends.0, &ends.1).payload(&payload));
        }
        let flags = if self.chance.one_in(12) {
            self.chance.pick(&["R", "RA", "F", "SA", "", "SF", "A", "S", "FA"])
        } else {
            match (back.is_some(), talk.stage) {
                (false, 0) => "S",
                (true, _) if talk.stage < 2 => "SA",
                (false, 1 | 2) => "A",
                (_, 3..=8) => "PA",
                (_, 9..) => "FA",
                (true, _) => "A",
            }
        };
        self.talks[index].stage = match (talk.stage, flags) {
            (0 | 1, "SA") => 2,
            (0, _) => u8::from(back.is_none()),
            (2, "A") => 3,
            (11.., _) => 0,
            (stage @ 3.., _) => stage + 1,
            (stage, _) => stage,
        };
        let (seq, ack) = if back.is_some() { (9000, 1001) } else { (1000 + u32::from(flags != "S"), 9001) };
        (
            hook,
            tcp(&ends.0, &ends.1, flags).seq(seq).ack(if flags == "S" { 0 } else { ack }).payload(&payload),
        )
    }

    /// Sends a packet in two pieces: one of them now, the other one later, or not at all.
    fn cut(&mut self, hook: Hook, mut packet: Packet) -> Frame {
        packet.id = self.chance.below(3) as u16;
        let length = packet.bytes().len() - if packet.from.is_ipv4() { 34 } else { 54 };
        let keep = 8 * (1 + self.chance.below((length - 1) / 8));
        let mut pieces = [packet.first_fragment(keep), packet.later_fragment(keep)];
        if self.chance.one_in(8) {
            pieces.reverse();
        }
        let [now, then] = pieces.map(|piece| (hook, piece.bytes()));
        self.pieces.push(then);
        now
    }

    /// Wrong, or at least unusual, in one place.
    fn mutate(&mut self, mut packet: Packet) -> Packet {
        let chance = &mut self.chance;
        let v4 = packet.from.is_ipv4();
        match chance.below(16) {
            0 => packet.sum = Sum::Zero,
            1 => packet.sum = Sum::Off(chance.draw() as u16),
            2 => packet.ip_sum = Sum::Off(chance.draw() as u16),
            3 => packet.padding = chance.below(40),
            4 => packet.ttl = chance.pick(&[0, 1, 2, 255]),
            5 => (packet.tos, packet.id) = (chance.draw() as u8, chance.draw() as u16),
            6 if v4 => packet.options = vec![1; 4 * (1 + chance.below(10))],
            6 => {
                for _ in 0..=chance.below(3) {
                    let more = chance.below(4) as u8;
                    let kinds =
                        [Extension::HopByHop(more), Extension::Destination(more), Extension::Routing(more)];
                    packet = packet.extension(chance.pick(&kinds));
                }
            }
            7 => packet = packet.first_fragment(8 * (1 + chance.below(5))),
            8 if v4 => packet.fragment = chance.draw() as u16 & 0x3fff,
            8 => {
                packet =
                    packet.extension(Extension::Fragment(chance.draw() as u16 & 0x1fff, chance.one_in(2)))
            }
            9 => {
                let right = packet.bytes().len() - 14 - if v4 { 0 } else { 40 };
                packet.length =
                    Some((right as u16).wrapping_add(chance.pick(&[1, 2, 8, 0xffff, 0xfffe, 0xfff0])));
            }
            10 => {
                let len = packet.bytes().len();
                packet.cut = Some(34 + chance.below(len - 33));
            }
            11 if v4 => packet.version_ihl = Some(0x40 | chance.draw() as u8 & 15),
            12 => match &mut packet.body {
                Body::Tcp { doff, .. } => *doff = Some(chance.draw() as u8 & 15),
                Body::Udp { len } => *len = Some(chance.below(30) as u16),
                Body::Other(_) => {}
            },
            13 => packet = packet.tcp_options(&[1; 12]),
            14 => packet.from.set_port(chance.draw() as u16),
            15 => packet.to.set_port(chance.draw() as u16),
            _ => {}
        }
        packet
    }
}

/// What an episode came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub packets: u64,
    pub translated: u64,
}

/// Runs the episodes of seeds `first..first + count` in the simulator.
///
/// # Errors
/// At the first packet that the model does not accept, or a panic: told with seed and packets.
pub fn simulate(first: u64, count: u64, snat: Snat) -> Result<Tally> {
    let stage = Stage::new(snat);
    let mut simulated = Simulated::default();
    stage.set(&mut simulated)?;
    let fresh = simulated.sim.clone();
    let mut tally = Tally::default();
    for seed in first..first + count {
        simulated.sim = fresh.clone();
        let mut frames = Vec::with_capacity(LENGTH);
        let mut model = stage.model();
        let ran =
            catch_unwind(AssertUnwindSafe(|| speak(&stage, &mut simulated, &mut model, seed, &mut frames)));
        let failed = match ran {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some("panicked".to_owned()),
        };
        if let Some(why) = failed {
            let frames = shrink(frames, |frames| replay(&stage, &fresh, frames).is_err());
            bail!("seed {seed}: {why}\n{}", tell(&frames));
        }
        tally.packets += frames.len() as u64;
        tally.translated += model.translated;
    }
    Ok(tally)
}

fn speak(
    stage: &Stage,
    simulated: &mut Simulated,
    model: &mut Model,
    seed: u64,
    frames: &mut Vec<Frame>,
) -> Result<()> {
    let mut speaker =
        Speaker { chance: Chance::new(seed), talks: Vec::new(), fronts: &stage.fronts, pieces: Vec::new() };
    for _ in 0..LENGTH {
        frames.push(speaker.next(model));
        if let Some((hook, frame)) = frames.last() {
            judge(simulated, model, *hook, frame)?;
        }
    }
    Ok(())
}

/// One packet: by tc, now and then by XDP as well, and before the model.
fn judge(simulated: &mut Simulated, model: &mut Model, hook: Hook, frame: &[u8]) -> Result<()> {
    let early = if hook == Hook::Outside && frame.len().is_multiple_of(8) {
        Some(xdp(simulated, frame)?)
    } else {
        None
    };
    let outcome = simulated.run(hook, device(hook), frame)?;
    if let Some(Some((done, flows))) = early {
        ensure!(done.code == outcome.code, "XDP: {:?}, tc: {:?}", done.code, outcome.code);
        ensure!(
            done.code == Code::Drop || done.bytes.get(14..) == outcome.bytes.get(14..),
            "XDP and tc made different packets"
        );
        ensure!(flows == simulated.flows()?, "XDP and tc remember different flows");
    }
    model.judge(hook, frame, &outcome)
}

/// What XDP does with a packet, on a copy of everything; `None`: nothing.
fn xdp(simulated: &mut Simulated, frame: &[u8]) -> Result<Option<(Outcome, Flows)>> {
    let before = simulated.sim.clone();
    let outcome = simulated.early(ETH0, frame)?;
    let flows = simulated.flows()?;
    simulated.sim = before;
    if outcome.code != Code::Pass {
        return Ok(Some((outcome, flows)));
    }
    ensure!(outcome.bytes == frame, "XDP changed a packet that it passed on");
    ensure!(flows == simulated.flows()?, "XDP remembers a packet that it passed on");
    Ok(None)
}

fn replay(stage: &Stage, fresh: &weir::datapath::sim::Sim, frames: &[Frame]) -> Result<()> {
    let mut simulated = Simulated::default();
    stage.set(&mut simulated)?;
    simulated.sim = fresh.clone();
    let mut model = stage.model();
    catch_unwind(AssertUnwindSafe(|| {
        frames.iter().try_for_each(|(hook, frame)| judge(&mut simulated, &mut model, *hook, frame))
    }))
    .unwrap_or_else(|_| bail!("panicked"))
}

/// Leaves packets out, and bytes off the last one, as long as it still fails.
fn shrink(mut frames: Vec<Frame>, mut fails: impl FnMut(&[Frame]) -> bool) -> Vec<Frame> {
    if !fails(&frames) {
        return frames;
    }
    let mut at = 0;
    while at < frames.len() {
        let mut fewer = frames.clone();
        fewer.remove(at);
        if fails(&fewer) { frames = fewer } else { at += 1 }
    }
    while let Some((_, last)) = frames.last() {
        let mut shorter = frames.clone();
        if let Some((_, frame)) = shorter.last_mut() {
            frame.truncate(last.len().saturating_sub(1));
        }
        if last.is_empty() || !fails(&shorter) {
            break;
        }
        frames = shorter;
    }
    frames
}

fn tell(frames: &[Frame]) -> String {
    frames.iter().fold(format!("{} packets are enough:\n", frames.len()), |text, (hook, frame)| {
        format!("{text}{hook:?}\n{}", show::describe(frame, hook.link()))
    })
}

const fn device(hook: Hook) -> u32 {
    match hook {
        Hook::Inside | Hook::InsideL3 => POD0,
        Hook::Outside | Hook::OutsideL3 | Hook::Egress | Hook::EgressL3 => ETH0,
    }
}

/// Runs episodes in the simulator and in the kernel.
///
/// # Errors
/// At the first episode in which the two differ, or the model does not accept a packet.
pub fn compare(kernel: &mut Kernel, first: u64, count: u64) -> Result<Tally> {
    let stage = Stage::new(Snat::Low);
    let mut simulated = Simulated::default();
    stage.set(&mut simulated)?;
    let fresh = simulated.sim.clone();
    stage.set(kernel)?;
    let mut tally = Tally::default();
    for seed in first..first + count {
        simulated.sim = fresh.clone();
        let (mut frames, mut model) = (Vec::with_capacity(LENGTH), stage.model());
        speak(&stage, &mut simulated, &mut model, seed, &mut frames)
            .with_context(|| format!("seed {seed}"))?;
        if let Err(error) = both(kernel, &mut simulated, &fresh, &frames) {
            let shorter = shrink(frames, |frames| both(kernel, &mut simulated, &fresh, frames).is_err());
            bail!("seed {seed}: {error:#}\n{}", tell(&shorter));
        }
        tally.packets += frames.len() as u64;
        tally.translated += model.translated;
    }
    Ok(tally)
}

/// The same frames through both.
fn both(
    kernel: &mut Kernel,
    simulated: &mut Simulated,
    fresh: &weir::datapath::sim::Sim,
    frames: &[Frame],
) -> Result<()> {
    simulated.sim = fresh.clone();
    kernel.forget()?;
    let counters = kernel.counters()?;
    for (hook, frame) in frames {
        // The test-run takes nothing shorter than an IP header.
        if frame.len() < 54 {
            continue;
        }
        let told = simulated.run(*hook, device(*hook), frame)?;
        let (code, bytes) = kernel.run_quickly(*hook, device(*hook), frame)?;
        ensure!(told.code == code, "simulator: {:?}, kernel: {code:?}", told.code);
        if code != Code::Drop && told.bytes != bytes {
            bail!("simulator (expected) and kernel: {}", show::difference(&told.bytes, &bytes, hook.link()));
        }
    }
    let (one, other) = (simulated.flows()?, kernel.flows()?);
    ensure!(one == other, "flows: simulator\n{}kernel\n{}", show_flows(&one), show_flows(&other));
    let counted = super::run::went_up(&counters, &kernel.counters()?);
    let told = super::run::went_up(&vec![0; counters.len()], &simulated.sim.memory.counters.borrow());
    ensure!(
        counted == told,
        "counted by the simulator {:?}, by the kernel {:?}",
        names(&told),
        names(&counted)
    );
    Ok(())
}
