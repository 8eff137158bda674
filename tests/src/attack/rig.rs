//! A proxy with an origin behind it, in a namespace of their own.

use super::exchange::{self, Answer};
use super::h2;
use super::origin::Origin;
use crate::netns::{Netns, sys};
use crate::scratch::Scratch;
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The host that is served over HTTP, without a redirect. Everything but `/private` goes to
/// the origin.
pub const HOST: &str = "attack.test";
/// The same routes over TLS, with a certificate of its own.
pub const SECURE: &str = "secure.test";
/// Another tenant's host, with a certificate and a Service of its own.
pub const OTHER: &str = "other.test";

/// An Ingress of everything that no other names.
const OPEN: &str = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: open}
spec: {defaultBackend: {service: {name: origin, port: {number: 80}}}}
---
";

const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 80);
const HTTPS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 443);

/// The proxy under attack, and the origins behind it.
#[derive(Debug)]
pub struct Rig {
    pub origin: Origin,
    /// Behind [`OTHER`], and behind `/private` of [`HOST`].
    pub other: Origin,
    /// Behind nothing, until endpoints are flipped.
    spare: Origin,
    netns: Netns,
    child: Child,
    scratch: Scratch,
}

impl Rig {
    /// Starts `weir run --l4 off` with the routes of the attack; answers are those of
    /// `/answer/NAME`.
    ///
    /// # Errors
    /// With the end of the log when it does not become ready.
    pub fn start(answers: BTreeMap<String, Vec<u8>>, flags: &[&str]) -> Result<Self> {
        Self::with(answers, flags, false)
    }

    /// The same; the origin also has every host that no other route names, over HTTP and, with
    /// the default certificate, over HTTPS.
    ///
    /// # Errors
    /// With the end of the log when it does not become ready.
    pub fn open(answers: BTreeMap<String, Vec<u8>>, flags: &[&str]) -> Result<Self> {
        Self::with(answers, flags, true)
    }

    fn with(answers: BTreeMap<String, Vec<u8>>, flags: &[&str], open: bool) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let scratch = Scratch::new()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::new(format!("{}-attack{number}", scratch.id()))?;
        let listen = || netns.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let origin = Origin::serve(listen()??, answers)?;
        let other = Origin::serve(listen()??, BTreeMap::new())?;
        let dir = scratch.dir().join("manifests");
        fs::create_dir_all(&dir)?;
        let spare = Origin::serve(listen()??, BTreeMap::new())?;
        let stream = super::streams::serve(listen()??)?;
        manifests(&dir, origin.addr(), other.addr(), stream)?;
        if open {
            put(&dir, "open.yaml", OPEN)?;
        }
        let mut rig = Self {
            child: start(&scratch, &netns, &dir, flags, (origin.addr(), other.addr(), open))?,
            origin,
            other,
            spare,
            netns,
            scratch,
        };
        rig.wait_ready()?;
        Ok(rig)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let ready = wait::until("the proxy serves", Duration::from_secs(30), || {
            ensure!(self.child.try_wait()?.is_none(), "it ended");
            let answer = self.exchange(&plain("/"), Duration::from_secs(2))?;
            ensure!(answer.statuses() == [200], "{}", answer.text());
            Ok(())
        });
        ready.with_context(|| format!("its log:\n{}", self.log()))?;
        self.origin.take();
        Ok(())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(log_file(&self.scratch)).unwrap_or_default()
    }

    fn dir(&self) -> PathBuf {
        self.scratch.dir().join("manifests")
    }

    /// Adds or changes routes that no client of the attack uses, and touches those that they do.
    ///
    /// # Errors
    /// When the manifest cannot be written.
    pub fn edit_routes(&self, number: usize) -> Result<()> {
        let mut text = [ingress(HOST, "origin", false), ingress(OTHER, "other", true)].concat();
        let more = format!(
            "      - {{path: /edit-{}, pathType: Exact, backend: {{service: {{name: other, port: {{number: 80}}}}}}}}\n---\n",
            number % 7
        );
        text.push_str(&ingress(SECURE, "origin", true).replacen("---\n", &more, 1));
        text.push_str(&ingress(&format!("edit-{}.test", number % 5), "origin", false));
        put(&self.dir(), "routes.yaml", &text)
    }

    /// Gives the Ingress of [`HOST`] these annotations, and waits until it was read again.
    ///
    /// # Errors
    /// When the manifest cannot be written, or is not read.
    pub fn annotate(&self, annotations: &[(&str, &str)]) -> Result<()> {
        let list: Vec<_> = annotations.iter().map(|(name, value)| format!("{name}: '{value}'")).collect();
        let name = HOST.trim_end_matches(".test");
        let bare = format!("metadata: {{name: {name}}}");
        let annotated = format!("metadata: {{name: {name}, annotations: {{{}}}}}", list.join(", "));
        // A route that was not there before tells when the file has been read.
        let more = "      - {path: /annotated, pathType: Exact, backend: {service: {name: other, port: {number: 80}}}}\n---\n";
        let changed = ingress(HOST, "origin", false).replacen(&bare, &annotated, 1);
        ensure!(changed.contains("annotations"), "no name to put annotations to");
        let changed = changed.replacen("---\n", more, 1);
        let others = [ingress(SECURE, "origin", true), ingress(OTHER, "other", true)];
        put(&self.dir(), "routes.yaml", &[changed, others.concat()].concat())?;
        wait::until("the annotations are read", Duration::from_secs(30), || {
            self.exchange(&self::plain("/annotated"), Duration::from_secs(2))?;
            ensure!(!self.other.take().is_empty(), "still the old route");
            Ok(())
        })
    }

    /// Changes which of two endpoints the origin's Service has: one, both, the other.
    ///
    /// # Errors
    /// When the manifest cannot be written.
    pub fn flip_endpoints(&self, number: usize) -> Result<()> {
        let both = [self.origin.addr(), self.spare.addr()];
        let chosen = [&both[..1], &both[..], &both[1..], &both[..]][number % 4];
        put(&self.dir(), "endpoints.yaml", &slice("origin", chosen))
    }

    /// Gives [`SECURE`] another certificate.
    ///
    /// # Errors
    /// When the manifest cannot be written.
    pub fn renew_certificate(&self) -> Result<()> {
        put(&self.dir(), "secure-tls.yaml", &secret("secure", SECURE)?)
    }

    /// Puts an origin of its own behind each of these paths (name, path, its type), for every
    /// host that no other route names; waits until the last of them is served.
    ///
    /// # Errors
    /// When the manifest cannot be written, or the routes do not come.
    pub fn branch(&self, paths: &[(&str, &str, &str)]) -> Result<Vec<Origin>> {
        let (mut origins, mut text) = (Vec::new(), String::new());
        for (name, ..) in paths {
            let listener = self.netns.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
            let origin = Origin::serve(listener, BTreeMap::new())?;
            text.push_str(&service(name, ""));
            text.push_str(&slice(name, &[origin.addr()]));
            origins.push(origin);
        }
        let rules: Vec<_> = paths.iter().map(|(name, path, kind)| (*path, *kind, *name)).collect();
        put(&self.dir(), "branches.yaml", &[text, anywhere(&rules)].concat())?;
        let (_, last, _) = paths.last().context("no path")?;
        let request = format!("GET {last} HTTP/1.1\r\nHost: branch.test\r\nConnection: close\r\n\r\n");
        wait::until("the branches are served", Duration::from_secs(30), || {
            let answer = self.exchange(request.as_bytes(), Duration::from_secs(2))?;
            ensure!(answer.statuses() == [200], "{}", answer.text());
            Ok(())
        })?;
        origins.iter().for_each(|origin| drop(origin.take()));
        Ok(origins)
    }

    /// # Errors
    /// When nobody listens.
    pub fn connect(&self) -> Result<TcpStream> {
        self.netns.enter(|| exchange::connect(HTTP))?
    }

    /// A TCP connection to the HTTPS port.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect_tls_port(&self) -> Result<TcpStream> {
        self.netns.enter(|| exchange::connect(HTTPS))?
    }

    /// Sends bytes to the HTTP port and reads until the end.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn exchange(&self, bytes: &[u8], patience: Duration) -> Result<Answer> {
        self.netns.enter(|| exchange::exchange(HTTP, bytes, patience))?
    }

    /// An HTTP/2 connection over TLS.
    ///
    /// # Errors
    /// When TLS or ALPN fails.
    pub fn h2(&self) -> Result<h2::Connection> {
        h2::Connection::open(self.connect_tls_port()?, SECURE)
    }

    /// A fresh client's request: it must get its own answer, whatever happened before (H12).
    ///
    /// # Errors
    /// When it does not.
    pub fn probe(&self) -> Result<Duration> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let target = format!("/probe/{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let answer = self.exchange(&plain(&target), Duration::from_secs(10))?;
        let text = answer.text();
        let own = answer.statuses() == [200] && text.trim_end().ends_with(&target);
        ensure!(own, "a fresh client asked for {target} and got {text:?}");
        Ok(answer.took)
    }

    /// Process id of `weir run`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the supervisor for a new proxy generation.
    ///
    /// # Errors
    /// When it is gone.
    pub fn upgrade_proxy(&self) -> Result<()> {
        Ok(sys::kill(self.child.id(), libc::SIGUSR2)?)
    }

    /// Sends SIGKILL to the process of a role.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&self, role: &str) -> Result<u32> {
        let pid = self.role(role)?;
        sys::kill(pid, libc::SIGKILL)?;
        Ok(pid)
    }

    /// Process id of the proxy that serves now.
    ///
    /// # Errors
    /// When there is none.
    pub fn proxy_pid(&self) -> Result<u32> {
        self.role("proxy")
    }

    /// Process id of the youngest child of a role.
    ///
    /// # Errors
    /// When there is none.
    pub fn role(&self, role: &str) -> Result<u32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id()))?;
        let is_of_role = |pid: &u32| {
            if std::env::var_os("LAB_ATTACK_PEER").is_some() {
                return true;
            }
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| word == format!("--role={role}").as_bytes())
        };
        // Process ids begin anew at their limit: the start tells the youngest.
        let started = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let ticks =
                stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)?.parse::<u64>().ok());
            (ticks, *pid)
        };
        let found = children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(is_of_role);
        found.max_by_key(started).with_context(|| format!("no {role} among the children {children}"))
    }

    /// Resident memory of the proxy, in KiB.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.proxy_pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Its children end with it, or by its word.
        let _ = sys::kill(self.child.id(), libc::SIGTERM);
        let child = &mut self.child;
        let ended = wait::until("the end", Duration::from_secs(5), || child.try_wait()?.context("running"));
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A plain request of a client that closes afterwards.
pub fn plain(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").into_bytes()
}

fn log_file(scratch: &Scratch) -> PathBuf {
    scratch.logs().join("weir.log")
}

fn start(
    scratch: &Scratch,
    netns: &Netns,
    dir: &Path,
    flags: &[&str],
    (origin, other, open): (SocketAddr, SocketAddr, bool),
) -> Result<Child> {
    let file = File::options().create(true).append(true).open(log_file(scratch))?;
    let mut command = match std::env::var("LAB_ATTACK_PEER").as_deref() {
        Ok("nginx") => super::peer::nginx(scratch.dir(), origin, other, open)?,
        Ok(other) => bail!("LAB_ATTACK_PEER={other}: nginx is the peer that is known"),
        Err(_) => weir(scratch, dir, flags)?,
    };
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    sys::start_in(&mut command, netns.file().as_raw_fd(), None);
    command.spawn().with_context(|| format!("starting {command:?}"))
}

fn weir(scratch: &Scratch, dir: &Path, flags: &[&str]) -> Result<Command> {
    let mut command = crate::agent::confined(&crate::agent::program()?);
    command
        .args(["run", "--l4", "off", "--node-name", "node1", "--access-log", "off"])
        .args(["--allow-endpoint-cidr", "127.0.0.0/8"])
        .arg("--state-dir")
        .arg(scratch.dir().join("state"))
        .arg("--manifests")
        .arg(dir)
        .args(flags);
    if !flags.contains(&"--drain-timeout") {
        command.args(["--drain-timeout", "2s"]);
    }
    Ok(command)
}

/// Writes a manifest as a whole: a reader sees the old or the new one.
fn put(dir: &Path, name: &str, text: &str) -> Result<()> {
    let draft = dir.with_file_name(format!("{name}.draft"));
    fs::write(&draft, text)?;
    fs::rename(&draft, dir.join(name)).with_context(|| format!("writing {name}"))
}

/// A Service without a selector.
fn service(name: &str, protocol: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{ports: [{{port: 80{protocol}}}]}}
---
"
    )
}

/// The endpoints of a Service.
fn slice(name: &str, endpoints: &[SocketAddr]) -> String {
    let mut text = String::new();
    // Ports belong to slices: one for each endpoint.
    for (number, at) in endpoints.iter().enumerate() {
        text.push_str(&format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{number}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{port: {}}}]
endpoints: [{{addresses: ['{}']}}]
---
",
            at.port(),
            at.ip()
        ));
    }
    text
}

/// An Ingress of the attack's hosts.
fn ingress(host: &str, service: &str, tls: bool) -> String {
    let name = host.trim_end_matches(".test");
    let certified =
        if tls { format!("\n  tls: [{{hosts: [{host}], secretName: {name}-tls}}]") } else { String::new() };
    format!(
        "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: {name}}}
spec:{certified}
  rules:
  - host: {host}
    http:
      paths:
      - {{path: /, pathType: Prefix, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}
      - {{path: /private, pathType: Prefix, backend: {{service: {{name: other, port: {{number: 80}}}}}}}}
      - {{path: /stream, pathType: Prefix, backend: {{service: {{name: stream, port: {{number: 80}}}}}}}}
---
"
    )
}

/// An Ingress of paths of every host that no other names: path, its type, Service.
fn anywhere(paths: &[(&str, &str, &str)]) -> String {
    let mut text = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: branches}
spec:
  rules:
  - http:
      paths:
"
    .to_owned();
    for (path, kind, service) in paths {
        text.push_str(&format!(
            "      - {{path: {path}, pathType: {kind}, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}\n"
        ));
    }
    text.push_str("---\n");
    text
}

/// All that the attack's routes are made of.
fn manifests(dir: &Path, origin: SocketAddr, other: SocketAddr, stream: SocketAddr) -> Result<()> {
    let services = [
        service("origin", ""),
        service("other", ""),
        service("stream", ", appProtocol: kubernetes.io/h2c"),
        slice("other", &[other]),
        slice("stream", &[stream]),
    ];
    put(dir, "services.yaml", &services.concat())?;
    put(dir, "endpoints.yaml", &slice("origin", &[origin]))?;
    put(dir, "secure-tls.yaml", &secret("secure", SECURE)?)?;
    put(dir, "other-tls.yaml", &secret("other", OTHER)?)?;
    let routes =
        [ingress(HOST, "origin", false), ingress(SECURE, "origin", true), ingress(OTHER, "other", true)];
    put(dir, "routes.yaml", &routes.concat())
}

fn secret(name: &str, host: &str) -> Result<String> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec![host.to_owned()])?.self_signed(&key)?;
    let indented = |pem: String| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    Ok(format!(
        "apiVersion: v1
kind: Secret
metadata: {{name: {name}-tls}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
{}  tls.key: |
{}---
",
        indented(certificate.pem()),
        indented(key.serialize_pem())
    ))
}
