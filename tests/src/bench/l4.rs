//! The data path: the same loads without a load balancer, through nftables rules as
//! kube-proxy makes them, through Weir's socket hooks and through its packet hooks.
//!
//! Each variant has a rig of its own, all are up at the same time, and only one is under
//! load at a time. In every round each variant runs for one slice, in random order, and is
//! compared with the nftables slice of the same round: what disturbs the machine for longer
//! than a round disturbs both sides of a ratio.

use super::agent::Agent;
use super::cluster::{self, ANSWER, ANSWER_NODE_PORT, Cluster, SINK};
use super::figures::{Random, Spread, figure, print, quantile};
use super::load::{Load, Slice};
use super::rig::{NODE, Rig, servers};
use super::server::{ANSWER_PORT, SINK_PORT};
use super::{kube_proxy, load_average, machine, profile, write};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What `bench l4` is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Slices of each variant and row.
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Length of a slice in milliseconds.
    #[arg(long, default_value_t = 400)]
    slice: u64,
    /// Services in the cluster, the measured one included.
    #[arg(long, default_value_t = 1000)]
    services: u32,
    /// Rows to measure, by number from 1; all without it.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<usize>,
    /// Give every node a masquerade rule, as most pod networks bring one.
    #[arg(long)]
    masquerade: bool,
    /// Run clients and servers before everything else on their CPUs: for a machine that has
    /// other work.
    #[arg(long)]
    realtime: bool,
    /// Time Weir's programs in every row, not only where it is behind.
    #[arg(long)]
    profile: bool,
    /// Exit code 1 when a median ratio to nftables is below this.
    #[arg(long, value_name = "RATIO")]
    at_least: Option<f64>,
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Variant {
    Direct,
    Nftables,
    WeirSocket,
    WeirTc,
}

const VARIANTS: [Variant; 4] = [Variant::Direct, Variant::Nftables, Variant::WeirSocket, Variant::WeirTc];

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nftables => "nftables",
            Self::WeirSocket => "Weir socket",
            Self::WeirTc => "Weir tc",
        }
    }

    const fn is_weir(self) -> bool {
        matches!(self, Self::WeirSocket | Self::WeirTc)
    }
}

/// One line of the table.
struct Row {
    name: &'static str,
    unit: &'static str,
    load: Load,
    /// From the client outside to a node port; else from the client pod to the ClusterIP.
    outside: bool,
}

const fn row(name: &'static str, unit: &'static str, load: Load) -> Row {
    Row { name, unit, load, outside: false }
}

const ROWS: [Row; 9] = [
    row("TCP connect, ask, close (16 at a time)", "/s", Load::Short),
    row("TCP ask, one connection", "/s", Load::Ask),
    row("UDP ask, new socket each (DNS)", "/s", Load::ShortUdp),
    row("UDP ask, one connected socket", "/s", Load::AskUdp),
    row("UDP ask, sendto and recvfrom", "/s", Load::AskUdpUnconnected),
    row("UDP 18 bytes, one way", "packets/s", Load::Packets),
    row("TCP bulk", "Gbit/s", Load::Bulk),
    Row { outside: true, ..row("NodePort: TCP connect, ask, close", "/s", Load::Short) },
    Row { outside: true, ..row("NodePort: TCP ask, one connection", "/s", Load::Ask) },
];

/// A variant that is up.
struct Net {
    variant: Variant,
    rig: Rig,
    _agent: Option<Agent>,
}

/// Slices of one row and variant.
#[derive(Default)]
struct Samples {
    rates: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    failed: u64,
}

/// Runs all rows; prints tables and writes `l4.json`.
///
/// # Errors
/// When a variant cannot be measured, after the others have been.
pub fn run(options: &Options) -> Result<()> {
    let before = load_average();
    let mut missing = Vec::new();
    let mut nets = Vec::new();
    for variant in VARIANTS {
        match Net::new(variant, options) {
            Ok(net) => nets.push(net),
            Err(error) => missing.push(format!("{}: {error:#}", variant.name())),
        }
    }
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64;
    let mut random = Random::new(seed);
    let mut results = Vec::new();
    let chosen = |n: &usize| options.rows.is_empty() || options.rows.contains(&(n + 1));
    for row in (0..ROWS.len()).filter(chosen).filter_map(|n| ROWS.get(n)) {
        eprintln!("{}", row.name);
        match measure(row, &mut nets, options, &mut random) {
            Ok(samples) => results.push((row, samples)),
            Err(error) => missing.push(format!("{}: {error:#}", row.name)),
        }
    }
    let after = load_average();
    report(&results);
    println!(
        "\n{} rounds of {} ms{}, 1 of {} Services, 10 endpoints; load average {before:.1} before, {after:.1} after",
        options.rounds,
        options.slice,
        if options.realtime { ", real-time" } else { "" },
        options.services
    );
    let profiles = profiles(&results, &mut nets, options, &mut missing);
    write("l4", &document(&results, &profiles, options, &[before, after], seed, &missing))?;
    for reason in &missing {
        println!("MISSING: {reason}");
    }
    if let Some(least) = options.at_least {
        for (row, samples) in &results {
            for (variant, ratio) in ratios(row, samples) {
                if ratio.median < least {
                    missing.push(format!("{}: {} is at {:.2}", row.name, variant.name(), ratio.median));
                }
            }
        }
    }
    if missing.is_empty() { Ok(()) } else { bail!("{}", missing.join("; ")) }
}

impl Net {
    fn new(variant: Variant, options: &Options) -> Result<Self> {
        let rig = Rig::new(variant == Variant::WeirSocket, options.realtime)?;
        let cluster = Cluster { services: options.services, endpoints: 1, served: true };
        if options.masquerade {
            rig.node.nft(
                "table ip cni { chain postrouting {
                   type nat hook postrouting priority srcnat;
                   oifname eth0 ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
                 } }",
            )?;
        }
        let mut agent = None;
        match variant {
            Variant::Direct => {}
            Variant::Nftables => kube_proxy::install(&rig.node, &cluster)?,
            Variant::WeirSocket | Variant::WeirTc => {
                let dir = rig.scratch.dir().join("manifests");
                cluster::write(&dir, cluster, 1000)?;
                let mut started = Agent::start(&rig.node, &rig.scratch, &dir)?;
                started.wait_ready(&rig.node, Duration::from_secs(60))?;
                agent = Some(started);
            }
        }
        Ok(Self { variant, rig, _agent: agent })
    }

    /// Where a row's client finds its server.
    fn target(&self, row: &Row) -> SocketAddrV4 {
        let one_way = matches!(row.load, Load::Packets | Load::Bulk);
        let (service, server) = if one_way { (SINK, SINK_PORT) } else { (ANSWER, ANSWER_PORT) };
        match (self.variant, row.outside) {
            (Variant::Direct, _) => SocketAddrV4::new(servers()[0], server),
            (_, false) => SocketAddrV4::new(cluster::served().address, service),
            (_, true) => SocketAddrV4::new(NODE, ANSWER_NODE_PORT),
        }
    }

    fn slice(&mut self, row: &Row, length: Duration, samples: &mut Samples) -> Result<()> {
        let to = self.target(row);
        let before = self.rig.server.counts()?;
        let client = if row.outside { &mut self.rig.outside } else { &mut self.rig.client };
        let micros = u64::try_from(length.as_micros())?;
        let done = client.run(Slice { load: row.load, to, micros })?;
        let after = self.rig.server.counts()?;
        let seconds = done.micros as f64 / 1e6;
        samples.rates.push(match row.load {
            Load::Packets => (after.datagrams - before.datagrams) as f64 / seconds,
            Load::Bulk => (after.bytes - before.bytes) as f64 * 8.0 / 1e9 / seconds,
            Load::Short | Load::Ask | Load::AskUdp | Load::AskUdpUnconnected | Load::ShortUdp => {
                samples.p50.push(done.p50_micros);
                samples.p99.push(done.p99_micros);
                done.count as f64 / seconds
            }
        });
        samples.failed += done.failed;
        Ok(())
    }
}

type RowSamples = BTreeMap<Variant, Samples>;

fn measure(row: &Row, nets: &mut [Net], options: &Options, random: &mut Random) -> Result<RowSamples> {
    let mut samples = RowSamples::new();
    // The node's own socket path has no part in what comes from outside.
    let applies = |net: &Net| !(row.outside && net.variant == Variant::WeirSocket);
    for net in nets.iter_mut().filter(|net| applies(net)) {
        // Neighbours, caches and windows are warm before the clock starts.
        net.slice(row, Duration::from_millis(100), &mut Samples::default())
            .with_context(|| net.variant.name())?;
    }
    let mut order: Vec<usize> = (0..nets.len()).filter(|n| applies(&nets[*n])).collect();
    for _ in 0..options.rounds {
        random.shuffle(&mut order);
        for &n in &order {
            let net = &mut nets[n];
            let into = samples.entry(net.variant).or_default();
            net.slice(row, Duration::from_millis(options.slice), into).with_context(|| net.variant.name())?;
        }
    }
    Ok(samples)
}

/// For each variant, the ratios to nftables of its rounds.
fn ratios<'a>(_: &Row, samples: &'a RowSamples) -> impl Iterator<Item = (Variant, Spread)> + 'a {
    let base = samples.get(&Variant::Nftables);
    let others = samples.iter().filter(|(variant, _)| variant.is_weir());
    others.filter_map(move |(variant, own)| {
        let pairs = own.rates.iter().zip(&base?.rates);
        Some((*variant, Spread::of(&pairs.map(|(own, base)| own / base).collect::<Vec<_>>())))
    })
}

fn report(results: &[(&Row, RowSamples)]) {
    let mut table = vec![vec![String::new()]];
    let mut times = vec![vec!["p50 / p99, µs".to_owned()]];
    for variant in VARIANTS {
        table[0].push(variant.name().into());
        times[0].push(variant.name().into());
    }
    for variant in VARIANTS.iter().filter(|variant| variant.is_weir()) {
        table[0].push(format!("{} / nftables", variant.name()));
    }
    for (row, samples) in results {
        let mut line = vec![format!("{}, {}", row.name, row.unit)];
        let mut time = vec![row.name.to_owned()];
        for variant in VARIANTS {
            let own = samples.get(&variant);
            line.push(own.map_or("-".into(), |own| figure(Spread::of(&own.rates).median)));
            time.push(own.filter(|own| !own.p50.is_empty()).map_or("-".into(), |own| {
                format!("{:.0} / {:.0}", quantile(&own.p50, 0.5), quantile(&own.p99, 0.5))
            }));
        }
        let ratios: BTreeMap<Variant, Spread> = ratios(row, samples).collect();
        for variant in VARIANTS.iter().filter(|variant| variant.is_weir()) {
            line.push(ratios.get(variant).map_or("-".into(), |ratio| {
                format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.low, ratio.high)
            }));
        }
        table.push(line);
        if time.iter().skip(1).any(|cell| cell != "-") {
            times.push(time);
        }
        for (variant, own) in samples.iter().filter(|(_, own)| own.failed > 0) {
            println!("{}: {}: {} questions failed", row.name, variant.name(), own.failed);
        }
    }
    println!();
    print(&table);
    println!();
    print(&times);
}

/// Times Weir's programs in the rows where it is behind nftables; all rows when asked.
fn profiles(
    results: &[(&Row, RowSamples)],
    nets: &mut [Net],
    options: &Options,
    missing: &mut Vec<String>,
) -> Vec<Value> {
    let mut profiles = Vec::new();
    let mut table =
        vec![["row", "variant", "program", "runs per question", "ns each"].map(str::to_owned).to_vec()];
    for (row, samples) in results {
        for (variant, ratio) in ratios(row, samples) {
            if !options.profile && ratio.median >= 1.0 {
                continue;
            }
            let Some(net) = nets.iter_mut().find(|net| net.variant == variant) else { continue };
            let bpffs = net.rig.scratch.bpffs();
            let mut one = Samples::default();
            let length = Duration::from_millis(options.slice);
            let times = match profile::during(&bpffs, || net.slice(row, length, &mut one)) {
                Ok(times) => times,
                Err(error) => {
                    missing.push(format!("profile of {}: {error:#}", row.name));
                    continue;
                }
            };
            let count = one.rates.first().copied().unwrap_or(0.0) * length.as_secs_f64();
            for time in times {
                let each = if row.load == Load::Bulk {
                    "-".into()
                } else {
                    format!("{:.1}", time.runs as f64 / count)
                };
                table.push(vec![
                    row.name.into(),
                    variant.name().into(),
                    time.program.clone(),
                    each,
                    format!("{:.0}", time.nanos_each),
                ]);
                profiles.push(json!({
                    "row": row.name, "variant": variant.name(), "program": time.program,
                    "runs": time.runs, "nanos_each": time.nanos_each, "questions": count,
                }));
            }
        }
    }
    if table.len() > 1 {
        println!("\nWeir's programs, by the kernel's statistics:");
        print(&table);
    }
    profiles
}

fn document(
    results: &[(&Row, RowSamples)],
    profiles: &[Value],
    options: &Options,
    load: &[f64],
    seed: u64,
    missing: &[String],
) -> Value {
    let rows: Vec<Value> = results
        .iter()
        .map(|(row, samples)| {
            let ratios: BTreeMap<Variant, Spread> = ratios(row, samples).collect();
            let variants: serde_json::Map<String, Value> = samples
                .iter()
                .map(|(variant, own)| {
                    let value = json!({
                        "samples": own.rates, "spread": Spread::of(&own.rates).json(),
                        "p50_micros": quantile(&own.p50, 0.5), "p99_micros": quantile(&own.p99, 0.5),
                        "failed": own.failed,
                        "ratio_to_nftables": ratios.get(variant).map(|ratio| ratio.json()),
                    });
                    (variant.name().to_owned(), value)
                })
                .collect();
            json!({ "row": row.name, "unit": row.unit, "variants": variants })
        })
        .collect();
    json!({
        "machine": machine(), "load_average": load, "rounds": options.rounds, "slice_ms": options.slice,
        "services": options.services, "realtime": options.realtime, "masquerade": options.masquerade, "seed": seed,
        "rows": rows, "profile": profiles, "missing": missing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_formed_within_a_round() {
        let rates = |rates: &[f64]| Samples { rates: rates.to_vec(), ..Samples::default() };
        let samples = BTreeMap::from([
            (Variant::Nftables, rates(&[100.0, 10.0, 1.0])),
            (Variant::WeirTc, rates(&[110.0, 11.0, 1.1])),
        ]);
        let found: Vec<_> = ratios(&ROWS[0], &samples).collect();
        assert_eq!(found.len(), 1);
        assert!(
            found
                .iter()
                .all(|(_, spread)| (spread.low - 1.1).abs() < 1e-9 && (spread.high - 1.1).abs() < 1e-9)
        );
    }
}
