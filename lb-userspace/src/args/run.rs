//! The flags of `weir run`, as the contract names them.

use super::config;
use super::value::{
    AccessLog, Cidrs, Devices, NodePortAddresses, PortRanges, Ports, SocketLb, cidr, duration, external_ips,
    listen, object_key, on_off, port_range, size, socket_lb, status_address,
};
use crate::model::ExternalIps;
use crate::problem::ObjectKey;
use crate::source::StatusAddress;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use lb_common::abi::PortRange;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A boolean flag's value; a name of its own, so that clap does not take `bool` for a switch.
pub type Onoff = bool;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Xdp {
    /// Native where the device's driver has it; never veth, bridge, tunnel or bond.
    Auto,
    Native,
    Generic,
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TcAttach {
    /// tcx where the kernel has it (6.6), else clsact.
    Auto,
    /// The clsact qdisc, as on older kernels.
    Clsact,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum AccessLogFormat {
    Nginx,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum AutoOff {
    Auto,
    Off,
}

/// What a process that `weir run` starts is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Role {
    Agent,
    Proxy,
}

/// Whose behaviour Weir takes on where it has a better one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Compat {
    /// Its own.
    Off,
    /// That of kube-proxy's nftables mode.
    KubeProxy,
}

const SOURCE: &str = "Objects";
const NODE: &str = "Node";
const L4: &str = "Services (L4)";
const L7: &str = "Ingress (L7)";
const ASKING: &str = "Health, metrics, admin";
const LOGS: &str = "Logs";

/// The arguments of `weir run`, parsed one by one; [`super::Config`] checks them together.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// YAML file with these flags as keys; flag beats variable WEIR_<FLAG> beats file
    #[arg(long, env = "WEIR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Read objects from this file or folder in place of the API server; watched
    #[arg(long, short = 'f', env = "WEIR_MANIFESTS", value_name = "PATH", value_delimiter = ',', help_heading = SOURCE)]
    pub manifests: Vec<PathBuf>,
    /// Kubeconfig of the API server [default: in-cluster, then $KUBECONFIG]
    #[arg(long, env = "WEIR_KUBECONFIG", value_name = "FILE", conflicts_with = "manifests", help_heading = SOURCE)]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server
    #[arg(long, env = "WEIR_APISERVER", value_name = "URL", aliases = ["server", "master"], conflicts_with = "manifests", help_heading = SOURCE)]
    pub apiserver: Option<String>,
    /// Where ClusterIPs come from when manifests leave them out
    #[arg(long, env = "WEIR_SERVICE_CIDR", value_name = "CIDR,…", default_value = "10.96.0.0/16,fd00:10:96::/112", help_heading = SOURCE)]
    pub service_cidr: Cidrs,
    /// Accept endpoints in this prefix although they are refused otherwise (loopback, …); repeatable
    #[arg(long, env = "WEIR_ALLOW_ENDPOINT_CIDR", value_name = "CIDR", value_parser = cidr, value_delimiter = ',', help_heading = SOURCE)]
    pub allow_endpoint_cidr: Vec<IpNet>,

    /// Name of our Node [default: $NODE_NAME, then the host's name]
    #[arg(long, env = "WEIR_NODE_NAME", value_name = "NAME", alias = "hostname-override", help_heading = NODE)]
    pub node_name: Option<String>,
    /// Admin socket, lock, last known API server addresses
    #[arg(long, env = "WEIR_STATE_DIR", value_name = "PATH", default_value = config::STATE_DIR, help_heading = NODE)]
    pub state_dir: PathBuf,

    /// Program Services; off needs no privilege at all
    #[arg(long, env = "WEIR_L4", value_name = "on|off", value_parser = on_off, default_value = "on", help_heading = L4)]
    pub l4: Onoff,
    /// Devices whose packets are balanced; auto: every non-pod device with a global address
    #[arg(long, env = "WEIR_DEVICES", value_name = "auto|IF,…", default_value = "auto", help_heading = L4)]
    pub devices: Devices,
    /// Host-side links of pods, followed live
    #[arg(long, env = "WEIR_POD_DEVICES", value_name = "auto|off", value_enum, default_value = "auto", help_heading = L4)]
    pub pod_devices: AutoOff,
    /// XDP in front of tc; auto: native, on network cards that have it
    #[arg(long, env = "WEIR_XDP", value_name = "MODE", value_enum, default_value = "auto", help_heading = L4)]
    pub xdp: Xdp,
    /// How programs are put on devices; clsact is there to try the older way on a newer kernel
    #[arg(long, env = "WEIR_TC_ATTACH", value_name = "MODE", value_enum, default_value = "auto", hide = true, help_heading = L4)]
    pub tc_attach: TcAttach,
    /// Translate at connect() and sendmsg(); host: only of programs of the host, pods by packet [default: on, with --compat kube-proxy host]
    #[arg(long, env = "WEIR_SOCKET_LB", value_name = "on|off|host", value_parser = socket_lb, help_heading = L4)]
    pub socket_lb: Option<SocketLb>,
    /// Control group whose sockets are translated [default: the cgroup2 root wherever it is mounted]
    #[arg(long, env = "WEIR_CGROUP", value_name = "PATH", help_heading = L4)]
    pub cgroup: Option<PathBuf>,
    /// Source ports given to flows that do not keep theirs, one or two ranges beside the ephemeral ports
    #[arg(long, env = "WEIR_SNAT_PORT_RANGE", value_name = "A-B,…", default_value = "10000-29999,61000-65535", help_heading = L4)]
    pub snat_port_range: PortRanges,
    /// Flows that can be remembered [default: by memory]
    #[arg(long, env = "WEIR_CONNTRACK_MAX", value_name = "N", value_parser = clap::value_parser!(u32).range(1024..), help_heading = L4)]
    pub conntrack_max: Option<u32>,
    /// Serve externalIPs, all or only those in these prefixes
    #[arg(long, env = "WEIR_EXTERNAL_IPS", value_name = "on|off|CIDR,…", value_parser = external_ips, default_value = "on", help_heading = L4)]
    pub external_ips: ExternalIps,
    /// Ports of this node that no Service may take from it [default: 22, kubelet, API server, own ports]
    #[arg(long, env = "WEIR_PROTECTED_PORTS", value_name = "LIST", help_heading = L4)]
    pub protected_ports: Option<Ports>,
    /// Addresses of this node on which node ports answer; all follows every local address live
    #[arg(long, env = "WEIR_NODEPORT_ADDRESSES", value_name = "primary|all|CIDR,…", default_value = "primary", help_heading = L4)]
    pub nodeport_addresses: NodePortAddresses,
    /// Range that node ports are from
    #[arg(long, env = "WEIR_NODEPORT_RANGE", value_name = "A-B", value_parser = port_range, default_value = "30000-32767", alias = "service-node-port-range", help_heading = L4)]
    pub nodeport_range: PortRange,
    /// What counts as a pod [default: this node's Pods and Node.spec.podCIDRs]
    #[arg(long, env = "WEIR_CLUSTER_CIDR", value_name = "CIDR,…", help_heading = L4)]
    pub cluster_cidr: Option<Cidrs>,
    /// Masquerade all traffic to ClusterIPs
    #[arg(long, env = "WEIR_MASQUERADE_ALL", value_name = "on|off", value_parser = on_off, num_args = 0..=1, require_equals = true, default_value = "off", default_missing_value = "on", help_heading = L4)]
    pub masquerade_all: Onoff,
    /// Masquerade what comes to external frontends of externalTrafficPolicy Cluster, also to endpoints of this node [default: off, with --compat kube-proxy on]
    #[arg(long, env = "WEIR_MASQUERADE_EXTERNAL", value_name = "on|off", value_parser = on_off, num_args = 0..=1, require_equals = true, default_missing_value = "on", help_heading = L4)]
    pub masquerade_external: Option<Onoff>,
    /// Behave as kube-proxy's nftables mode where Weir would do better: sets the defaults of other flags
    #[arg(long, env = "WEIR_COMPAT", value_name = "off|kube-proxy", value_enum, default_value = "off", help_heading = L4)]
    pub compat: Compat,
    /// BPF filesystem; pins live below weir/
    #[arg(long, env = "WEIR_BPFFS", value_name = "PATH", default_value = config::BPFFS, help_heading = L4)]
    pub bpffs: PathBuf,

    /// Serve Ingress
    #[arg(long, env = "WEIR_L7", value_name = "on|off", value_parser = on_off, default_value = "on", help_heading = L7)]
    pub l7: Onoff,
    /// HTTP listener; repeatable
    #[arg(long, env = "WEIR_HTTP_LISTEN", value_name = "ADDR:PORT", value_delimiter = ',', default_value = "[::]:80", help_heading = L7)]
    pub http_listen: Vec<SocketAddr>,
    /// HTTPS listener; repeatable
    #[arg(long, env = "WEIR_HTTPS_LISTEN", value_name = "ADDR:PORT", value_delimiter = ',', default_value = "[::]:443", help_heading = L7)]
    pub https_listen: Vec<SocketAddr>,
    /// Threads that serve requests [default: number of cores]
    #[arg(long, env = "WEIR_PROXY_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = L7)]
    pub proxy_workers: Option<u16>,
    /// spec.controller of the IngressClasses that are ours; repeatable
    #[arg(long, env = "WEIR_INGRESS_CONTROLLER", value_name = "NAME", value_delimiter = ',', default_value = "weir.dev/ingress", alias = "controller-class", help_heading = L7)]
    pub ingress_controller: Vec<String>,
    /// Serve Ingresses without a class
    #[arg(long, env = "WEIR_WATCH_INGRESS_WITHOUT_CLASS", value_name = "on|off", value_parser = on_off, num_args = 0..=1, require_equals = true, default_value = "off", default_missing_value = "on", help_heading = L7)]
    pub watch_ingress_without_class: Onoff,
    /// Serve Ingresses of this namespace only [default: all]
    #[arg(long, env = "WEIR_WATCH_NAMESPACE", value_name = "NS", help_heading = L7)]
    pub watch_namespace: Option<String>,
    /// Certificate for names without one [default: self-signed at start]
    #[arg(long, env = "WEIR_DEFAULT_SSL_CERTIFICATE", value_name = "NS/NAME", value_parser = object_key, help_heading = L7)]
    pub default_ssl_certificate: Option<ObjectKey>,
    /// Service whose addresses go into status.loadBalancer
    #[arg(long, env = "WEIR_PUBLISH_SERVICE", value_name = "NS/NAME", value_parser = object_key, help_heading = L7)]
    pub publish_service: Option<ObjectKey>,
    /// Addresses that go into status.loadBalancer [default: those of ready nodes]
    #[arg(long, env = "WEIR_PUBLISH_STATUS_ADDRESS", value_name = "IP|HOST,…", value_parser = status_address, value_delimiter = ',', help_heading = L7)]
    pub publish_status_address: Vec<StatusAddress>,
    /// Labels of the nodes whose addresses go into status.loadBalancer: those that serve Ingress
    #[arg(long, env = "WEIR_PUBLISH_NODE_SELECTOR", value_name = "SELECTOR", default_value = "weir.dev/l7!=off,kubernetes.io/os!=windows", help_heading = L7)]
    pub publish_node_selector: String,
    /// Write status.loadBalancer
    #[arg(long, env = "WEIR_UPDATE_STATUS", value_name = "on|off", value_parser = on_off, default_value = "on", help_heading = L7)]
    pub update_status: Onoff,
    /// Senders whose forwarding headers are believed
    #[arg(long, env = "WEIR_TRUSTED_PROXIES", value_name = "CIDR,…", help_heading = L7)]
    pub trusted_proxies: Option<Cidrs>,
    /// Largest body of a request, in bytes or with k, m or g; 0: any
    #[arg(long, env = "WEIR_PROXY_BODY_SIZE", value_name = "SIZE", value_parser = size, default_value = "1m", help_heading = L7)]
    pub proxy_body_size: u64,
    /// Serve Services of type ExternalName: their names are looked up by this agent
    #[arg(long, env = "WEIR_EXTERNAL_NAMES", value_name = "on|off", value_parser = on_off, default_value = "on", help_heading = L7)]
    pub external_names: Onoff,
    /// Longest that open requests are waited for at the end
    #[arg(long, env = "WEIR_DRAIN_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "240s", help_heading = L7)]
    pub drain_timeout: Duration,
    /// From the wish to end until connections are refused, for load balancers to notice
    #[arg(long, env = "WEIR_DRAIN_DELAY", value_name = "TIME", value_parser = duration, default_value = "3s", help_heading = L7)]
    pub drain_delay: Duration,
    /// User and group that requests are served as
    #[arg(long, env = "WEIR_PROXY_USER", value_name = "ID", value_parser = clap::value_parser!(u32).range(1..), default_value = "65532", hide = true, help_heading = L7)]
    pub proxy_user: u32,
    /// Where requests are logged
    #[arg(long, env = "WEIR_ACCESS_LOG", value_name = "off|FILE|-", default_value = "-", help_heading = L7)]
    pub access_log: AccessLog,
    /// How requests are logged
    #[arg(long, env = "WEIR_ACCESS_LOG_FORMAT", value_name = "FORM", value_enum, default_value = "nginx", help_heading = L7)]
    pub access_log_format: AccessLogFormat,

    /// Serves /healthz, /livez and /readyz
    #[arg(long, env = "WEIR_HEALTHZ_LISTEN", value_name = "ADDR:PORT", value_parser = listen, default_value = "[::]:10256", alias = "healthz-bind-address", help_heading = ASKING)]
    pub healthz_listen: SocketAddr,
    /// Serves /metrics and /proxyMode
    #[arg(long, env = "WEIR_METRICS_LISTEN", value_name = "ADDR:PORT", value_parser = listen, default_value = "127.0.0.1:10249", alias = "metrics-bind-address", help_heading = ASKING)]
    pub metrics_listen: SocketAddr,
    /// Unix socket that `weir status` and its sisters ask [default: admin.sock in the state folder]
    #[arg(long, env = "WEIR_ADMIN_SOCKET", value_name = "PATH", help_heading = ASKING)]
    pub admin_socket: Option<PathBuf>,

    /// Least level that is logged
    #[arg(long, env = "WEIR_LOG_LEVEL", value_name = "LEVEL", value_enum, default_value = "info", help_heading = LOGS)]
    pub log_level: LogLevel,
    /// Form of log lines
    #[arg(long, env = "WEIR_LOG_FORMAT", value_name = "FORM", value_enum, default_value = "text", help_heading = LOGS)]
    pub log_format: LogFormat,
    /// Log of the eBPF programs; costs nothing when off
    #[arg(long, env = "WEIR_BPF_LOG", value_name = "LEVEL", value_enum, default_value = "off", help_heading = LOGS)]
    pub bpf_log: LogLevel,

    /// What this process is for; set by `weir run` itself
    #[arg(long, value_name = "ROLE", value_enum, hide = true)]
    pub role: Option<Role>,
}
