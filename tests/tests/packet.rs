//! The packet layer: one table, run by the simulator, by tc and by XDP.

use anyhow::Result;
use lab::packets::row::Row;
use lab::packets::run::{self, Runner, Simulated};
use lab::packets::table;
use std::collections::BTreeSet;

/// Runs every row and tells of all that fail.
fn every_row(rows: &[Row], mut play: impl FnMut(&Row) -> Result<()>) {
    let failed: Vec<String> =
        rows.iter().filter_map(|row| play(row).err()).map(|error| format!("{error:#}\n")).collect();
    assert!(failed.is_empty(), "{} of {} rows failed:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

#[test]
fn rows_are_many_and_have_names_of_their_own() {
    let rows = table::rows();
    let names: BTreeSet<_> = rows.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), rows.len(), "two rows share a name");
    assert!(rows.len() >= 80, "{} rows", rows.len());
    println!("{} rows", rows.len());
}

#[test]
fn simulator_does_what_the_rows_say() {
    let mut simulated = Simulated::default();
    every_row(&table::rows(), |row| run::play(&mut simulated, row).map(drop));
}

#[test]
fn simulated_xdp_finishes_a_packet_or_leaves_it_untouched() {
    let mut simulated = Simulated::default();
    every_row(&table::rows(), |row| {
        let tc = run::play(&mut simulated, row)?;
        let early = run::play_early(&mut simulated, row)?;
        for (tc, early) in tc.iter().zip(&early) {
            anyhow::ensure!(tc.flows == early.flows, "row `{}`, step {}: flows differ", row.name, tc.step);
        }
        Ok(())
    });
    assert!(simulated.flows().is_ok());
}
