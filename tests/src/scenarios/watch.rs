//! Traffic that runs while something is done to the cluster, and the sum of what it saw.
//!
//! Clients never retry: what is lost, refused or answered wrongly is counted, with its reason.
//! Long flows keep their pod for life; new connections and requests may go to any.

use super::stage::{Inside, Stage};
use crate::helper::Helper;
use crate::web::{Fetch, Traffic};
use crate::wire::{Ask, Flows, Load, Proto};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What is later than this is lost. A lost packet is sent again long before; what a machine takes
/// whose processors are busy with other things shows as slow.
pub(super) const DEADLINE_MS: u64 = 15_000;

/// One in so many new connections, or requests, may be late ([`LATE_US`](crate::wire::LATE_US)):
/// a machine may stand still for a moment, but a gap at one door has more.
const LATE_ONE_IN: u64 = 200;
/// The part of the asked rate that there has to be, in percent.
const RATE: f64 = 60.0;

/// How much of each kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// Long TCP flows; half of them by node port with SNAT, the others from pods and hosts.
    pub(super) flows: u32,
    /// Long UDP flows, of the same places.
    pub(super) datagrams: u32,
    /// New TCP connections a second.
    pub(super) connections: u32,
    /// Requests a second through the Ingress.
    pub(super) requests: u32,
}

impl Scale {
    /// What the project promises for a rollout.
    pub(super) const FULL: Self = Self { flows: 200, datagrams: 20, connections: 300, requests: 300 };
    /// Enough to notice a gap, where the time or the machine is another's.
    pub(super) const SMALL: Self = Self { flows: 40, datagrams: 8, connections: 60, requests: 60 };
}

/// Lets time pass: traffic runs meanwhile.
pub(super) fn pause(time: Duration) {
    let began = Instant::now();
    while let Some(left) = time.checked_sub(began.elapsed()) {
        std::thread::park_timeout(left);
    }
}

/// Running traffic.
pub(super) struct Watch<'a> {
    scale: Scale,
    began: Instant,
    parts: Vec<(String, &'a Helper, Part)>,
}

enum Part {
    Flows(u32, Proto),
    Load(u32),
    Traffic(u32),
}

impl<'a> Watch<'a> {
    /// Opens every flow, then starts the connections and requests.
    ///
    /// # Errors
    /// When a flow cannot be opened.
    pub(super) fn start(stage: &'a Stage, scale: Scale) -> Result<Self> {
        Self::without(stage, scale, "")
    }

    /// The same, with nothing that has to do with a node.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(super) fn without(stage: &'a Stage, scale: Scale, node: &str) -> Result<Self> {
        let mut watch = Self { scale, began: Instant::now(), parts: Vec::new() };
        let targets = stage.targets_without(node);
        // Node ports of nodes without an endpoint of that Service: SNAT.
        let half = scale.flows / 2;
        watch.flows("outside, node port", stage.outside(), Proto::Tcp, half, &targets.far_node_ports)?;
        let places: Vec<&Inside> = stage.inside().iter().filter(|inside| inside.node != node).collect();
        let share = (scale.flows - half) / u32::try_from(places.len())?.max(1);
        for Inside { place, client, .. } in &places {
            let name = format!("{place}, cluster IP");
            watch.flows(&name, client, Proto::Tcp, share, &targets.steady_cluster_ips)?;
        }
        let half = scale.datagrams / 2;
        watch.flows("outside, node port", stage.outside(), Proto::Udp, half, &targets.far_node_ports)?;
        if let Some(Inside { place, client, .. }) = places.first() {
            let (name, rest) = (format!("{place}, cluster IP"), scale.datagrams - half);
            watch.flows(&name, client, Proto::Udp, rest, &targets.steady_cluster_ips)?;
        }
        // Half of the connections from outside, over all nodes; the others from inside.
        let doors = u32::try_from(targets.node_ports.len())?.max(1);
        for &to in &targets.node_ports {
            watch.load("outside", stage.outside(), to, scale.connections / 2 / doors)?;
        }
        let inside = u32::try_from(places.len() * targets.cluster_ips.len())?.max(1);
        for Inside { place, client, .. } in &places {
            for &to in &targets.cluster_ips {
                watch.load(place, client, to, scale.connections / 2 / inside)?;
            }
        }
        let fetches: Vec<Fetch> = targets.ingress.iter().flat_map(|&to| stage.fetches(to)).collect();
        for fetch in fetches.iter().filter(|_| scale.requests > 0) {
            watch.traffic(stage, fetch, scale.requests / u32::try_from(fetches.len())?)?;
        }
        watch.began = Instant::now();
        Ok(watch)
    }

    fn flows(
        &mut self,
        name: &str,
        helper: &'a Helper,
        proto: Proto,
        count: u32,
        to: &[SocketAddr],
    ) -> Result<()> {
        if count == 0 || to.is_empty() {
            return Ok(());
        }
        let spec =
            Flows { proto, to: to.to_vec(), count, interval_ms: 200, deadline_ms: DEADLINE_MS, from_port: 0 };
        let number = helper.open_flows(spec).with_context(|| format!("{name}: {proto} flows"))?;
        self.parts.push((format!("{name}, {proto}"), helper, Part::Flows(number, proto)));
        Ok(())
    }

    fn load(&mut self, name: &str, helper: &'a Helper, to: SocketAddr, per_second: u32) -> Result<()> {
        let ask = Ask::new(Proto::Tcp, to).timeout_ms(DEADLINE_MS);
        let number = helper.start_load(Load { ask, per_second: per_second.max(1) })?;
        self.parts.push((format!("{name} to {to}"), helper, Part::Load(number)));
        Ok(())
    }

    fn traffic(&mut self, stage: &'a Stage, fetch: &Fetch, per_second: u32) -> Result<()> {
        let helper = stage.outside();
        let interval_ms = u64::from(1_000 / per_second.max(1)).max(1);
        let number = helper.start_traffic(Traffic { fetch: fetch.clone(), lasting: 0, interval_ms })?;
        let scheme = if fetch.tls.is_some() { "https" } else { "http" };
        self.parts.push((format!("{scheme}://{}", fetch.to), helper, Part::Traffic(number)));
        Ok(())
    }

    /// Lets it run until this long after its start.
    pub(super) fn at_least(&self, time: Duration) {
        pause(time.saturating_sub(self.began.elapsed()));
    }

    /// Ends all of it.
    ///
    /// # Errors
    /// When a client's process is gone.
    pub(super) fn stop(self) -> Result<Sum> {
        let seconds = self.began.elapsed().as_secs_f64();
        let mut sum = Sum { seconds, ..Sum::default() };
        for (name, helper, part) in self.parts {
            let report = match part {
                Part::Flows(number, proto) => sum.flows(proto, helper.stop_flows(number)),
                Part::Load(number) => sum.load(helper.stop_load(number)),
                Part::Traffic(number) => sum.traffic(helper.stop_traffic(number)),
            };
            let wrong = report.with_context(|| name.clone())?;
            sum.wrong.extend(wrong.into_iter().map(|why| format!("{name}: {why}")));
        }
        sum.judge(self.scale);
        Ok(sum)
    }
}

/// What the traffic saw.
#[derive(Clone, Default, Debug)]
pub(super) struct Sum {
    seconds: f64,
    flows: usize,
    datagram_flows: usize,
    connections: u64,
    requests: u64,
    late_connections: u64,
    late_requests: u64,
    slowest_us: BTreeMap<&'static str, u64>,
    /// Everything that was lost, refused or wrong, with its reason.
    wrong: Vec<String>,
}

impl Sum {
    /// That nothing was lost.
    ///
    /// # Errors
    /// With what was.
    pub(super) fn nothing_lost(self) -> Result<Self> {
        ensure!(self.wrong.is_empty(), "{self}; lost:\n  {}", self.wrong.join("\n  "));
        ensure!(self.connections > 0 && self.flows > 0, "there was no traffic: {self}");
        Ok(self)
    }

    /// What is wrong with the whole: too little traffic, or too much of it late.
    fn judge(&mut self, scale: Scale) {
        for (what, count, late, per_second) in [
            ("connections", self.connections, self.late_connections, scale.connections),
            ("requests", self.requests, self.late_requests, scale.requests),
        ] {
            if late * LATE_ONE_IN > count {
                self.wrong.push(format!("{late} of {count} {what} were late"));
            }
            let least = f64::from(per_second) * self.seconds * RATE / 100.0;
            if (count as f64) < least {
                self.wrong.push(format!("{count} {what} only, {least:.0} were to be there at least"));
            }
        }
    }

    fn slow(&mut self, kind: &'static str, micros: u64) {
        let slowest = self.slowest_us.entry(kind).or_default();
        *slowest = micros.max(*slowest);
    }

    fn flows(&mut self, proto: Proto, report: Result<crate::wire::FlowsReport>) -> Result<Vec<String>> {
        let report = report?;
        let mut wrong = report.lost();
        for flow in &report.flows {
            self.slow("flow", flow.slowest_us);
            let short = flow.sent.saturating_sub(flow.echoed);
            if proto == Proto::Udp && (short > 0 || flow.strangers > 0) {
                wrong.push(format!(
                    "{:?} to {}: {short} of {} datagrams lost, {} answered by another pod",
                    flow.target, flow.pod, flow.sent, flow.strangers
                ));
            }
        }
        match proto {
            Proto::Tcp => self.flows += report.flows.len(),
            Proto::Udp => self.datagram_flows += report.flows.len(),
        }
        Ok(wrong)
    }

    fn load(&mut self, report: Result<crate::wire::LoadReport>) -> Result<Vec<String>> {
        let report = report?;
        self.connections += report.started;
        self.late_connections += report.late;
        self.slow("connection", report.slowest_us);
        let mut wrong: Vec<String> =
            report.failed.iter().map(|(why, times)| format!("{times} times {why}")).collect();
        if report.refused > 0 {
            wrong.push(format!("{} refused", report.refused));
        }
        if let (false, Some(first)) = (wrong.is_empty(), report.failures.first()) {
            wrong.push(format!("the first: {first:?}"));
        }
        Ok(wrong)
    }

    fn traffic(&mut self, report: Result<crate::web::TrafficReport>) -> Result<Vec<String>> {
        let report = report?;
        self.requests += report.started;
        self.late_requests += report.late;
        self.slow("request", report.slowest_us);
        Ok(report.failed.iter().map(|(why, times)| format!("{times} times {why}")).collect())
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} TCP and {} UDP flows, {} new connections, {} requests in {:.0} s: {} lost",
            self.flows,
            self.datagram_flows,
            self.connections,
            self.requests,
            self.seconds,
            self.wrong.len()
        )?;
        let late = self.late_connections + self.late_requests;
        if late > 0 {
            write!(f, ", {late} late")?;
        }
        for (kind, micros) in &self.slowest_us {
            write!(f, ", slowest {kind} {} ms", micros / 1_000)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_traffic_and_too_much_that_is_late_are_wrong() {
        let full = Sum { seconds: 10.0, connections: 2_900, requests: 2_900, ..Sum::default() };
        for (late_connections, requests, wrong) in
            [(14, 2_900, 0), (15, 2_900, 1), (0, 1_700, 1), (15, 0, 2), (0, 1_900, 0)]
        {
            let mut sum = Sum { late_connections, requests, ..full.clone() };
            sum.judge(Scale::FULL);
            assert_eq!(sum.wrong.len(), wrong, "{late_connections} {requests}: {:?}", sum.wrong);
        }
    }
}
