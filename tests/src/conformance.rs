//! The upstream suite for Ingress controllers (kubernetes-sigs/ingress-controller-conformance),
//! run from the outside client's namespace against a real API server, its pods played by
//! [`crate::kubelet`].
//!
//! The suite is not part of this repository and no registry that the tests may ask serves it:
//! `WEIR_INGRESS_CONFORMANCE` names a folder with the compiled suite (`conformance.test`) and
//! its `features`. The images that it names are not needed.

use crate::apiserver::ApiServer;
use crate::kubelet::Kubelet;
use crate::topology::Topology;
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Executions of the whole suite: scenarios, outlines by example.
pub const EXECUTIONS: usize = 30;
/// The suite polls every five seconds and sleeps for a minute once: some fourteen minutes.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
const VARIABLE: &str = "WEIR_INGRESS_CONFORMANCE";

/// One scenario as it went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Execution {
    pub name: String,
    /// What the first step that did not pass said.
    pub failed: Option<String>,
}

/// Runs the suite to its end, against the controller of this IngressClass; its JSON and its
/// words stay in `out`.
///
/// # Errors
/// When there is no suite, or it does not come to an end.
pub fn run(
    lab: &Topology,
    server: &ApiServer,
    kubelet: &mut Kubelet<'_>,
    class: &str,
    out: &Path,
) -> Result<Vec<Execution>> {
    let folder = std::env::var_os(VARIABLE).map(PathBuf::from);
    let folder = folder.with_context(|| {
        format!("set {VARIABLE} to a folder with the compiled suite (conformance.test) and its features")
    })?;
    let program = folder.join("conformance.test");
    ensure!(program.is_file() && folder.join("features").is_dir(), "no suite in {}", folder.display());
    fs::create_dir_all(out)?;
    let words = File::create(out.join("words.log"))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(&program);
    command.args(["-format", "cucumber", "-ingress-class", class]).arg("-output-directory").arg(out);
    // One scenario waits this long for a status that must not come.
    command.args(["-wait-time-for-ingress-status", "30s", "-wait-time-for-ready", "60s"]);
    command.current_dir(&folder).env("KUBECONFIG", server.kubeconfig());
    command.stdin(Stdio::null()).stdout(words.try_clone()?).stderr(words);
    lab.client().enter(|| -> Result<()> {
        let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let ended = wait::until("the suite ends", PATIENCE, || {
            kubelet.step()?;
            child.try_wait()?.context("it runs")
        });
        if ended.is_err() {
            // It may have ended meanwhile.
            let _ = child.kill();
            let _ = child.wait();
        }
        ended.map(drop)
    })??;
    let mut executions = Vec::new();
    for entry in fs::read_dir(out)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let report: Value =
                serde_json::from_slice(&fs::read(&path)?).with_context(|| path.display().to_string())?;
            executions.extend(read(&report));
        }
    }
    if executions.is_empty() {
        bail!("the suite told nothing: {}", fs::read_to_string(out.join("words.log"))?);
    }
    Ok(executions)
}

/// Reads a cucumber report.
fn read(report: &Value) -> Vec<Execution> {
    let list = |value: &Value, of: &str| value[of].as_array().cloned().unwrap_or_default();
    let mut executions = Vec::new();
    for feature in report.as_array().into_iter().flatten() {
        for scenario in list(feature, "elements") {
            if scenario["type"] != "scenario" {
                continue;
            }
            let text = |value: &Value| value.as_str().unwrap_or_default().trim().to_owned();
            let steps = list(&scenario, "steps");
            let bad = steps.iter().find(|step| step["result"]["status"] != "passed");
            let mut failed = bad.map(|step| {
                let result = &step["result"];
                let (name, status) = (text(&step["name"]), text(&result["status"]));
                format!("{name}: {status} {}", text(&result["error_message"]))
            });
            if steps.is_empty() {
                failed = Some("no steps".into());
            }
            let name = format!("{}: {}", text(&feature["name"]), text(&scenario["name"]));
            executions.push(Execution { name, failed });
        }
    }
    executions
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn execution_passes_only_with_all_its_steps() {
        let scenario = |name: &str, steps: &[&str]| {
            let steps: Vec<_> =
                steps.iter().map(|status| json!({ "name": "s", "result": { "status": status } })).collect();
            json!({ "type": "scenario", "name": name, "steps": steps })
        };
        let report = json!([{ "name": "Path", "elements": [
            scenario("a", &["passed", "passed"]),
            scenario("b", &["passed", "failed", "skipped"]),
            scenario("c", &[]),
            { "type": "background", "name": "d" },
        ] }]);
        let read = read(&report);
        let names: Vec<_> = read.iter().map(|execution| execution.name.as_str()).collect();
        assert_eq!(names, ["Path: a", "Path: b", "Path: c"]);
        let failed: Vec<_> = read.iter().map(|execution| execution.failed.as_deref()).collect();
        assert_eq!(failed, [None, Some("s: failed "), Some("no steps")]);
    }
}
