//! Loads every program of the embedded object and prints what the verifier says of it.

use anyhow::{Result, ensure};
use weir::datapath::loader::verify_report;

/// Of the verifier's 1,000,000: half of them (H53).
const MOST: u32 = 500_000;

fn main() -> Result<()> {
    let report = verify_report()?;
    println!("{:<22} {:>12} {:>12}", "PROGRAM", "VERIFIED", "JITED BYTES");
    for program in &report {
        println!("{:<22} {:>12} {:>12}", program.name, program.verified, program.jited_bytes);
    }
    for program in &report {
        ensure!(program.verified < MOST, "{} needs {} verified instructions", program.name, program.verified);
    }
    println!("{} programs, all below {MOST} verified instructions", report.len());
    Ok(())
}
