//! The proxies as processes: each on the same CPU, with what they cost told by the kernel.

use super::config::{self, Identity, Routes};
use crate::netns::{Netns, sys};
use crate::scratch::{Scratch, procs_file};
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub(super) enum Kind {
    Nginx,
    Haproxy,
    Weir,
}

pub(super) const KINDS: [Kind; 3] = [Kind::Nginx, Kind::Haproxy, Kind::Weir];

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Weir => "Weir",
        }
    }
}

/// Where a proxy listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) http: u16,
    pub(super) https: u16,
}

/// A running proxy. Dropping it ends it.
pub(super) struct Proxy {
    pub(super) kind: Kind,
    pub(super) ports: Ports,
    child: Child,
    log: PathBuf,
}

impl Proxy {
    /// Starts a proxy and waits until it answers for the last of its hosts.
    pub(super) fn start(
        kind: Kind,
        netns: &Netns,
        scratch: &Scratch,
        routes: (SocketAddr, usize, &Identity),
        cpu: usize,
    ) -> Result<Self> {
        let (origin, hosts, identity) = routes;
        // A block of ports for each, so that all can run at once.
        let first = 18_000 + if hosts == 0 { 0 } else { 100 } + kind as u16;
        let ports = Ports { http: first, https: first + 10 };
        let name = format!("{}-{hosts}", kind.name());
        let routes = Routes { origin, hosts, identity };
        let mut command = config::command(kind, &scratch.dir().join(&name), ports, &routes)?;
        let log = scratch.logs().join(format!("{name}.log"));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // What a killed benchmark leaves is ended with the scratch, by the next one.
        let procs = procs_file(&scratch.cgroup(&name)?)?;
        sys::start_in(&mut command, netns.file().as_raw_fd(), Some(procs.as_raw_fd()));
        // What a thread is pinned to, its children are.
        let child = std::thread::scope(|scope| {
            let starting = scope.spawn(|| {
                super::pin(cpu)?;
                command.spawn().with_context(|| format!("starting {}", kind.name()))
            });
            starting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let mut proxy = Self { kind, ports, child, log };
        let name = if hosts == 0 { config::PLAIN.to_owned() } else { config::host(hosts - 1) };
        let ready = wait::until("the proxy answers", Duration::from_secs(90), || {
            if let Some(status) = proxy.child.try_wait()? {
                return Ok(Err(status));
            }
            let status = netns.enter(|| ask(proxy.http(), &name))??;
            ensure!(status == 200, "it answers {status}");
            Ok(Ok(()))
        });
        match ready {
            Ok(Ok(())) => Ok(proxy),
            Ok(Err(status)) => bail!("{} ended with {status}; its log:\n{}", kind.name(), proxy.log()),
            Err(error) => bail!("{}: {error:#}; its log:\n{}", kind.name(), proxy.log()),
        }
    }

    pub(super) fn http(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.http).into()
    }

    pub(super) fn https(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.https).into()
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// The processes that serve requests: of Weir the proxy alone.
    pub(super) fn serving(&self) -> Result<Vec<u32>> {
        let all = self.all()?;
        if self.kind != Kind::Weir {
            return Ok(all);
        }
        let is_proxy = |pid: &u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| word == b"--role=proxy")
        };
        let found: Vec<u32> = all.into_iter().filter(is_proxy).collect();
        ensure!(!found.is_empty(), "Weir runs without a proxy");
        Ok(found)
    }

    /// All processes of the proxy: the one that was started and what it started.
    pub(super) fn all(&self) -> Result<Vec<u32>> {
        let mut found = vec![self.child.id()];
        let mut at = 0;
        while let Some(pid) = found.get(at) {
            for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
            at += 1;
        }
        Ok(found)
    }

    /// CPU time that serving has cost so far, user and system, of all threads.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let mut nanos = 0;
        for pid in self.serving()? {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                // What stat gives as utime and stime, in nanoseconds: the first number.
                let text = fs::read_to_string(task?.path().join("schedstat"))?;
                let ran = text.split(' ').next().and_then(|word| word.parse::<u64>().ok());
                nanos += ran.context("schedstat")?;
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Memory in KiB, shared pages by share: of what serves, and of all its processes.
    pub(super) fn pss(&self) -> Result<(u64, u64)> {
        let of = |pids: Vec<u32>| pids.into_iter().map(pss).sum::<Result<u64>>();
        Ok((of(self.serving()?)?, of(self.all()?)?))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = sys::kill(self.child.id(), libc::SIGTERM);
        let child = &mut self.child;
        let ended = wait::until("the end", Duration::from_secs(5), || child.try_wait()?.context("running"));
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn pss(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The status of an answer to a request of its own.
fn ask(to: SocketAddr, host: &str) -> Result<u16> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.with_context(|| format!("no status: {answer:?}"))
}
