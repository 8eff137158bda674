//! `/healthz`, `/livez` and `/readyz`, as cloud load balancers and the kubelet ask them.
//!
//! Healthy means that Services are in force, those of an earlier agent included, and that no
//! change has waited too long to be applied (S56); eligible means that this node wants traffic
//! at all (S55). Without a pending change an agent is healthy for ever, whatever the API server
//! does. Alive means that rounds end: no object, and no map that objects fill, can make the
//! kubelet restart an agent that works. Ready means that this agent does its work;
//! `/readyz/l4` and `/readyz/l7` say it of each part. `/readyz/rollout` calls an agent ready that
//! waits to take over from another one of the node as well: a rolling update that starts the new
//! agent first (`maxSurge`) goes on only when that one is ready, and it cannot take over before.

use crate::board::{Board, Phase, Snapshot, now_ms};
use crate::http::{self, Answer};
use crate::metrics::Metrics;
use hyper::{Method, StatusCode};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const STANDING_BY: &str = "standing by: another agent holds this node";
/// Twice kube-proxy's sync period.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<&'static str, FamilyHealth>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyHealth {
    last_updated: String,
    healthy: bool,
}

/// Answers one path.
pub(crate) fn answer(method: &Method, path: &str, board: &Arc<Board>, metrics: &Metrics) -> Answer {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return http::answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n");
    }
    let snapshot = board.snapshot();
    match path {
        "/healthz" => {
            let answer = health(board, Some(snapshot.node_eligible));
            metrics.healthz(answer.status().as_u16());
            answer
        }
        "/livez" => {
            let answer = health(board, None);
            metrics.livez(answer.status().as_u16());
            answer
        }
        "/readyz/rollout" if snapshot.phase == Phase::Standby => {
            http::answer(StatusCode::OK, "text/plain", format!("{STANDING_BY}\n"))
        }
        "/readyz" | "/readyz/rollout" => ready(&[("l4", waits_for(&snapshot)), ("l7", board.l7_waits_for())]),
        "/readyz/l4" => ready(&[("l4", waits_for(&snapshot))]),
        "/readyz/l7" => ready(&[("l7", board.l7_waits_for())]),
        _ => http::answer(StatusCode::NOT_FOUND, "text/plain", "try /healthz, /livez or /readyz\n"),
    }
}

/// Ready when no part waits for anything; each part on a line of its own. The parts are gated
/// apart: one that waits keeps the other from nothing but this answer.
fn ready(parts: &[(&str, Option<String>)]) -> Answer {
    let mut body = String::new();
    for (part, waits) in parts {
        body.push_str(&format!("{part}: {}\n", waits.as_deref().unwrap_or("ok")));
    }
    let good = parts.iter().all(|(_, waits)| waits.is_none());
    http::answer(if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, "text/plain", body)
}

/// Why Services are not ready; `None`: they are.
fn waits_for(snapshot: &Snapshot) -> Option<String> {
    if snapshot.ready() {
        return None;
    }
    Some(match snapshot.phase {
        Phase::Starting => "starting".into(),
        Phase::Standby => STANDING_BY.into(),
        Phase::Listing => "waiting for the first complete lists".into(),
        Phase::Synced if snapshot.awaiting_pods => "waiting for the list of Pods".into(),
        Phase::Synced => {
            let hooks = snapshot.hooks.iter();
            let missing = hooks
                .filter_map(|hook| Some(format!("{} {}: {}", hook.place, hook.hook, hook.error.as_ref()?)));
            missing.collect::<Vec<_>>().join("; ")
        }
    })
}

/// Whether Services are in force and follow the objects in time (S52, S56).
pub(crate) fn programs_services(board: &Board) -> bool {
    let in_time = || board.snapshot().serving() && board.pending_for() < PATIENCE;
    board.owed_for() < PATIENCE && in_time()
}

fn health(board: &Board, eligible: Option<bool>) -> Answer {
    let healthy = match eligible {
        Some(_) => programs_services(board),
        None => board.owed_for() < PATIENCE,
    };
    let now = rfc3339(now_ms());
    // While nothing waits, the state is as good as new (S56).
    let updated =
        if healthy && board.pending_for().is_zero() { now.clone() } else { rfc3339(board.applied_at()) };
    let family = || FamilyHealth { last_updated: updated.clone(), healthy };
    let body = Health {
        last_updated: updated.clone(),
        current_time: now,
        node_eligible: eligible,
        healthy,
        status: BTreeMap::from([("IPv4", family()), ("IPv6", family())]),
    };
    let good = healthy && eligible != Some(false);
    http::json(if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
}

/// Milliseconds since the epoch as RFC 3339 in UTC (days to date after H. Hinnant).
pub(crate) fn rfc3339(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second, milli) = (seconds / 3600, seconds / 60 % 60, seconds % 60, ms % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::{L7Phase, L7Snapshot};
    use crate::datapath::Hook;

    fn ask(board: &Arc<Board>, path: &str) -> u16 {
        answer(&Method::GET, path, board, &Metrics::default()).status().as_u16()
    }

    #[test]
    fn times_are_spelled_as_the_api_does() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_827_696_789), "2000-02-29T12:34:56.789Z");
        assert_eq!(rfc3339(1_767_225_599_000), "2025-12-31T23:59:59.000Z");
    }

    /// A DaemonSet with `maxSurge` waits for the new agent, which waits for the old one to go.
    #[test]
    fn a_standby_is_alive_and_ready_to_take_over_and_none_of_its_parts_works() {
        let board = Arc::<Board>::default();
        let all = ["/healthz", "/livez", "/readyz", "/readyz/l4", "/readyz/rollout"];
        assert_eq!(
            all.map(|path| ask(&board, path)),
            [503, 200, 503, 503, 503],
            "not tried for the lock yet"
        );
        board.publish(Snapshot { phase: Phase::Standby, ..Snapshot::default() });
        assert_eq!(all.map(|path| ask(&board, path)), [503, 200, 503, 503, 200]);
        // It takes over.
        board.publish(Snapshot { phase: Phase::Starting, ..Snapshot::default() });
        assert_eq!(ask(&board, "/readyz/rollout"), 503);
    }

    #[test]
    fn what_an_earlier_agent_left_is_healthy_while_lists_are_awaited() {
        let board = Arc::<Board>::default();
        let listing = Snapshot { phase: Phase::Listing, node_eligible: true, ..Snapshot::default() };
        board.publish(listing.clone());
        assert_eq!([ask(&board, "/healthz"), ask(&board, "/livez")], [503, 200]);
        board.publish(Snapshot { frontends: 1, ..listing });
        assert_eq!([ask(&board, "/healthz"), ask(&board, "/livez"), ask(&board, "/readyz")], [200, 200, 503]);
    }

    #[test]
    fn a_change_that_cannot_be_applied_is_unhealthy_and_only_a_stuck_round_is_dead() {
        let board = Arc::<Board>::default();
        board.publish(Snapshot { phase: Phase::Synced, node_eligible: true, ..Snapshot::default() });
        board.heard();
        board.round_begins();
        board.applied(false);
        board.round_ends();
        board.age(PATIENCE);
        assert_eq!([ask(&board, "/healthz"), ask(&board, "/livez")], [503, 200]);
        board.applied(true);
        board.round_begins();
        board.age(PATIENCE);
        assert_eq!([ask(&board, "/healthz"), ask(&board, "/livez")], [503, 503]);
        board.round_ends();
        assert_eq!([ask(&board, "/healthz"), ask(&board, "/livez")], [200, 200]);
    }

    #[test]
    fn an_idle_agent_stays_healthy_and_a_leaving_node_is_only_alive() {
        let board = Arc::<Board>::default();
        board.publish(Snapshot { phase: Phase::Synced, node_eligible: true, ..Snapshot::default() });
        board.applied(true);
        assert_eq!([ask(&board, "/healthz"), ask(&board, "/livez"), ask(&board, "/readyz")], [200, 200, 200]);
        board.publish(Snapshot { phase: Phase::Synced, node_eligible: false, ..Snapshot::default() });
        assert_eq!([ask(&board, "/healthz"), ask(&board, "/livez")], [503, 200]);
    }

    #[tokio::test]
    async fn each_part_is_ready_on_its_own() {
        use crate::problem::Kind;
        use http_body_util::BodyExt;
        let board = Arc::<Board>::default();
        board.publish(Snapshot { phase: Phase::Synced, node_eligible: true, ..Snapshot::default() });
        assert_eq!(ask(&board, "/readyz"), 200, "--l7 off");
        let missing = vec![Kind::Ingress];
        board.publish_l7(L7Snapshot { phase: L7Phase::Listing, missing, ..L7Snapshot::default() });
        let all = ["/readyz", "/readyz/l4", "/readyz/l7", "/healthz"];
        assert_eq!(all.map(|path| ask(&board, path)), [503, 200, 503, 200]);
        let answer = answer(&Method::GET, "/readyz", &board, &Metrics::default());
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "l4: ok\nl7: waiting for the first complete lists: Ingress\n");
        let link = crate::link::Link::default();
        board.publish_l7(L7Snapshot { phase: L7Phase::Synced, ..L7Snapshot::default() });
        assert_eq!(ask(&board, "/readyz"), 200);
        // With proxies of its own: not before one of them has the routes (I72).
        board.await_proxies(link);
        assert_eq!(all.map(|path| ask(&board, path)), [503, 200, 503, 200]);
    }

    #[test]
    fn a_hook_that_is_missing_is_not_ready_but_healthy() {
        let board = Arc::<Board>::default();
        let hook =
            Hook { place: "eth0".into(), hook: "tcx ingress".into(), error: Some("no such device".into()) };
        let hooks = Arc::new(vec![hook]);
        board.publish(Snapshot { phase: Phase::Synced, node_eligible: true, hooks, ..Snapshot::default() });
        assert_eq!([ask(&board, "/healthz"), ask(&board, "/readyz")], [200, 503]);
    }
}
