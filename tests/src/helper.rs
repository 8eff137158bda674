//! Helper processes: real processes in a namespace and a cgroup, told what to do by lines.
//!
//! Socket hooks see a process's cgroup, so clients must be processes of their own. The
//! executable that holds the lab starts itself again with [`ARGUMENT`]; [`serve_if_asked`]
//! at the top of its `main` turns that copy into a helper. A helper ends when its parent
//! closes its input, also by dying.

use crate::clients::ask;
use crate::differential::{self, Fates, Probe};
use crate::flows::{self, Activity};
use crate::manifests::PodSpec;
use crate::names;
use crate::netns::{Netns, sys};
use crate::scratch::procs_file;
use crate::servers;
use crate::web::{self, Fetch, Fetched, Sign, Traffic, TrafficReport};
use crate::wire::{Answer, Ask, Flows, FlowsReport, Load, LoadReport, Proto, Reply, Request};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// First argument of a helper process.
const ARGUMENT: &str = "lab-helper";
/// First argument of a pod's server in a cluster ([`run_pod`]).
pub(crate) const POD: &str = "lab-pod";

/// A running helper.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    pipe: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Helper {
    /// Starts `executable` as a helper in a namespace and a cgroup (none: the caller's).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(executable: &Path, netns: &Netns, cgroup: Option<&Path>) -> Result<Self> {
        Self::start_in(executable, netns.file(), cgroup)
    }

    /// The same in a namespace that is somebody else's, by its file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start_in(executable: &Path, netns: &File, cgroup: Option<&Path>) -> Result<Self> {
        let procs = cgroup.map(procs_file).transpose()?;
        let mut command = Command::new(executable);
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        sys::start_in(&mut command, netns.as_raw_fd(), procs.as_ref().map(AsRawFd::as_raw_fd));
        let mut child = command.spawn().with_context(|| format!("starting {}", executable.display()))?;
        let stdin = child.stdin.take().context("helper without input")?;
        let stdout = child.stdout.take().context("helper without output")?;
        Ok(Self { child, pipe: Mutex::new((stdin, BufReader::new(stdout))) })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it before its time: what is asked of it afterwards fails.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn end(&self) -> Result<()> {
        Ok(sys::kill(self.pid(), libc::SIGKILL)?)
    }

    fn call(&self, request: &Request) -> Result<Reply> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        let line = serde_json::to_string(request)?;
        writeln!(pipe.0, "{line}").context("the helper process is gone")?;
        let mut answer = String::new();
        pipe.1.read_line(&mut answer)?;
        match serde_json::from_str(&answer)
            .with_context(|| format!("helper answered {answer:?} to {line}"))?
        {
            Reply::Failed(reason) => bail!("{reason}"),
            reply @ (Reply::Done
            | Reply::Answers(_)
            | Reply::Addresses(_)
            | Reply::Started(_)
            | Reply::Flows(_)
            | Reply::Load(_)
            | Reply::Probed(_)
            | Reply::Fetched(_)
            | Reply::Traffic(_)) => Ok(reply),
        }
    }

    /// Starts a pod's servers.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn serve(&self, pod: &PodSpec) -> Result<()> {
        let PodSpec { name, about, tcp, udp, .. } = pod.clone();
        self.call(&Request::Serve { name, about, tcp, udp }).map(drop)
    }

    /// Starts a name server that knows these names and no others.
    ///
    /// # Errors
    /// When its port is taken.
    pub fn serve_names(&self, names: BTreeMap<String, Vec<IpAddr>>) -> Result<()> {
        self.call(&Request::ServeNames(names)).map(drop)
    }

    /// Puts one question.
    ///
    /// # Errors
    /// When the helper is gone; what became of the question is in the answer.
    pub fn ask(&self, ask: Ask) -> Result<Answer> {
        answers(self.call(&Request::Ask(ask))?)?.pop().context("no answer")
    }

    /// The IPv4 addresses of a name, as this name server knows them.
    ///
    /// # Errors
    /// When it does not answer, or knows no such name.
    pub fn resolve(&self, server: SocketAddr, name: &str) -> Result<Vec<IpAddr>> {
        let reply = self.call(&Request::Resolve(server, name.into()))?;
        if let Reply::Addresses(found) = reply { Ok(found) } else { bail!("not addresses: {reply:?}") }
    }

    /// Asks a TCP or UDP server who it is, with the usual deadline.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn who(&self, proto: Proto, to: SocketAddr) -> Result<Answer> {
        self.ask(Ask::new(proto, to))
    }

    /// Puts the same question `count` times.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_many(&self, ask: Ask, count: u32) -> Result<Vec<Answer>> {
        answers(self.call(&Request::AskMany(ask, count))?)
    }

    /// Serves on addresses of its own, as the differential test wants it.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn serve_at(&self, name: &str, ips: &[IpAddr], ports: &[u16]) -> Result<()> {
        let (name, ips, ports) = (name.into(), ips.into(), ports.into());
        self.call(&Request::ServeAt { name, ips, ports }).map(drop)
    }

    /// Puts many questions at once.
    ///
    /// # Errors
    /// When the helper is gone.
    pub fn probe(&self, probes: Vec<Probe>) -> Result<Vec<Fates>> {
        let reply = self.call(&Request::Probe(probes))?;
        if let Reply::Probed(fates) = reply { Ok(fates) } else { bail!("not fates: {reply:?}") }
    }

    /// Opens long-lived flows; returns the activity's number once all are open.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open_flows(&self, flows: Flows) -> Result<u32> {
        started(self.call(&Request::OpenFlows(flows))?)
    }

    /// The same for UDP sockets that call sendto() and are never connected.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open_datagrams(&self, flows: Flows) -> Result<u32> {
        started(self.call(&Request::OpenDatagrams(flows))?)
    }

    /// Starts a load of new connections.
    ///
    /// # Errors
    /// When the helper is gone.
    pub fn start_load(&self, load: Load) -> Result<u32> {
        started(self.call(&Request::StartLoad(load))?)
    }

    /// Sends one HTTP request.
    ///
    /// # Errors
    /// When the helper is gone; what became of the request is in the answer.
    pub fn fetch(&self, fetch: Fetch) -> Result<Fetched> {
        let reply = self.call(&Request::Fetch(fetch))?;
        if let Reply::Fetched(fetched) = reply { Ok(fetched) } else { bail!("not fetched: {reply:?}") }
    }

    /// Starts HTTP requests at a steady pace; returns once its lasting connections are open.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn start_traffic(&self, traffic: Traffic) -> Result<u32> {
        started(self.call(&Request::StartTraffic(traffic))?)
    }

    /// # Errors
    /// When no traffic runs under this number.
    pub fn traffic(&self, activity: u32) -> Result<TrafficReport> {
        traffic_report(self.call(&Request::Report(activity))?)
    }

    /// # Errors
    /// When no traffic runs under this number.
    pub fn stop_traffic(&self, activity: u32) -> Result<TrafficReport> {
        traffic_report(self.call(&Request::Stop(activity))?)
    }

    /// # Errors
    /// When no flows run under this number.
    pub fn flows(&self, activity: u32) -> Result<FlowsReport> {
        flows_report(self.call(&Request::Report(activity))?)
    }

    /// # Errors
    /// When no flows run under this number.
    pub fn stop_flows(&self, activity: u32) -> Result<FlowsReport> {
        flows_report(self.call(&Request::Stop(activity))?)
    }

    /// # Errors
    /// When no load runs under this number.
    pub fn load(&self, activity: u32) -> Result<LoadReport> {
        load_report(self.call(&Request::Report(activity))?)
    }

    /// # Errors
    /// When no load runs under this number.
    pub fn stop_load(&self, activity: u32) -> Result<LoadReport> {
        load_report(self.call(&Request::Stop(activity))?)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answers(reply: Reply) -> Result<Vec<Answer>> {
    if let Reply::Answers(answers) = reply { Ok(answers) } else { bail!("not answers: {reply:?}") }
}

fn started(reply: Reply) -> Result<u32> {
    if let Reply::Started(activity) = reply { Ok(activity) } else { bail!("not started: {reply:?}") }
}

fn flows_report(reply: Reply) -> Result<FlowsReport> {
    if let Reply::Flows(report) = reply { Ok(report) } else { bail!("not flows: {reply:?}") }
}

fn load_report(reply: Reply) -> Result<LoadReport> {
    if let Reply::Load(report) = reply { Ok(report) } else { bail!("not a load: {reply:?}") }
}

fn traffic_report(reply: Reply) -> Result<TrafficReport> {
    if let Reply::Traffic(report) = reply { Ok(report) } else { bail!("not traffic: {reply:?}") }
}

/// The executable that becomes a helper: the demo, which sits beside the caller or one
/// folder up (test executables live in `deps`).
///
/// # Errors
/// When there is none.
pub fn executable() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join("demo")).find(|path| path.is_file());
    found.with_context(|| format!("no `demo` near {}: cargo build -p tests --bin demo", own.display()))
}

/// Turns this process into a helper, or a pod's server, when it was started as one. Call it
/// first in `main`.
pub fn serve_if_asked() {
    let done = match std::env::args().nth(1).as_deref() {
        Some(ARGUMENT) => run(),
        Some(POD) => run_pod(),
        _ => return,
    };
    let code = match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("helper: {error:#}");
            1
        }
    };
    std::process::exit(code);
}

/// The servers of a pod of a real cluster, until SIGTERM: `POD_NAME` is what they say who they
/// are, `NODE_NAME` is told beside it, `TCP` and `UDP` are their ports, with commas.
fn run_pod() -> Result<()> {
    let var = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let ports = |name: &str| -> Result<Vec<u16>> {
        let list = std::env::var(name).unwrap_or_default();
        list.split(',').filter(|port| !port.is_empty()).map(|port| Ok(port.parse()?)).collect()
    };
    let sign = Sign { name: var("POD_NAME")?, about: BTreeMap::from([("node".into(), var("NODE_NAME")?)]) };
    let (tcp, udp) = (ports("TCP")?, ports("UDP")?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        servers::serve(sign, &tcp, &udp).await?;
        // The first process of a pid namespace is not ended by a signal that it does not take.
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?.recv().await;
        anyhow::Ok(())
    })?;
    runtime.shutdown_background();
    Ok(())
}

fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut activities = BTreeMap::new();
    for line in std::io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?)?;
        let reply = runtime
            .block_on(answer(request, &mut activities))
            .unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        println!("{}", serde_json::to_string(&reply)?);
    }
    runtime.shutdown_background();
    Ok(())
}

async fn answer(request: Request, activities: &mut BTreeMap<u32, Activity>) -> Result<Reply> {
    let mut start = |activity| {
        let number = activities.last_key_value().map_or(0, |(last, _)| last + 1);
        activities.insert(number, activity);
        Reply::Started(number)
    };
    Ok(match request {
        Request::Serve { name, about, tcp, udp } => {
            servers::serve(Sign { name, about }, &tcp, &udp).await?;
            Reply::Done
        }
        Request::ServeNames(known) => {
            names::serve(known).await?;
            Reply::Done
        }
        Request::Resolve(server, name) => Reply::Addresses(names::resolve(server, &name).await?),
        Request::Ask(question) => Reply::Answers(asked(question, 1).await?),
        Request::AskMany(question, count) => Reply::Answers(asked(question, count).await?),
        Request::OpenFlows(spec) => start(flows::open(&spec, false).await?),
        Request::OpenDatagrams(spec) => start(flows::open(&spec, true).await?),
        Request::StartLoad(load) => start(flows::start_load(load)),
        Request::ServeAt { name, ips, ports } => {
            differential::serve(&name, &ips, &ports).await?;
            Reply::Done
        }
        Request::Probe(probes) => Reply::Probed(differential::put(probes).await),
        Request::Fetch(fetch) => Reply::Fetched(web::fetch(&fetch).await),
        Request::StartTraffic(traffic) => start(web::start(traffic).await?),
        Request::Report(number) => {
            activities.get(&number).with_context(|| format!("no activity {number}"))?.report()
        }
        Request::Stop(number) => {
            let activity = activities.remove(&number).with_context(|| format!("no activity {number}"))?;
            activity.stop().await
        }
    })
}

async fn asked(question: Ask, count: u32) -> Result<Vec<Answer>> {
    let all = move || (0..count).map(|_| ask(&question)).collect();
    Ok(tokio::task::spawn_blocking(all).await?)
}
