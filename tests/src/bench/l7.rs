//! The proxy: requests per second of its CPU beside nginx and HAProxy, latency at a steady rate,
//! and memory.
//!
//! ```text
//!   CPU 1: load ──> CPU 0: nginx | HAProxy | Weir ──> CPU 1: origin      (one namespace, loopback)
//! ```
//!
//! All proxies are up at the same time and one is under load at a time. In every round each runs
//! for one slice, in random order, and is compared with nginx's slice of the same round. The
//! main figure divides by the proxy's CPU time, so that it says what a request costs even where
//! the load cannot fill the proxy's CPU.

mod config;
mod link;
mod load;
mod memory;
mod origin;
mod proxies;
mod report;
mod speak;

use super::figures::{Random, quantile};
use super::{load_average, write};
use crate::netns::Netns;
use crate::scratch::Scratch;
use anyhow::{Context, Result, bail, ensure};
use config::Identity;
use load::{Asks, Load};
use memory::Memory;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use proxies::{KINDS, Kind, Proxy};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use speak::Wanted;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What `bench l7` is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Slices of each proxy and row.
    #[arg(long, default_value_t = 12)]
    rounds: u32,
    /// Length of a slice.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Rows to measure, by number from 1; all without it.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<usize>,
    /// Proxies to measure; ratios need nginx.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = KINDS)]
    proxies: Vec<Kind>,
    /// Hosts of the row with many.
    #[arg(long, default_value_t = 10_000)]
    hosts: usize,
    /// Idle TLS connections for memory.
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// Rows only: no latency, no memory.
    #[arg(long)]
    rows_only: bool,
    /// Exit code 1 when Weir's median ratio to nginx is below this in any row.
    #[arg(long, value_name = "RATIO")]
    at_least: Option<f64>,
}

/// Where the proxies run, and where load and origin do.
const PROXY_CPU: usize = 0;
const LOAD_CPU: usize = 1;
/// Bytes of a usual answer's body.
const BODY: usize = 1024;
/// Load that comes before what is measured of a slice.
const WARM: Duration = Duration::from_millis(200);
/// Connections at a steady rate: more than are ever busy at once.
const STEADY_CONNECTIONS: usize = 100;

/// One line of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Row {
    KeepAlive,
    Tls,
    Http2,
    Handshakes,
    Large,
    Hosts,
    Post,
}

const ROWS: [Row; 7] =
    [Row::KeepAlive, Row::Tls, Row::Http2, Row::Handshakes, Row::Large, Row::Hosts, Row::Post];

impl Row {
    fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "HTTP/1.1 keep-alive, 1 KiB",
            Self::Tls => "TLS 1.3 keep-alive, 1 KiB",
            Self::Http2 => "HTTP/2 (TLS 1.3) to HTTP/1.1, 1 KiB",
            Self::Handshakes => "new TLS 1.3 connection each, 1 KiB",
            Self::Large => "1 MiB bodies",
            Self::Hosts => "many hosts, 1 KiB",
            Self::Post => "POST 16 KiB",
        }
    }
}

/// What all slices share.
struct Bench {
    netns: Netns,
    scratch: Scratch,
    tls: Arc<ClientConfig>,
    tls2: Arc<ClientConfig>,
    hosts: usize,
}

/// The slices of one row and proxy.
#[derive(Default)]
struct Samples {
    /// Requests per second of the proxy's CPU.
    of_cpu: Vec<f64>,
    /// Requests per second.
    rates: Vec<f64>,
    failed: Option<String>,
}

type RowSamples = BTreeMap<Kind, Samples>;

/// Times of answers at a steady rate, in microseconds.
type Latency = BTreeMap<Kind, Vec<f64>>;

/// What was found.
struct Found {
    rows: Vec<(Row, RowSamples)>,
    latency: Option<(f64, Latency)>,
    memory: Vec<Memory>,
    missing: Vec<String>,
}

/// Runs all rows; prints tables and writes `l7.json`.
///
/// # Errors
/// When a proxy cannot be started, when any answer was not the one that was asked for, or when a
/// ratio is below what was asked for, after all rows have been measured.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0 && options.hosts > 0, "nothing to measure");
    let before = load_average();
    let bench = Bench::new(options)?;
    let origin = bench.netns.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
    let address = origin.local_addr()?;
    origin::serve(origin, LOAD_CPU)?;
    let identity = Identity::new()?;
    let rows: Vec<Row> = (1..=ROWS.len())
        .filter(|n| options.rows.is_empty() || options.rows.contains(n))
        .map(|n| ROWS[n - 1])
        .collect();
    let start = |hosts: usize| -> Result<Vec<Proxy>> {
        let kinds = options.proxies.iter();
        kinds.map(|kind| bench.proxy(*kind, (address, hosts, &identity))).collect()
    };
    let few = start(0)?;
    let many =
        if rows.contains(&Row::Hosts) || !options.rows_only { start(options.hosts)? } else { Vec::new() };
    let mut found = Found { rows: Vec::new(), latency: None, memory: Vec::new(), missing: Vec::new() };
    if !options.rows_only {
        // First, before anything has grown with load.
        for (few, many) in few.iter().zip(&many) {
            match memory::measure(&bench, few, Some(many), options.connections) {
                Ok(memory) => found.memory.push(memory),
                Err(error) => found.missing.push(format!("memory of {}: {error:#}", few.kind.name())),
            }
        }
    }
    let mut random = Random::new(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64);
    for row in rows {
        eprintln!("{}", row.name());
        let proxies = if row == Row::Hosts { &many } else { &few };
        let samples = bench.measure(row, proxies, options, &mut random)?;
        for (kind, samples) in &samples {
            if let Some(reason) = &samples.failed {
                found.missing.push(format!("{}: {}: {reason}", row.name(), kind.name()));
            }
        }
        found.rows.push((row, samples));
    }
    if !options.rows_only {
        eprintln!("latency");
        found.latency = Some(bench.latency(&few, &found, options, &mut random)?);
    }
    drop((few, many));
    let after = load_average();
    report::print_all(&found);
    println!(
        "\n{} rounds of {} s; proxies on CPU {PROXY_CPU}, load and origin on CPU {LOAD_CPU}; load average \
         {before:.1} before, {after:.1} after",
        options.rounds, options.seconds
    );
    write("l7", &report::document(&found, options, [before, after]))?;
    let mut wrong = found.missing.clone();
    if let Some(least) = options.at_least {
        for (row, samples) in &found.rows {
            match report::ratio(samples, Kind::Weir) {
                Some(ratio) if ratio.median >= least => {}
                Some(ratio) => wrong.push(format!("{}: Weir is at {:.2} of nginx", row.name(), ratio.median)),
                None => wrong.push(format!("{}: no ratio", row.name())),
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("; ")) }
}

/// Pins the calling thread, and what it starts, to a CPU.
fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("CPU {cpu}"))
}

impl Bench {
    fn new(options: &Options) -> Result<Self> {
        // The proxies inherit it.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        ensure!(most >= options.connections as u64 + 1_000, "only {most} open files are allowed");
        let scratch = Scratch::new()?;
        let netns = Netns::new(format!("{}-l7", scratch.id()))?;
        // Thousands of connections a second come back to the same ports soon.
        netns.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        netns.sysctl("net/ipv4/ip_local_port_range", "20000 65000")?;
        netns.sysctl("net/core/somaxconn", "4096")?;
        let client = |alpn: &[u8]| client_config(alpn).map(Arc::new);
        Ok(Self { netns, scratch, tls: client(b"http/1.1")?, tls2: client(b"h2")?, hosts: options.hosts })
    }

    fn proxy(&self, kind: Kind, routes: (SocketAddr, usize, &Identity)) -> Result<Proxy> {
        eprintln!("starting {}, {} hosts", kind.name(), routes.1.max(2));
        Proxy::start(kind, &self.netns, &self.scratch, routes, PROXY_CPU)
    }

    /// A request for a small answer.
    fn request(&self, host: &str) -> Box<[u8]> {
        get(host, "/", "")
    }

    /// Keep-alive over TLS.
    fn secure(&self, proxy: &Proxy) -> Load {
        Load {
            to: proxy.https(),
            tls: Some((Arc::clone(&self.tls), server_name())),
            connections: 32,
            wanted: Wanted { body: BODY },
            asks: Asks::KeepAlive(vec![self.request(config::SECURE)]),
        }
    }

    fn load(&self, row: Row, proxy: &Proxy) -> Load {
        let plain = |requests: Vec<Box<[u8]>>, connections: usize| Load {
            to: proxy.http(),
            tls: None,
            connections,
            wanted: Wanted { body: BODY },
            asks: Asks::KeepAlive(requests),
        };
        match row {
            Row::KeepAlive => plain(vec![self.request(config::PLAIN)], 64),
            Row::Tls => self.secure(proxy),
            Row::Http2 => Load {
                tls: Some((Arc::clone(&self.tls2), server_name())),
                connections: 8,
                asks: Asks::Streams(16, config::SECURE.into()),
                ..self.secure(proxy)
            },
            Row::Handshakes => Load {
                asks: Asks::Once(get(config::SECURE, "/", "Connection: close\r\n")),
                ..self.secure(proxy)
            },
            Row::Large => Load {
                wanted: Wanted { body: origin::LARGE },
                ..plain(vec![get(config::PLAIN, origin::LARGE_TARGET, "")], 8)
            },
            // One after the other, in an order that no cache likes.
            Row::Hosts => plain(
                (0..self.hosts).map(|n| self.request(&config::host(n * 7919 % self.hosts))).collect(),
                64,
            ),
            Row::Post => plain(vec![post(config::PLAIN)], 32),
        }
    }

    fn measure(
        &self,
        row: Row,
        proxies: &[Proxy],
        options: &Options,
        random: &mut Random,
    ) -> Result<RowSamples> {
        let mut samples = RowSamples::new();
        let mut order: Vec<usize> = (0..proxies.len()).collect();
        for _ in 0..options.rounds {
            random.shuffle(&mut order);
            for proxy in order.iter().filter_map(|n| proxies.get(*n)) {
                let into = samples.entry(proxy.kind).or_default();
                // A row that has failed once is not measured on: its figures would say nothing.
                if into.failed.is_some() {
                    continue;
                }
                let load = self.load(row, proxy);
                let length = Duration::from_secs_f64(options.seconds);
                let done = self.netns.enter(|| {
                    pin(LOAD_CPU)?;
                    load::closed(&load, proxy, WARM, length)
                })?;
                match done {
                    Ok(done) => {
                        into.rates.push(done.answers as f64 / done.took.as_secs_f64());
                        into.of_cpu.push(done.answers as f64 / done.cpu.as_secs_f64());
                    }
                    Err(error) => into.failed = Some(format!("{error:#}")),
                }
            }
        }
        Ok(samples)
    }

    /// Times at half of the rate that nginx reaches with the same load.
    fn latency(
        &self,
        proxies: &[Proxy],
        found: &Found,
        options: &Options,
        random: &mut Random,
    ) -> Result<(f64, Latency)> {
        let known = found.rows.iter().find(|(row, _)| *row == Row::KeepAlive);
        let known = known.and_then(|(_, samples)| samples.get(&Kind::Nginx));
        let most = match known.filter(|samples| samples.failed.is_none()) {
            Some(samples) => quantile(&samples.rates, 0.5),
            None => bail!("the rate of the latency is half of nginx's in row 1, which was not measured"),
        };
        let rate = most / 2.0;
        let mut times = Latency::new();
        let mut order: Vec<usize> = (0..proxies.len()).collect();
        for _ in 0..options.rounds.min(8) {
            random.shuffle(&mut order);
            for proxy in order.iter().filter_map(|n| proxies.get(*n)) {
                let load = Load { connections: STEADY_CONNECTIONS, ..self.load(Row::KeepAlive, proxy) };
                let length = Duration::from_secs_f64(options.seconds);
                let slice = self.netns.enter(|| {
                    pin(LOAD_CPU)?;
                    load::open(&load, rate, length)
                })?;
                let slice = slice.with_context(|| format!("latency of {}", proxy.kind.name()))?;
                times.entry(proxy.kind).or_default().extend(slice);
            }
        }
        Ok((rate, times))
    }
}

fn get(host: &str, target: &str, more: &str) -> Box<[u8]> {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench\r\nAccept: */*\r\n{more}\r\n")
        .into_bytes()
        .into()
}

fn post(host: &str) -> Box<[u8]> {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench\r\nAccept: */*\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        origin::UPLOAD
    );
    [head.into_bytes(), vec![b'x'; origin::UPLOAD]].concat().into()
}

fn server_name() -> ServerName<'static> {
    ServerName::try_from(config::SECURE).unwrap_or_else(|_| Ipv4Addr::LOCALHOST.into())
}

/// TLS 1.3 with X25519 and full handshakes, so that all proxies do the same work.
fn client_config(alpn: &[u8]) -> Result<ClientConfig> {
    let mut provider = weir::proxy::tls::provider();
    provider.kx_groups.retain(|group| group.name() == rustls::NamedGroup::X25519);
    let mut config = crate::web::tls::any_with(provider, &[&rustls::version::TLS13])?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}
