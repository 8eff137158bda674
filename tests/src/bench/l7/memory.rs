//! Memory: idle, with many hosts, and what an idle TLS connection adds.

use super::Bench;
use super::link::{Link, Read1};
use super::proxies::{Kind, Proxy};
use super::speak::One;
use crate::wait;
use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use std::time::Duration;

/// How long connections are left alone before memory is read.
const REST: Duration = Duration::from_secs(4);

/// What one proxy takes, in KiB; of Weir, what serves and the whole program.
pub(super) struct Memory {
    pub(super) kind: Kind,
    pub(super) idle: (u64, u64),
    pub(super) many: Option<(u64, u64)>,
    pub(super) connection: f64,
}

impl Memory {
    pub(super) fn json(&self) -> Value {
        json!({
            "proxy": self.kind.name(), "idle_kib": self.idle, "hosts_kib": self.many,
            "tls_connection_kib": self.connection,
        })
    }
}

/// Reads memory of proxies that were just started.
pub(super) fn measure(
    bench: &Bench,
    few: &Proxy,
    many: Option<&Proxy>,
    connections: usize,
) -> Result<Memory> {
    let idle = few.pss()?;
    // The first connections make what all of them share.
    drop(hold(bench, few, connections.min(50))?);
    std::thread::sleep(Duration::from_millis(500));
    let before = few.pss()?.0;
    let held = hold(bench, few, connections)?;
    std::thread::sleep(REST);
    let after = few.pss()?.0;
    ensure!(held.len() == connections, "connections were lost");
    let connection = after.saturating_sub(before) as f64 / connections as f64;
    let many = many.map(Proxy::pss).transpose()?;
    Ok(Memory { kind: few.kind, idle, many, connection })
}

/// Opens connections, each with a request that is answered.
fn hold(bench: &Bench, proxy: &Proxy, count: usize) -> Result<Vec<Link>> {
    let load = bench.secure(proxy);
    let request = bench.request(super::config::SECURE);
    bench.netns.enter(|| {
        let mut links = Vec::with_capacity(count);
        let mut buffer = vec![0; 64 * 1024];
        for _ in 0..count {
            let tls = load.tls.as_ref().map(|(config, name)| (config, name));
            let mut link = Link::open(load.to, tls)?;
            link.send(&request)?;
            let mut one = One::default();
            wait::until("an answer", Duration::from_secs(5), || {
                loop {
                    link.flush()?;
                    match link.receive(&mut buffer)? {
                        Read1::Bytes(count) if one.take(&buffer[..count], load.wanted)? => return Ok(()),
                        Read1::Bytes(_) => {}
                        Read1::Later => bail!("nothing yet"),
                        Read1::End => bail!("closed"),
                    }
                }
            })?;
            links.push(link);
        }
        anyhow::Ok(links)
    })?
}
