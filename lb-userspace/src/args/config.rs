//! The checked configuration, one sub-struct for each part of the agent.

use super::run::{AccessLogFormat, AutoOff, Compat, LogFormat, LogLevel, Role, RunArgs, TcAttach, Xdp};
use super::value::{AccessLog, Devices, NodePortAddresses, Ports, SocketLb};
use crate::model::ModelOptions;
use crate::problem::ObjectKey;
use crate::source::StatusAddress;
use ipnet::IpNet;
use lb_common::abi::PortRange;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const STATE_DIR: &str = "/run/weir";
pub(super) const ADMIN_SOCKET: &str = "/run/weir/admin.sock";
pub(super) const BPFFS: &str = "/sys/fs/bpf";

/// Ports of the node that no Service takes from it unless told otherwise (H36): ssh,
/// kubelet, API server, kube-proxy's and our own health and metrics.
const PROTECTED_PORTS: [u16; 5] = [22, 6443, 10249, 10250, 10256];

/// Everything that `weir run` was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// `None`: what was started by hand.
    pub role: Option<Role>,
    pub node_name: String,
    pub state_dir: PathBuf,
    pub source: SourceConfig,
    pub model: ModelOptions,
    /// `None`: `--l4 off`.
    pub l4: Option<L4Config>,
    /// `None`: `--l7 off`.
    pub l7: Option<L7Config>,
    pub http: HttpConfig,
    pub log: LogConfig,
}

#[derive(Clone, Debug)]
pub struct SourceConfig {
    pub kind: SourceKind,
    pub nodeport_range: PortRange,
}

#[derive(Clone, Debug)]
pub enum SourceKind {
    Manifests { paths: Vec<PathBuf>, service_cidrs: Vec<IpNet> },
    Api(ApiConfig),
}

#[derive(Clone, Debug)]
pub struct ApiConfig {
    pub kubeconfig: Option<PathBuf>,
    pub server: Option<String>,
}

#[derive(Clone, Debug)]
pub struct L4Config {
    pub devices: Devices,
    pub pod_devices: bool,
    pub xdp: Xdp,
    pub clsact: bool,
    pub socket_lb: SocketLb,
    pub cgroup: Option<PathBuf>,
    pub snat: [PortRange; 2],
    pub conntrack_max: Option<u32>,
    pub nodeport_addresses: NodePortAddresses,
    pub cluster_cidrs: Option<Vec<IpNet>>,
    pub masquerade_all: bool,
    pub bpffs: PathBuf,
    pub bpf_log: LogLevel,
}

/// Which Ingresses are served, and how.
#[derive(Clone, Debug)]
pub struct L7Config {
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    /// Threads that serve requests.
    pub workers: usize,
    /// `spec.controller` of the IngressClasses that are ours (I1).
    pub controllers: BTreeSet<String>,
    pub watch_without_class: bool,
    /// `None`: all namespaces (I5).
    pub watch_namespace: Option<String>,
    /// `None`: self-signed at start (I30).
    pub default_certificate: Option<ObjectKey>,
    pub publish: PublishConfig,
    pub trusted_proxies: Vec<IpNet>,
    /// Bytes; `None`: any (I57).
    pub body_size: Option<u64>,
    /// Services of type ExternalName are served (I22).
    pub external_names: bool,
    pub drain_timeout: Duration,
    /// Between the wish to end and the end of new connections (I73).
    pub drain_delay: Duration,
    /// User and group of the proxy (H43).
    pub proxy_user: u32,
    pub access_log: AccessLog,
    pub access_log_format: AccessLogFormat,
}

/// What goes into `status.loadBalancer` of Ingresses (I69).
#[derive(Clone, Debug)]
pub struct PublishConfig {
    /// Off for a shadow run beside another controller.
    pub update: bool,
    pub service: Option<ObjectKey>,
    /// Beat the Service's; without both, the ready nodes' addresses.
    pub addresses: Vec<StatusAddress>,
    /// Which nodes count, as the API's label selectors are written.
    pub node_selector: String,
}

#[derive(Clone, Debug)]
pub struct HttpConfig {
    pub healthz: SocketAddr,
    pub metrics: SocketAddr,
    pub admin_socket: PathBuf,
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub level: LogLevel,
    pub format: LogFormat,
}

impl Config {
    /// Checks what clap cannot: values against each other and against this machine.
    pub(super) fn check(args: RunArgs) -> Result<Self, String> {
        let PortRange { first, last } = args.nodeport_range;
        for range in args.snat_port_range.0.iter().filter(|range| !range.is_empty()) {
            if range.first <= last && first <= range.last {
                return Err(format!(
                    "--snat-port-range {}-{}: overlaps --nodeport-range {first}-{last}; a masqueraded flow would take the place of a node port",
                    range.first, range.last
                ));
            }
        }
        if let Some(server) = args
            .apiserver
            .as_deref()
            .filter(|url| !url.starts_with("https://") && !url.starts_with("http://"))
        {
            return Err(format!("--apiserver {server}: not a URL that begins with https:// or http://"));
        }
        if let Some(both) = args.http_listen.iter().find(|address| args.https_listen.contains(address))
            && args.l7
            && both.port() != 0
        {
            return Err(format!("--http-listen {both}: is an address of --https-listen too"));
        }
        if let Some(name) = args.ingress_controller.iter().find(|name| name.trim().is_empty()) {
            return Err(format!("--ingress-controller {name:?}: empty"));
        }
        let as_kube_proxy = args.compat == Compat::KubeProxy;
        let protected_ports = match &args.protected_ports {
            // kube-proxy protects nothing.
            None if as_kube_proxy => BTreeSet::new(),
            given => protected_ports(given.as_ref(), &args),
        };
        let node_name = match args
            .node_name
            .or_else(|| std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty()))
        {
            Some(name) if !name.trim().is_empty() => name.trim().to_ascii_lowercase(),
            Some(_) => return Err("--node-name: empty".into()),
            None => host_name()?,
        };
        let kind = if args.manifests.is_empty() {
            SourceKind::Api(ApiConfig { kubeconfig: args.kubeconfig, server: args.apiserver })
        } else {
            SourceKind::Manifests { paths: args.manifests, service_cidrs: args.service_cidr.0 }
        };
        Ok(Self {
            role: args.role,
            node_name,
            source: SourceConfig { kind, nodeport_range: args.nodeport_range },
            model: ModelOptions {
                external_ips: args.external_ips,
                protected_ports,
                allow_endpoint_cidrs: args.allow_endpoint_cidr,
                masquerade_external: args.masquerade_external.unwrap_or(as_kube_proxy),
            },
            l4: args.l4.then_some(L4Config {
                devices: args.devices,
                pod_devices: args.pod_devices == AutoOff::Auto,
                xdp: args.xdp,
                clsact: args.tc_attach == TcAttach::Clsact,
                socket_lb: args.socket_lb.unwrap_or(if as_kube_proxy {
                    SocketLb::Host
                } else {
                    SocketLb::On
                }),
                cgroup: args.cgroup,
                snat: args.snat_port_range.0,
                conntrack_max: args.conntrack_max,
                nodeport_addresses: args.nodeport_addresses,
                cluster_cidrs: args.cluster_cidr.map(|cidrs| cidrs.0),
                masquerade_all: args.masquerade_all,
                bpffs: args.bpffs,
                bpf_log: args.bpf_log,
            }),
            l7: args.l7.then(|| L7Config {
                http: args.http_listen,
                https: args.https_listen,
                workers: args.proxy_workers.map_or_else(cores, usize::from),
                controllers: args.ingress_controller.into_iter().collect(),
                watch_without_class: args.watch_ingress_without_class,
                watch_namespace: args.watch_namespace,
                default_certificate: args.default_ssl_certificate,
                publish: PublishConfig {
                    update: args.update_status,
                    service: args.publish_service,
                    addresses: args.publish_status_address,
                    node_selector: args.publish_node_selector,
                },
                trusted_proxies: args.trusted_proxies.map(|cidrs| cidrs.0).unwrap_or_default(),
                body_size: (args.proxy_body_size != 0).then_some(args.proxy_body_size),
                external_names: args.external_names,
                drain_timeout: args.drain_timeout,
                drain_delay: args.drain_delay,
                proxy_user: args.proxy_user,
                access_log: args.access_log,
                access_log_format: args.access_log_format,
            }),
            http: HttpConfig {
                healthz: args.healthz_listen,
                metrics: args.metrics_listen,
                admin_socket: args.admin_socket.unwrap_or_else(|| args.state_dir.join("admin.sock")),
            },
            log: LogConfig { level: args.log_level, format: args.log_format },
            state_dir: args.state_dir,
        })
    }
}

/// The ports that are named, or those of every node; and those that we listen on (H36).
fn protected_ports(named: Option<&Ports>, args: &RunArgs) -> BTreeSet<u16> {
    let mut ports: BTreeSet<u16> =
        named.map_or_else(|| PROTECTED_PORTS.into(), |ports| ports.0.iter().copied().collect());
    ports.extend([args.healthz_listen.port(), args.metrics_listen.port()]);
    if args.l7 {
        let listeners = args.http_listen.iter().chain(&args.https_listen);
        ports.extend(listeners.map(SocketAddr::port));
    }
    ports
}

/// As many as this process may use, its control group's quota included.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The kernel's name of this host, as the kubelet takes it.
fn host_name() -> Result<String, String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_err(|e| format!("--node-name: not given, and the host's name cannot be read: {e}"))?;
    Ok(name.trim().to_ascii_lowercase())
}

/// Parses YAML.
pub(super) fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|e| e.to_string())
}
