//! Rows that netfilter wrote: read from their files, run through Weir, compared.
//!
//! Netfilter hands a packet to the stack's forwarding, which takes one from the hop limit.
//! Weir does so itself where it sends a packet past the stack, and leaves it to the stack
//! where it does not: there the stack's part is done here. Nothing else may differ: ports are
//! pinned on both sides, and bytes behind the IP packet, which the stack cuts off, are not
//! looked at.

use super::build::{at, internet_sum};
use super::row::{Hook, Row, Service};
use super::run::{Code, Runner};
use super::show::{self, Read, hex, unhex};
use super::world::{ETH0, POD0};
use anyhow::{Context, Result, bail, ensure};
use lb_common::abi::Proto;
use std::fmt;
use std::path::{Path, PathBuf};

/// How a packet crosses the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// In by eth0; Weir decides as it arrives.
    Outside,
    /// In by pod0; Weir decides as it arrives.
    Inside,
    /// Weir decides as it leaves by eth0.
    LeavingEth0,
    /// Weir decides as it leaves by pod0.
    LeavingPod0,
}

const WAYS: [(Way, &str); 4] = [
    (Way::Outside, "outside"),
    (Way::Inside, "inside"),
    (Way::LeavingEth0, "leaving-eth0"),
    (Way::LeavingPod0, "leaving-pod0"),
];

/// A frame and what netfilter made of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exchange {
    pub way: Way,
    pub input: Vec<u8>,
    pub output: Vec<u8>,
}

/// One file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// `PROTO node-port PORT|cluster-ip ADDRESS local|remote ADDRESS`.
    pub service: String,
    pub rules: String,
    pub exchanges: Vec<Exchange>,
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Frames and what the kernel's netfilter made of them; `cargo xtask bless` writes this."
        )?;
        writeln!(f, "service {}\nrules {}", self.service, self.rules)?;
        for exchange in &self.exchanges {
            let (_, way) = WAYS.iter().find(|(way, _)| *way == exchange.way).unwrap_or(&WAYS[0]);
            writeln!(f, "{way}\n  in  {}\n  out {}", hex(&exchange.input), hex(&exchange.output))?;
        }
        Ok(())
    }
}

/// Where the files are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/netfilter")
}

/// Every file, by name.
///
/// # Errors
/// When one cannot be read.
pub fn all() -> Result<Vec<(String, Recorded)>> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder()).context("no recorded cases")? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let recorded = parse(&std::fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        cases.push((name, recorded));
    }
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(cases)
}

fn parse(text: &str) -> Result<Recorded> {
    let mut recorded = Recorded { service: String::new(), rules: String::new(), exchanges: Vec::new() };
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let rest = rest.trim();
        match word {
            "service" => rest.clone_into(&mut recorded.service),
            "rules" => rest.clone_into(&mut recorded.rules),
            "in" => recorded.exchanges.last_mut().context("`in` before a way")?.input = unhex(rest)?,
            "out" => recorded.exchanges.last_mut().context("`out` before a way")?.output = unhex(rest)?,
            name => {
                let (way, _) = WAYS.iter().find(|(_, way)| *way == name).context(line.to_owned())?;
                recorded.exchanges.push(Exchange { way: *way, input: Vec::new(), output: Vec::new() });
            }
        }
    }
    ensure!(!recorded.exchanges.is_empty(), "no frames");
    Ok(recorded)
}

impl Recorded {
    fn service(&self) -> Result<Service> {
        let words: Vec<&str> = self.service.split(' ').collect();
        let [proto, kind, frontend, place, backend] = words[..] else { bail!("service {}", self.service) };
        let service = Service::new(if proto == "tcp" { Proto::TCP } else { Proto::UDP });
        let service = match kind {
            "node-port" => service.node_port(frontend.parse()?),
            _ => service.cluster_ip(frontend),
        };
        at(backend);
        Ok(if place == "local" { service.local(backend) } else { service.remote(backend) })
    }

    /// Runs the frames through a data path.
    ///
    /// # Errors
    /// At the first frame of which netfilter made something else.
    pub fn play(&self, runner: &mut dyn Runner) -> Result<()> {
        let mut row = Row::new("recorded");
        row.service(self.service()?);
        runner.reset(&row)?;
        for step in &row.steps {
            if let super::row::Step::Ops(ops) = step {
                runner.apply(ops)?;
            }
        }
        for (number, exchange) in (1..).zip(&self.exchanges) {
            let made = pass(runner, exchange)?;
            let (expected, made) = (network(&exchange.output)?, network(&made)?);
            ensure!(
                expected == made,
                "frame {number}: {}",
                show::difference(expected, made, super::build::Link::None)
            );
        }
        Ok(())
    }
}

/// What comes out of the node's other side.
fn pass(runner: &mut dyn Runner, exchange: &Exchange) -> Result<Vec<u8>> {
    let (hook, device) = match exchange.way {
        Way::Outside => (Hook::Outside, ETH0),
        Way::Inside => (Hook::Inside, POD0),
        Way::LeavingEth0 => (Hook::Egress, ETH0),
        Way::LeavingPod0 => (Hook::Egress, POD0),
    };
    let leaves = hook == Hook::Egress;
    let input = if leaves { forwarded(&exchange.input)? } else { exchange.input.clone() };
    let outcome = runner.run(hook, device, &input)?;
    match outcome.code {
        Code::Drop => bail!("dropped"),
        Code::Pass if !leaves => forwarded(&outcome.bytes),
        Code::Pass | Code::Redirect => Ok(outcome.bytes),
    }
}

/// What a router does to a packet: one from the hop limit, and the header's checksum anew.
fn forwarded(frame: &[u8]) -> Result<Vec<u8>> {
    let read = Read::new(frame, 14).context("not an IP packet")?;
    let mut frame = frame.to_vec();
    if read.from.is_ipv6() {
        frame[read.l3 + 7] -= 1;
        return Ok(frame);
    }
    ensure!(read.header_sums(&frame).is_some_and(|(there, right)| there == right), "a wrong header sum");
    frame[read.l3 + 8] -= 1;
    frame[read.l3 + 10..read.l3 + 12].fill(0);
    let sum = internet_sum(&[&frame[read.l3..read.l4]]);
    frame[read.l3 + 10..read.l3 + 12].copy_from_slice(&sum.to_be_bytes());
    Ok(frame)
}

/// The IP packet of a frame.
fn network(frame: &[u8]) -> Result<&[u8]> {
    let read = Read::new(frame, 14).context("not an IP packet")?;
    Ok(&frame[read.l3..read.end])
}
