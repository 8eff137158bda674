//! kube-proxy and Weir side by side: the same objects, the same questions, the same answers.
//!
//! The real kube-proxy (nftables) works in one set of network namespaces, Weir with `--compat
//! kube-proxy` in another that is made alike, and one API server tells both the same objects: a
//! [`world`] of Services made by chance from a seed. Each client then asks every address
//! ([`case`]), thousands of questions at once ([`probe`]), and what became of each is compared:
//! which endpoint answered, from which address it saw the client, under whose name the answer
//! came; or whether the client was refused, or heard nothing.
//!
//! Where several endpoints are valid the choice is chance, on both sides. So answers that differ
//! are asked for again and again ([`judge`]), and it is the sets of all that may happen that have
//! to be equal. A difference that stays is shrunk to the smallest Service that shows it.

mod case;
mod coverage;
mod dice;
mod judge;
mod probe;
mod server;
mod shrink;
mod twins;
mod world;

pub(crate) use probe::put;
pub use probe::{Fate, Fates, How, Probe};
pub(crate) use server::serve;

use anyhow::Result;
use case::cases;
use coverage::Coverage;
use std::time::{Duration, Instant};
use twins::{Networks, Twins};
use world::World;

/// Services of a world.
const SERVICES: usize = 110;
/// A run with more differences than these is given up: the first ones say enough.
const MOST_DIFFERENCES: usize = 5;

/// How much is asked.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of the first world; the next ones follow.
    pub seed: u64,
    /// Worlds are made until so many cases were asked.
    pub cases: usize,
    /// Cases that no cell may have less of.
    pub least: usize,
    /// With `--socket-lb on`, which the profile turns off for pods: one that reaches itself may
    /// see its own address as the client's.
    pub sockets: bool,
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    pub cases: usize,
    pub worlds: usize,
    pub took: Duration,
    /// Each with the smallest objects that show it.
    pub differences: Vec<String>,
    /// Answers that differed once and did not again.
    pub passing: usize,
    /// How often each cell was asked, as a table.
    pub coverage: String,
    /// Cells that were asked less often than the plan wants.
    pub thin: Vec<String>,
}

/// Runs the test. `told` is called as it goes on.
///
/// # Errors
/// When a network, the API server or one of the two cannot be had.
pub fn run(plan: Plan, mut told: impl FnMut(&str)) -> Result<Report> {
    let networks = Networks::new()?;
    let mut twins = Twins::start(&networks, plan.sockets)?;
    let begin = Instant::now();
    let mut coverage = Coverage::default();
    let (mut differences, mut worlds, mut passing) = (Vec::new(), 0, 0);
    // Where chance left a cell thin, it gets half as many cases again to fill it.
    let enough = |coverage: &Coverage| {
        let (cases, all) = (coverage.cases(), coverage.thinner_than(plan.least).is_empty());
        cases >= plan.cases && (all || cases >= plan.cases + plan.cases / 2)
    };
    while !enough(&coverage) && differences.len() < MOST_DIFFERENCES {
        let seed = plan.seed + worlds;
        let world = World::new(seed, SERVICES);
        let all = cases(&world, seed);
        twins.show(&world)?;
        let shown = begin.elapsed();
        let found = judge::ask(&twins, &all)?;
        passing += found.passing.len();
        all.iter().for_each(|case| coverage.count(case));
        told(&format!(
            "seed {seed}: {} Services, {} cases, {} differ; served at {:.1} s, asked at {:.1} s",
            world.services.len(),
            all.len(),
            found.differences.len(),
            shown.as_secs_f64(),
            begin.elapsed().as_secs_f64(),
        ));
        for text in found.passing.iter().take(MOST_DIFFERENCES) {
            told(&format!("  at first only: {text}"));
        }
        let kinds = found.first_of_each_kind(&all);
        for difference in kinds.iter().take(20) {
            told(&format!("  {}", difference.text(&all)));
        }
        for difference in kinds.into_iter().take(2) {
            let text = difference.text(&all);
            let smallest = shrink::shrink(&mut twins, &world, &all[difference.case])?;
            differences.push(format!("seed {seed}: {text}\n{smallest}"));
        }
        worlds += 1;
    }
    Ok(Report {
        cases: coverage.cases(),
        worlds: usize::try_from(worlds)?,
        took: begin.elapsed(),
        differences,
        passing,
        coverage: coverage.table(),
        thin: coverage.thinner_than(plan.least),
    })
}
