//! Runs the tests by layer, and counts.
//!
//! Everything is compiled as the user who called; the binaries of a layer that needs
//! root are then run as root. A layer that cannot run has failed: nothing is skipped in
//! silence. The last line is the sum, alone on its line.

use crate::shell::{cargo, line, root as checkout, say, target};
use crate::{cluster, ebpf, root, verify};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which layers; without a name all of them but `conformance`.
    layers: Vec<Layer>,
    /// Test an optimised agent and optimised tests.
    #[arg(long)]
    release: bool,
    /// Arguments of the test binaries: a filter, `--nocapture`.
    #[arg(last = true)]
    more: Vec<String>,
}

/// A kind of test, from many and quick to few and slow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Layer {
    /// Beside the code: pure.
    Unit,
    /// Manifests in, programmed state out: pure.
    Golden,
    /// Packet tables, by the simulator and by the kernel's test-run.
    Packet,
    /// The verifier accepts every program under the shipped capabilities.
    Verify,
    /// Real sockets over network namespaces.
    Netns,
    /// The proxy attacked from outside, by raw bytes; churn under load.
    Http,
    /// A real API server.
    Api,
    /// Outside judges of the proxy: h2spec; and the Helm chart beside kustomize.
    Suites,
    /// The image, installed into a real cluster of two nodes: the tutorial's objects, rights,
    /// a rollout under load, the way out.
    Cluster,
    /// The upstream suite for Ingress controllers, from the folder that
    /// `WEIR_INGRESS_CONFORMANCE` names; some fourteen minutes.
    Conformance,
}

/// What runs without a name.
const ALL: [Layer; 9] = [
    Layer::Unit,
    Layer::Golden,
    Layer::Packet,
    Layer::Verify,
    Layer::Netns,
    Layer::Http,
    Layer::Api,
    Layer::Suites,
    Layer::Cluster,
];

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Golden => "golden",
            Self::Packet => "packet",
            Self::Verify => "verify",
            Self::Netns => "netns",
            Self::Http => "http",
            Self::Api => "api",
            Self::Suites => "suites",
            Self::Cluster => "cluster",
            Self::Conformance => "conformance",
        }
    }

    fn needs_root(self) -> bool {
        !matches!(self, Self::Unit | Self::Golden)
    }

    fn needs_agent(self) -> bool {
        matches!(self, Self::Netns | Self::Http | Self::Api | Self::Suites | Self::Conformance)
    }

    /// The integration tests of the layer, by package and name. What is beside the code is
    /// the unit layer, whole.
    fn targets(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Unit | Self::Verify | Self::Cluster => &[],
            Self::Golden => &[("tests", "golden")],
            Self::Packet => &[("tests", "packet")],
            Self::Netns => &[
                ("lb-userspace", "node"),
                ("lb-userspace", "agent"),
                ("lb-userspace", "processes"),
                ("tests", "netns"),
            ],
            Self::Http => &[("lb-userspace", "proxy"), ("tests", "http")],
            Self::Api => &[("tests", "api")],
            Self::Suites => &[("tests", "suites")],
            Self::Conformance => &[("tests", "conformance")],
        }
    }

    /// What cargo is asked to compile, one call each.
    fn selections(self) -> Vec<Vec<&'static str>> {
        if self == Self::Unit {
            return vec![vec!["--workspace", "--exclude", "lb-ebpf", "--lib", "--bins"]];
        }
        self.targets().iter().map(|(package, name)| vec!["--package", *package, "--test", *name]).collect()
    }
}

/// Tells whether some layer runs this integration test.
pub(crate) fn is_in_a_layer(package: &str, name: &str) -> bool {
    Layer::value_variants().iter().any(|layer| layer.targets().contains(&(package, name)))
}

/// What a layer's binaries said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Count {
    const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// A compiled test binary.
struct Binary {
    file: PathBuf,
    /// The folder of its package, where cargo would run it.
    folder: PathBuf,
}

/// Runs the layers; true when every test passed.
///
/// # Errors
/// When what the tests need cannot be built.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let layers = if args.layers.is_empty() { ALL.to_vec() } else { args.layers.clone() };
    let profile: &[&str] = if args.release { &["--release"] } else { &[] };
    if layers.iter().any(|layer| layer.needs_root()) {
        ebpf::build()?;
    }
    let mut variables: Vec<(&str, OsString)> = vec![("WEIR_BOUNDING_SET", root::bounding_set().into())];
    if layers.iter().any(|layer| layer.needs_agent()) {
        let mut build = cargo();
        build.args(["build", "--quiet", "--package", "lb-userspace", "--bin", "weir"]).args(profile);
        crate::shell::run(&mut build)?;
        let folder = if args.release { "release" } else { "debug" };
        variables.push(("WEIR_BIN", target().join(folder).join("weir").into()));
    }
    let mut sums = Vec::new();
    for layer in layers {
        say(format_args!("== {}", layer.name()));
        let count = run_layer(layer, profile, &variables, &args.more).unwrap_or_else(|error| {
            say(format_args!("{}: {error:#}", layer.name()));
            Count::FAILED
        });
        sums.push((layer, count));
    }
    Ok(report(&sums))
}

/// Prints the sums, the last line alone; true when every test passed and there was one.
fn report(sums: &[(Layer, Count)]) -> bool {
    println!();
    let mut all = Count::default();
    for (layer, count) in sums {
        println!("{:<12}{count}", layer.name());
        all.add(*count);
    }
    println!("{all}");
    all.failed == 0 && all.skipped == 0 && all.passed > 0
}

fn run_layer(
    layer: Layer,
    profile: &[&str],
    variables: &[(&str, OsString)],
    more: &[String],
) -> Result<Count> {
    if layer == Layer::Verify {
        return Ok(Count { passed: verify::load()?, ..Count::default() });
    }
    if layer == Layer::Cluster {
        return in_cluster();
    }
    let variables: Vec<(&str, &OsStr)> = variables.iter().map(|(n, v)| (*n, v.as_os_str())).collect();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let mut sum = Count::default();
    for selection in layer.selections() {
        let counted = run_selection(layer, &selection, profile, &variables, &more).unwrap_or_else(|error| {
            // A part that cannot run has failed; the others still say what they have to.
            say(format_args!("{}: {error:#}", layer.name()));
            Count::FAILED
        });
        sum.add(counted);
    }
    Ok(sum)
}

/// Asks a cluster of its own, and takes it down whatever it said.
fn in_cluster() -> Result<Count> {
    let count = counted(&mut cluster::check()?);
    cluster::stop()?;
    count
}

fn run_selection(
    layer: Layer,
    selection: &[&str],
    profile: &[&str],
    variables: &[(&str, &OsStr)],
    more: &[&str],
) -> Result<Count> {
    let mut compile = cargo();
    compile.args(["test", "--no-run"]).args(selection).args(profile);
    let binaries = compiled(&mut compile, true)?;
    if binaries.is_empty() {
        bail!("cargo made no test binary");
    }
    let mut sum = Count::default();
    for binary in binaries {
        let mut command = if layer.needs_root() {
            root::raised_with(variables, &binary.file, more)?
        } else {
            let mut command = Command::new(&binary.file);
            command.args(more).envs(variables.iter().copied());
            command
        };
        sum.add(counted(command.current_dir(&binary.folder))?);
    }
    Ok(sum)
}

/// Runs a test binary with its output shown, and reads its result lines.
fn counted(command: &mut Command) -> Result<Count> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", line(command)))?;
    let mut count = None;
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some(result) = result_line(&line) {
            count.get_or_insert(Count::default()).add(result);
        }
    }
    let status = child.wait()?;
    // A binary that died says no result, or a good one and then a bad exit code.
    let mut count = count.unwrap_or_default();
    if !status.success() && count.failed == 0 {
        say(format_args!("{} ended with {status} and no failed test", line(command)));
        count.failed += 1;
    }
    Ok(count)
}

/// Reads `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
fn result_line(line: &str) -> Option<Count> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        let (number, _) =
            counts.split("; ").find_map(|part| part.split_once(' ').filter(|(_, w)| *w == what))?;
        number.parse().ok()
    };
    Some(Count { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
}

/// Compiles one binary of the tests package and returns its path.
///
/// # Errors
/// When it does not compile, or there is none of that name.
pub(crate) fn program(name: &str, profile: &[&str]) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--package", "tests", "--bin", name]).args(profile);
    let binaries = compiled(&mut build, false)?;
    binaries.into_iter().next().map(|binary| binary.file).with_context(|| format!("cargo made no {name}"))
}

/// Runs a cargo build and returns the executables that it names: test binaries, or programs.
fn compiled(command: &mut Command, tests: bool) -> Result<Vec<Binary>> {
    command.args(["--quiet", "--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let out = command.output().with_context(|| format!("cannot start {}", line(command)))?;
    if !out.status.success() {
        bail!("{} failed ({})", line(command), out.status);
    }
    let mut binaries = Vec::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let Some(file) = message["executable"].as_str() else { continue };
        // Beside its tests cargo also builds a package's programs, and names them too.
        if message["profile"]["test"].as_bool() != Some(tests) {
            continue;
        }
        let manifest = PathBuf::from(message["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest.parent().map_or_else(checkout, PathBuf::from);
        binaries.push(Binary { file: file.into(), folder });
    }
    Ok(binaries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_line_is_counted() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.00s";
        assert_eq!(result_line(line), Some(Count { passed: 3, failed: 1, skipped: 2 }));
        assert_eq!(result_line("test foo ... ok"), None);
    }

    #[test]
    fn binary_that_dies_without_a_result_has_failed() -> Result<()> {
        assert_eq!(counted(Command::new("false").args::<[&str; 0], _>([]))?, Count::FAILED);
        Ok(())
    }

    #[test]
    fn failed_and_skipped_tests_fail_the_run() {
        let good = Count { passed: 1, ..Count::default() };
        assert!(report(&[(Layer::Unit, good)]));
        assert!(!report(&[(Layer::Unit, good), (Layer::Api, Count::FAILED)]));
        assert!(!report(&[(Layer::Unit, Count { skipped: 1, ..good })]));
        assert!(!report(&[(Layer::Unit, Count::default())]));
    }
}
