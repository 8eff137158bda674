//! What Weir's processes may do on a node, read from the kernel for every thread (H43); and
//! which Secrets it read, by the API server's audit log (H40).

use super::rollout::SYSTEM;
use super::stage::Stage;
use crate::cluster::Thread;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// The capabilities that the manifests give, by number (linux/capability.h); each has its reason
/// there.
const GIVEN: [(u32, &str); 7] = [
    (6, "SETGID"),
    (7, "SETUID"),
    (8, "SETPCAP"),
    (10, "NET_BIND_SERVICE"),
    (12, "NET_ADMIN"),
    (38, "PERFMON"),
    (39, "BPF"),
];

/// The capabilities of every thread of Weir's on every node: none in the proxy, none but those
/// that were given in the others, no way to new ones.
pub(super) fn threads(stage: &mut Stage) -> Result<String> {
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut threads = 0;
    for node in stage.cluster().nodes() {
        let agents = node.agents()?;
        let roles: BTreeSet<&str> = agents.iter().map(|agent| agent.role.as_str()).collect();
        ensure!(roles == BTreeSet::from(["agent", "proxy", "supervisor"]), "{}: {roles:?}", node.name());
        for agent in &agents {
            for thread in &agent.threads {
                check(&agent.role, thread)
                    .with_context(|| format!("{}, {} {}: {thread:?}", node.name(), agent.role, agent.pid))?;
                seen.entry(agent.role.clone()).or_default().insert(rights(thread));
                threads += 1;
            }
        }
    }
    let told = seen.iter().map(|(role, all)| {
        format!("{role}: {}", all.iter().map(String::as_str).collect::<Vec<_>>().join(" or "))
    });
    Ok(format!("{threads} threads; {}", told.collect::<Vec<_>>().join("; ")))
}

/// Resident memory of Weir's processes on each node: what belongs to each alone, and its share
/// of what they have in common.
pub(super) fn memory(stage: &mut Stage) -> Result<String> {
    let mut told = Vec::new();
    for node in stage.cluster().nodes() {
        let agents = node.agents()?;
        ensure!(!agents.is_empty(), "no process of Weir's on {}", node.name());
        let each = agents.iter().map(|agent| {
            format!("{} {:.1} (PSS {:.1})", agent.role, mebibytes(agent.rss), mebibytes(agent.pss))
        });
        told.push(format!("{}: {}", node.name(), each.collect::<Vec<_>>().join(", ")));
    }
    Ok(format!("RSS in MiB, {}", told.join("; ")))
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

fn check(role: &str, thread: &Thread) -> Result<()> {
    ensure!(thread.seccomp == 2, "no seccomp filter");
    ensure!(thread.no_new_privs, "new privileges can be had");
    let all = thread.permitted | thread.effective | thread.bounding | thread.inheritable | thread.ambient;
    if role == "proxy" {
        ensure!(!thread.uids.contains(&0) && all == 0, "the proxy has rights");
    }
    let given = GIVEN.iter().fold(0, |mask, (number, _)| mask | 1 << number);
    ensure!(all & !given == 0, "capabilities beyond those of the manifests: {:#x}", all & !given);
    Ok(())
}

/// A thread's user and effective capabilities by name.
fn rights(thread: &Thread) -> String {
    let name = |number: u32| {
        let found = GIVEN.iter().find(|(known, _)| *known == number);
        found.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
    };
    let names: Vec<String> = (0..64).filter(|number| thread.effective >> number & 1 == 1).map(name).collect();
    format!("user {} [{}]", thread.uids.first().copied().unwrap_or_default(), names.join(" "))
}

/// The Secrets whose data went to Weir's accounts are those that Ingresses of its class name.
pub(super) fn secrets(stage: &mut Stage) -> Result<String> {
    let ingresses = stage.json(&["get", "ingresses", "-A"])?;
    let mut named = BTreeSet::new();
    for ingress in ingresses["items"].as_array().into_iter().flatten() {
        let namespace = ingress["metadata"]["namespace"].as_str().unwrap_or_default();
        for tls in ingress["spec"]["tls"].as_array().into_iter().flatten() {
            named.extend(tls["secretName"].as_str().map(|secret| format!("{namespace}/{secret}")));
        }
    }
    let log = fs::read_to_string(stage.cluster().audit_log()).context("the audit log")?;
    let mut read = BTreeSet::new();
    let mut requests = 0;
    for line in log.lines() {
        // The last line may be half written.
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let object = &event["objectRef"];
        if !user.starts_with(&format!("system:serviceaccount:{SYSTEM}:")) || object["resource"] != "secrets" {
            continue;
        }
        requests += 1;
        let namespace = object["namespace"].as_str().unwrap_or_default();
        let uri = event["requestURI"].as_str().unwrap_or_default();
        let by_name =
            uri.split(['?', '&']).find_map(|part| part.strip_prefix("fieldSelector=metadata.name%3D"));
        let name = object["name"].as_str().or(by_name);
        let name = name.with_context(|| format!("a request for more than one Secret: {uri}"))?;
        read.insert(format!("{namespace}/{name}"));
    }
    ensure!(!named.is_empty(), "no Ingress names a Secret");
    let unnamed: Vec<_> = read.difference(&named).filter(|name| !past(stage, name)).collect();
    ensure!(unnamed.is_empty(), "read without being named: {unnamed:?}");
    let unread: Vec<_> = named.difference(&read).collect();
    ensure!(unread.is_empty(), "named, and not read: {unread:?}");
    Ok(format!("{requests} requests, Secrets read = Secrets named by Ingresses: {named:?}"))
}

/// Whether a Secret's namespace is none that is there now: an earlier test's.
fn past(stage: &Stage, name: &str) -> bool {
    let namespace = name.split('/').next().unwrap_or_default();
    stage.cluster().kubectl(&["get", "namespace", namespace]).is_err()
}
