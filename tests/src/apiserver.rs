//! A real API server, for tests: etcd, kube-apiserver and kube-controller-manager.
//!
//! There is no kubelet and no scheduler. A Pod is an API object that names its node and
//! whose status a test writes ([`ApiServer::run_pod`]); it may name the address of a network
//! namespace where something listens. For Pods that controllers make there is the stand-in of
//! [`crate::kubelet`]. The EndpointSlices are then made by the real
//! controllers. The programs come from [`assets`]; they end when the value is dropped, or
//! with the process that holds it.

pub mod assets;
mod client;
mod objects;
pub(crate) mod pki;
mod process;

pub use client::Connection;
pub use objects::Pod;

use anyhow::{Context, Result};
use assets::Program;
use pki::{Accounts, Pair, Pki};
use process::Process;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Where Services get their addresses.
pub const SERVICE_CIDR: &str = "10.96.0.0/16,fd00:10:96::/112";
/// A user without any right of its own.
pub const USER: &str = "weir-user";
/// How long a start may take, and how long a test waits for a controller at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the controllers would do without kubelets: evict from nodes that report nothing, and
/// remove Pods of nodes that are not there.
const CONTROLLERS: &str =
    "*,-node-lifecycle-controller,-pod-garbage-collector-controller,-taint-eviction-controller";

/// Where the control plane lives.
#[derive(Debug, Clone)]
pub struct Place {
    /// A network namespace, as a file; none for the caller's own.
    pub netns: Option<PathBuf>,
    /// The address that the API server listens on and puts into its certificate.
    pub address: IpAddr,
}

impl Default for Place {
    /// The caller's namespace, on loopback.
    fn default() -> Self {
        Self { netns: None, address: Ipv4Addr::LOCALHOST.into() }
    }
}

/// A running control plane.
#[derive(Debug)]
pub struct ApiServer {
    // Dropped in this order: the controllers first, etcd last.
    connection: Connection,
    controllers: Option<Process>,
    api: Process,
    etcd: Process,
    address: SocketAddr,
    dir: Dir,
}

impl ApiServer {
    /// Starts everything on loopback and waits until it is ready: some five seconds.
    ///
    /// # Errors
    /// When a program cannot be had, or does not become ready; says what it logged last.
    pub fn start() -> Result<Self> {
        Self::start_in(&Place::default())
    }

    /// Starts everything in a place of its own.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(place: &Place) -> Result<Self> {
        let [etcd, api, controllers] =
            [Program::Etcd, Program::ApiServer, Program::ControllerManager].map(assets::locate);
        let (etcd, api, controllers) = (etcd?, api?, controllers?);
        let dir = Dir::new()?;
        let pki = Pki::write(&dir.0, place.address)?;
        let connection = Connection::open(place.netns.as_deref())?;
        let at = place.address;
        let [etcd_port, peer_port, port] = connection.in_place(move || free_ports(at))??;
        let address = SocketAddr::new(place.address, port);
        let kubeconfig = dir.kubeconfig();
        fs::write(&kubeconfig, pki.kubeconfig(address, &pki.admin))?;
        fs::write(dir.user_kubeconfig(), pki.kubeconfig(address, &pki.user))?;

        let etcd = Process::start(&connection, &dir.0, &etcd, etcd_arguments(&dir.0, etcd_port, peer_port))?;
        let api = Process::start(&connection, &dir.0, &api, api_arguments(&pki, address, etcd_port))?;
        let mut server = Self { connection, controllers: None, api, etcd, address, dir };
        server.wait_ready()?;
        let arguments = controller_arguments(&pki, &kubeconfig);
        server.controllers =
            Some(Process::start(&server.connection, &server.dir.0, &controllers, arguments)?);
        Ok(server)
    }

    /// A kubeconfig with every right.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.kubeconfig()
    }

    /// A kubeconfig of [`USER`], who has no right but those that a test gives.
    pub fn user_kubeconfig(&self) -> PathBuf {
        self.dir.user_kubeconfig()
    }

    /// Where the API server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills the API server at once, as a crash would; [`Self::restart_api`] brings it back
    /// with the same objects.
    pub fn kill_api(&mut self) {
        self.api.kill();
    }

    /// Starts the API server again and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart_api(&mut self) -> Result<()> {
        self.api.restart(&self.connection)?;
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        self.connection.connect(&self.dir.kubeconfig())?;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.connection.ready() {
            self.etcd.check_alive()?;
            self.api.check_alive()?;
            if Instant::now() > deadline {
                return Err(error)
                    .with_context(|| format!("not ready; it said last:\n{}", self.api.last_words()));
            }
            std::thread::park_timeout(Duration::from_millis(30));
        }
        Ok(())
    }
}

/// What a test does with objects is the connection's.
impl std::ops::Deref for ApiServer {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

pub(crate) fn etcd_arguments(dir: &Path, port: u16, peer_port: u16) -> Vec<String> {
    vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls=http://127.0.0.1:{port}"),
        format!("--advertise-client-urls=http://127.0.0.1:{port}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"),
        format!("--initial-cluster=default=http://127.0.0.1:{peer_port}"),
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_arguments(pki: &Pki, address: SocketAddr, etcd_port: u16) -> Vec<String> {
    let mut words = serving_arguments(&pki.ca, &pki.server, &pki.accounts, address, etcd_port);
    words.extend([
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        "--authorization-mode=RBAC".into(),
        // Pods need no token here, so they need not wait for an account either.
        "--disable-admission-plugins=ServiceAccount".into(),
    ]);
    words
}

/// What every API server here is started with.
pub(crate) fn serving_arguments(
    ca: &Path,
    server: &Pair,
    accounts: &Accounts,
    address: SocketAddr,
    etcd_port: u16,
) -> Vec<String> {
    // The `kubernetes` Service cannot have an endpoint on loopback.
    let reconciler = if address.ip().is_loopback() { "none" } else { "lease" };
    vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        format!("--advertise-address={}", address.ip()),
        format!("--bind-address={}", address.ip()),
        format!("--secure-port={}", address.port()),
        format!("--endpoint-reconciler-type={reconciler}"),
        format!("--tls-cert-file={}", server.certificate.display()),
        format!("--tls-private-key-file={}", server.key.display()),
        format!("--client-ca-file={}", ca.display()),
        format!("--service-account-key-file={}", accounts.public.display()),
        format!("--service-account-signing-key-file={}", accounts.key.display()),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        "--allow-privileged=true".into(),
    ]
}

fn controller_arguments(pki: &Pki, kubeconfig: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--authentication-kubeconfig={}", kubeconfig.display()),
        format!("--authorization-kubeconfig={}", kubeconfig.display()),
        format!("--root-ca-file={}", pki.ca.display()),
        format!("--service-account-private-key-file={}", pki.accounts.key.display()),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        format!("--controllers={CONTROLLERS}"),
        "--leader-elect=false".into(),
        // Tests make and delete more at once than a cluster's people do; the default would
        // leave the objects of a deleted namespace in place for many seconds.
        "--kube-api-qps=1000".into(),
        "--kube-api-burst=1000".into(),
        // It serves nothing that a test asks for.
        "--secure-port=0".into(),
        // A batch would delay what a test waits for.
        "--endpointslice-updates-batch-period=0s".into(),
    ]
}

/// Ports that are free now. Another process may take one before it is used; the start then
/// fails and says so.
fn free_ports(address: IpAddr) -> Result<[u16; 3]> {
    let open = [Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into(), address]
        .map(|ip: IpAddr| TcpListener::bind((ip, 0)).with_context(|| format!("no free port on {ip}")));
    let [a, b, c] = open;
    Ok([a?.local_addr()?.port(), b?.local_addr()?.port(), c?.local_addr()?.port()])
}

/// The folder of one control plane; gone when dropped.
#[derive(Debug)]
struct Dir(PathBuf);

impl Dir {
    fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weir-api-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    fn user_kubeconfig(&self) -> PathBuf {
        self.0.join("user-kubeconfig")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
