//! The agent under test: the real program, in node1's namespace, in the lab's own corner.
//!
//! Its socket hooks are attached to the lab's cgroup, its pins live in the lab's bpffs, its
//! state in the lab's folder. With `WEIR_BOUNDING_SET` in the environment it runs with
//! those capabilities only, as installed.

use crate::netns::sys;
use crate::scratch::procs_file;
use crate::topology::Topology;
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// Where the agent's ports are, and what distinguishes it from another on the same node.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Names the log file.
    pub name: String,
    pub healthz_port: u16,
    pub metrics_port: u16,
    /// Where objects come from: `--manifests DIR`, `--kubeconfig FILE`.
    pub source: Vec<OsString>,
    /// Further flags of `weir run`.
    pub more: Vec<OsString>,
    /// The name server that the agent finds in `/etc/resolv.conf`; none: the machine's, which
    /// is out of reach.
    pub name_server: Option<IpAddr>,
}

impl Setup {
    /// An agent that reads a folder of manifests.
    pub fn manifests(dir: &Path) -> Self {
        Self {
            name: "weir".into(),
            healthz_port: 10256,
            metrics_port: 10249,
            source: vec!["--manifests".into(), dir.into()],
            more: Vec::new(),
            name_server: None,
        }
    }

    /// An agent that asks an API server.
    pub fn kubeconfig(file: &Path) -> Self {
        Self { source: vec!["--kubeconfig".into(), file.into()], ..Self::manifests(file) }
    }

    /// Another agent of the same node, with ports of its own.
    #[must_use]
    pub fn second(self) -> Self {
        Self { name: "second".into(), healthz_port: 20256, metrics_port: 20249, ..self }
    }

    /// Objects from another folder or file as well.
    #[must_use]
    pub fn and_manifests(mut self, path: &Path) -> Self {
        self.source.extend(["--manifests".into(), path.into()]);
        self
    }

    #[must_use]
    pub fn name_server(self, at: IpAddr) -> Self {
        Self { name_server: Some(at), ..self }
    }

    #[must_use]
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.more.extend(flags.iter().map(OsString::from));
        self
    }
}

/// A running agent. Dropping it kills it; what it put on the node goes with the lab.
#[derive(Debug)]
pub struct Agent<'lab> {
    lab: &'lab Topology,
    setup: Setup,
    child: Child,
    log: PathBuf,
}

impl<'lab> Agent<'lab> {
    /// Starts `weir run`; its log goes to a file of the lab.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn start(lab: &'lab Topology, setup: Setup) -> Result<Self> {
        let log = lab.scratch().logs().join(format!("{}.log", setup.name));
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = match setup.name_server {
            None => confined(&program()?),
            Some(at) => {
                let file = lab.scratch().dir().join("resolv.conf");
                fs::write(&file, format!("nameserver {at}\noptions timeout:1\n"))?;
                resolving(&file, &confined(&program()?))
            }
        };
        command
            .arg("run")
            .args(["--node-name", "node1"])
            .arg("--cgroup")
            .arg(lab.node_cgroup()?)
            .arg("--bpffs")
            .arg(lab.scratch().bpffs())
            .arg("--state-dir")
            .arg(state_dir(lab))
            .arg("--admin-socket")
            .arg(socket(lab, &setup))
            .args(["--healthz-listen", &format!("[::]:{}", setup.healthz_port)])
            .args(["--metrics-listen", &format!("127.0.0.1:{}", setup.metrics_port)])
            .arg("--drain-delay=0s")
            .args(&setup.source)
            .args(&setup.more)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        let procs = procs_file(&lab.scratch().cgroup("node/weir")?)?;
        sys::start_in(&mut command, lab.node1().file().as_raw_fd(), Some(procs.as_raw_fd()));
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Self { lab, setup, child, log })
    }

    /// Starts an agent and waits until it is ready.
    ///
    /// # Errors
    /// With the end of its log when it does not become ready.
    pub fn ready(lab: &'lab Topology, setup: Setup) -> Result<Self> {
        let mut agent = Self::start(lab, setup)?;
        agent.wait_ready(Duration::from_secs(30))?;
        Ok(agent)
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Errors
    /// With the end of the log when it does not in time, or when the agent ends.
    pub fn wait_ready(&mut self, deadline: Duration) -> Result<()> {
        let mut ended = None;
        let ready = wait::until("the agent is ready", deadline, || {
            if let Some(status) = self.child.try_wait()? {
                ended = Some(status);
                return Ok(());
            }
            let (code, body) = self.get(self.setup.healthz_port, "/readyz")?;
            ensure!(code == 200, "/readyz says {code}: {body}");
            Ok(())
        });
        match (ready, ended) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(status)) => bail!("the agent ended with {status}; its log:\n{}", self.log_end()),
            (Err(error), _) => bail!("{error:#}; its log:\n{}", self.log_end()),
        }
    }

    /// Whether it runs no more.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// GET from the node itself: status code and body.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        self.lab.node1().enter(|| get((Ipv4Addr::LOCALHOST, port).into(), path))?
    }

    /// One metrics scrape.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn metrics(&self) -> Result<String> {
        Ok(self.get(self.setup.metrics_port, "/metrics")?.1)
    }

    /// Runs another verb of the program against this agent, such as `explain`.
    ///
    /// # Errors
    /// When the program cannot be run; its exit code is in the answer.
    pub fn verb(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(program()?);
        command.args(words).arg("--admin-socket").arg(socket(self.lab, &self.setup)).stdin(Stdio::null());
        Ok(command.output()?)
    }

    /// As [`Self::verb`] with `-o json`, parsed.
    ///
    /// # Errors
    /// When the answer is not JSON.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let out = self.verb(&[words, &["-o", "json"]].concat())?;
        serde_json::from_slice(&out.stdout).with_context(|| {
            format!("weir {}: {} {}", words.join(" "), out.status, String::from_utf8_lossy(&out.stderr))
        })
    }

    /// The ClusterIP of a Service, as `weir services` tells it.
    ///
    /// # Errors
    /// When the Service is not programmed.
    pub fn cluster_ip(&self, service: &str) -> Result<IpAddr> {
        let told = self.json(&["services", service])?;
        first_address(&told).with_context(|| format!("{service} has no address: {told}"))
    }

    /// Everything that it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, as the out-of-memory killer would.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM; waits for the end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(mut self, deadline: Duration) -> Result<ExitStatus> {
        sys::kill(self.child.id(), libc::SIGTERM)?;
        let child = &mut self.child;
        wait::until("the agent ends", deadline, || child.try_wait()?.context("still running"))
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `weir cleanup` for the lab's corner.
///
/// # Errors
/// When the program cannot be run.
pub fn cleanup(lab: &Topology) -> Result<Output> {
    Ok(start_cleanup(lab, &[])?.wait_with_output()?)
}

/// Starts `weir cleanup` for the lab's corner, with further flags.
///
/// # Errors
/// When the program cannot be run.
pub fn start_cleanup(lab: &Topology, flags: &[&str]) -> Result<Child> {
    let mut command = Command::new(program()?);
    command.arg("cleanup").arg("--bpffs").arg(lab.scratch().bpffs()).arg("--state-dir").arg(state_dir(lab));
    command.args(flags).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::start_in(&mut command, lab.node1().file().as_raw_fd(), None);
    Ok(command.spawn()?)
}

/// Command line of a verb against the lab's agent, for people to type.
pub fn invocation(lab: &Topology, setup: &Setup, words: &str) -> String {
    let program = program().unwrap_or_else(|_| "weir".into());
    format!("{} {words} --admin-socket {}", program.display(), socket(lab, setup).display())
}

/// The program: `$WEIR_BIN`, else beside this executable, else the release build.
pub(crate) fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WEIR_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(3).flat_map(|dir| [dir.join("weir"), dir.join("release/weir")]);
    let mut found = beside.filter(|path| path.is_file());
    found.next().context("no `weir` program: cargo xtask build, or set WEIR_BIN")
}

pub(crate) fn confined(program: &Path) -> Command {
    match std::env::var_os("WEIR_BOUNDING_SET") {
        None => Command::new(program),
        Some(set) => {
            let mut command = Command::new("setpriv");
            command.arg("--bounding-set").arg(set).arg(program);
            command
        }
    }
}

/// The command in a mount namespace of its own, where another file is `/etc/resolv.conf`. Each
/// program on the way becomes the next, so that the process is the command's.
fn resolving(file: &Path, inner: &Command) -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--",
        "sh",
        "-c",
        "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"",
        "sh",
    ]);
    command.arg(file).arg(inner.get_program()).args(inner.get_args());
    command
}

fn state_dir(lab: &Topology) -> PathBuf {
    lab.scratch().dir().join("state")
}

fn socket(lab: &Topology, setup: &Setup) -> PathBuf {
    state_dir(lab).join(format!("{}.sock", setup.name))
}

/// The first address in a ClusterIP range among the strings of a JSON value.
fn first_address(value: &Value) -> Option<IpAddr> {
    match value {
        Value::String(text) => {
            let ip = text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|at| at.ip()))?;
            let of_service = matches!(ip, IpAddr::V4(ip) if ip.octets()[..2] == [10, 96]);
            of_service.then_some(ip)
        }
        Value::Array(all) => all.iter().find_map(first_address),
        Value::Object(all) => all.values().find_map(first_address),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

pub(crate) fn get(to: SocketAddr, path: &str) -> Result<(u16, String)> {
    let timeout = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&to, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("not HTTP: {answer:?}"))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.with_context(|| format!("no status: {head:?}"))?, body.to_owned()))
}
