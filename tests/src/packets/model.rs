//! A second opinion about every packet: naive, allocating, from the specification's text.
//!
//! It does not foretell which backend or port is chosen. It looks at what came out, and says
//! whether that is one of the things that may: untouched, refused, dropped, or translated as
//! the flow's earlier packets were, with every other byte as it was and every checksum as
//! right, or as wrong, as before (all sums are made anew).

use super::answer::refusal;
use super::build::{Link, internet_sum, transport_sum};
use super::row::Hook;
use super::run::{Code, Outcome};
use super::show::Read;
use super::world::{NODE4, NODE6};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// From, to, protocol.
type Tuple = (SocketAddr, SocketAddr, u8);

/// What clients may address, and what is behind it.
#[derive(Clone, Debug)]
pub struct Front {
    pub at: SocketAddr,
    pub proto: u8,
    /// Address and whether it is on this node.
    pub backends: Vec<(SocketAddr, bool)>,
}

/// A translation that was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    source: SocketAddr,
    backend: SocketAddr,
    snat: bool,
    /// FIN of either side, or a RST: the flow may be over.
    closing: bool,
}

/// What the model remembers.
#[derive(Clone, Debug)]
pub struct Model {
    fronts: Vec<Front>,
    snat: Vec<(u16, u16)>,
    flows: BTreeMap<Tuple, Seen>,
    /// What became of first fragments that were not left alone.
    firsts: BTreeMap<(bool, Piece), First>,
    pub translated: u64,
}

/// What the fragments of a packet have in common: addresses, identification, protocol (IPv4).
type Piece = (IpAddr, IpAddr, u32, u8);

/// What those that follow a first fragment share with it.
#[derive(Clone, Copy, Debug)]
enum First {
    Refused,
    Became { from: IpAddr, to: IpAddr, hop: bool },
}

/// A packet that a translation may be about.
#[derive(Debug)]
struct Whole {
    read: Read,
    from: SocketAddr,
    to: SocketAddr,
    flags: u8,
}

impl Model {
    pub const fn new(fronts: Vec<Front>, snat: Vec<(u16, u16)>) -> Self {
        Self { fronts, snat, flows: BTreeMap::new(), firsts: BTreeMap::new(), translated: 0 }
    }

    /// Forgets all flows.
    pub fn forget(&mut self) {
        self.flows.clear();
        self.firsts.clear();
    }

    /// How a flow's packets arrive at the backend, if one was seen.
    pub fn translation(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        proto: u8,
    ) -> Option<(SocketAddr, SocketAddr)> {
        self.flows.get(&(from, to, proto)).map(|seen| (seen.source, seen.backend))
    }

    /// Says whether this may come of this packet.
    ///
    /// # Errors
    /// With the reason why not.
    pub fn judge(&mut self, hook: Hook, input: &[u8], outcome: &Outcome) -> Result<()> {
        let leaves = hook == Hook::Egress;
        let piece = piece(input);
        if let Some((piece, true)) = piece
            && let Some(&first) = self.firsts.get(&(leaves, piece))
        {
            self.translated += 1;
            return followed(input, outcome, first);
        }
        self.judge_whole(hook, input, outcome)?;
        if let (Some((piece, false)), Some(before)) = (piece, whole(input)) {
            let after = if outcome.code == Code::Drop { None } else { whole(&outcome.bytes) };
            let first = after.map_or(First::Refused, |after| First::Became {
                from: after.read.from,
                to: after.read.to,
                hop: before.read.ttl != after.read.ttl,
            });
            self.firsts.remove(&(leaves, piece));
            if outcome.code == Code::Drop || outcome.bytes != input {
                self.firsts.insert((leaves, piece), first);
            }
        }
        Ok(())
    }

    fn judge_whole(&mut self, hook: Hook, input: &[u8], outcome: &Outcome) -> Result<()> {
        let Some(packet) = whole(input) else {
            ensure!(outcome.code == Code::Pass, "not a packet that is ours, but {:?}", outcome.code);
            return untouched(input, outcome);
        };
        let tuple = (packet.from, packet.to, packet.read.proto);
        if hook == Hook::Egress {
            return self.reply(&packet, input, outcome, false);
        }
        match self.fronts.iter().find(|front| (front.at, front.proto) == (tuple.1, tuple.2)).cloned() {
            Some(front) => self.forward(hook, &front, &packet, input, outcome),
            None => self.reply(&packet, input, outcome, true),
        }
    }

    fn forward(
        &mut self,
        hook: Hook,
        front: &Front,
        packet: &Whole,
        input: &[u8],
        outcome: &Outcome,
    ) -> Result<()> {
        let tuple = (packet.from, packet.to, packet.read.proto);
        let known = self.flows.get(&tuple).copied();
        if outcome.code == Code::Drop {
            return Ok(());
        }
        if front.backends.is_empty() && known.is_none() {
            if outcome.bytes == input {
                return ensure_no_beginning(packet);
            }
            ensure!(outcome.code == Code::Redirect, "refused, and passed on");
            let sums = packet.read.transport_sums(input).is_none_or(|(there, right)| there == right)
                && packet.read.header_sums(input).is_none_or(|(there, right)| there == right);
            // An error repeats what it refuses; a RST made of a packet with a wrong sum has one.
            if sums {
                ensure!(outcome.bytes == refusal(input, Link::Ethernet), "not the right refusal");
            }
            self.translated += 1;
            return Ok(());
        }
        if outcome.bytes == input {
            ensure!(known.is_none_or(|seen| seen.closing), "a packet of a flow was not translated");
            return ensure_no_beginning(packet);
        }
        let out = whole(&outcome.bytes).context("no packet came out")?;
        let (_, local) = *front
            .backends
            .iter()
            .find(|(at, _)| *at == out.to)
            .with_context(|| format!("{} is no backend", out.to))?;
        let hairpin = out.to.ip() == packet.from.ip();
        let snat = hairpin || (hook == Hook::Outside && !local);
        if snat {
            let node: IpAddr = if packet.from.is_ipv4() { NODE4 } else { NODE6 }.parse()?;
            ensure!(out.from.ip() == node, "source {} is not the device's address", out.from);
            ensure!(outcome.code == Code::Redirect, "a source of ours went through the stack");
        } else {
            ensure!(out.from.ip() == packet.from.ip(), "the client's address was lost");
            ensure!(outcome.code == Code::Pass, "went past the stack");
        }
        let (port, own) = (out.from.port(), packet.from.port());
        if hook == Hook::Inside && !snat {
            ensure!(port != own, "a pod's own port, which it may use straight to the backend");
        }
        if snat || port != own {
            ensure!(
                self.snat.iter().any(|(first, last)| (*first..=*last).contains(&port)),
                "source port {port} is in no range"
            );
        }
        let opens = packet.read.proto == 6 && packet.flags & 0x17 == 2;
        if let Some(seen) = known
            && !(opens && seen.closing)
            && (seen.source, seen.backend) != (out.from, out.to)
            // A closed flow's port may have gone to another, and then its packets open anew.
            && !seen.closing
        {
            bail!("the flow went to {} as {} before", seen.backend, seen.source);
        }
        same_but_for(input, &packet.read, &outcome.bytes, &out, snat)?;
        self.translated += 1;
        let reply = |seen: &Seen| (seen.source, seen.backend);
        let taken = (out.from, out.to);
        let others = self
            .flows
            .iter()
            .filter(|(other, seen)| **other != tuple && reply(seen) == taken && other.2 == tuple.2);
        for (other, seen) in others {
            ensure!(seen.closing, "{other:?} has the same tuple towards the backend and is not over");
        }
        self.flows.retain(|other, seen| *other == tuple || reply(seen) != taken || other.2 != tuple.2);
        let closing = packet.flags & 5 != 0 && packet.read.proto == 6;
        let closing = closing || (known.is_some_and(|seen| seen.closing) && !opens);
        self.flows.insert(tuple, Seen { source: out.from, backend: out.to, snat, closing });
        Ok(())
    }

    fn reply(&mut self, packet: &Whole, input: &[u8], outcome: &Outcome, ingress: bool) -> Result<()> {
        let flow = self.flows.iter_mut().find(|((.., proto), seen)| {
            *proto == packet.read.proto
                && (seen.backend, seen.source) == (packet.from, packet.to)
                && seen.snat == ingress
        });
        let Some((flow, seen)) = flow else {
            // Of a flow whose first packets were dropped (hop limit) nothing was seen.
            if outcome.bytes != input || outcome.code != Code::Pass {
                bail!("a reply of no flow was not left alone");
            }
            return Ok(());
        };
        if packet.read.proto == 6 && packet.flags & 5 != 0 {
            seen.closing = true;
        }
        if outcome.code == Code::Drop && packet.read.ttl <= 1 && ingress {
            return Ok(());
        }
        if outcome.bytes == input && seen.closing {
            return Ok(());
        }
        ensure!(outcome.code == if ingress { Code::Redirect } else { Code::Pass }, "{:?}", outcome.code);
        let out = whole(&outcome.bytes).context("no packet came out")?;
        ensure!((out.from, out.to) == (flow.1, flow.0), "{} to {} is not {flow:?}", out.from, out.to);
        self.translated += 1;
        same_but_for(input, &packet.read, &outcome.bytes, &out, ingress)
    }
}

fn untouched(input: &[u8], outcome: &Outcome) -> Result<()> {
    ensure!(outcome.bytes == input, "a packet that is none of ours was changed");
    Ok(())
}

/// Only a RST or SYN-ACK may come to a frontend and open nothing.
fn ensure_no_beginning(packet: &Whole) -> Result<()> {
    let no_beginning = packet.read.proto == 6 && (packet.flags & 4 != 0 || packet.flags & 0x12 == 0x12);
    ensure!(no_beginning, "a packet for a frontend was left alone");
    Ok(())
}

/// Whether a fragment without ports went where the first one of its packet did.
fn followed(input: &[u8], outcome: &Outcome, first: First) -> Result<()> {
    let First::Became { from, to, hop } = first else {
        ensure!(outcome.code == Code::Drop, "the first one was refused, but {:?}", outcome.code);
        return Ok(());
    };
    let read = Read::new(input, 14).context("no fragment")?;
    if hop && read.ttl <= 1 {
        ensure!(outcome.code == Code::Drop, "its hop limit was used up");
        return Ok(());
    }
    ensure!(outcome.code == if hop { Code::Redirect } else { Code::Pass }, "{:?}", outcome.code);
    let mut expected = input.to_vec();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            expected[22] -= u8::from(hop);
            expected[26..30].copy_from_slice(&from.octets());
            expected[30..34].copy_from_slice(&to.octets());
            let out = outcome.bytes.get(24..26).context("cut off")?;
            expected[24..26].copy_from_slice(out);
            let old = read.header_sums(input).context("no sum")?;
            let new = read.header_sums(&expected).context("no sum")?;
            ensure!(same_error(old, new), "header sum {old:04x?} became {new:04x?}");
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            expected[21] -= u8::from(hop);
            expected[22..38].copy_from_slice(&from.octets());
            expected[38..54].copy_from_slice(&to.octets());
        }
        _ => bail!("{from} and {to} are of two families"),
    }
    ensure!(expected == outcome.bytes, "bytes of a fragment changed that are not ours");
    Ok(())
}

/// Whose piece a fragment is, and whether it is a later one.
fn piece(frame: &[u8]) -> Option<(Piece, bool)> {
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    if word(12)? == 0x0800 {
        let read = Read::new(frame, 14).filter(|read| read.from.is_ipv4())?;
        let fragment = word(20)?;
        let piece = (read.from, read.to, u32::from(word(18)?), read.proto);
        return (fragment & 0x3fff != 0).then_some((piece, fragment & 0x1fff != 0));
    }
    if word(12)? != 0x86dd || frame.get(14)? >> 4 != 6 {
        return None;
    }
    let end = 54 + usize::from(word(18)?);
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?));
    let (from, to) = (address(22)?, address(38)?);
    if end > frame.len() || from.to_ipv4_mapped().is_some() || to.to_ipv4_mapped().is_some() {
        return None;
    }
    let (mut next, mut at, mut more, mut id) = (*frame.get(20)?, 54, false, 0);
    for _ in 0..6 {
        if !matches!(next, 0 | 43 | 44 | 60) {
            break;
        }
        let head: [u8; 8] = frame.get(at..at + 8).filter(|_| at + 8 <= end)?.try_into().ok()?;
        if next == 44 {
            let fragment = u16::from_be_bytes([head[2], head[3]]);
            id = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
            if fragment >> 3 != 0 {
                return Some(((from.into(), to.into(), id, 0), true));
            }
            more |= fragment & 1 != 0;
            at += 8;
        } else if next == 43 && head[3] != 0 {
            return None;
        } else {
            at += 8 + usize::from(head[1]) * 8;
        }
        if at - 54 > 256 {
            return None;
        }
        next = head[0];
    }
    more.then_some(((from.into(), to.into(), id, 0), false))
}

/// A TCP or UDP packet with ports whose headers do not contradict each other.
fn whole(frame: &[u8]) -> Option<Whole> {
    let read = Read::new(frame, 14)?;
    let v4 = frame.get(12..14)? == [0x08, 0x00];
    if !(v4 && read.from.is_ipv4() || frame.get(12..14)? == [0x86, 0xdd] && read.from.is_ipv6()) {
        return None;
    }
    let more = if v4 {
        let fragment = u16::from_be_bytes([frame[20], frame[21]]);
        if fragment & 0x1fff != 0 {
            return None;
        }
        fragment & 0x2000 != 0
    } else {
        if [read.from, read.to].iter().any(|ip| matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()))
        {
            return None;
        }
        let (mut next, mut at, mut more, mut count) = (frame[20], 54, false, 0);
        while matches!(next, 0 | 43 | 44 | 60) {
            let head = frame.get(at..at + 8)?;
            count += 1;
            if next == 44 {
                let fragment = u16::from_be_bytes([head[2], head[3]]);
                if fragment >> 3 != 0 {
                    return None;
                }
                more |= fragment & 1 != 0;
                at += 8;
            } else {
                if next == 43 && head[3] != 0 {
                    return None;
                }
                at += 8 + usize::from(head[1]) * 8;
            }
            // More, or longer ones, are walked over by nobody.
            if count > 6 || at - 54 > 256 {
                return None;
            }
            next = head[0];
        }
        more
    };
    let transport = frame.get(read.l4..read.end)?;
    let flags = match read.proto {
        6 => {
            let header = usize::from(*transport.get(12)? >> 4) * 4;
            if transport.len() < 20 || header < 20 || (header > transport.len() && !more) {
                return None;
            }
            transport[13]
        }
        17 => {
            if transport.len() < 8 {
                return None;
            }
            let length = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
            if length < 8 || (length > transport.len() && !more) {
                return None;
            }
            0
        }
        _ => return None,
    };
    let (from, to) = read.ports(frame)?;
    Some(Whole { from: SocketAddr::new(read.from, from), to: SocketAddr::new(read.to, to), read, flags })
}

/// Every byte is as it was, but for addresses, ports, hop limit and checksums; and those are
/// off by what they were off before.
fn same_but_for(input: &[u8], read: &Read, output: &[u8], out: &Whole, hop: bool) -> Result<()> {
    ensure!(input.len() == output.len(), "{} bytes became {}", input.len(), output.len());
    ensure!(
        out.read.ttl == if hop { read.ttl.wrapping_sub(1) } else { read.ttl },
        "hop limit {}",
        out.read.ttl
    );
    let sum_at = read.sum_at().context("no checksum")?;
    let mut expected = input.to_vec();
    // Hop limit, and all that is behind it but IPv4's protocol.
    let (hops, rest) = if read.from.is_ipv4() {
        (read.l3 + 8..read.l3 + 9, read.l3 + 10..read.l3 + 20)
    } else {
        (read.l3 + 7..read.l3 + 8, read.l3 + 8..read.l3 + 40)
    };
    for range in [hops, rest, read.l4..read.l4 + 4, sum_at..sum_at + 2] {
        expected[range.clone()].copy_from_slice(&output[range]);
    }
    ensure!(expected == output, "bytes changed that are not ours");
    if let (Some(old), Some(new)) = (read.header_sums(input), out.read.header_sums(output)) {
        ensure!(same_error(old, new), "header sum {old:04x?} became {new:04x?}");
    }
    let (old, new) = (sums(input, read, sum_at), sums(output, &out.read, sum_at));
    if read.proto == 17 && (old.0 == 0 || new.0 == 0) {
        ensure!(old.0 == new.0, "a UDP sum of {:04x} became {:04x}", old.0, new.0);
        return Ok(());
    }
    ensure!(same_error(old, new), "transport sum {old:04x?} became {new:04x?}");
    ensure!(old.0 != old.1 || new.0 == new.1, "a right sum became {:04x}, right is {:04x}", new.0, new.1);
    Ok(())
}

/// The sum that is there, and the one over the bytes that are there (of a fragment: a part).
fn sums(frame: &[u8], read: &Read, sum_at: usize) -> (u16, u16) {
    let mut bytes = frame[read.l4..read.end].to_vec();
    bytes[sum_at - read.l4..sum_at - read.l4 + 2].fill(0);
    let there = u16::from_be_bytes([frame[sum_at], frame[sum_at + 1]]);
    (there, transport_sum(read.from, read.to, read.proto, &bytes))
}

/// Ones-complement differences, where 0 and 0xffff are the same.
fn same_error(old: (u16, u16), new: (u16, u16)) -> bool {
    let off =
        |(there, right): (u16, u16)| internet_sum(&[&there.to_be_bytes(), &(!right).to_be_bytes()]) % 0xffff;
    off(old) == off(new)
}
