//! From the configuration to the parts.

use crate::args::value::{Devices, NodePortAddresses, SocketLb};
use crate::args::{ApiConfig, Config, L4Config, LogLevel, SourceKind, Xdp};
use crate::board::{Board, agent_problem};
use crate::cgroup;
use crate::datapath::bpf::Bpf;
use crate::datapath::loader::{self, LoadOptions, XdpPolicy};
use crate::datapath::sim::Sim;
use crate::datapath::{Capacity, Datapath};
use crate::node::Options;
use crate::problem::ObjectKey;
use crate::problem::Problem;
use crate::service_health;
use crate::source::dir::{DirOptions, DirSource};
use crate::source::fill::FillConfig;
use crate::source::kube::{ClientOptions, IngressOptions, KubeOptions, KubeSource};
use crate::source::{Batches, Syncs};
use crate::status::{self, Publish};
use anyhow::Context;
use ipnet::IpNet;
use lb_common::abi::capacity;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Failures that may wait to become Events.
const FAILURES: usize = 64;

/// How the programs are loaded; `None`: not at all (`--l4 off`).
fn load_options(config: &Config) -> anyhow::Result<Option<LoadOptions>> {
    let Some(l4) = &config.l4 else { return Ok(None) };
    let cgroup = match (l4.socket_lb, &l4.cgroup) {
        (SocketLb::Off, _) => None,
        (SocketLb::On | SocketLb::Host, asked) => Some(cgroup::root(asked.as_deref())?),
    };
    Ok(Some(LoadOptions {
        bpffs: l4.bpffs.clone(),
        cgroup,
        host_sockets: l4.socket_lb == SocketLb::Host,
        xdp: match l4.xdp {
            Xdp::Auto => XdpPolicy::Auto,
            Xdp::Native => XdpPolicy::Native,
            Xdp::Generic => XdpPolicy::Generic,
            Xdp::Off => XdpPolicy::Off,
        },
        snat: l4.snat,
        masquerade_all: l4.masquerade_all,
        cluster_cidrs: l4.cluster_cidrs.is_some(),
        capacity: capacity(l4.conntrack_max),
        log_level: log_level(l4),
        clsact: l4.clsact,
        verbose: false,
    }))
}

/// The kernel's data path, or one in memory that no packet sees (`--l4 off`).
pub(super) fn datapath(config: &Config) -> anyhow::Result<Box<dyn Datapath>> {
    let Some(options) = load_options(config)? else {
        tracing::info!("L4 is off: Services are looked at, nothing is programmed");
        return Ok(Box::new(Sim::new(capacity(None))));
    };
    let mut bpf = Bpf::new(options).context("the data path cannot be loaded")?;
    if config.l4.as_ref().is_some_and(|l4| l4.bpf_log != LogLevel::Off) {
        crate::datapath::log::follow(&mut bpf)?;
    }
    Ok(Box::new(bpf))
}

/// Whether [`datapath`] would work, found out beside the agent that is at work.
pub(super) fn rehearse(config: &Config) -> anyhow::Result<()> {
    let Some(options) = load_options(config)? else { return Ok(()) };
    loader::rehearse(&options)
}

/// What was asked for and cannot be had with the maps that an earlier agent left.
pub(super) fn not_honoured(config: &Config, datapath: &dyn Datapath) -> Vec<Problem> {
    let Some(asked) = config.l4.as_ref().and_then(|l4| l4.conntrack_max) else { return Vec::new() };
    let (asked, there) = (capacity(Some(asked)).flows, datapath.capacity().flows);
    if asked == there {
        return Vec::new();
    }
    let (asked, there) = (asked / 2, there / 2);
    vec![agent_problem(
        "--conntrack-max",
        format!(
            "an earlier agent made room for {there} flows, not {asked}, and open ones are in it: it stays \
             until `weir cleanup` or the next boot"
        ),
    )]
}

/// aya-log's numbers.
fn log_level(l4: &L4Config) -> u8 {
    match l4.bpf_log {
        LogLevel::Off => 0,
        LogLevel::Error => 1,
        LogLevel::Warn => 2,
        LogLevel::Info => 3,
        LogLevel::Debug => 4,
        LogLevel::Trace => 5,
    }
}

/// Sizes of the maps. A flow is two entries, one for each direction.
fn capacity(conntrack_max: Option<u32>) -> Capacity {
    let entries = match conntrack_max {
        Some(flows) => flows.saturating_mul(2),
        None => by_memory(),
    };
    Capacity {
        frontends: capacity::FRONTENDS as u32,
        backends: capacity::BACKENDS as u32,
        table_blocks: capacity::TABLE_BLOCKS as u32,
        flows: entries,
        // Preallocated by the kernel, unlike the others.
        transient: (entries / 8).clamp(capacity::TRANSIENT as u32, 262_144),
        services: capacity::SERVICES as u32,
        prefixes: capacity::PREFIXES as u32,
    }
}

/// 1/64 of the memory at about 160 bytes an entry, within netfilter's usual bounds (S67).
fn by_memory() -> u32 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let entries = total.unwrap_or(0) * 1024 / 64 / 160;
    u32::try_from(entries).unwrap_or(u32::MAX).clamp(capacity::FLOWS as u32, 2_097_152)
}

pub(super) fn node_options(config: &Config) -> Options {
    config.l4.as_ref().map_or(
        Options { devices: Devices::Auto, pod_devices: true, nodeport_addresses: NodePortAddresses::Primary },
        Options::from,
    )
}

/// Ranges of ClusterIPs, as far as they are known.
pub(super) fn service_cidrs(config: &Config) -> Vec<IpNet> {
    match &config.source.kind {
        SourceKind::Manifests { service_cidrs, .. } => service_cidrs.clone(),
        SourceKind::Api(_) => Vec::new(),
    }
}

/// How the API server is found.
fn client(config: &Config, api: &ApiConfig) -> ClientOptions {
    ClientOptions {
        kubeconfig: api.kubeconfig.clone(),
        apiserver: api.server.clone(),
        state_dir: config.state_dir.clone(),
        ..ClientOptions::default()
    }
}

/// How statuses and Events are written; `None` where there is no API server or no L7.
pub(super) fn status(config: &Config) -> Option<status::Options> {
    let (SourceKind::Api(api), Some(l7)) = (&config.source.kind, &config.l7) else { return None };
    Some(status::Options {
        client: client(config, api),
        node_name: config.node_name.clone(),
        publish: l7.publish.update.then(|| Publish::from(&l7.publish)),
        manager: status::manager(&l7.controllers),
    })
}

/// Serves the health checks of Services, and writes Events about those that cannot be; answers
/// where to say which there are. Without L4 nothing here has endpoints to tell of.
pub(super) fn service_health(
    tasks: &mut JoinSet<()>,
    config: &Config,
    board: &Arc<Board>,
) -> watch::Sender<Arc<service_health::Wanted>> {
    let (sender, wanted) = watch::channel(Arc::default());
    if config.l4.is_none() {
        return sender;
    }
    let (failures, failed) = mpsc::channel(FAILURES);
    tasks.spawn(service_health::serve(wanted, Arc::clone(board), failures));
    if let SourceKind::Api(api) = &config.source.kind {
        let options =
            service_health::EventOptions { client: client(config, api), node_name: config.node_name.clone() };
        tasks.spawn(service_health::post(options, failed));
    }
    sender
}

/// Starts the source. `secrets` says which Secrets are needed.
pub(super) fn source(
    tasks: &mut JoinSet<()>,
    config: &Config,
    batches: Batches,
    secrets: watch::Receiver<BTreeSet<ObjectKey>>,
    syncs: Arc<Syncs>,
) -> anyhow::Result<()> {
    match &config.source.kind {
        SourceKind::Manifests { paths, service_cidrs } => {
            let service_cidrs = service_cidrs.iter().map(|cidr| cidr.trunc().to_string().parse());
            let service_cidrs = service_cidrs.collect::<Result<Vec<_>, _>>();
            let service_cidrs = service_cidrs.map_err(|error| anyhow::anyhow!("--service-cidr: {error}"))?;
            let range = config.source.nodeport_range;
            let fill = FillConfig { service_cidrs, node_ports: (range.first, range.last) };
            tasks.spawn(DirSource::new(DirOptions { paths: paths.clone(), fill }).run(batches, syncs));
        }
        SourceKind::Api(api) => {
            let client = client(config, api);
            let ingress = config.l7.as_ref();
            let ingress = ingress.map(|l7| IngressOptions { namespace: l7.watch_namespace.clone(), secrets });
            let options = KubeOptions { client, node_name: config.node_name.clone(), ingress };
            tasks.spawn(KubeSource::new(options).run(batches, syncs));
        }
    }
    Ok(())
}
