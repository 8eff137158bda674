//! The admin socket: what a running agent knows, as JSON, for its own user alone.
//!
//! Answers that need the stages' own state are made on the reconciler's thread, between two
//! rounds; status works without it, so that a busy or waiting agent still says how it is.

mod answers;

use crate::args::L7Config;
use crate::board::{Board, L7Phase, Phase, now_ms};
use crate::explain;
use crate::health;
use crate::http::{self, Answer};
use crate::metrics::Metrics;
use crate::problem::ObjectKey;
use crate::reconcile::Handle;
use crate::source::Syncs;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a question waits for an agent that is starting.
const STARTING: Duration = Duration::from_secs(10);

/// Who answers at the admin socket from the first moment: health and readiness as on
/// `--healthz-listen`, where another agent of the node may answer; the rest once this agent holds
/// the node.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    pub(crate) board: Arc<Board>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) admin: watch::Receiver<Option<Arc<Admin>>>,
}

impl Desk {
    /// Answers one request.
    pub(crate) async fn answer(mut self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        if !path.starts_with("/v1/") {
            return health::answer(request.method(), path, &self.board, &self.metrics);
        }
        let standby = self.board.snapshot().phase == Phase::Standby;
        let patience = if standby { Duration::ZERO } else { STARTING };
        let admin = tokio::time::timeout(patience, self.admin.wait_for(Option::is_some)).await;
        match admin.ok().and_then(Result::ok).and_then(|admin| admin.clone()) {
            Some(admin) => admin.answer(request).await,
            None => {
                let error = if standby { health::STANDING_BY } else { "this agent is starting" };
                http::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error }))
            }
        }
    }
}

/// What admin answers from.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) node_name: String,
    pub(crate) l4: bool,
    /// `None`: `--l7 off`.
    pub(crate) l7: Option<L7Config>,
    pub(crate) board: Arc<Board>,
    pub(crate) syncs: Arc<Syncs>,
    pub(crate) reconciler: Handle,
}

/// A question that cannot be answered, and why.
struct Refused(StatusCode, String);

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}"))
    }
}

impl Admin {
    /// Answers one request.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        if request.method() != Method::GET {
            return http::json(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": "GET only" }));
        }
        let query: BTreeMap<String, String> =
            form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let value = match request.uri().path() {
            "/v1/status" => Ok(self.status().await),
            "/v1/services" => self.services(&query).await,
            "/v1/routes" => self.routes(query).await,
            "/v1/explain" => {
                let headers = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
                let headers =
                    headers.filter(|(name, _)| name == "header").map(|(_, value)| value.into_owned());
                self.explain(&query, headers.collect()).await
            }
            "/v1/problems" => Ok(self.problems(&query)),
            "/v1/dump" => self.dump().await,
            "/v1/flows" => self.flows(&query).await,
            path => Err(Refused(StatusCode::NOT_FOUND, format!("there is no {path}"))),
        };
        match value {
            Ok(value) => http::json(StatusCode::OK, &value),
            Err(Refused(status, error)) => http::json(status, &json!({ "error": error })),
        }
    }

    async fn status(&self) -> Value {
        let snapshot = self.board.snapshot();
        // A reconciler that is busy tells its fill another time.
        let fill = self.reconciler.ask(|reconciler| reconciler.datapath.fill()).await.unwrap_or_default();
        let state = match (snapshot.phase, snapshot.ready()) {
            (Phase::Starting, _) => "starting",
            (Phase::Standby, _) => "standby",
            (Phase::Listing, _) => "waiting for the first complete lists",
            (Phase::Synced, true) => "ready",
            (Phase::Synced, false) => "synced, but a hook is missing",
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "state": state,
            "ready": snapshot.ready(),
            "l4": self.l4,
            "l7": self.l7(),
            "node": {
                "name": self.node_name,
                "addresses": snapshot.node_addresses,
                "eligible": snapshot.node_eligible,
            },
            "source": { "origin": self.syncs.origin(), "kinds": kinds(&self.syncs) },
            "programmed": {
                "services": snapshot.services,
                "frontends": snapshot.frontends,
                "backends": snapshot.backends,
            },
            "sync": {
                "rounds": snapshot.rounds,
                "last_round_micros": snapshot.last_round_micros,
                "last_applied_ms": self.board.applied_at(),
                "waiting_ms": u64::try_from(self.board.pending_for().as_millis()).unwrap_or(u64::MAX),
                "pending_services": snapshot.pending_ops,
                "now_ms": now_ms(),
            },
            "takeover": snapshot.takeover,
            "devices": *snapshot.links,
            "hooks": *snapshot.hooks,
            "maps": fill,
            "listeners": self.board.listeners(),
            "processes": self.board.surroundings(),
            "problems": self.board.problems(),
        })
    }

    /// `null` where L7 is off.
    fn l7(&self) -> Value {
        let l7 = self.board.l7();
        if l7.phase == L7Phase::Off {
            return Value::Null;
        }
        let mut value = serde_json::to_value(&*l7).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            let state = self.board.l7_waits_for().unwrap_or_else(|| "ready".into());
            fields.insert("state".into(), state.into());
        }
        value
    }

    async fn services(&self, query: &BTreeMap<String, String>) -> Result<Value, Refused> {
        let wanted = service(query)?;
        let namespace = query.get("namespace").cloned();
        let found = self
            .reconciler
            .ask(move |reconciler| {
                let told = |key: &ObjectKey| {
                    wanted.as_ref().is_none_or(|wanted| wanted == key)
                        && namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
                };
                (answers::services(reconciler, told), wanted.clone())
            })
            .await?;
        match found {
            (Value::Array(all), Some(wanted)) if all.is_empty() => {
                Err(Refused(StatusCode::NOT_FOUND, format!("there is no Service {wanted}")))
            }
            (all, _) => Ok(json!({ "services": all })),
        }
    }

    async fn routes(&self, mut query: BTreeMap<String, String>) -> Result<Value, Refused> {
        let (host, namespace) = (query.remove("host"), query.remove("namespace"));
        let told = self
            .reconciler
            .ask(move |reconciler| answers::routes(reconciler, host.as_deref(), namespace.as_deref()));
        let told = told.await?;
        told.ok_or_else(|| Refused(StatusCode::NOT_FOUND, "L7 is off (--l7 off)".into()))
    }

    async fn explain(
        &self,
        query: &BTreeMap<String, String>,
        headers: Vec<String>,
    ) -> Result<Value, Refused> {
        let bad = |reason| Refused(StatusCode::BAD_REQUEST, reason);
        let target = query.get("target").ok_or_else(|| bad("no target".to_string()))?;
        let target = explain::parse(target).map_err(bad)?;
        let from = match query.get("from") {
            None => None,
            Some(text) => {
                Some(text.parse::<IpAddr>().map_err(|_| bad(format!("--from {text}: not an IP address")))?)
            }
        };
        if let (explain::Wanted::Url(url), Some(l7)) = (&target.wanted, &self.l7) {
            let headers = headers.iter().map(|header| {
                let (name, value) =
                    header.split_once(':').ok_or_else(|| bad(format!("-H {header}: no colon")))?;
                Ok((name.trim().to_string(), value.trim().to_string()))
            });
            let asked = answers::AskedUrl {
                text: target.text.clone(),
                url: url.clone(),
                method: query.get("method").cloned().unwrap_or_else(|| "GET".into()),
                headers: headers.collect::<Result<_, Refused>>()?,
                http: l7.http.clone(),
                https: l7.https.clone(),
                waits: self.board.l7_waits_for(),
            };
            let told =
                self.reconciler.ask(move |reconciler| answers::explain_url(reconciler, &asked)).await?;
            let told = told.ok_or_else(|| Refused(StatusCode::SERVICE_UNAVAILABLE, "L7 is off".into()))?;
            let mut value = serde_json::to_value(&told).unwrap_or_default();
            if let Value::Object(fields) = &mut value {
                fields.insert("text".into(), told.text().into());
            }
            return Ok(value);
        }
        let told = self.reconciler.ask(move |reconciler| answers::explain(reconciler, &target, from)).await?;
        let told = told.map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")))?;
        let mut value = serde_json::to_value(&told).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            fields.insert("text".into(), told.text().into());
        }
        Ok(value)
    }

    fn problems(&self, query: &BTreeMap<String, String>) -> Value {
        let mut problems = self.board.problems();
        if let Some(namespace) = query.get("namespace") {
            problems.retain(|problem| problem.object.key.namespace == *namespace);
        }
        json!({ "problems": problems })
    }

    async fn dump(&self) -> Result<Value, Refused> {
        let status = self.status().await;
        let mut dump = self.reconciler.ask(answers::dump).await?;
        if let Value::Object(fields) = &mut dump {
            fields.insert("status".into(), status);
        }
        Ok(dump)
    }

    async fn flows(&self, query: &BTreeMap<String, String>) -> Result<Value, Refused> {
        let wanted = service(query)?;
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(1000);
        let flows =
            self.reconciler.ask(move |reconciler| answers::flows(reconciler, wanted.as_ref(), limit)).await?;
        Ok(json!({ "flows": flows }))
    }
}

fn service(query: &BTreeMap<String, String>) -> Result<Option<ObjectKey>, Refused> {
    let parse = |text: &String| {
        crate::args::value::object_key(text)
            .map_err(|why| Refused(StatusCode::BAD_REQUEST, format!("{text}: {why}")))
    };
    query.get("service").map(parse).transpose()
}

fn kinds(syncs: &Syncs) -> BTreeMap<String, Value> {
    let kinds = syncs.kinds().into_iter();
    kinds.map(|(kind, state)| (kind.to_string(), serde_json::to_value(state).unwrap_or_default())).collect()
}
