//! Certificates that change under load: replaced, taken away, back again. No request fails,
//! no connection ends, and new handshakes follow within a second (I31, I32, I76).

use super::Outcome;
use super::ingress::{HOST, SECRET};
use crate::authority::Authority;
use crate::flows::now_us;
use crate::helper::Helper;
use crate::topology::{NODE1, Place, Topology};
use crate::wait;
use crate::web::{Fetch, Traffic, TrafficReport, Version};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The serial number of the first certificate.
pub const FIRST: u8 = 0x11;
/// New handshakes follow within this time.
const LIMIT: Duration = Duration::from_secs(1);
/// Time to let the traffic run on.
const AFTER: Duration = Duration::from_millis(500);
/// Connections of each kind that stay.
const LASTING: u32 = 5;

/// What is done with the Secret: written with a new certificate, or deleted.
pub type Change<'a> = dyn Fn(Option<&Value>) -> Result<()> + 'a;

/// The Secret of the demo's Ingress as it is at the start.
///
/// # Errors
/// When no key can be made.
pub fn first(authority: &Authority) -> Result<Value> {
    authority.secret(SECRET, &[HOST], FIRST)
}

/// Changes the Secret three times under load.
pub fn run(
    lab: &Topology,
    authority: &Authority,
    change: &Change<'_>,
    mut each: impl FnMut(&Outcome),
) -> Vec<Outcome> {
    let secret = |serial| authority.secret(SECRET, &[HOST], serial);
    let steps: [(&str, &dyn Fn() -> Result<String>); 3] = [
        ("certificate replaced under load", &|| {
            follow(lab, Some(authority.root()), Some(FIRST + 1), &|| change(Some(&secret(FIRST + 1)?)))
        }),
        ("Secret deleted under load: default certificate", &|| follow(lab, None, None, &|| change(None))),
        ("Secret back under load", &|| {
            follow(lab, None, Some(FIRST + 2), &|| change(Some(&secret(FIRST + 2)?)))
        }),
    ];
    let mut outcomes = Vec::new();
    for (name, step) in steps {
        let outcome = Outcome { name: name.into(), said: step().map_err(|error| format!("{error:#}")) };
        each(&outcome);
        outcomes.push(outcome);
    }
    outcomes
}

/// Sends traffic, makes a change, and waits for the certificate that must follow (none: the
/// default one). With roots the clients verify what they are shown.
fn follow(
    lab: &Topology,
    roots: Option<&str>,
    wanted: Option<u8>,
    change: &dyn Fn() -> Result<()>,
) -> Result<String> {
    let to = SocketAddr::new(NODE1.0.into(), 443);
    let mut fetch = Fetch::https(to, HOST, "/api");
    if let Some(roots) = roots {
        fetch = fetch.trusting(roots);
    }
    let probe = lab.at(&Place::Outside)?;
    let old = probe.fetch(fetch.clone())?.certificate.context("no certificate")?;
    let mut running: Vec<(Arc<Helper>, u32)> = Vec::new();
    for (version, lasting, interval_ms) in [
        (Version::One, 0, 10),
        (Version::One, LASTING, 50),
        (Version::Two, LASTING, 50),
        (Version::WebSocket, LASTING, 50),
    ] {
        let helper = Arc::new(lab.start_helper(&Place::Outside)?);
        let traffic = Traffic { fetch: fetch.clone().over(version), lasting, interval_ms };
        let activity = helper.start_traffic(traffic)?;
        running.push((helper, activity));
    }
    let (fresh, first) = &running[0];
    wait::until("traffic flows", LIMIT * 5, || {
        ensure!(fresh.traffic(*first)?.answered >= 20, "not yet");
        Ok(())
    })?;
    let begun = now_us();
    change()?;
    let new = wait::until("another certificate", LIMIT * 5, || {
        let shown = probe.fetch(fetch.clone())?.certificate.context("no certificate")?;
        ensure!(shown.serial != old.serial, "still {shown:?}");
        Ok(shown)
    })?;
    let took = Duration::from_micros(now_us() - begun);
    ensure!(took <= LIMIT, "another certificate after {took:?} only");
    match wanted {
        Some(serial) => ensure!(new.serial == format!("{serial:02x}"), "shown {new:?}"),
        None => ensure!(!new.names.is_empty(), "the default certificate names nothing: {new:?}"),
    }
    let until = now_us() + u64::try_from(AFTER.as_micros())?;
    wait::until("traffic goes on", AFTER * 10, || {
        ensure!(now_us() >= until, "not yet");
        Ok(())
    })?;
    let mut answered = 0;
    for (number, (helper, activity)) in running.iter().enumerate() {
        let report = helper.stop_traffic(*activity)?;
        judge(&report).with_context(|| format!("traffic {number}"))?;
        answered += report.answered;
        if number == 0 {
            let (_, last) = report.certificates.get(&old.serial).context("the old one was never shown")?;
            let late = Duration::from_micros(last.saturating_sub(begun));
            ensure!(late <= LIMIT, "the old certificate was shown {late:?} after the change");
        }
    }
    Ok(format!("→ shown after {} ms, {answered} requests, 0 failed", took.as_millis()))
}

fn judge(report: &TrafficReport) -> Result<()> {
    ensure!(report.failed.is_empty() && report.answered == report.started, "{report:?}");
    ensure!(report.answered > 0, "no request was sent");
    Ok(())
}
