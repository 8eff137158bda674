//! The packet layer: one table, run by the simulator, by tc and by XDP.

use anyhow::{Context, Result};
use lab::packets::build::{tcp, udp};
use lab::packets::fuzz;
use lab::packets::kernel::with_kernel;
use lab::packets::netfilter::{self, Recorded};
use lab::packets::row::{Hook, Row, Service, Snat, Step};
use lab::packets::run::{self, Code, Runner, Simulated};
use lab::packets::table;
use lab::packets::world::{ETH0, POD0};
use lb_common::abi::{DropReason, FlowFlags, PassReason, PortRange, Proto, Reason};
use std::collections::{BTreeMap, BTreeSet};
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

/// H49, S69: both entries of a flow are confirmed, or neither is; without room its packets are
/// dropped.
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
        row.outside(&ask).noting(Reason::FlowsFull).dropped(DropReason::ConntrackFull);
    }
    let traces = run::play(&mut simulated, &row)?;
    for trace in &traces {
        let confirmed = trace.flows.keys().filter(|(confirmed, _)| *confirmed).count();
        let replies = trace.flows.values().filter(|flow| flow.flags.has(FlowFlags::REPLY)).count();
        assert_eq!((confirmed, replies, trace.flows.len()), (0, 1, 2), "{}", run::show_flows(&trace.flows));
    }
    Ok(())
}

/// S69: a full map refuses new flows and costs open ones nothing, not even one that somebody
/// closed with a forged RST; and what was refused goes on once there is room.
#[test]
fn simulator_refuses_new_flows_alone_when_the_map_is_full() -> Result<()> {
    let mut simulated = Simulated::of(Capacity { flows: 2, ..run::CAPACITY });
    let mut row = Row::new("full, TCP");
    let (front, back) = ("10.96.0.1:80", "10.244.1.5:8080");
    row.service(Service::new(Proto::TCP).cluster_ip(front).local(back));
    let ask = |client, flags| tcp(client, front, flags).seq(1001).ack(9001);
    let answer = |client, flags| tcp(back, client, flags).seq(9001).ack(1001);
    let [open, new] = ["198.51.100.7:4000", "198.51.100.8:4000"];
    for client in [open, new] {
        row.outside(&ask(client, "S")).passes(PassReason::NewFlow, &ask(client, "S").to(back));
        let syn_ack = answer(client, "SA").seq(9000);
        row.egress(&syn_ack).passes(PassReason::Reply, &syn_ack.from(front));
        let (ack, passed) = (ask(client, "A"), ask(client, "A").to(back));
        if client == open {
            row.outside(&ack).noting(Reason::Confirmed).passes(PassReason::Forward, &passed);
        } else {
            row.outside(&ack).noting(Reason::FlowsFull).dropped(DropReason::ConntrackFull);
        }
    }
    let data = |client| ask(client, "PA").payload(b"GET / HTTP/1.1");
    row.outside(&data(open)).passes(PassReason::Forward, &data(open).to(back));
    let forged = ask(open, "R");
    row.outside(&forged).noting(Reason::Closed).passes(PassReason::Forward, &forged.to(back));
    row.outside(&ask(new, "A"))
        .noting(Reason::Confirmed)
        .passes(PassReason::Forward, &ask(new, "A").to(back));
    for client in [open, new, open] {
        let pending = row.outside(&data(client));
        let pending = pending.noting_if(client == open, Reason::FlowsFull);
        pending.passes(PassReason::Forward, &data(client).to(back));
    }
    let fin = ask(new, "FA");
    row.outside(&fin).passes(PassReason::Forward, &fin.to(back));
    let fin = answer(new, "FA");
    row.egress(&fin).noting(Reason::Closed).passes(PassReason::Reply, &fin.from(front));
    row.outside(&data(open)).noting(Reason::Confirmed).passes(PassReason::Forward, &data(open).to(back));
    run::play(&mut simulated, &row).map(drop)
}

/// A flow lives on when its source port is out of the range that is configured now.
#[test]
fn simulator_turns_replies_to_ports_of_an_earlier_range() -> Result<()> {
    let mut row = Row::new("another range");
    row.service(Service::new(Proto::UDP).node_port(30_080).remote("10.244.2.5:53"));
    let mut simulated = Simulated::default();
    simulated.reset(&row)?;
    let Some(Step::Ops(ops)) = row.steps.first() else { panic!("the row programs a Service") };
    simulated.apply(ops)?;
    let ask = |client: &str| udp(client, "192.0.2.1:30080");
    let asked = |port: u16| ask(&format!("192.0.2.1:{port}")).to("10.244.2.5:53").ttl(63).bytes();
    let first = simulated.run(Hook::Outside, ETH0, &ask("198.51.100.7:4000").bytes())?;
    assert_eq!(first.bytes, asked(20_000));
    simulated.sim.memory.settings.snat = Snat::High.ranges();
    let answer = udp("10.244.2.5:53", "192.0.2.1:20000");
    assert_eq!(simulated.run(Hook::Outside, ETH0, &answer.bytes())?.code, Code::Pass, "nobody's");
    simulated.sim.memory.settings.earlier = PortRange { first: 20_000, last: 20_000 };
    let turned = simulated.run(Hook::Outside, ETH0, &answer.bytes())?;
    assert_eq!(turned.bytes, answer.from("192.0.2.1:30080").to("198.51.100.7:4000").ttl(63).bytes());
    let next = simulated.run(Hook::Outside, ETH0, &ask("198.51.100.7:4000").bytes())?;
    assert_eq!(next.bytes, asked(20_000));
    let other = simulated.run(Hook::Outside, ETH0, &ask("198.51.100.7:4001").bytes())?;
    assert_eq!(other.bytes, asked(61_000));
    Ok(())
}

/// The port that a pod's flow is given depends on its tuple alone, as long as it is free:
/// connections outlive the loss of flow memory. It does not go with the choice of the backend.
#[test]
fn simulator_gives_a_tuple_the_same_port_again() -> Result<()> {
    let mut row = Row::new("ports");
    row.snat = Snat::Wide;
    let backends = ["10.244.1.5:53", "10.244.1.7:53", "10.244.1.8:53", "10.244.1.9:53"];
    let service = Service::new(Proto::UDP).cluster_ip("10.96.0.1:53");
    let ops = row.service(backends.iter().fold(service, |service, at| service.local(at))).ops();
    let mut rounds = Vec::new();
    for chance in [1, 2] {
        let mut simulated = Simulated::default();
        simulated.reset(&row)?;
        simulated.apply(&ops)?;
        simulated.sim.memory.chance.set(chance);
        let mut given = BTreeMap::<[u8; 4], Vec<u16>>::new();
        for client in 40_000..42_000_u16 {
            let ask = udp(&format!("10.244.1.6:{client}"), "10.96.0.1:53").bytes();
            let out = simulated.run(Hook::Inside, POD0, &ask)?.bytes;
            let port = u16::from_be_bytes([out[34], out[35]]);
            given.entry([out[30], out[31], out[32], out[33]]).or_default().push(port);
        }
        rounds.push(given);
    }
    assert_eq!(rounds[0].len(), backends.len());
    let (mut same, mut all) = (0, 0);
    for (backend, ports) in &rounds[0] {
        // Who found its port taken draws by chance.
        same += ports.iter().zip(&rounds[1][backend]).filter(|(one, other)| one == other).count();
        all += ports.len();
        let bins: BTreeSet<u16> = ports.iter().map(|port| port / 1024).collect();
        assert!(bins.len() >= 24, "ports towards {backend:?} are of {} of 25 kibiports", bins.len());
    }
    assert!(same * 100 >= all * 95, "{same} of {all} ports were the same again");
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
