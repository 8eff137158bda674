//! The packet layer: one table, run by the simulator, by tc and by XDP.

use anyhow::{Context, Result};
use lab::packets::build::udp;
use lab::packets::fuzz;
use lab::packets::kernel::with_kernel;
use lab::packets::netfilter::{self, Recorded};
use lab::packets::row::{Row, Service, Snat};
use lab::packets::run::{self, Simulated};
use lab::packets::table;
use lb_common::abi::{FlowFlags, PassReason, Proto, Reason};
use std::collections::BTreeSet;
use weir::datapath::Capacity;

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
        run::same(row, &tc, &run::play_early(&mut simulated, row)?)
    });
}

#[test]
fn kernel_does_what_the_rows_say_and_remembers_what_the_simulator_does() -> Result<()> {
    with_kernel(|kernel| {
        let mut simulated = Simulated::default();
        every_row(&rows_for_the_kernel(), |row| {
            let told = run::play(&mut simulated, row)?;
            let tc = run::play(kernel, row).context("tc")?;
            run::same(row, &told, &tc).context("simulator and tc")?;
            let early = run::play_early(kernel, row).context("XDP, then tc")?;
            run::same(row, &tc, &early).context("tc alone, and XDP then tc")
        });
        Ok(())
    })
}

/// Those that the test-run can run; the others are few, and each says why.
fn rows_for_the_kernel() -> Vec<Row> {
    let (rows, others): (Vec<Row>, Vec<Row>) =
        table::rows().into_iter().partition(|row| row.simulator_only.is_none());
    for row in &others {
        println!("simulator only: {} ({})", row.name, row.simulator_only.unwrap_or_default());
    }
    assert!(others.len() <= 4, "{} rows are not run by the kernel", others.len());
    rows
}

/// Runs every recorded case and tells of all that fail.
fn every_case(mut play: impl FnMut(&Recorded) -> Result<()>) -> Result<()> {
    let cases = netfilter::all()?;
    assert!(cases.len() >= 20, "{} recorded cases", cases.len());
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|(name, case)| play(case).err().map(|error| format!("{name}: {error:#}\n")))
        .collect();
    assert!(failed.is_empty(), "{} of {} cases failed:\n{}", failed.len(), cases.len(), failed.join("\n"));
    Ok(())
}

#[test]
fn simulator_translates_as_netfilter_does() -> Result<()> {
    let mut simulated = Simulated::default();
    every_case(|case| case.play(&mut simulated))
}

#[test]
fn kernel_translates_as_netfilter_does() -> Result<()> {
    with_kernel(|kernel| every_case(|case| case.play(kernel)))
}

/// H49: both entries of a flow are confirmed, or neither is; a full map costs no packet.
#[test]
fn simulator_confirms_no_half_of_a_flow() -> Result<()> {
    let mut simulated = Simulated::of(Capacity { flows: 1, ..run::CAPACITY });
    let mut row = Row::new("full");
    row.service(Service::new(Proto::UDP).cluster_ip("10.96.0.1:53").local("10.244.1.5:53"));
    let ask = udp("198.51.100.7:4000", "10.96.0.1:53");
    let answer = udp("10.244.1.5:53", "198.51.100.7:4000");
    row.outside(&ask).passes(PassReason::NewFlow, &ask.to("10.244.1.5:53"));
    row.egress(&answer).passes(PassReason::Reply, &answer.from("10.96.0.1:53"));
    for _ in 0..2 {
        row.outside(&ask).noting(Reason::FlowsFull).passes(PassReason::Forward, &ask.to("10.244.1.5:53"));
    }
    let traces = run::play(&mut simulated, &row)?;
    for trace in &traces {
        let confirmed = trace.flows.keys().filter(|(confirmed, _)| *confirmed).count();
        let replies = trace.flows.values().filter(|flow| flow.flags.has(FlowFlags::REPLY)).count();
        assert_eq!((confirmed, replies, trace.flows.len()), (0, 1, 2), "{}", run::show_flows(&trace.flows));
    }
    Ok(())
}

/// A million packets in each run, other ones than in the last: what fails is told with its seed.
#[test]
fn simulator_does_to_random_packets_what_the_specification_says() -> Result<()> {
    let first = first_seed();
    let tally = fuzz::simulate(first, 25_000, Snat::Wide)?;
    println!("seeds from {first}: {} packets, {} translated", tally.packets, tally.translated);
    assert!(tally.packets >= 1_000_000, "{tally:?}");
    assert!(tally.translated * 2 >= tally.packets, "most packets were not translated: {tally:?}");
    Ok(())
}

#[test]
fn kernel_does_to_random_packets_what_the_simulator_does() -> Result<()> {
    let first = first_seed();
    let tally = with_kernel(|kernel| fuzz::compare(kernel, first, 1_300))?;
    println!("seeds from {first}: {} packets, {} translated", tally.packets, tally.translated);
    assert!(tally.packets >= 50_000, "{tally:?}");
    Ok(())
}

/// Another one in each run.
fn first_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs() << 20
}
