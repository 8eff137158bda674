//! TLS as the proxy speaks it: full handshakes and resumed ones per second of one core, the
//! lookup of a server name among 10,000, and memory for each certificate and each idle
//! connection.
//!
//! Client and server run in one thread over loopback; only the time of the server's side is
//! counted, so that the client's work is in no figure.

use super::figures::{Spread, print, quantile};
use super::{load_average, machine, write};
use crate::web::tls::any;
use anyhow::{Context, Result, bail, ensure};
use rcgen::{CertificateParams, KeyPair};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::ServerName;
use serde_json::json;
use std::fs;
use std::future::Future;
use std::io::Write;
use std::pin::{Pin, pin};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use weir::model::routes::{Certificate, HostPattern, Update};
use weir::problem::ObjectKey;
use weir::proxy::tls::{self, Acceptor, Certificates};

/// What `bench tls` is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Slices of each row.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Length of a slice in milliseconds.
    #[arg(long, default_value_t = 200)]
    slice: u64,
    /// Certificates for the lookup and for memory.
    #[arg(long, default_value_t = 10_000)]
    certificates: usize,
    /// Idle connections for memory.
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
}

const HOST: &str = "a.example.com";

/// Runs and prints; writes `tls.json`.
///
/// # Errors
///
/// When openssl is not there to make an RSA key, or memory cannot be read.
pub fn run(options: &Options) -> Result<()> {
    println!("load average {:.1}", load_average());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ecdsa = KeyPair::generate()?;
    let rsa = rsa()?;
    let versions = [("1.3", &rustls::version::TLS13), ("1.2", &rustls::version::TLS12)];
    let mut rows = vec![vec!["handshakes/s of one core".to_owned(), "full".into(), "resumed".into()]];
    let mut found = Vec::new();
    for (kind, key) in [("ECDSA P-256", &ecdsa), ("RSA 2048", &rsa)] {
        for (version, of) in versions {
            let mut figures = Vec::new();
            for resumed in [false, true] {
                let client = client(of, resumed)?;
                let acceptor = acceptor(key)?;
                let mut samples = Vec::new();
                for _ in 0..options.rounds {
                    let slice = Duration::from_millis(options.slice);
                    samples.push(runtime.block_on(handshakes(&acceptor, &client, resumed, slice))?);
                }
                figures.push(Spread::of(&samples));
            }
            rows.push(vec![
                format!("{kind}, TLS {version}"),
                format!("{:.0}", figures[0].median),
                format!("{:.0}", figures[1].median),
            ]);
            found.push(json!({
                "key": kind, "tls": version, "full": figures[0].json(), "resumed": figures[1].json(),
            }));
        }
    }
    print(&rows);

    let before = resident()?;
    let connections = runtime.block_on(idle(&acceptor(&ecdsa)?, options.connections))?;
    let each = (resident()?.saturating_sub(before)) as f64 / options.connections as f64;
    drop(connections);
    println!("memory of an idle connection: {:.1} KiB", each / 1024.0);

    let (lookups, memory) = lookups(options.certificates, &ecdsa, &runtime)?;
    let [half, most] = [0.5, 0.99].map(|q| quantile(&lookups, q));
    println!("lookup among {}: median {half:.2} µs, p99 {most:.2} µs", options.certificates);
    println!(
        "memory of a certificate: {:.1} KiB told, {:.1} KiB used",
        memory[0] / 1024.0,
        memory[1] / 1024.0
    );
    write(
        "tls",
        &json!({
            "machine": machine(), "handshakes": found, "connection_bytes": each,
            "lookup_us": { "median": half, "p99": most }, "certificate_bytes": memory,
        }),
    )
}

/// An RSA key, by openssl: rcgen makes none with every cryptography.
fn rsa() -> Result<KeyPair> {
    let out = Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .stdin(Stdio::null())
        .output()
        .context("openssl is not installed")?;
    ensure!(out.status.success(), "openssl genpkey: {}", String::from_utf8_lossy(&out.stderr));
    Ok(KeyPair::from_pem(&String::from_utf8(out.stdout)?)?)
}

fn certificate(name: &str, key: &KeyPair) -> Result<Arc<Certificate>> {
    let leaf = CertificateParams::new(vec![name.to_owned()])?.self_signed(key)?;
    Ok(Arc::new(Certificate {
        chain: vec![leaf.der().to_vec()],
        key: key.serialize_der().into(),
        names: vec![name.to_owned()],
        not_before: 0,
        not_after: i64::MAX,
    }))
}

fn steps(name: &str, certificate: Arc<Certificate>) -> [Update; 2] {
    let secret = ObjectKey::new("default", name);
    [
        Update::Certificate(secret.clone(), Some(certificate)),
        Update::Name(HostPattern::Exact(name.into()), Some(secret)),
    ]
}

fn acceptor(key: &KeyPair) -> Result<Acceptor> {
    let certificates = Certificates::new()?;
    certificates.update(&steps(HOST, certificate(HOST, key)?), true);
    Ok(Acceptor::new(certificates, tls::Options::default()))
}

fn client(version: &'static SupportedProtocolVersion, resumed: bool) -> Result<TlsConnector> {
    let mut config = any(&[version])?;
    if !resumed {
        config.resumption = rustls::client::Resumption::disabled();
    }
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Counts the time in which a future is polled.
struct Timed<F> {
    future: F,
    took: Duration,
}

impl<F: Future + Unpin> Future for Timed<F> {
    type Output = (F::Output, Duration);

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let begin = Instant::now();
        let done = Pin::new(&mut self.future).poll(task);
        self.took += begin.elapsed();
        let took = self.took;
        done.map(|done| (done, took))
    }
}

/// Handshakes per second of the server's time.
async fn handshakes(
    acceptor: &Acceptor,
    client: &TlsConnector,
    resumed: bool,
    slice: Duration,
) -> Result<f64> {
    let name = ServerName::try_from(HOST)?;
    let (mut took, mut count) = (Duration::ZERO, 0_u32);
    let end = Instant::now() + slice;
    let mut first = true;
    while Instant::now() < end {
        let (near, far): (DuplexStream, DuplexStream) = duplex(64 << 10);
        let server = Timed { future: pin!(acceptor.accept(far)), took: Duration::ZERO };
        let (accepted, connected) = tokio::join!(server, client.connect(name.clone(), near));
        let ((accepted, time), mut connected) = (accepted, connected?);
        let (mut stream, facts) = accepted?;
        if facts.resumed != resumed && !first {
            bail!("resumed: {}, wanted: {resumed}", facts.resumed);
        }
        // Tickets come with the first bytes.
        stream.write_all(b"x").await?;
        connected.read_exact(&mut [0]).await?;
        if !(first && resumed) {
            took += time;
            count += 1;
        }
        first = false;
    }
    Ok(f64::from(count) / took.as_secs_f64())
}

/// Connections that did their handshake, a request and an answer, and are silent.
async fn idle(acceptor: &Acceptor, count: usize) -> Result<Vec<(tls::TlsStream<TcpStream>, TcpStream)>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let client = client(&rustls::version::TLS13, false)?;
    let name = ServerName::try_from(HOST)?;
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (near, (far, _peer)) = (near?, far?);
        let (connected, accepted) = tokio::join!(client.connect(name.clone(), near), acceptor.accept(far));
        let (mut connected, (mut accepted, _facts)) = (connected?, accepted?);
        connected.write_all(&[b'q'; 500]).await?;
        accepted.read_exact(&mut [0; 500]).await?;
        let answer = async {
            accepted.write_all(&[b'a'; 20_000]).await?;
            accepted.flush().await
        };
        let mut text = [0; 20_000];
        let (answered, read) = tokio::join!(answer, connected.read_exact(&mut text));
        answered?;
        read?;
        // As a server that waits for the next request.
        let waiting = tokio::time::timeout(Duration::ZERO, accepted.read(&mut text)).await;
        ensure!(waiting.is_err(), "nothing more was sent");
        // The client's memory is not the proxy's.
        open.push((accepted, connected.into_inner().0));
    }
    Ok(open)
}

/// Times of lookups in microseconds; bytes of a certificate as told, and once it was used.
fn lookups(count: usize, key: &KeyPair, runtime: &tokio::runtime::Runtime) -> Result<(Vec<f64>, [f64; 2])> {
    let certificates = Certificates::new()?;
    let names: Vec<String> = (0..count).map(|n| format!("host-{n}.example.com")).collect();
    let before = resident()?;
    for some in names.chunks(1_000) {
        let mut updates = Vec::new();
        for name in some {
            updates.extend(steps(name, certificate(name, key)?));
        }
        certificates.update(&updates, false);
    }
    let told = resident()?.saturating_sub(before) as f64 / count as f64;
    let times = (0..100_000)
        .map(|n| {
            let name = &names[n * 7919 % count];
            let begin = Instant::now();
            let secret = certificates.secret_of(name);
            let took = begin.elapsed().as_secs_f64() * 1e6;
            if secret.is_some_and(|secret| secret.name == *name) {
                Ok(took)
            } else {
                bail!("{name} not found")
            }
        })
        .collect::<Result<_>>()?;
    let acceptor = Acceptor::new(certificates, tls::Options::default());
    let client = client(&rustls::version::TLS13, false)?;
    runtime.block_on(async {
        for name in &names {
            let (near, far) = duplex(64 << 10);
            let name = ServerName::try_from(name.clone())?;
            let (connected, accepted) = tokio::join!(client.connect(name, near), acceptor.accept(far));
            connected?;
            accepted?;
        }
        anyhow::Ok(())
    })?;
    let used = resident()?.saturating_sub(before) as f64 / count as f64;
    std::io::stdout().flush()?;
    Ok((times, [told, used]))
}

/// Bytes of this process that are in memory.
fn resident() -> Result<usize> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages: usize = text.split(' ').nth(1).context("statm")?.parse()?;
    Ok(pages * 4096)
}
