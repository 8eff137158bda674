//! What the lab's helper processes are told and what they answer: one JSON line each.

use crate::differential::{Fates, Probe};
use crate::web::{Fetch, Fetched, Traffic, TrafficReport};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Transport of a question.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Proto {
    Tcp,
    Udp,
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// One question: who answers at this address?
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    pub proto: Proto,
    pub to: SocketAddr,
    /// UDP only: connect() and send() instead of sendto().
    pub connected: bool,
    /// Source port; 0 leaves the choice to the kernel.
    pub from_port: u16,
    pub timeout_ms: u64,
    /// UDP only: a datagram of so many bytes has to come back as well.
    pub large: usize,
}

impl Ask {
    pub fn new(proto: Proto, to: SocketAddr) -> Self {
        Self { proto, to, connected: false, from_port: 0, timeout_ms: 2_000, large: 0 }
    }

    #[must_use]
    pub fn connected(self) -> Self {
        Self { connected: true, ..self }
    }

    #[must_use]
    pub fn from_port(self, from_port: u16) -> Self {
        Self { from_port, ..self }
    }

    #[must_use]
    pub fn large(self, large: usize) -> Self {
        Self { large, ..self }
    }

    #[must_use]
    pub fn timeout_ms(self, timeout_ms: u64) -> Self {
        Self { timeout_ms, ..self }
    }
}

/// What came of a question.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Name of the pod that answered.
    pub pod: Option<String>,
    /// The client's address as the server saw it.
    pub seen: Option<SocketAddr>,
    /// The server's own address of the connection, as it saw it.
    pub server: Option<SocketAddr>,
    /// The client's own address.
    pub local: Option<SocketAddr>,
    /// What getpeername() says on the client; for unconnected UDP, whom recvfrom() names.
    pub peer: Option<SocketAddr>,
    pub errno: Option<i32>,
    pub error: Option<String>,
    pub elapsed_us: u64,
    /// Monotonic clock, when the question was put.
    pub started_us: u64,
}

impl Answer {
    /// True when a server answered.
    pub fn ok(&self) -> bool {
        self.pod.is_some()
    }

    /// True for ECONNREFUSED.
    pub fn refused(&self) -> bool {
        self.errno == Some(libc::ECONNREFUSED)
    }
}

/// Long-lived flows that exchange numbered messages until they are stopped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flows {
    pub proto: Proto,
    pub to: Vec<SocketAddr>,
    /// Flows; they take the targets in turn.
    pub count: u32,
    pub interval_ms: u64,
    /// A TCP flow whose echo is later than this is lost.
    pub deadline_ms: u64,
    /// Source port of a single flow; 0 leaves the choice to the kernel.
    pub from_port: u16,
}

/// New connections at a fixed rate until they are stopped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    pub ask: Ask,
    pub per_second: u32,
}

/// What a helper process is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Answers under this name on these ports, both families; `about` is what its HTTP
    /// answers say beside it.
    Serve {
        name: String,
        about: BTreeMap<String, String>,
        tcp: Vec<u16>,
        udp: Vec<u16>,
    },
    /// A name server that knows these names, without a last dot, and no others.
    ServeNames(BTreeMap<String, Vec<IpAddr>>),
    Ask(Ask),
    /// The IPv4 addresses of a name, asked of this server over UDP.
    Resolve(SocketAddr, String),
    /// The same question so many times, one after the other.
    AskMany(Ask, u32),
    OpenFlows(Flows),
    /// UDP flows by sendto() instead of connect() and send().
    OpenDatagrams(Flows),
    StartLoad(Load),
    /// The servers of the differential test: under this name, on these addresses and ports.
    ServeAt {
        name: String,
        ips: Vec<IpAddr>,
        ports: Vec<u16>,
    },
    /// Many questions at once.
    Probe(Vec<Probe>),
    Fetch(Fetch),
    StartTraffic(Traffic),
    /// The counters of a running activity.
    Report(u32),
    /// Ends an activity; its last counters.
    Stop(u32),
}

/// What a helper process answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Answers(Vec<Answer>),
    Addresses(Vec<IpAddr>),
    /// An activity runs under this number.
    Started(u32),
    Flows(FlowsReport),
    Load(LoadReport),
    Probed(Vec<Fates>),
    Fetched(Fetched),
    Traffic(TrafficReport),
    Failed(String),
}

/// State of one long-lived flow.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FlowReport {
    /// Who answered first.
    pub pod: String,
    pub target: Option<SocketAddr>,
    /// Client's address as the server sees it.
    pub seen: Option<SocketAddr>,
    pub sent: u64,
    /// Messages that came back, in order for TCP.
    pub echoed: u64,
    /// UDP: answers that another pod gave.
    pub strangers: u64,
    /// Longest time between a message and its echo.
    pub slowest_us: u64,
    /// Why the flow ended, if it did.
    pub lost: Option<String>,
}

/// All flows of one activity.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FlowsReport {
    pub flows: Vec<FlowReport>,
}

impl FlowsReport {
    /// Reasons of the flows that ended before they were stopped.
    pub fn lost(&self) -> Vec<String> {
        self.flows
            .iter()
            .filter_map(|flow| {
                flow.lost.as_ref().map(|why| format!("{:?} to {}: {why}", flow.target, flow.pod))
            })
            .collect()
    }

    /// Messages echoed since an earlier report by the flow that got least.
    pub fn least_progress_since(&self, earlier: &Self) -> u64 {
        self.flows
            .iter()
            .zip(&earlier.flows)
            .map(|(now, then)| now.echoed.saturating_sub(then.echoed))
            .min()
            .unwrap_or(0)
    }

    pub fn sent(&self) -> u64 {
        self.flows.iter().map(|flow| flow.sent).sum()
    }

    pub fn echoed(&self) -> u64 {
        self.flows.iter().map(|flow| flow.echoed).sum()
    }
}

/// Microseconds after which a new connection or request is late: two SYNs were lost, or somebody
/// held it.
pub const LATE_US: u64 = 2_900_000;

/// What became of new connections.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    pub started: u64,
    pub answered: u64,
    pub refused: u64,
    /// Neither answered nor refused, by reason.
    pub failed: BTreeMap<String, u64>,
    /// The first answers that were none, to tell when and from which port.
    pub failures: Vec<Answer>,
    pub slowest_us: u64,
    /// Answered or not, they took longer than [`LATE_US`].
    pub late: u64,
    /// For each pod that answered: connections, and when the last of them was begun
    /// (monotonic clock).
    pub pods: BTreeMap<String, (u64, u64)>,
}
