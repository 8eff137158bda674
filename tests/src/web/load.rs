//! Requests at a steady pace, by clients that never retry.

use super::client::{Session, Told, fetch};
use super::{Fetch, Fetched, Traffic, TrafficReport, Version};
use crate::flows::{Activity, Counters, Shared, update};
use crate::netns::sys::monotonic_us;
use crate::wire::LATE_US;
use anyhow::{Context, Result, bail};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// Opens the lasting connections, each with a first request, and starts.
///
/// # Errors
/// When one of them cannot be opened.
pub(crate) async fn start(traffic: Traffic) -> Result<Activity> {
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let report = Shared::default();
    let traffic = Arc::new(traffic);
    for number in 0..traffic.lasting {
        let mut told = Told::default();
        let opened = async {
            let mut session = Session::open(&traffic.fetch, &mut told).await?;
            let first = session.send(&traffic.fetch).await?;
            judge(&first, traffic.fetch.version)?;
            anyhow::Ok(session)
        };
        let deadline = Duration::from_millis(traffic.fetch.timeout_ms);
        let session = timeout(deadline, opened).await.context("not open in time")?;
        let session = session.with_context(|| format!("opening connection {number}"))?;
        // Spread over the interval, so that they do not move in step.
        let offset = Duration::from_millis(traffic.interval_ms) * number / traffic.lasting;
        tasks.spawn(last(session, Arc::clone(&traffic), offset, Shared::clone(&report), stopped.clone()));
    }
    if traffic.lasting == 0 {
        tasks.spawn(come_and_go(traffic, Shared::clone(&report), stopped));
    }
    Ok(Activity::new(stop, tasks, Counters::Traffic(report)))
}

/// One connection that stays: whatever ends it is a failure.
async fn last(
    mut session: Session,
    traffic: Arc<Traffic>,
    offset: Duration,
    report: Shared<TrafficReport>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut ticks = ticks(&traffic, offset);
    let deadline = Duration::from_millis(traffic.fetch.timeout_ms);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        update(&report, |report| report.started += 1);
        let start = Instant::now();
        let answer = timeout(deadline, session.send(&traffic.fetch)).await.context("no answer in time");
        match answer.and_then(|answer| answer) {
            Ok(answer) => count(&report, &traffic.fetch, &answer, start),
            Err(error) => {
                let reason = format!("lasting connection: {error:#}");
                update(&report, |report| *report.failed.entry(reason).or_default() += 1);
                return;
            }
        }
    }
}

/// New connections, one request each, whether or not the earlier ones have been answered.
async fn come_and_go(
    traffic: Arc<Traffic>,
    report: Shared<TrafficReport>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut ticks = ticks(&traffic, Duration::ZERO);
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
        let (traffic, report) = (Arc::clone(&traffic), Shared::clone(&report));
        update(&report, |report| report.started += 1);
        under_way.spawn(async move {
            let (start, begun) = (Instant::now(), monotonic_us());
            let answer = fetch(&traffic.fetch).await;
            if let Some(certificate) = &answer.certificate {
                update(&report, |report| {
                    let (count, last) = report.certificates.entry(certificate.serial.clone()).or_default();
                    *count += 1;
                    *last = begun.max(*last);
                });
            }
            count(&report, &traffic.fetch, &answer, start);
        });
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
}

fn ticks(traffic: &Traffic, offset: Duration) -> Interval {
    let mut ticks = interval(Duration::from_millis(traffic.interval_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset_after(offset);
    ticks
}

fn count(report: &Shared<TrafficReport>, fetch: &Fetch, answer: &Fetched, start: Instant) {
    let judged = judge(answer, fetch.version);
    let elapsed = crate::clients::micros(start);
    update(report, |report| {
        report.slowest_us = report.slowest_us.max(elapsed);
        report.late += u64::from(elapsed > LATE_US);
        match judged {
            Ok(pod) => {
                report.answered += 1;
                *report.pods.entry(pod).or_default() += 1;
            }
            Err(error) => *report.failed.entry(format!("{error:#}")).or_default() += 1,
        }
    });
}

/// The pod that answered as it should; a WebSocket has no name for it.
fn judge(answer: &Fetched, version: Version) -> Result<String> {
    if let Some(error) = &answer.error {
        bail!("{error}");
    }
    match (answer.status, version) {
        (Some(101), Version::WebSocket) => Ok("by WebSocket".into()),
        (Some(200), Version::One | Version::Two | Version::Early) => {
            Ok(answer.seen().with_context(|| format!("no pod's answer: {:?}", answer.body))?.pod)
        }
        (status, _) => bail!("status {status:?}"),
    }
}
