//! Upstream's end-to-end suite against the cluster that is up: run from the outside client's
//! namespace, its verdicts compared with what `tests/e2e/expected.txt` expects.

use super::images::{AGNHOST, BUSYBOX, KUBE_PROXY, PAUSE, REGRESSION, WEB};
use super::programs;
use super::{Cluster, process};
use crate::go::say;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a load balancer and its clients cross.
pub const FOCUS: &str = r"\[sig-network\] (Services|EndpointSlice|Networking|DNS|HostPort|Conntrack)";
/// Needs what a plain cluster has not, or the cluster alone.
pub const SKIP: &str = r"\[Feature:|\[Slow\]|\[Serial\]|\[Disruptive\]|\[Flaky\]";

/// The suite's images, by the last part of their names, and what stands for each here.
const IMAGES: [(&str, &str); 7] = [
    ("agnhost", AGNHOST),
    ("glibc-dns-testing", AGNHOST),
    ("busybox", BUSYBOX),
    ("pause", PAUSE),
    ("nginx", WEB),
    ("regression-issue-74839", REGRESSION),
    ("distroless-iptables", KUBE_PROXY),
];

/// What is run, and how.
#[derive(Debug, Clone)]
pub struct Options {
    pub focus: String,
    pub skip: String,
    /// How many specs run beside each other.
    pub parallel: u8,
    /// How long all of it may take, as ginkgo spells it.
    pub timeout: String,
    /// Where `report.json`, `junit.xml` and `log.txt` go.
    pub reports: PathBuf,
}

/// How a spec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Passed,
    Failed,
    /// It looked at the cluster and said that it does not apply.
    Skipped,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        })
    }
}

/// A spec that was run.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub name: String,
    pub verdict: Verdict,
    /// Why it failed or was skipped: the first line of what it said.
    pub why: String,
    pub seconds: f64,
}

/// A spec that is not expected to pass, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    pub verdict: Verdict,
    pub reason: String,
}

/// Runs the suite and tells what it found; true when nothing failed that should not.
///
/// # Errors
/// When it cannot be run or leaves no report.
pub fn run(cluster: &Cluster, options: &Options) -> Result<bool> {
    let (suite, ginkgo) = (programs::e2e()?, programs::ginkgo()?);
    name_images(cluster, &suite)?;
    fs::create_dir_all(&options.reports)?;
    let report = options.reports.join("report.json");
    let _ = fs::remove_file(&report);
    let log = options.reports.join("log.txt");
    let mut command = Command::new(&ginkgo);
    command.args(arguments(cluster, options, &suite)?);
    command.env("KUBECONFIG", cluster.kubeconfig()).env("PATH", process::PATH).current_dir(&options.reports);
    let out = fs::File::create(&log)?;
    command.stdin(std::process::Stdio::null()).stdout(out.try_clone()?).stderr(out);
    say(&format!("{} beside each other; its words go to {}", options.parallel, log.display()));
    // It fails when a spec fails: the report tells.
    let status = cluster.outside().enter(|| command.status())?.context("starting ginkgo")?;
    let text = fs::read(&report);
    let text = text.with_context(|| format!("no report ({status}):\n{}", process::last_words(&log)))?;
    let specs = specs(&serde_json::from_slice(&text)?);
    ensure!(!specs.is_empty(), "no spec was run ({status}):\n{}", process::last_words(&log));
    Ok(tell(&specs, &expected(EXPECTED)?))
}

/// What is not expected to pass, with Weir.
const EXPECTED: &str = include_str!("../../e2e/expected.txt");

/// Gives the images on the nodes the names that the suite asks for.
fn name_images(cluster: &Cluster, suite: &Path) -> Result<()> {
    let mut command = Command::new(suite);
    command.arg("--list-images");
    let said = command.output().context("starting e2e.test")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let names = stand_ins(&said);
    ensure!(!names.is_empty(), "e2e.test lists no images:\n{said}");
    for node in cluster.nodes().iter().filter(|node| node.is_on()) {
        for (name, ours) in &names {
            node.tag_image(ours, name)?;
        }
    }
    Ok(())
}

/// The suite's names that something stands for here, and what. A name with a digest cannot be
/// given.
fn stand_ins(listed: &str) -> Vec<(String, &'static str)> {
    let names = listed.lines().map(str::trim).filter(|name| !name.contains('@') && name.contains('/'));
    names
        .filter_map(|name| {
            let last = name.rsplit('/').next()?.split(':').next()?;
            let (_, ours) = IMAGES.iter().find(|(theirs, _)| *theirs == last)?;
            Some((name.to_owned(), *ours))
        })
        .collect()
}

fn arguments(cluster: &Cluster, options: &Options, suite: &Path) -> Result<Vec<String>> {
    let text = |path: &Path| path.display().to_string();
    let mut words = vec![
        format!("--procs={}", options.parallel),
        format!("--focus={}", options.focus),
        format!("--timeout={}", options.timeout),
        "--no-color".into(),
        "--output-interceptor-mode=none".into(),
        format!("--output-dir={}", text(&options.reports)),
        "--json-report=report.json".into(),
        "--junit-report=junit.xml".into(),
    ];
    if !options.skip.is_empty() {
        words.push(format!("--skip={}", options.skip));
    }
    words.extend([
        text(suite),
        "--".into(),
        "--provider=skeleton".into(),
        format!("--kubeconfig={}", text(&cluster.kubeconfig())),
        format!("--kubectl-path={}", text(&programs::kubectl()?)),
        "--dump-logs-on-failure=false".into(),
        "--node-os-distro=debian".into(),
        // Specs that want several nodes believe this number, not the cluster.
        format!("--num-nodes={}", cluster.plan().nodes),
    ]);
    Ok(words)
}

/// Reads ginkgo's report: the specs that were chosen, in order of their names.
fn specs(report: &Value) -> Vec<Spec> {
    let suites = report.as_array().into_iter().flatten();
    let reports = suites.filter_map(|suite| suite["SpecReports"].as_array()).flatten();
    let mut found: Vec<Spec> = reports.filter_map(spec).collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

fn spec(report: &Value) -> Option<Spec> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let why = text(&report["Failure"]["Message"]);
    let verdict = match report["State"].as_str()? {
        "passed" => Verdict::Passed,
        // One that the focus leaves out has nothing to say.
        "skipped" if why.is_empty() => return None,
        "skipped" => Verdict::Skipped,
        "pending" => return None,
        _ => Verdict::Failed,
    };
    let leaf = report["LeafNodeType"].as_str()?;
    if leaf != "It" && verdict != Verdict::Failed {
        // What runs before and after the suite is told only when it fails.
        return None;
    }
    let containers = report["ContainerHierarchyTexts"].as_array().into_iter().flatten().map(text);
    let name: Vec<String> =
        containers.chain([text(&report["LeafNodeText"])]).filter(|part| !part.is_empty()).collect();
    let name = if name.is_empty() { leaf.to_owned() } else { name.join(" ") };
    let seconds = report["RunTime"].as_f64().unwrap_or_default() / 1e9;
    Some(Spec { name, verdict, why: why.lines().next().unwrap_or_default().to_owned(), seconds })
}

/// Reads the list: `failed NAME` or `skipped NAME`, then an indented reason.
fn expected(text: &str) -> Result<BTreeMap<String, Exception>> {
    let mut found: BTreeMap<String, Exception> = BTreeMap::new();
    let mut last: Option<String> = None;
    for (number, line) in text.lines().enumerate() {
        let at = || format!("tests/e2e/expected.txt, line {}", number + 1);
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with(' ') {
            let exception = last.as_ref().and_then(|name| found.get_mut(name)).with_context(at)?;
            if !exception.reason.is_empty() {
                exception.reason.push(' ');
            }
            exception.reason.push_str(line.trim());
            continue;
        }
        let (verdict, name) = match line.split_once(' ') {
            Some(("failed", name)) => (Verdict::Failed, name),
            Some(("skipped", name)) => (Verdict::Skipped, name),
            _ => bail!("{}: neither `failed NAME` nor `skipped NAME`", at()),
        };
        found.insert(name.trim().to_owned(), Exception { verdict, reason: String::new() });
        last = Some(name.trim().to_owned());
    }
    for (name, exception) in &found {
        ensure!(!exception.reason.is_empty(), "tests/e2e/expected.txt: no reason for {name}");
    }
    Ok(found)
}

/// Prints the numbers and every spec that did not end as expected.
fn tell(specs: &[Spec], expected: &BTreeMap<String, Exception>) -> bool {
    let mut good = true;
    for spec in specs {
        let exception = expected.get(&spec.name);
        match (spec.verdict, exception.map(|one| one.verdict)) {
            (Verdict::Failed, Some(Verdict::Failed)) | (Verdict::Skipped, Some(Verdict::Skipped)) => {
                let reason = exception.map_or("", |one| one.reason.as_str());
                println!("{} as expected: {}\n    {reason}", spec.verdict, spec.name);
            }
            (Verdict::Failed, _) => {
                good = false;
                println!("FAILED: {}\n    {}", spec.name, spec.why);
            }
            (Verdict::Skipped, _) => println!("skipped: {}\n    {}", spec.name, spec.why),
            (Verdict::Passed, Some(_)) => println!("passed, against what is expected: {}", spec.name),
            (Verdict::Passed, None) => {}
        }
    }
    let count = |verdict| specs.iter().filter(|spec| spec.verdict == verdict).count();
    let [passed, failed, skipped] = [Verdict::Passed, Verdict::Failed, Verdict::Skipped].map(count);
    println!("{passed} passed, {failed} failed, {skipped} skipped of {}", specs.len());
    good
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn images_of_the_suite_are_stood_in_for_by_their_last_name() {
        let listed = "registry.k8s.io/e2e-test-images/agnhost:2.63.0\nregistry.k8s.io/pause:3.10.2\n\
                      registry.k8s.io/etcd:3.6\nregistry.k8s.io/e2e-test-images/nginx@sha256:00\n";
        assert_eq!(
            stand_ins(listed),
            [
                ("registry.k8s.io/e2e-test-images/agnhost:2.63.0".to_owned(), AGNHOST),
                ("registry.k8s.io/pause:3.10.2".to_owned(), PAUSE),
            ]
        );
    }

    #[test]
    fn report_is_read() {
        let report = json!([{ "SpecReports": [
            { "ContainerHierarchyTexts": ["[sig-network] DNS", ""], "LeafNodeText": "answers", "LeafNodeType": "It", "State": "passed", "RunTime": 1.5e9 },
            { "ContainerHierarchyTexts": ["[sig-network] B"], "LeafNodeText": "b", "LeafNodeType": "It", "State": "timedout", "Failure": { "Message": "too late\nmore" } },
            { "ContainerHierarchyTexts": ["[sig-network] C"], "LeafNodeText": "c", "LeafNodeType": "It", "State": "skipped", "Failure": { "Message": "only on GCE" } },
            { "ContainerHierarchyTexts": ["[sig-apps] D"], "LeafNodeText": "d", "LeafNodeType": "It", "State": "skipped", "Failure": { "Message": "" } },
            { "ContainerHierarchyTexts": null, "LeafNodeText": "", "LeafNodeType": "SynchronizedBeforeSuite", "State": "passed" },
        ] }]);
        let found = specs(&report);
        let short: Vec<(&str, Verdict, &str)> =
            found.iter().map(|one| (one.name.as_str(), one.verdict, one.why.as_str())).collect();
        assert_eq!(
            short,
            [
                ("[sig-network] B b", Verdict::Failed, "too late"),
                ("[sig-network] C c", Verdict::Skipped, "only on GCE"),
                ("[sig-network] DNS answers", Verdict::Passed, ""),
            ]
        );
        assert!((found[2].seconds - 1.5).abs() < 1e-9);
    }

    #[test]
    fn suite_that_does_not_start_has_failed() {
        let report = json!([{ "SpecReports": [
            { "LeafNodeType": "SynchronizedBeforeSuite", "State": "failed", "Failure": { "Message": "no nodes" } },
        ] }]);
        let found = specs(&report);
        assert_eq!(
            (found.len(), found[0].verdict, found[0].name.as_str()),
            (1, Verdict::Failed, "SynchronizedBeforeSuite")
        );
        assert!(!tell(&found, &BTreeMap::new()));
    }

    #[test]
    fn every_exception_has_its_reason() -> Result<()> {
        let list = expected("# why\nfailed A b\n  no SCTP\n  in this kernel\nskipped C\n  GCE only\n")?;
        assert_eq!(
            list["A b"],
            Exception { verdict: Verdict::Failed, reason: "no SCTP in this kernel".into() }
        );
        assert!(
            expected("failed A\n").is_err() && expected("  orphan\n").is_err() && expected("A\n").is_err()
        );
        expected(EXPECTED).map(drop)
    }

    #[test]
    fn only_unexpected_failures_fail_the_run() {
        let spec =
            |name: &str, verdict| Spec { name: name.into(), verdict, why: String::new(), seconds: 0.0 };
        let list =
            BTreeMap::from([("a".to_owned(), Exception { verdict: Verdict::Failed, reason: "r".into() })]);
        assert!(tell(&[spec("a", Verdict::Failed), spec("b", Verdict::Passed)], &list));
        assert!(tell(&[spec("a", Verdict::Passed), spec("c", Verdict::Skipped)], &list), "told, no failure");
        assert!(!tell(&[spec("b", Verdict::Failed)], &list));
    }
}
