//! A real cluster on this machine, called by `cargo xtask cluster`: up, down, another proxy,
//! commands in the outside client's namespace. Needs root.

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use lab::cluster::plan::OUTSIDE;
use lab::cluster::{Cluster, Cni, IpFamily, Plan, Proxy, boot, down, up};
use lab::netns::Netns;
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
    Down,
    /// Another proxy on the cluster that runs.
    Proxy {
        proxy: Proxy,
        /// The archive with Weir's image.
        #[arg(long)]
        image: Option<PathBuf>,
    },
    /// Loads an image archive into every node.
    Load { archive: PathBuf },
    /// Runs a command where outside clients are, with KUBECONFIG set.
    Exec {
        /// On this node instead, in all of its namespaces.
        #[arg(long)]
        node: Option<String>,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Process 1 of a node.
    #[command(hide = true)]
    Boot { file: PathBuf },
}

#[derive(Args)]
struct Up {
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
        Verb::Up(Up { nodes, proxy, ip_family, cni, image }) => {
            let plan = Plan { nodes, ip_family, cni };
            let cluster = up::up(&up::Options { plan, proxy, image })?;
            suggest(&cluster)?;
        }
        Verb::Down => down::down()?,
        Verb::Proxy { proxy, image } => up::switch(&Cluster::attach()?, proxy, image.as_deref())?,
        Verb::Load { archive } => {
            for name in Cluster::attach()?.load_image(&archive)? {
                println!("{name}");
            }
        }
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
