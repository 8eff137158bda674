//! The command line: flags, variables and configuration file, checked once into [`Config`].
//!
//! A flag beats its variable `WEIR_<FLAG>`, which beats the key of the same name in
//! `--config FILE`. Whatever is wrong is told with flag, value and reason, exit code 2.

mod config;
mod file;
mod run;
pub mod value;

pub use config::{
    ApiConfig, Config, HttpConfig, L4Config, L7Config, LogConfig, PublishConfig, SourceConfig, SourceKind,
};
pub use run::{AccessLogFormat, LogFormat, LogLevel, Onoff, Role, RunArgs, Xdp};
pub use value::AccessLog;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Weir: Kubernetes Services on one node, in eBPF.
#[derive(Parser, Debug)]
#[command(name = "weir", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

/// What `weir` is asked to do.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Run the agent of this node.
    Run(Box<RunArgs>),
    /// Version, node, sources, hooks and map fill of the running agent.
    Status(Ask),
    /// Services with their frontends, backends, flows and drops.
    Services(ServicesArgs),
    /// Routes of Ingresses: host and path, where they go, and with which certificate.
    Routes(RoutesArgs),
    /// What would become of a connection or a request, and why. Exit code 3: it would not be served.
    Explain(ExplainArgs),
    /// Faults by object, field and reason.
    Problems(Listing),
    /// The state of every stage, as JSON.
    Dump(Ask),
    /// Flows that the data path remembers.
    Flows(FlowsArgs),
    /// Whether the agent is ready, and what it waits for; exit code 1 if it is not.
    Ready(ReadyArgs),
    /// Whether the agent lives: its rounds end. Exit code 1 if not.
    Alive(Probe),
    /// Remove everything that Weir put on this node.
    Cleanup(CleanupArgs),
    /// Make a node ready for an agent that has no right to: for the init container of its Pod.
    #[command(hide = true)]
    InitNode(InitNodeArgs),
}

/// How an answer is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    Json,
}

/// What a probe asks.
#[derive(Args, Clone, Debug)]
pub struct Probe {
    /// Socket of the agent
    #[arg(long, env = "WEIR_ADMIN_SOCKET", default_value = config::ADMIN_SOCKET, value_name = "PATH")]
    pub admin_socket: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct ReadyArgs {
    /// One that waits to take over from another agent of the node counts as ready: for a rolling
    /// update, which starts the new agent first
    #[arg(long)]
    pub standby_counts: bool,
    #[command(flatten)]
    pub probe: Probe,
}

#[derive(Args, Clone, Debug)]
pub struct InitNodeArgs {
    /// Where a BPF file system is to be; mounted if it is not there
    #[arg(long, env = "WEIR_BPFFS", default_value = config::BPFFS, value_name = "PATH")]
    pub bpffs: PathBuf,
    /// Folder below which a cgroup2 file system is to be found
    #[arg(long, env = "WEIR_CGROUP", default_value = "/sys/fs/cgroup", value_name = "PATH")]
    pub cgroup: PathBuf,
    /// Where folders of the node are mounted: the kubelet's kubeconfig is looked for there
    #[arg(long, default_value = "/", value_name = "PATH")]
    pub host_root: PathBuf,
    /// The agent's state folder
    #[arg(long, env = "WEIR_STATE_DIR", default_value = config::STATE_DIR, value_name = "PATH")]
    pub state_dir: PathBuf,
    #[command(flatten)]
    pub conntrack: NfConntrackArgs,
}

/// The kernel's own connection tracking, which other traffic of the node passes: set as kube-proxy
/// sets it, under its names; 0 leaves a value as it is.
#[derive(Args, Clone, Debug)]
pub struct NfConntrackArgs {
    /// Entries that the kernel's table holds at least, for each processor
    #[arg(long, env = "WEIR_CONNTRACK_MAX_PER_CORE", default_value_t = 32_768, value_name = "N")]
    pub conntrack_max_per_core: u32,
    /// Entries that it holds at least, however few processors there are
    #[arg(long, env = "WEIR_CONNTRACK_MIN", default_value_t = 131_072, value_name = "N")]
    pub conntrack_min: u32,
    /// Seconds after which an open TCP connection without a packet is forgotten
    #[arg(
        long,
        env = "WEIR_CONNTRACK_TCP_TIMEOUT_ESTABLISHED",
        default_value_t = 86_400,
        value_name = "SECONDS"
    )]
    pub conntrack_tcp_timeout_established: u32,
    /// The same for one whose other end has closed
    #[arg(
        long,
        env = "WEIR_CONNTRACK_TCP_TIMEOUT_CLOSE_WAIT",
        default_value_t = 3_600,
        value_name = "SECONDS"
    )]
    pub conntrack_tcp_timeout_close_wait: u32,
}

/// Common to everything that asks a running agent.
#[derive(Args, Clone, Debug)]
pub struct Ask {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORM")]
    pub output: Output,
    /// Socket of the agent
    #[arg(long, env = "WEIR_ADMIN_SOCKET", default_value = config::ADMIN_SOCKET, value_name = "PATH")]
    pub admin_socket: PathBuf,
}

/// Which objects, and whether to go on watching.
#[derive(Args, Clone, Debug)]
pub struct Listing {
    /// Namespace (default: all)
    #[arg(short, long, value_name = "NS")]
    pub namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Print again at each change, until interrupted
    #[arg(short, long)]
    pub watch: bool,
    #[command(flatten)]
    pub ask: Ask,
}

#[derive(Args, Clone, Debug)]
pub struct ServicesArgs {
    /// One Service, as NS/NAME, or NAME with -n
    pub service: Option<String>,
    #[command(flatten)]
    pub listing: Listing,
}

#[derive(Args, Clone, Debug)]
pub struct RoutesArgs {
    /// One host, as a rule writes it or as a client asks for it
    pub host: Option<String>,
    #[command(flatten)]
    pub listing: Listing,
}

#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// URL, IP:PORT[/tcp|/udp|/sctp] or svc/NS/NAME:PORT
    pub target: String,
    /// Address of the client (default: a client from outside)
    #[arg(long, value_name = "IP")]
    pub from: Option<IpAddr>,
    /// Method, for a URL
    #[arg(short = 'X', long, value_name = "METHOD")]
    pub method: Option<String>,
    /// Header, for a URL, as "Name: value"; repeatable
    #[arg(short = 'H', long, value_name = "HEADER")]
    pub header: Vec<String>,
    #[command(flatten)]
    pub ask: Ask,
}

#[derive(Args, Clone, Debug)]
pub struct FlowsArgs {
    /// Only flows of this Service, as NS/NAME
    #[arg(long, value_name = "NS/NAME")]
    pub service: Option<String>,
    /// Most flows to list
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub limit: usize,
    #[command(flatten)]
    pub ask: Ask,
}

#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// BPF filesystem that holds the pins
    #[arg(long, env = "WEIR_BPFFS", default_value = config::BPFFS, value_name = "PATH")]
    pub bpffs: PathBuf,
    /// The agent's state folder
    #[arg(long, env = "WEIR_STATE_DIR", default_value = config::STATE_DIR, value_name = "PATH")]
    pub state_dir: PathBuf,
    /// Do nothing afterwards until told to end: for the Pods of a DaemonSet
    #[arg(long, hide = true)]
    pub stay: bool,
    /// Leave new connections to kube-proxy at once, and remove only when the open ones have ended, or after this
    /// time, such as 10m
    #[arg(long, env = "WEIR_DRAIN", value_name = "TIME", value_parser = value::duration)]
    pub drain: Option<Duration>,
    /// Drain also where no rules of kube-proxy's are: to something else that takes over
    #[arg(long, requires = "drain")]
    pub force: bool,
}

/// What is to be done, with everything checked.
#[derive(Debug)]
pub enum Task {
    Run(Box<Config>),
    Ask(Verb),
}

/// Reads the command line, the environment and the configuration file.
///
/// # Errors
/// A [`clap::Error`] that knows how to print itself and its exit code: 2, or 0 after
/// `--help`.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Task, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = Cli::from_arg_matches(&Cli::command().try_get_matches_from(&args)?)?;
    let Verb::Run(run) = cli.verb else { return Ok(Task::Ask(cli.verb)) };
    let run = match &run.config {
        None => run,
        Some(path) => {
            // The file's values become the defaults, so that clap itself keeps the order
            // flag, variable, file, and checks a value the same way wherever it stands.
            let command = file::with_defaults(Cli::command(), path)
                .map_err(|reason| usage(format!("--config {}: {reason}", path.display())))?;
            let matches = command
                .try_get_matches_from(&args)
                .map_err(|e| usage(format!("in {}: {}", path.display(), plain(&e))))?;
            let Verb::Run(run) = Cli::from_arg_matches(&matches)?.verb else {
                return Err(usage(format!("--config {}: belongs to run", path.display())));
            };
            run
        }
    };
    Config::check(*run).map(Box::new).map(Task::Run).map_err(usage)
}

fn usage(reason: String) -> clap::Error {
    Cli::command().error(ErrorKind::ValueValidation, reason)
}

/// The first line of a clap error, without its "error:".
fn plain(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_string()
}

#[cfg(test)]
mod tests;
