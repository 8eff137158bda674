//! The tables of `bench l7` and its JSON.

use super::super::figures::{Spread, figure, print, quantile};
use super::super::machine;
use super::proxies::{KINDS, Kind};
use super::{Found, Options, RowSamples};
use serde_json::{Value, json};

const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

/// The ratio to nginx of requests per second of CPU, formed in each round.
pub(super) fn ratio(samples: &RowSamples, kind: Kind) -> Option<Spread> {
    let (own, base) = (samples.get(&kind)?, samples.get(&Kind::Nginx)?);
    if own.failed.is_some() || base.failed.is_some() {
        return None;
    }
    let pairs = own.of_cpu.iter().zip(&base.of_cpu);
    Some(Spread::of(&pairs.map(|(own, base)| own / base).collect::<Vec<_>>()))
}

pub(super) fn print_all(found: &Found) {
    let mut table = vec![vec!["requests/s of proxy CPU (requests/s)".to_owned()]];
    table[0].extend(KINDS.map(|kind| kind.name().to_owned()));
    table[0].extend(["HAProxy / nginx".to_owned(), "Weir / nginx".to_owned()]);
    for (row, samples) in &found.rows {
        let mut line = vec![row.name().to_owned()];
        line.extend(KINDS.map(|kind| match samples.get(&kind) {
            None => "-".to_owned(),
            Some(samples) if samples.failed.is_some() => "failed".to_owned(),
            Some(samples) => {
                let half = |samples: &[f64]| figure(quantile(samples, 0.5));
                format!("{} ({})", half(&samples.of_cpu), half(&samples.rates))
            }
        }));
        line.extend([Kind::Haproxy, Kind::Weir].map(|kind| match ratio(samples, kind) {
            None => "-".to_owned(),
            Some(ratio) => format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.low, ratio.high),
        }));
        table.push(line);
    }
    println!();
    print(&table);
    if let Some((rate, latency)) = &found.latency {
        let mut table = vec![vec![format!("µs at {} requests/s", figure(*rate))]];
        table[0].extend(["p50", "p99", "p99.9"].map(str::to_owned));
        for (kind, times) in latency {
            let mut line = vec![kind.name().to_owned()];
            line.extend(QUANTILES.map(|q| format!("{:.0}", quantile(times, q))));
            table.push(line);
        }
        println!();
        print(&table);
    }
    if !found.memory.is_empty() {
        let head = ["memory (PSS)", "idle, MiB", "many hosts, MiB", "idle TLS connection, KiB"];
        let mut table = vec![head.map(str::to_owned).to_vec()];
        for memory in &found.memory {
            let whole = |(serving, all): (u64, u64)| {
                let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
                if serving == all { mib(all) } else { format!("{} (all of it {})", mib(serving), mib(all)) }
            };
            table.push(vec![
                memory.kind.name().to_owned(),
                whole(memory.idle),
                memory.many.map_or("-".into(), whole),
                format!("{:.1}", memory.connection),
            ]);
        }
        println!();
        print(&table);
    }
    for reason in &found.missing {
        println!("FAILED: {reason}");
    }
}

pub(super) fn document(found: &Found, options: &Options, load: [f64; 2]) -> Value {
    let rows: Vec<Value> = found
        .rows
        .iter()
        .map(|(row, samples)| {
            let proxies: Vec<Value> = samples
                .iter()
                .map(|(kind, own)| {
                    json!({
                        "proxy": kind.name(), "failed": own.failed,
                        "of_cpu": Spread::of(&own.of_cpu).json(), "rate": Spread::of(&own.rates).json(),
                        "to_nginx": ratio(samples, *kind).map(Spread::json),
                    })
                })
                .collect();
            json!({ "row": row.name(), "proxies": proxies })
        })
        .collect();
    let latency = found.latency.as_ref().map(|(rate, latency)| {
        let each: Vec<Value> = latency
            .iter()
            .map(|(kind, times)| {
                json!({ "proxy": kind.name(), "answers": times.len(),
                    "us": QUANTILES.map(|q| quantile(times, q)) })
            })
            .collect();
        json!({ "rate": rate, "proxies": each })
    });
    let memory: Vec<Value> = found.memory.iter().map(super::memory::Memory::json).collect();
    json!({
        "machine": machine(), "load_average": load, "rounds": options.rounds, "seconds": options.seconds,
        "hosts": options.hosts, "connections": options.connections, "rows": rows, "latency": latency,
        "memory": memory, "missing": found.missing,
    })
}
