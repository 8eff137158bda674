//! The loop that writes, while this agent holds the Lease.

use super::follow::follow;
use super::lease::{self, Candidate, RENEW_EVERY, Step};
use super::pace::Pace;
use super::{Edit, Publish, Report, Reports, Seen, addresses, edit, may_be_written};
use crate::board::Board;
use crate::events::Teller;
use crate::problem::ObjectKey;
use crate::source::StatusAddress;
use crate::source::kube::{Backoff, ClientOptions, connect, jittered};
use ::kube::api::{Api, Patch, PatchParams, PostParams};
use ::kube::runtime::watcher::{self, Event, watcher};
use ::kube::{Client, Error};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::events::v1::Event as ApiEvent;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How often everything is looked at again (I69).
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// What failed is tried again after this, then less and less often.
const AGAIN: Duration = Duration::from_secs(2);
/// Failed writes in one go after which the server itself is at fault.
const ENOUGH: usize = 5;
/// How long one request may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long a free Lease is left alone, on average: all other agents see it too.
const HOLD_BACK: Duration = Duration::from_millis(300);
/// How long another agent has for taking over from one that stops.
const SUCCESSION: Duration = Duration::from_secs(5);
/// A connection that lasted so long was a good one: the next attempt is not put off.
const LASTING: Duration = Duration::from_secs(60);
/// Statuses that are taken away at the same time, at the end.
const AT_ONCE: usize = 16;
/// The part's name in problems.
const PART: &str = "status";

/// How to write.
#[derive(Clone, Debug)]
pub struct Options {
    pub client: ClientOptions,
    /// Who we are among the agents.
    pub node_name: String,
    /// `None`: `--update-status off`; Events are written all the same.
    pub publish: Option<Publish>,
    /// As [`super::manager`] names it.
    pub manager: String,
}

/// Writes what `reports` say until `stop`. Where this agent was the last one, it takes away what
/// was written then.
pub async fn run(options: Options, reports: Arc<Reports>, board: Arc<Board>, stop: impl Future<Output = ()>) {
    let mut stop = pin!(stop.fuse());
    let mut backoff = Backoff::default();
    loop {
        let connected = tokio::select! {
            () = &mut stop => return,
            connected = connect(&options.client) => connected,
        };
        match connected {
            Ok(client) => {
                let began = Instant::now();
                let writer = Writer { client, options: &options, reports: &reports, board: &board };
                if writer.run(stop.as_mut()).await == Ended::Stopped {
                    return;
                }
                if began.elapsed() > LASTING {
                    backoff.reset();
                }
            }
            Err(error) => {
                board.set_part(PART, Some(format!("no API server answers: {error:#}; tried again")))
            }
        }
        tokio::select! {
            () = &mut stop => return,
            () = sleep(backoff.next()) => {}
        }
    }
}

#[derive(PartialEq, Eq)]
enum Ended {
    Stopped,
    /// The server is gone, or refuses.
    Lost,
}

type Leases = BoxStream<'static, Result<Event<Lease>, watcher::Error>>;

/// One connection's time.
struct Writer<'a> {
    client: Client,
    options: &'a Options,
    reports: &'a Reports,
    board: &'a Board,
}

impl Writer<'_> {
    async fn run(&self, mut stop: Pin<&mut impl Future<Output = ()>>) -> Ended {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), self.client.default_namespace());
        let config = watcher::Config::default().fields(&format!("metadata.name={}", lease::NAME));
        let mut leases: Leases = watcher(api.clone(), config).boxed();
        let mut candidate = Candidate::new(&self.options.node_name);
        let mut listed = false;
        loop {
            let due = match candidate.step(Instant::now()) {
                Step::Take => Instant::now() + jittered(HOLD_BACK),
                Step::Wait(until) => until + jittered(HOLD_BACK),
            };
            tokio::select! {
                () = &mut stop => return Ended::Stopped,
                event = leases.next() => match event {
                    Some(Ok(event)) => {
                        listed |= matches!(event, Event::InitDone);
                        see(&mut candidate, event);
                        continue;
                    }
                    Some(Err(error)) => {
                        self.tell("the Lease cannot be watched", &error);
                        return Ended::Lost;
                    }
                    None => return Ended::Lost,
                },
                () = sleep_until(due), if listed => {}
            }
            match timeout(ANSWER_WITHIN, candidate.take(&api)).await {
                Ok(Ok(())) => {
                    self.board.set_part(PART, None);
                    tracing::info!(lease = lease::NAME, "this agent writes statuses and events");
                    let ended = self.lead(&mut candidate, &api, &mut leases, stop.as_mut()).await;
                    tracing::info!(lease = lease::NAME, "this agent writes no statuses and events any more");
                    if ended == Ended::Stopped {
                        return ended;
                    }
                }
                // Somebody was quicker: the watch will say who.
                Ok(Err(Error::Api(status))) if status.code == 409 => sleep(jittered(HOLD_BACK)).await,
                Ok(Err(error)) => {
                    self.tell("the Lease cannot be written", &error);
                    return Ended::Lost;
                }
                Err(_) => return Ended::Lost,
            }
        }
    }

    /// Writes while the Lease is ours.
    async fn lead(
        &self,
        candidate: &mut Candidate,
        api: &Api<Lease>,
        leases: &mut Leases,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Ended {
        let (sender, seen) = watch::channel(Seen::default());
        let follow = async {
            match &self.options.publish {
                Some(publish) => match follow(&self.client, publish, &sender, self.board).await {},
                None => pending().await,
            }
        };
        tokio::select! {
            () = stop => {}
            () = keep(candidate, api, leases) => return Ended::Lost,
            () = follow => {}
            () = self.work(seen) => {}
        }
        self.retire(candidate, api).await;
        Ended::Stopped
    }

    /// Writes what differs, whenever something does.
    async fn work(&self, mut seen: watch::Receiver<Seen>) {
        let mut teller = Teller::new(Instant::now());
        let mut pace = Pace::default();
        let mut check_at = Instant::now();
        let mut failures = Backoff::default();
        // One that failed keeps its place until the next look at everything, which comes soon.
        let mut refused_until: Option<Instant> = None;
        loop {
            let known = self.options.publish.as_ref();
            let known = known.and_then(|publish| addresses(publish, &seen.borrow_and_update()));
            let now = Instant::now();
            let reports = if now >= check_at {
                check_at = now + jittered(CHECK_EVERY);
                let all = self.reports.take_all();
                let keys = all.iter().map(|report| &report.ingress.key).collect();
                teller.keep(&keys);
                pace.keep(&keys);
                all
            } else {
                self.reports.take()
            };
            for report in &reports {
                let known_to_us = report.ingress.status_manager.as_deref() == Some(&*self.options.manager);
                teller.take(report, known_to_us, now);
            }
            let resting = reports.iter().filter_map(|report| pace.rests_until(&report.ingress.key, now));
            check_at = resting.fold(check_at, Instant::min);
            match self.write_statuses(&reports, known.as_deref(), &mut pace).await {
                Ok(true) => {
                    failures.reset();
                    self.board.set_part(PART, None);
                }
                Ok(false) => {}
                Err(error) => {
                    self.tell("a status cannot be written", &error);
                    check_at = check_at.min(Instant::now() + AGAIN + failures.next());
                }
            }
            if refused_until.is_none_or(|until| until <= now) {
                refused_until = self.post(&mut teller).await.err().map(|error| {
                    self.board.set_part("events", Some(format!("an Event cannot be written: {error}")));
                    Instant::now() + CHECK_EVERY
                });
            }
            let mut wake = check_at;
            if let Some(due) = teller.due(Instant::now()) {
                wake = wake.min(refused_until.unwrap_or(due).max(due));
            }
            tokio::select! {
                () = self.reports.changed() => {}
                // Other addresses: every Ingress may need them.
                Ok(()) = seen.changed() => check_at = Instant::now(),
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Answers whether anything was written.
    async fn write_statuses(
        &self,
        reports: &[Report],
        addresses: Option<&[StatusAddress]>,
        pace: &mut Pace,
    ) -> Result<bool, Error> {
        if self.options.publish.is_none() {
            return Ok(false);
        }
        let (mut any, mut errors) = (false, Vec::new());
        for report in reports {
            let ingress = &report.ingress;
            let status = match edit(ingress, report.ours, &self.options.manager, addresses) {
                Edit::Keep => continue,
                Edit::Write(addresses) => status(addresses),
                Edit::Clear => json!({}),
            };
            // The caller looks at it again then.
            if pace.rests_until(&ingress.key, Instant::now()).is_some() {
                continue;
            }
            match self.apply(&ingress.key, &ingress.uid, status).await {
                Ok(()) => {
                    pace.wrote(&ingress.key, Instant::now());
                    any = true;
                }
                // One that some webhook refuses holds up no other.
                Err(error) => errors.push(error),
            }
            if errors.len() == ENOUGH {
                break;
            }
        }
        errors.pop().map_or(Ok(any), Err)
    }

    /// Applies a status under our name: what we wrote before and is not in it is taken away.
    async fn apply(&self, key: &ObjectKey, uid: &str, status: Value) -> Result<(), Error> {
        let api: Api<Ingress> = Api::namespaced(self.client.clone(), &key.namespace);
        let object = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": { "name": key.name, "namespace": key.namespace, "uid": uid },
            "status": status,
        });
        let params = PatchParams::apply(&self.options.manager).force();
        match api.patch_status(&key.name, &params, &Patch::Apply(&object)).await {
            Ok(_) => {
                tracing::debug!(ingress = %key, "status is written");
                Ok(())
            }
            // It is gone, or another one of that name has come: its own report follows.
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Posts what may be posted now.
    async fn post(&self, teller: &mut Teller) -> Result<(), Error> {
        while let Some(note) = teller.next(Instant::now()) {
            let api: Api<ApiEvent> = Api::namespaced(self.client.clone(), &note.ingress.namespace);
            let event = note.event(&self.options.node_name, Timestamp::now());
            match api.create(&PostParams::default(), &event).await {
                Ok(_) => self.board.set_part("events", None),
                // It is there already; or its namespace is gone, or going.
                Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(Error::Api(status))
                    if status.code == 403 && status.message.contains("being terminated") => {}
                Err(error) => return Err(error),
            }
            teller.said(&note, Instant::now());
        }
        Ok(())
    }

    /// Hands the Lease on; takes everything away where there is nobody to hand it to (I69).
    async fn retire(&self, candidate: &mut Candidate, api: &Api<Lease>) {
        match timeout(ANSWER_WITHIN, candidate.release(api)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the Lease is not handed on, and statuses stay as they are");
                return;
            }
            Err(_) => {
                tracing::warn!(
                    "the API server does not answer: the Lease is not handed on, and statuses stay"
                );
                return;
            }
        }
        let end = Instant::now() + SUCCESSION;
        while Instant::now() < end {
            sleep(Duration::from_millis(200)).await;
            if let Ok(Ok(lease)) = timeout(ANSWER_WITHIN, api.get_opt(lease::NAME)).await {
                candidate.see(lease.as_ref(), Instant::now());
            }
            if candidate.is_taken() {
                return;
            }
        }
        if self.options.publish.is_none() {
            return;
        }
        tracing::info!("no other agent is there: statuses are taken away");
        let mut reports = self.reports.take_all();
        reports.retain(|report| may_be_written(report, &self.options.manager));
        // Not one after the other: whoever stops us does not wait long.
        let clear = |Report { ingress, .. }: Report| async move {
            if let Err(error) = self.apply(&ingress.key, &ingress.uid, json!({})).await {
                tracing::warn!(ingress = %ingress.key, %error, "its status stays");
            }
        };
        futures_util::stream::iter(reports).for_each_concurrent(AT_ONCE, clear).await;
    }

    fn tell(&self, what: &str, error: &dyn std::fmt::Display) {
        self.board.set_part(PART, Some(format!("{what}: {error}; tried again")));
    }
}

/// Renews the Lease until it is lost.
async fn keep(candidate: &mut Candidate, api: &Api<Lease>, leases: &mut Leases) {
    let mut renew_at = Instant::now() + RENEW_EVERY;
    loop {
        let Some(until) = candidate.leads_until() else { return };
        tokio::select! {
            // Nothing is written after this.
            biased;
            () = sleep_until(until) => return,
            () = sleep_until(renew_at) => {
                let renewed = timeout(ANSWER_WITHIN, candidate.take(api)).await;
                let pause = if matches!(renewed, Ok(Ok(()))) { RENEW_EVERY } else { AGAIN };
                renew_at = Instant::now() + pause;
            }
            event = leases.next() => match event {
                Some(Ok(event)) => {
                    see(candidate, event);
                    if candidate.is_taken() {
                        return;
                    }
                }
                Some(Err(_)) => sleep(AGAIN).await,
                None => return,
            },
        }
    }
}

fn see(candidate: &mut Candidate, event: Event<Lease>) {
    let now = Instant::now();
    match event {
        Event::Init | Event::InitDone => {}
        Event::InitApply(lease) | Event::Apply(lease) => candidate.see(Some(&lease), now),
        Event::Delete(_) => candidate.see(None, now),
    }
}

fn status(addresses: &[StatusAddress]) -> Value {
    let entries: Vec<Value> = addresses
        .iter()
        .map(|address| match address {
            StatusAddress::Ip(ip) => json!({ "ip": ip.to_string() }),
            StatusAddress::Hostname(name) => json!({ "hostname": name }),
        })
        .collect();
    json!({ "loadBalancer": { "ingress": entries } })
}
