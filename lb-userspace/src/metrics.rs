//! Counters and histograms, in the Prometheus text format.
//!
//! Names are `lb_<part>_<what>_<unit>`; beside them stand kube-proxy's names where Weir has
//! the same value, so that dashboards go on working (S58). Labels are closed sets and
//! Service names, never an address. What the data path counts is read when asked for.

use crate::datapath::MapFill;
use crate::problem::{Kind, ObjectKey, Problem};
use crate::takeover::Carried;
use lb_common::abi::{DropReason, PassReason, Reason, ServiceCounters};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

mod ingress;

pub use ingress::{L7Reading, SERIES};

/// Values of kube-proxy's label `ip_family`.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

type Labels = Vec<(&'static str, String)>;

/// What is read at the moment of asking.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// By [`Reason`] slot.
    pub counters: Vec<u64>,
    pub fill: Vec<MapFill>,
    pub services: BTreeMap<ObjectKey, ServiceCounters>,
    pub problems: Vec<Problem>,
    /// Services, frontends, backends that are programmed.
    pub programmed: [usize; 3],
    pub pending_ops: usize,
    /// Services and endpoint slices whose change is not programmed yet.
    pub changes_pending: [usize; 2],
    /// IPv4, IPv6: Service ports whose internal, external policy is Local and that have no
    /// endpoint on this node, though elsewhere.
    pub without_local: [[u32; 2]; 2],
    /// Sockets of health check node ports: open, not open.
    pub health_ports: [u32; 2],
    /// Flows that netfilter goes on with.
    pub carried: Carried,
    /// `None`: `--l7 off`.
    pub l7: Option<L7Reading>,
}

impl Reading {
    /// Gauges by kube-proxy's names.
    fn encode_as_kube_proxy(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (what, help, pending) in [
            ("service", "Services whose change is not programmed yet", self.changes_pending[0]),
            ("endpoint", "Endpoint slices whose change is not programmed yet", self.changes_pending[1]),
        ] {
            let pending = u32::try_from(pending).unwrap_or(u32::MAX);
            let rows = FAMILIES.map(|family| ([("ip_family", family)], pending));
            gauges(encoder, &format!("kubeproxy_sync_proxy_rules_{what}_changes_pending"), help, rows)?;
        }
        gauges(
            encoder,
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Service ports with policy Local and endpoints on other nodes only",
            FAMILIES.into_iter().zip(self.without_local).flat_map(|(family, counts)| {
                let policies = ["internal", "external"].into_iter().zip(counts);
                policies.map(move |(policy, n)| ([("ip_family", family), ("traffic_policy", policy)], n))
            }),
        )
    }
}

/// What one round did, for the histograms.
#[derive(Clone, Debug, Default)]
pub struct Round {
    pub took: Duration,
    /// Every Service was looked at.
    pub full: bool,
    /// From hearing of the oldest change to the end of the round.
    pub since_event: Option<Duration>,
    /// From the cause of an endpoint change, as its slice says, to the end of the round (S59).
    pub since_trigger: Vec<Duration>,
    pub services: u64,
    pub endpoints: u64,
    pub ops: u64,
    pub failed: u64,
    pub stages: Stages,
}

/// Where the time of a round went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stages {
    /// Folding changes into the objects.
    pub objects: Duration,
    /// Recomputing the desired state.
    pub model: Duration,
    pub plan: Duration,
    /// Writing the maps.
    pub apply: Duration,
    /// Facts of the node, hooks.
    pub node: Duration,
}

impl Stages {
    fn each(&self) -> [(&'static str, Duration); 5] {
        [
            ("objects", self.objects),
            ("model", self.model),
            ("plan", self.plan),
            ("apply", self.apply),
            ("node", self.node),
        ]
    }
}

/// The registry and the metrics that the agent itself writes.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    reading: Arc<Latest>,
    round_seconds: Histogram,
    event_seconds: Histogram,
    stages: Family<Labels, Counter<f64, AtomicU64>>,
    ops: Family<Labels, Counter>,
    expired: Counter,
    sockets_ended: Counter,
    healthz: Family<Labels, Counter>,
    livez: Family<Labels, Counter>,
    proxy_rounds: Family<Labels, Histogram>,
    proxy_full_rounds: Family<Labels, Histogram>,
    proxy_partial_rounds: Family<Labels, Histogram>,
    programming: Family<Labels, Histogram>,
    proxy_sweeps: Family<Labels, Histogram>,
    proxy_swept: Family<Labels, Counter>,
    last_sync: Family<Labels, Gauge<f64, AtomicU64>>,
    last_queued: Family<Labels, Gauge<f64, AtomicU64>>,
    service_changes: Family<Labels, Counter>,
    endpoint_changes: Family<Labels, Counter>,
}

/// 100 µs to 1 s, as fine as the target of 1 ms asks (S79), then to a minute.
fn fine() -> Histogram {
    Histogram::new([
        0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1,
        0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
    ])
}

/// kube-proxy's buckets of its sync durations: 1 ms, doubled 15 times.
fn proxy_sync() -> Histogram {
    Histogram::new((0..15).map(|n| 0.001 * f64::from(1 << n)))
}

/// kube-proxy's buckets of the network programming latency: 0.25 s to 5 min.
fn proxy_programming() -> Histogram {
    let range = |from: u32, step: usize, to: u32| (from..=to).step_by(step).map(f64::from);
    Histogram::new(
        [0.25, 0.5].into_iter().chain(range(1, 1, 59)).chain(range(60, 5, 115)).chain(range(120, 30, 300)),
    )
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Mutex::default(),
            reading: Arc::default(),
            round_seconds: fine(),
            event_seconds: fine(),
            stages: Family::default(),
            ops: Family::default(),
            expired: Counter::default(),
            sockets_ended: Counter::default(),
            healthz: Family::default(),
            livez: Family::default(),
            proxy_rounds: Family::new_with_constructor(proxy_sync),
            proxy_full_rounds: Family::new_with_constructor(proxy_sync),
            proxy_partial_rounds: Family::new_with_constructor(proxy_sync),
            programming: Family::new_with_constructor(proxy_programming),
            proxy_sweeps: Family::new_with_constructor(proxy_sync),
            proxy_swept: Family::default(),
            last_sync: Family::default(),
            last_queued: Family::default(),
            service_changes: Family::default(),
            endpoint_changes: Family::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let build: Family<Labels, Gauge> = Family::default();
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").into())]).set(1);
        registry.register("lb_agent_build_info", "Version of the agent", build);
        registry.register("lb_reconcile_round_seconds", "Duration of a round", self.round_seconds.clone());
        registry.register(
            "lb_reconcile_event_to_maps_seconds",
            "From hearing of a change to its being in the maps",
            self.event_seconds.clone(),
        );
        registry.register(
            "lb_reconcile_stage_seconds",
            "Time spent in rounds, by stage",
            self.stages.clone(),
        );
        registry.register("lb_reconcile_ops", "Map operations, by result", self.ops.clone());
        registry.register("lb_flows_expired", "Flows removed after their idle time", self.expired.clone());
        registry.register(
            "lb_sockets_ended",
            "Connected UDP sockets of the host that were ended as their backend is gone",
            self.sockets_ended.clone(),
        );
        registry.register("kubeproxy_proxy_healthz", "Answers of /healthz, by code", self.healthz.clone());
        registry.register("kubeproxy_proxy_livez", "Answers of /livez, by code", self.livez.clone());
        for (name, help, family) in [
            ("sync_proxy_rules", "Duration of a round", &self.proxy_rounds),
            ("sync_full_proxy_rules", "Duration of a round over all Services", &self.proxy_full_rounds),
            (
                "sync_partial_proxy_rules",
                "Duration of a round over changed Services",
                &self.proxy_partial_rounds,
            ),
            (
                "network_programming",
                "From the trigger of an endpoint change to its being in the maps",
                &self.programming,
            ),
            ("conntrack_reconciler_sync", "Duration of a sweep over the flows", &self.proxy_sweeps),
        ] {
            registry.register(format!("kubeproxy_{name}_duration_seconds"), help, family.clone());
        }
        for (name, help, family) in [
            ("last_timestamp", "When the last round ended", &self.last_sync),
            ("last_queued_timestamp", "When a round was last asked for", &self.last_queued),
        ] {
            registry.register(format!("kubeproxy_sync_proxy_rules_{name}_seconds"), help, family.clone());
        }
        registry.register(
            "kubeproxy_sync_proxy_rules_service_changes",
            "Services looked at after a change",
            self.service_changes.clone(),
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_endpoint_changes",
            "Endpoint slices that changed",
            self.endpoint_changes.clone(),
        );
        registry.register(
            "kubeproxy_conntrack_reconciler_deleted_entries",
            "Entries of flows that sweeps removed",
            self.proxy_swept.clone(),
        );
        registry.register_collector(Box::new(Arc::clone(&self.reading)));
    }

    /// Counts a round.
    pub fn round(&self, round: &Round) {
        let seconds = round.took.as_secs_f64();
        self.round_seconds.observe(seconds);
        let now = crate::board::now_ms() as f64 / 1000.0;
        if let Some(latency) = round.since_event {
            self.event_seconds.observe(latency.as_secs_f64());
        }
        for (stage, took) in round.stages.each() {
            self.stage(stage, took);
        }
        self.ops
            .get_or_create(&vec![("result", "done".into())])
            .inc_by(round.ops.saturating_sub(round.failed));
        self.ops.get_or_create(&vec![("result", "failed".into())]).inc_by(round.failed);
        for family in FAMILIES {
            let labels = vec![("ip_family", family.to_string())];
            self.proxy_rounds.get_or_create(&labels).observe(seconds);
            let kind = if round.full { &self.proxy_full_rounds } else { &self.proxy_partial_rounds };
            kind.get_or_create(&labels).observe(seconds);
            for latency in &round.since_trigger {
                self.programming.get_or_create(&labels).observe(latency.as_secs_f64());
            }
            self.last_sync.get_or_create(&labels).set(now);
            let queued = round.since_event.unwrap_or(round.took).as_secs_f64();
            self.last_queued.get_or_create(&labels).set(now - queued);
            self.service_changes.get_or_create(&labels).inc_by(round.services);
            self.endpoint_changes.get_or_create(&labels).inc_by(round.endpoints);
        }
    }

    /// Counts a comparison of everything with what the kernel holds.
    pub fn checked(&self, took: Duration) {
        self.stage("check", took);
    }

    fn stage(&self, stage: &str, took: Duration) {
        self.stages.get_or_create(&vec![("stage", stage.into())]).inc_by(took.as_secs_f64());
    }

    /// Counts a sweep over the flows; `expired` entries of IPv4 and IPv6 flows.
    pub fn swept(&self, took: Duration, expired: [u64; 2]) {
        self.expired.inc_by(expired.iter().sum());
        for (family, expired) in FAMILIES.into_iter().zip(expired) {
            let labels = vec![("ip_family", family.to_string())];
            self.proxy_sweeps.get_or_create(&labels).observe(took.as_secs_f64());
            self.proxy_swept.get_or_create(&labels).inc_by(expired);
        }
    }

    pub fn sockets_ended(&self, sockets: u64) {
        self.sockets_ended.inc_by(sockets);
    }

    pub fn healthz(&self, code: u16) {
        self.healthz.get_or_create(&vec![("code", code.to_string())]).inc();
    }

    pub fn livez(&self, code: u16) {
        self.livez.get_or_create(&vec![("code", code.to_string())]).inc();
    }

    /// All metrics as text; `None` for a reading repeats the last one.
    pub fn text(&self, reading: Option<Reading>) -> String {
        if let Some(reading) = reading {
            *self.reading.0.lock().unwrap_or_else(PoisonError::into_inner) = reading;
        }
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String cannot fail.
        let _written = encode(&mut text, &registry);
        text
    }
}

/// The last reading.
#[derive(Debug, Default)]
struct Latest(Mutex<Reading>);

impl Collector for Latest {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = |slot: u32| reading.counters.get(slot as usize).copied().unwrap_or(0);
        let verdicts = PassReason::ALL.iter().map(|r| ("pass", r.label(), slot(r.slot())));
        let drops = DropReason::ALL.iter().map(|r| ("drop", r.label(), slot(r.slot())));
        counters(
            &mut encoder,
            "lb_datapath_verdicts",
            "Packets and connects, by verdict and reason",
            verdicts.chain(drops).map(|(verdict, reason, n)| ([("verdict", verdict), ("reason", reason)], n)),
        )?;
        counters(
            &mut encoder,
            "lb_datapath_events",
            "Things that decide no packet",
            Reason::ALL.iter().map(|r| ([("event", r.label())], slot(r.slot()))),
        )?;
        for (name, help, value) in [
            ("lb_map_used_entries", "Entries in use", (|fill| fill.used) as fn(&MapFill) -> u32),
            ("lb_map_capacity_entries", "Entries that there is room for", |fill| fill.capacity),
        ] {
            gauges(
                &mut encoder,
                name,
                help,
                reading.fill.iter().map(|fill| ([("map", fill.map)], value(fill))),
            )?;
        }
        let mut problems: BTreeMap<Kind, u32> = BTreeMap::new();
        for problem in &reading.problems {
            *problems.entry(problem.object.kind).or_default() += 1;
        }
        gauges(
            &mut encoder,
            "lb_agent_problems_count",
            "Problems, by kind of object",
            problems.iter().map(|(kind, count)| ([("kind", kind.to_string())], *count)),
        )?;
        let pending = u32::try_from(reading.pending_ops).unwrap_or(u32::MAX);
        gauges(
            &mut encoder,
            "lb_reconcile_pending_count",
            "Services to be tried again",
            [([("why", "failed")], pending)],
        )?;
        gauges(
            &mut encoder,
            "lb_service_health_sockets_count",
            "Sockets of healthCheckNodePorts, by state",
            ["open", "failed"]
                .into_iter()
                .zip(reading.health_ports)
                .map(|(state, n)| ([("state", state)], n)),
        )?;
        let kinds = ["service", "frontend", "backend"];
        gauges(
            &mut encoder,
            "lb_reconcile_programmed_count",
            "What is programmed, by kind",
            kinds
                .into_iter()
                .zip(reading.programmed)
                .map(|(kind, n)| ([("kind", kind)], u32::try_from(n).unwrap_or(u32::MAX))),
        )?;
        let Carried { tcp, udp } = reading.carried;
        gauges(
            &mut encoder,
            "lb_takeover_flows",
            "Flows of a kube-proxy that netfilter goes on with",
            [("tcp", tcp), ("udp", udp)]
                .map(|(proto, n)| ([("protocol", proto)], u32::try_from(n).unwrap_or(u32::MAX))),
        )?;
        reading.encode_as_kube_proxy(&mut encoder)?;
        if let Some(l7) = &reading.l7 {
            l7.encode(&mut encoder)?;
        }
        let service = |key: &ObjectKey| ("service", key.to_string());
        counters(
            &mut encoder,
            "lb_service_flows",
            "New flows, by Service and by the path that translated them",
            reading.services.iter().flat_map(|(key, counters)| {
                [("packet", counters.packet_flows), ("socket", counters.socket_flows)]
                    .map(|(path, n)| ([service(key), ("path", path.to_string())], n))
            }),
        )?;
        counters(
            &mut encoder,
            "lb_service_refused",
            "New flows refused or dropped, by Service",
            reading.services.iter().flat_map(|(key, counters)| {
                [("no_endpoint", counters.no_endpoint), ("other", counters.dropped)]
                    .map(|(reason, n)| ([service(key), ("reason", reason.to_string())], n))
            }),
        )
    }
}

fn counters<L: prometheus_client::encoding::EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in rows {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauges<L: prometheus_client::encoding::EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, u32)>,
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_row_and_no_label_holds_an_address() {
        let metrics = Metrics::default();
        let stages = Stages { apply: Duration::from_millis(250), ..Stages::default() };
        metrics.round(&Round {
            since_event: Some(Duration::from_micros(300)),
            ops: 3,
            stages,
            ..Round::default()
        });
        metrics.checked(Duration::from_millis(500));
        metrics.swept(Duration::from_millis(3), [4, 2]);
        metrics.sockets_ended(8);
        let mut counters = vec![0; Reason::COUNT as usize];
        counters[DropReason::NoEndpoint.slot() as usize] = 7;
        let flows = ServiceCounters { packet_flows: 5, ..ServiceCounters::default() };
        let services = BTreeMap::from([(ObjectKey::new("default", "web"), flows)]);
        let fill = vec![MapFill { map: "FLOWS", used: 1, capacity: 2 }];
        let l7 = L7Reading { hosts: 3, first_expiry: Some(1_900_000_000), ..L7Reading::default() };
        let l7 = Some(l7);
        let text = metrics.text(Some(Reading {
            counters,
            services,
            fill,
            l7,
            health_ports: [2, 3],
            changes_pending: [4, 5],
            without_local: [[0, 6], [7, 0]],
            ..Reading::default()
        }));
        for line in [
            "lb_datapath_verdicts_total{verdict=\"drop\",reason=\"no_endpoint\"} 7",
            "lb_service_flows_total{service=\"default/web\",path=\"packet\"} 5",
            "lb_l7_published_count{kind=\"host\"} 3",
            "lb_l7_first_certificate_expiry_timestamp_seconds{of=\"served\"} 1900000000",
            "lb_map_used_entries{map=\"FLOWS\"} 1",
            "lb_service_health_sockets_count{state=\"failed\"} 3",
            "lb_reconcile_ops_total{result=\"done\"} 3",
            "lb_reconcile_event_to_maps_seconds_bucket{le=\"0.0005\"} 1",
            "lb_reconcile_stage_seconds_total{stage=\"apply\"} 0.25",
            "lb_reconcile_stage_seconds_total{stage=\"check\"} 0.5",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_pending{ip_family=\"IPv6\"} 4",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family=\"IPv4\"} 5",
            "no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 6",
            "no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"internal\"} 7",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 2",
            "lb_flows_expired_total 6",
            "lb_sockets_ended_total 8",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        for reason in DropReason::ALL {
            assert!(text.contains(&format!("reason=\"{}\"", reason.label())));
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
