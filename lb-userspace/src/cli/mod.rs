//! The verbs that ask a running agent over its admin socket, and print what it says.

mod render;

use crate::args::{
    Ask, CleanupArgs, ExplainArgs, FlowsArgs, Listing, Output, Probe, ReadyArgs, RoutesArgs, ServicesArgs,
    Verb,
};
use crate::cleanup::Drain;
use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code of `explain` for what would not be served.
const NOT_SERVED: u8 = 3;
/// How often `-w` looks again.
const WATCH: Duration = Duration::from_millis(500);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a verb.
///
/// # Errors
/// When the agent cannot be asked, or refuses the question.
pub fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    if let Verb::InitNode(args) = &verb {
        return crate::init_node::run(args).map(|()| ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Verb::Cleanup(CleanupArgs { bpffs, state_dir, stay, drain, force }) = &verb {
        let drain = drain.map(|patience| Drain { patience, force: *force });
        crate::cleanup::run(bpffs, state_dir, drain)?;
        if *stay {
            runtime.block_on(told_to_end())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    runtime.block_on(ask(verb))
}

async fn ask(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Status(ask) => once(&ask, "/v1/status", &[], render::status).await,
        Verb::Dump(ask) => once(&ask, "/v1/dump", &[], render::json).await,
        Verb::Services(ServicesArgs { service, listing }) => {
            let service = service.map(|name| match (name.contains('/'), &listing.namespace) {
                (true, _) => name,
                (false, namespace) => format!("{}/{name}", namespace.as_deref().unwrap_or("default")),
            });
            let mut query: Vec<(&str, &str)> =
                service.iter().map(|service| ("service", service.as_str())).collect();
            if service.is_none() {
                query.extend(listing.namespace.iter().map(|namespace| ("namespace", namespace.as_str())));
            }
            let detailed = service.is_some();
            list(&listing, "/v1/services", &query, move |value| render::services(value, detailed)).await
        }
        Verb::Routes(RoutesArgs { host, listing }) => {
            let mut query: Vec<(&str, &str)> = host.iter().map(|host| ("host", host.as_str())).collect();
            query.extend(listing.namespace.iter().map(|namespace| ("namespace", namespace.as_str())));
            list(&listing, "/v1/routes", &query, render::routes).await
        }
        Verb::Problems(listing) => {
            let query: Vec<(&str, &str)> =
                listing.namespace.iter().map(|namespace| ("namespace", namespace.as_str())).collect();
            list(&listing, "/v1/problems", &query, render::problems).await
        }
        Verb::Flows(FlowsArgs { service, limit, ask }) => {
            let limit = limit.to_string();
            let mut query = vec![("limit", limit.as_str())];
            query.extend(service.iter().map(|service| ("service", service.as_str())));
            once(&ask, "/v1/flows", &query, render::flows).await
        }
        Verb::Explain(ExplainArgs { target, from, method, header, ask }) => {
            let from = from.map(|ip| ip.to_string());
            let mut query = vec![("target", target.as_str())];
            query.extend(method.iter().map(|method| ("method", method.as_str())));
            query.extend(header.iter().map(|header| ("header", header.as_str())));
            query.extend(from.iter().map(|from| ("from", from.as_str())));
            let value = get(&ask.admin_socket, "/v1/explain", &query).await?;
            print(&ask, &value, render::explanation)?;
            let served = value.get("served").and_then(Value::as_bool).unwrap_or(false);
            Ok(if served { ExitCode::SUCCESS } else { ExitCode::from(NOT_SERVED) })
        }
        Verb::Ready(ReadyArgs { standby_counts, probe }) => {
            probe_at(&probe, if standby_counts { "/readyz/rollout" } else { "/readyz" }).await
        }
        Verb::Alive(probe) => probe_at(&probe, "/livez").await,
        Verb::Run(_) | Verb::Cleanup(_) | Verb::InitNode(_) => bail!("not a question"),
    }
}

async fn probe_at(at: &Probe, path: &str) -> anyhow::Result<ExitCode> {
    let (good, line) = probe(&at.admin_socket, path).await?;
    // Whoever asks by the exit code alone does not read.
    let _unread = writeln!(std::io::stdout(), "{line}");
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn once(
    ask: &Ask,
    path: &str,
    query: &[(&str, &str)],
    render: impl Fn(&Value) -> String,
) -> anyhow::Result<ExitCode> {
    let value = get(&ask.admin_socket, path, query).await?;
    print(ask, &value, render)?;
    Ok(ExitCode::SUCCESS)
}

async fn list(
    listing: &Listing,
    path: &str,
    query: &[(&str, &str)],
    render: impl Fn(&Value) -> String,
) -> anyhow::Result<ExitCode> {
    let mut last = Value::Null;
    loop {
        let value = get(&listing.ask.admin_socket, path, query).await?;
        if value != last {
            print(&listing.ask, &value, &render)?;
            last = value;
        }
        if !listing.watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(WATCH).await;
    }
}

fn print(ask: &Ask, value: &Value, render: impl Fn(&Value) -> String) -> anyhow::Result<()> {
    let text = match ask.output {
        Output::Json => render::json(value),
        Output::Table => render(value),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough: `weir services | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}

/// Asks the agent behind `socket`.
///
/// # Errors
/// When nobody answers, or the answer is a refusal.
pub async fn get(socket: &Path, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
    let answer = tokio::time::timeout(PATIENCE, exchange(socket, path, query));
    let (status, body) = answer.await.context("the agent takes too long to answer")??;
    let value: Value = serde_json::from_slice(&body).context("the answer is not JSON")?;
    if status != StatusCode::OK {
        bail!("{}", value.get("error").and_then(Value::as_str).unwrap_or("refused without a reason"));
    }
    Ok(value)
}

async fn told_to_end() -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Asks the agent behind `socket` for one of its states: whether it is good, and what it says,
/// in one line.
///
/// # Errors
/// When nobody answers.
pub async fn probe(socket: &Path, path: &str) -> anyhow::Result<(bool, String)> {
    let answer = tokio::time::timeout(PATIENCE, exchange(socket, path, &[]));
    let (status, body) = answer.await.context("the agent takes too long to answer")??;
    let lines: Vec<String> = String::from_utf8_lossy(&body).lines().map(str::to_owned).collect();
    Ok((status == StatusCode::OK, lines.join("; ")))
}

async fn exchange(socket: &Path, path: &str, query: &[(&str, &str)]) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!("no agent answers at {} (is `weir run` running here? --admin-socket)", socket.display())
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let query: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let uri = if query.is_empty() { path.to_string() } else { format!("{path}?{query}") };
    let request = Request::get(uri).header("host", "weir").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, body))
}
