//! A real cluster on this machine, called by `cargo xtask cluster`: up, down, another proxy,
//! commands in the outside client's namespace. Needs root.

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lab::cluster::plan::OUTSIDE;
use lab::cluster::state::Run;
use lab::cluster::{Cluster, Cni, IpFamily, Plan, Proxy, balancer, boot, down, e2e, kind, up};
use lab::netns::Netns;
use lab::scenarios;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

#[derive(Parser)]
#[command(name = "cluster", about = "A real cluster on this machine; needs root")]
struct Words {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Starts a cluster, which stays when the command ends.
    Up(Up),
    /// Takes it down and looks whether anything is left.
    Down {
        #[arg(long, default_value = "local")]
        provider: Provider,
    },
    /// Runs upstream's end-to-end suite against the cluster; exit code 1 on a failure that is
    /// not expected.
    E2e(E2e),
    /// Asks of the cluster what users do with one, and tells what was seen; exit code 1 when
    /// something does not hold.
    Test {
        /// Scenarios; all of them without a name.
        names: Vec<String>,
        /// Only those for a check of each change.
        #[arg(long)]
        ci: bool,
        /// The archive with Weir's image, for nodes that join.
        #[arg(long)]
        image: Option<PathBuf>,
    },
    /// Another proxy on the cluster that runs.
    Proxy {
        proxy: Proxy,
        /// The archive with Weir's image.
        #[arg(long)]
        image: Option<PathBuf>,
    },
    /// Loads an image archive into every node.
    Load { archive: PathBuf },
    /// Prints what each node has of Weir: BPF objects, processes, their memory.
    Inspect,
    /// Runs a command where outside clients are, with KUBECONFIG set.
    Exec {
        /// On this node instead, in all of its namespaces.
        #[arg(long)]
        node: Option<String>,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// The load balancer of the cluster.
    #[command(hide = true)]
    Balancer { run: PathBuf },
    /// Process 1 of a node.
    #[command(hide = true)]
    Boot { file: PathBuf },
}

/// Where a cluster comes from.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Provider {
    /// Nodes out of namespaces, on this machine.
    Local,
    /// The user's kind.
    Kind,
}

#[derive(Args)]
struct E2e {
    #[arg(long, default_value = e2e::FOCUS)]
    focus: String,
    #[arg(long, default_value = e2e::SKIP)]
    skip: String,
    /// How many specs run beside each other.
    #[arg(long, default_value_t = 4)]
    parallel: u8,
    #[arg(long, default_value = "1h")]
    timeout: String,
    /// Where the reports go; `target/e2e` without it.
    #[arg(long)]
    reports: Option<PathBuf>,
}

#[derive(Args)]
struct Up {
    #[arg(long, default_value = "local")]
    provider: Provider,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// Who forwards to Services.
    #[arg(long, default_value = "weir")]
    proxy: Proxy,
    #[arg(long, default_value = "dual")]
    ip_family: IpFamily,
    /// How Pods are linked to their node.
    #[arg(long, default_value = "ptp")]
    cni: Cni,
    /// The archive with Weir's image.
    #[arg(long)]
    image: Option<PathBuf>,
}

fn main() -> ExitCode {
    lab::helper::serve_if_asked();
    match run(Words::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Up(Up { provider, nodes, proxy, ip_family, cni, image }) => {
            let plan = Plan { nodes, ip_family, cni };
            if provider == Provider::Kind {
                kind::up(&plan, proxy, image.as_deref())?;
                return Ok(ExitCode::SUCCESS);
            }
            let cluster = up::up(&up::Options { plan, proxy, image })?;
            suggest(&cluster)?;
        }
        Verb::Down { provider: Provider::Local } => down::down()?,
        Verb::Down { provider: Provider::Kind } => kind::down()?,
        Verb::E2e(words) => {
            let reports = words
                .reports
                .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/e2e"));
            std::fs::create_dir_all(&reports)?;
            let options = e2e::Options {
                focus: words.focus,
                skip: words.skip,
                parallel: words.parallel,
                timeout: words.timeout,
                reports: reports.canonicalize()?,
            };
            if !e2e::run(&Cluster::attach()?, &options)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Verb::Test { names, ci, image } => {
            let images = image.into_iter().collect();
            if !scenarios::run(Cluster::attach()?, images, &names, ci)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Verb::Balancer { run } => balancer::run(&Run::at(run))?,
        Verb::Proxy { proxy, image } => up::switch(&Cluster::attach()?, proxy, image.as_deref())?,
        Verb::Load { archive } => {
            for name in Cluster::attach()?.load_image(&archive)? {
                println!("{name}");
            }
        }
        Verb::Inspect => inspect()?,
        Verb::Exec { node, command } => return exec(node.as_deref(), &command),
        Verb::Boot { file } => boot::run(&file)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command to its end and takes its exit code.
fn exec(node: Option<&str>, words: &[String]) -> Result<ExitCode> {
    let cluster = Cluster::attach()?;
    let (program, arguments) = words.split_first().context("no command")?;
    let kubectl = lab::cluster::programs::kubectl()?;
    let program = if program == "kubectl" { kubectl.to_string_lossy().into_owned() } else { program.clone() };
    let status = match node {
        Some(name) => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let mut command = cluster.node(name)?.command(&program, &arguments)?;
            command.stdin(std::process::Stdio::inherit()).status()
        }
        None => {
            let mut command = Command::new(&program);
            command.args(arguments).env("KUBECONFIG", cluster.kubeconfig());
            Netns::attach(OUTSIDE)?.enter(|| command.status())?
        }
    };
    let status = status.with_context(|| format!("starting {program}"))?;
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        None => bail!("{program} ended with {status}"),
    }
}

fn inspect() -> Result<()> {
    for node in Cluster::attach()?.nodes().iter().filter(|node| node.is_on()) {
        let bpf = node.bpf()?;
        let [attached, programs] = [bpf.attached.len(), bpf.programs.len()];
        let [maps, pins] = [bpf.maps.len(), bpf.pins.len()];
        println!("{}: {attached} attachments, {programs} programs, {maps} maps, {pins} pins", node.name());
        for agent in node.agents()? {
            let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let capable = agent.threads.iter().map(|thread| thread.effective).fold(0, |all, one| all | one);
            println!(
                "  {:<11} pid {:<6} RSS {:5.1} MiB, PSS {:5.1} MiB, {} threads, capabilities {capable:#x}",
                agent.role,
                agent.pid,
                mebibytes(agent.rss),
                mebibytes(agent.pss),
                agent.threads.len(),
            );
        }
    }
    Ok(())
}

fn suggest(cluster: &Cluster) -> Result<()> {
    let node = cluster.nodes().first().map(|node| node.name()).unwrap_or_default();
    println!("The cluster stays until `cargo xtask cluster down`. Try:");
    println!("  cargo xtask cluster exec -- kubectl get pods -A -o wide");
    println!("  cargo xtask cluster exec -- curl -s http://172.31.77.11:30080    # from outside");
    println!("  cargo xtask cluster exec --node {node} -- ip route");
    println!("  KUBECONFIG={} # its server is reached from netns {OUTSIDE}", cluster.kubeconfig().display());
    println!("  logs: {}", cluster.run().logs().display());
    Ok(())
}
