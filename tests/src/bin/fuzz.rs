//! Fuzzers that run for a while, called by `cargo xtask fuzz NAME`: `path` sends made-up
//! conversations through the packet path and has a model judge each packet.

use anyhow::{Result, bail};
use lab::packets::fuzz;
use lab::packets::row::Snat;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const USAGE: &str = "usage: fuzz path [--seconds N] [--seed N]";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut words = words.iter().map(String::as_str);
    if words.next() != Some("path") {
        bail!("{USAGE}");
    }
    let (mut seconds, mut seed) = (60, None);
    while let Some(word) = words.next() {
        match (word, words.next()) {
            ("--seconds", Some(number)) => seconds = number.parse()?,
            ("--seed", Some(number)) => seed = Some(number.parse()?),
            _ => bail!("{USAGE}"),
        }
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
