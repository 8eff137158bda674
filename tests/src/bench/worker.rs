//! Worker processes: a client or a server in its namespace and cgroup, on a CPU of its own,
//! told what to do by lines. Ends when its input is closed.

use super::load::{self, Done, Slice};
use super::server::{Counts, Server};
use crate::netns::{Netns, sys};
use crate::scratch::procs_file;
use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// First argument of a worker process; the second is its CPU.
const ARGUMENT: &str = "bench-worker";

#[derive(Serialize, Deserialize)]
enum Order {
    Serve(Vec<Ipv4Addr>),
    Counts,
    Run(Slice),
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Serving,
    Counts(Counts),
    Done(Done),
    Failed(String),
}

/// A running worker. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a worker on a CPU; `realtime` gives it the CPU before everything else that runs
    /// there, for machines that are not idle.
    pub(super) fn start(netns: &Netns, cgroup: &Path, cpu: usize, realtime: bool) -> Result<Self> {
        let own = std::env::current_exe()?;
        let mut command = if realtime {
            let mut command = Command::new("chrt");
            command.args(["--rr", "1"]).arg(own);
            command
        } else {
            Command::new(own)
        };
        command
            .args([ARGUMENT, &cpu.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        let procs = procs_file(cgroup)?;
        sys::start_in(&mut command, netns.file().as_raw_fd(), Some(procs.as_raw_fd()));
        let mut child = command.spawn().context("starting a worker")?;
        let stdin = child.stdin.take().context("worker without input")?;
        let stdout = child.stdout.take().context("worker without output")?;
        Ok(Self { child, stdin, stdout: BufReader::new(stdout) })
    }

    /// Starts a server that answers on these addresses.
    pub(super) fn serve(&mut self, addresses: &[Ipv4Addr]) -> Result<()> {
        match self.call(&Order::Serve(addresses.to_vec()))? {
            Reply::Serving => Ok(()),
            Reply::Counts(_) | Reply::Done(_) | Reply::Failed(_) => bail!("the server does not serve"),
        }
    }

    pub(super) fn counts(&mut self) -> Result<Counts> {
        match self.call(&Order::Counts)? {
            Reply::Counts(counts) => Ok(counts),
            Reply::Serving | Reply::Done(_) | Reply::Failed(_) => bail!("the server does not count"),
        }
    }

    pub(super) fn run(&mut self, slice: Slice) -> Result<Done> {
        match self.call(&Order::Run(slice))? {
            Reply::Done(done) => Ok(done),
            Reply::Serving | Reply::Counts(_) | Reply::Failed(_) => bail!("the client does not run"),
        }
    }

    fn call(&mut self, order: &Order) -> Result<Reply> {
        writeln!(self.stdin, "{}", serde_json::to_string(order)?).context("the worker is gone")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        match serde_json::from_str(&line).with_context(|| format!("the worker answered {line:?}"))? {
            Reply::Failed(reason) => bail!("{reason}"),
            reply @ (Reply::Serving | Reply::Counts(_) | Reply::Done(_)) => Ok(reply),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Turns this process into a worker when it was started as one. Call it first in `main`.
pub fn serve_if_asked() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ARGUMENT) {
        return;
    }
    let cpu = arguments.next().and_then(|cpu| cpu.parse().ok()).unwrap_or(0);
    let code = match work(cpu) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("bench worker: {error:#}");
            1
        }
    };
    std::process::exit(code);
}

fn work(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("CPU {cpu}"))?;
    let mut server = None;
    for line in std::io::stdin().lock().lines() {
        let reply = obey(serde_json::from_str(&line?)?, &mut server)
            .unwrap_or_else(|e| Reply::Failed(format!("{e:#}")));
        println!("{}", serde_json::to_string(&reply)?);
    }
    Ok(())
}

fn obey(order: Order, server: &mut Option<std::sync::Arc<Server>>) -> Result<Reply> {
    Ok(match order {
        Order::Serve(addresses) => {
            *server = Some(Server::start(&addresses)?);
            Reply::Serving
        }
        Order::Counts => Reply::Counts(server.as_ref().context("no server")?.counts()),
        Order::Run(slice) => Reply::Done(load::run(slice)?),
    })
}
