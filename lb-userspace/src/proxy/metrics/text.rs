//! A scrape: sums over workers, as rows.

use super::Shared;
use super::routes::{CLASSES, Routes, Series};
use super::shard::{Count, SIZES, Shard, TIMES, Total};
use crate::proxy::tls::{Expiry, Refused, Version};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt::Error;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Most certificates with an expiry of their own: the first to end.
const CERTIFICATES: usize = 100;

/// What the registry asks.
pub(super) struct Scrape(pub(super) Arc<Shared>);

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

/// A route's rows: its Ingress and Service as namespace and name, and its numbers.
struct Row {
    ingress: [String; 2],
    service: [String; 2],
    series: Arc<Series>,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let shared = &*self.0;
        let mut out = Out { encoder, shared };
        let rows = {
            let routes = shared.routes.lock().unwrap_or_else(PoisonError::into_inner);
            rows(&routes)
        };
        let mut expiries: Vec<Expiry> = Vec::new();
        if let Some(certificates) = &shared.certificates {
            certificates.tidy();
            expiries = certificates.expiries();
            expiries.sort_by_key(|expiry| expiry.identity.not_after);
        }
        out.connections()?;
        out.answers()?;
        out.certificates(&expiries)?;
        out.routes(&rows)?;
        if shared.options.nginx_names {
            out.nginx(&rows)?;
            out.nginx_certificates(&expiries)?;
        }
        Ok(())
    }
}

fn rows(routes: &Routes) -> Vec<Row> {
    let pair = |text: &str| [text.to_owned(), text.to_owned()];
    let none = Row { ingress: pair(""), service: pair(""), series: Arc::clone(&routes.none) };
    let other = Row { ingress: pair("other"), service: pair("other"), series: Arc::clone(&routes.other) };
    // Times of routes without details are under `other` as well.
    let has_other = routes.overflowed || routes.series.values().any(|series| series.details.is_empty());
    let own = routes.series.iter().map(|(name, series)| Row {
        ingress: [name.ingress.namespace.clone(), name.ingress.name.clone()],
        service: [name.service.namespace.clone(), name.service.name.clone()],
        series: Arc::clone(series),
    });
    own.chain(has_other.then_some(other)).chain([none]).collect()
}

impl Row {
    /// As `namespace/name`.
    fn joined([namespace, name]: &[String; 2]) -> String {
        if namespace == name && (name.is_empty() || name == "other") {
            name.clone()
        } else {
            format!("{namespace}/{name}")
        }
    }

    fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let sum = |class: usize| {
            let each = self.series.counters.iter().filter_map(move |shard| shard.requests.get(class));
            each.map(Count::get).sum::<u64>()
        };
        CLASSES.into_iter().enumerate().map(move |(at, class)| (class, sum(at))).filter(|(_, n)| *n > 0)
    }

    /// A histogram of all workers; `None`: nothing was observed.
    fn total<const N: usize>(
        &self,
        add: impl Fn(&super::routes::Details, &mut Total<N>),
    ) -> Option<Total<N>> {
        let mut total = Total::default();
        self.series.details.iter().for_each(|shard| add(shard, &mut total));
        (total.count() > 0).then_some(total)
    }
}

/// Writes families.
struct Out<'e, 's> {
    encoder: DescriptorEncoder<'e>,
    shared: &'s Shared,
}

impl Out<'_, '_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// `kind`: a gauge, or unknown for counters that are not to be called `_total`.
    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl IntoIterator<Item = (L, i64)>,
    ) -> Result<(), Error> {
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// `bounds` and sums are divided by `unit`.
    fn histograms<L: EncodeLabelSet, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        (bounds, unit): (&[u64], f64),
        rows: impl IntoIterator<Item = (L, Total<N>)>,
    ) -> Result<(), Error> {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        let bounds: Vec<f64> =
            bounds.iter().map(|bound| *bound as f64 / unit).chain([f64::INFINITY]).collect();
        for (labels, total) in rows {
            let buckets: Vec<_> = bounds.iter().copied().zip(total.buckets).collect();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                total.sum as f64 / unit,
                total.count(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn sum(&self, of: impl Fn(&Shard) -> &Count) -> u64 {
        self.shared.shards.iter().map(|shard| of(shard).get()).sum()
    }

    /// What is open: two sums that are read one after the other may cross.
    fn open(&self, opened: u64, closed: u64) -> i64 {
        i64::try_from(opened.saturating_sub(closed)).unwrap_or(i64::MAX)
    }

    fn open_connections(&self, tls: usize) -> i64 {
        let closed = self.sum(|shard| &shard.closed[tls]);
        self.open(self.sum(|shard| &shard.accepted[tls]), closed)
    }

    fn open_requests(&self) -> i64 {
        let ended = self.sum(|shard| &shard.ended);
        self.open(self.sum(|shard| &shard.begun), ended)
    }

    fn connections(&mut self) -> Result<(), Error> {
        let schemes = [("http", 0), ("https", 1)];
        let accepted = schemes.map(|(scheme, at)| ([("scheme", scheme)], self.sum(|s| &s.accepted[at])));
        self.counters("lb_proxy_accepted_connections", "Client connections accepted", accepted)?;
        let open = schemes.map(|(scheme, at)| ([("scheme", scheme)], self.open_connections(at)));
        self.gauges("lb_proxy_open_connections", "Client connections now", MetricType::Gauge, open)?;
        let tunnels = self.sum(|shard| &shard.tunnels_opened);
        let closed = self.sum(|shard| &shard.tunnels_closed);
        let open = [("request", self.open_requests()), ("tunnel", self.open(tunnels, closed))];
        let open = open.map(|(what, n)| ([("what", what)], n));
        self.gauges("lb_proxy_in_flight", "Requests and upgraded connections now", MetricType::Gauge, open)?;
        self.counter("lb_proxy_tunnels", "Connections upgraded", tunnels)?;
        let done = [Version::Tls12, Version::Tls13].into_iter().enumerate().flat_map(|(at, version)| {
            [(0, "full"), (1, "resumed")].map(|(how, result)| (version.label(), result, at, how))
        });
        let mut rows: Vec<_> = done
            .map(|(version, result, at, how)| {
                ([("version", version), ("result", result)], self.sum(|shard| &shard.handshakes[at][how]))
            })
            .collect();
        for (at, result) in Refused::LABELS.into_iter().enumerate() {
            rows.push(([("version", ""), ("result", result)], self.label(at, |s| &s.failed_handshakes)));
        }
        self.counters("lb_proxy_handshakes", "TLS handshakes, by version and result", rows)
    }

    fn label(&self, at: usize, row: impl Fn(&Shard) -> &[Count]) -> u64 {
        self.shared.shards.iter().filter_map(|shard| row(shard).get(at)).map(Count::get).sum()
    }

    fn answers(&mut self) -> Result<(), Error> {
        let shared = self.shared;
        let labelled = |out: &Self, labels: &[&'static str], row: fn(&Shard) -> &[Count]| -> Vec<_> {
            let labels = labels.iter().copied().chain(["other"]).enumerate();
            labels.map(|(at, label)| ([("reason", label)], out.label(at, row))).collect()
        };
        let rows = labelled(self, &shared.options.refusals, |shard| &shard.refused);
        self.counters("lb_proxy_refused", "Messages refused by the judges of raw bytes, by reason", rows)?;
        let rows = labelled(self, &shared.options.local, |shard| &shard.local);
        self.counters("lb_proxy_local_answers", "Answers of the proxy itself, by reason", rows)?;
        for (name, help, n) in [
            ("lb_proxy_retries", "Tries at another origin", self.sum(|shard| &shard.retries)),
            ("lb_proxy_ejections", "Endpoints left out for a while", self.sum(|shard| &shard.ejections)),
        ] {
            self.counter(name, help, n)?;
        }
        if let Some(log) = &shared.log {
            let rows = log.read().map(|(result, n)| ([("result", result)], n));
            self.counters(
                "lb_proxy_access_log_lines",
                "Lines of the access log, by what became of them",
                rows,
            )?;
        }
        Ok(())
    }

    fn certificates(&mut self, expiries: &[Expiry]) -> Result<(), Error> {
        let unusable = expiries.iter().filter(|expiry| expiry.unusable).count();
        let states = [("usable", expiries.len() - unusable), ("unusable", unusable)];
        let rows = states.map(|(state, n)| ([("state", state)], i64::try_from(n).unwrap_or(i64::MAX)));
        self.gauges("lb_proxy_certificates_count", "Certificates held", MetricType::Gauge, rows)?;
        let rows = expiries
            .iter()
            .take(CERTIFICATES)
            .map(|expiry| ([("secret", expiry.identity.secret.to_string())], expiry.identity.not_after));
        let help = "When certificates end, in seconds since the epoch: the first hundred";
        self.gauges("lb_proxy_certificate_expiry_timestamp_seconds", help, MetricType::Gauge, rows)
    }

    fn routes(&mut self, rows: &[Row]) -> Result<(), Error> {
        let names =
            |row: &Row| [("ingress", Row::joined(&row.ingress)), ("service", Row::joined(&row.service))];
        let requests = rows.iter().flat_map(|row| {
            row.requests().map(move |(class, n)| {
                let [ingress, service] = names(row);
                ([ingress, service, ("code", class.to_owned())], n)
            })
        });
        self.counters("lb_proxy_requests", "Requests answered, by route and status class", requests)?;
        let bytes = |row: &Row, of: fn(&super::routes::Counters) -> &Count| {
            (names(row), row.series.counters.iter().map(|shard| of(shard).get()).sum::<u64>())
        };
        let received = rows.iter().map(|row| bytes(row, |shard| &shard.request_bytes));
        self.counters("lb_proxy_request_bytes", "Bytes of requests, heads included", received)?;
        let sent = rows.iter().map(|row| bytes(row, |shard| &shard.body_bytes));
        self.counters("lb_proxy_body_bytes", "Bytes of answers' bodies", sent)?;
        let took = rows.iter().filter_map(|row| Some((names(row), row.total(|d, t| d.took.add_to(t))?)));
        let help = "From a request's first byte to its answer's last";
        self.histograms("lb_proxy_request_duration_seconds", help, (&TIMES, 1e6), took)
    }

    fn nginx(&mut self, rows: &[Row]) -> Result<(), Error> {
        let pod = &self.shared.options.node.clone();
        let names = |row: &Row| {
            [
                ("controller_class", CLASS.to_owned()),
                ("controller_pod", pod.clone()),
                ("namespace", row.ingress[0].clone()),
                ("ingress", row.ingress[1].clone()),
                ("service", row.service[1].clone()),
            ]
        };
        let requests = rows.iter().flat_map(|row| {
            row.requests().map(move |(class, n)| {
                let [a, b, c, d, e] = names(row);
                ([a, b, c, d, e, ("status", class.to_owned())], i64::try_from(n).unwrap_or(i64::MAX))
            })
        });
        // ingress-nginx's counters are without `_total`.
        let help = "Requests, by route and status class";
        self.gauges("nginx_ingress_controller_requests", help, MetricType::Unknown, requests)?;
        let times = |of: fn(&super::routes::Details, &mut Total<9>)| {
            rows.iter().filter_map(move |row| Some((names(row), row.total(of)?)))
        };
        let sizes = |of: fn(&super::routes::Details, &mut Total<4>)| {
            rows.iter().filter_map(move |row| Some((names(row), row.total(of)?)))
        };
        let seconds = (&TIMES[..], 1e6);
        self.histograms(
            "nginx_ingress_controller_request_duration_seconds",
            "From a request's first byte to its answer's last",
            seconds,
            times(|d, t| d.took.add_to(t)),
        )?;
        self.histograms(
            "nginx_ingress_controller_response_duration_seconds",
            "Time that origins took for whole answers",
            seconds,
            times(|d, t| d.response.add_to(t)),
        )?;
        let bytes = (&SIZES[..], 1.0);
        self.histograms(
            "nginx_ingress_controller_request_size",
            "Bytes of requests, heads included",
            bytes,
            sizes(|d, t| d.request_size.add_to(t)),
        )?;
        self.histograms(
            "nginx_ingress_controller_response_size",
            "Bytes of answers' bodies",
            bytes,
            sizes(|d, t| d.response_size.add_to(t)),
        )?;
        for (name, help, of) in [
            (
                "connect",
                "Time to connect to origins, of all routes",
                (|shard| &shard.connect) as fn(&Shard) -> &super::shard::Times,
            ),
            ("header", "Time until the heads of origins' answers, of all routes", |shard| &shard.header),
        ] {
            let mut total = Total::default();
            self.shared.shards.iter().for_each(|shard| of(shard).add_to(&mut total));
            let labels = [("controller_class", CLASS.to_owned()), ("controller_pod", pod.clone())];
            let name = format!("nginx_ingress_controller_{name}_duration_seconds");
            self.histograms(&name, help, seconds, [(labels, total)])?;
        }
        let open = self.open_connections(0) + self.open_connections(1);
        let busy = self.open_requests().min(open);
        let states = [("active", open), ("reading", 0), ("writing", busy), ("waiting", open - busy)];
        let labels = |state: &'static str| {
            [("controller_class", CLASS), ("controller_pod", pod.as_str()), ("state", state)]
        };
        let rows = states.map(|(state, n)| (labels(state), n));
        let name = "nginx_ingress_controller_nginx_process_connections";
        self.gauges(name, "Client connections now, by state", MetricType::Gauge, rows)?;
        let accepted = self.sum(|shard| &shard.accepted[0]) + self.sum(|shard| &shard.accepted[1]);
        let accepted = i64::try_from(accepted).unwrap_or(i64::MAX);
        let rows = ["accepted", "handled"].map(|state| (labels(state), accepted));
        let name = "nginx_ingress_controller_nginx_process_connections_total";
        self.gauges(name, "Client connections", MetricType::Unknown, rows)?;
        let configured = self.shared.configured.load(Ordering::Relaxed);
        let labels = [("controller_class", CLASS), ("controller_pod", pod.as_str())];
        for (name, help, value) in [
            ("", "Whether a routing table was taken", i64::from(configured > 0)),
            ("_timestamp_seconds", "When that was", i64::try_from(configured).unwrap_or(i64::MAX)),
        ] {
            let name = format!("nginx_ingress_controller_config_last_reload_successful{name}");
            self.gauges(&name, help, MetricType::Gauge, [(labels, value)])?;
        }
        Ok(())
    }

    fn nginx_certificates(&mut self, expiries: &[Expiry]) -> Result<(), Error> {
        let rows = expiries.iter().take(CERTIFICATES).map(|expiry| {
            let secret = &expiry.identity.secret;
            let host = expiry.identity.first_name().to_owned();
            let labels = [
                ("class", CLASS.to_owned()),
                ("host", host),
                ("namespace", secret.namespace.clone()),
                ("secret_name", secret.name.clone()),
            ];
            (labels, expiry.identity.not_after)
        });
        let help = "When certificates end, in seconds since the epoch: the first hundred";
        self.gauges("nginx_ingress_controller_ssl_expire_time_seconds", help, MetricType::Gauge, rows)
    }
}

/// Of the labels `class` and `controller_class`.
const CLASS: &str = "weir";
