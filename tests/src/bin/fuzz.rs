//! Fuzzers that run for a while, called by `cargo xtask fuzz NAME`: `path` sends made-up
//! conversations through the packet path and has a model judge each packet; the others change
//! cases of the corpus of raw messages, and judge what the proxy's judges say; `ingress` changes
//! Ingress objects and looks whether others suffer; `differential` asks kube-proxy and Weir the
//! same things, and needs root.

use anyhow::{Context, Result, bail};
use lab::differential;
use lab::hostile;
use lab::packets::fuzz;
use lab::packets::row::Snat;
use lab::raw;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const USAGE: &str = "usage: fuzz path|judge|chunked|response|h2-frames|target|hello|ingress|differential|differential-sockets [--seconds N] [--executions N] [--seed N]";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut words = words.iter().map(String::as_str);
    let name = words.next().context(USAGE)?;
    let (mut seconds, mut executions, mut seed) = (60, None, None);
    while let Some(word) = words.next() {
        match (word, words.next()) {
            ("--seconds", Some(number)) => seconds = number.parse()?,
            ("--executions", Some(number)) => executions = Some(number.parse()?),
            ("--seed", Some(number)) => seed = Some(number.parse()?),
            _ => bail!("{USAGE}"),
        }
    }
    if raw::fuzz::NAMES.contains(&name) {
        return judges(name, Duration::from_secs(seconds), executions, seed);
    }
    if name == "ingress" {
        return ingress(Duration::from_secs(seconds), executions, seed);
    }
    if name.starts_with("differential") {
        return side_by_side(name == "differential-sockets", executions, seed);
    }
    if name != "path" || executions.is_some() {
        bail!("{USAGE}");
    }
    if let Some(seed) = seed {
        let tally = fuzz::simulate(seed, 1, Snat::Wide)?;
        println!("seed {seed}: {} packets, {} translated, nothing to say", tally.packets, tally.translated);
        return Ok(());
    }
    let mut first = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() << 20;
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut packets, mut translated) = (0, 0);
    while Instant::now() < end {
        let tally = fuzz::simulate(first, 1_000, Snat::Wide)?;
        first += 1_000;
        packets += tally.packets;
        translated += tally.translated;
    }
    println!("{packets} packets, {translated} translated, none of which anything wrong became");
    Ok(())
}

/// For so long, or so many executions if that is said; one of them for a seed.
fn judges(name: &str, time: Duration, executions: Option<u64>, seed: Option<u64>) -> Result<()> {
    const ROUND: u64 = 10_000;
    let fuzzer = raw::fuzz::Fuzzer::new(name)?;
    if let Some(seed) = seed {
        fuzzer.run(seed, 1)?;
        println!("{name}: seed {seed}, nothing to say");
        return Ok(());
    }
    let first = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() << 32;
    let (begin, mut done) = (Instant::now(), 0);
    while executions.map_or(begin.elapsed() < time, |executions| done < executions) {
        fuzzer.run(first + done, ROUND)?;
        done += ROUND;
    }
    println!(
        "{name}: {done} executions from seed {first} in {:.1} s, nothing to say",
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Rounds of objects for so long, or until so many; one round for a seed.
fn ingress(time: Duration, executions: Option<u64>, seed: Option<u64>) -> Result<()> {
    const ROUND: u64 = 10_000;
    let first = seed.map_or_else(
        || SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs() << 20),
        Ok,
    )?;
    let (begin, mut sum, mut rounds) = (Instant::now(), hostile::Tally::default(), 0);
    while rounds == 0
        || seed.is_none() && executions.map_or(begin.elapsed() < time, |executions| sum.objects < executions)
    {
        let tally = hostile::run(first + rounds, ROUND)?;
        rounds += 1;
        sum.objects += tally.objects;
        sum.read += tally.read;
        sum.routed += tally.routed;
    }
    println!(
        "ingress: {} objects from seed {first} in {:.1} s, {} of them read, {} changed routes, none of others",
        sum.objects,
        begin.elapsed().as_secs_f64(),
        sum.read,
        sum.routed
    );
    Ok(())
}

/// Until so many cases were asked, 100,000 unless said otherwise; the seed is the first world's.
fn side_by_side(sockets: bool, executions: Option<u64>, seed: Option<u64>) -> Result<()> {
    /// What a full run asks of each cell.
    const LEAST: usize = 50;
    const FULL: usize = 100_000;
    let seed =
        seed.map_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()), Ok)?;
    let cases = executions.map(usize::try_from).transpose()?.unwrap_or(FULL);
    let least = if cases >= FULL { LEAST } else { 0 };
    println!("differential: seed {seed}");
    let report =
        differential::run(differential::Plan { seed, cases, least, sockets }, |line| println!("{line}"))?;
    println!("{}", report.coverage);
    for difference in &report.differences {
        println!("\n{difference}");
    }
    println!(
        "differential: {} cases in {} worlds from seed {seed} in {:.1} s, {} differences; {} answers differed \
         once and not again",
        report.cases,
        report.worlds,
        report.took.as_secs_f64(),
        report.differences.len(),
        report.passing
    );
    if !report.differences.is_empty() {
        bail!("{} differences", report.differences.len());
    }
    if !report.thin.is_empty() {
        bail!("cells with fewer than {least} cases:\n{}", report.thin.join("\n"));
    }
    Ok(())
}
