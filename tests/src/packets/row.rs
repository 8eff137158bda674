//! One row of the packet table: what is programmed, which packets come in on which hook, and
//! what must come of each. Later packets of a row meet what the earlier ones left behind.

use super::answer::refusal;
use super::build::{Link, Packet, at};
use super::world::{ETH0, POD0};
use lb_common::abi::{
    Addr, Backend, BackendFlags, BackendId, Be16, DropReason, Family, FlowKey, Foreign, ForeignFlags,
    Frontend, FrontendFlags, FrontendKey, Held, NodeFlags, PassReason, PortRange, Prefix, Proto, Reason,
    ServiceId, SettingsFlags, Table, Ticks,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use weir::plan::op::Op;

/// Where a packet meets the data path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hook {
    Outside,
    OutsideL3,
    Inside,
    InsideL3,
    Egress,
    EgressL3,
}

/// What must become of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    Pass(PassReason),
    /// Past the stack, out of this device.
    Redirect(PassReason, u32),
    Answer(DropReason),
    Drop(DropReason),
}

/// One packet and what must come of it.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub hook: Hook,
    pub device: u32,
    pub input: Vec<u8>,
    pub expected: Expected,
    /// Not looked at for packets that are dropped.
    pub output: Vec<u8>,
    /// What is counted beside the verdict.
    pub notes: Vec<Reason>,
    /// XDP alone finishes it, without tc.
    pub early: bool,
}

impl Hook {
    /// What is in front of the IP header there.
    pub const fn link(self) -> Link {
        match self {
            Self::Outside | Self::Inside | Self::Egress => Link::Ethernet,
            Self::OutsideL3 | Self::InsideL3 | Self::EgressL3 => Link::None,
        }
    }
}

/// A step of a row.
#[derive(Clone, Debug)]
pub enum Step {
    Ops(Vec<Op>),
    /// So many seconds go by.
    Wait(u64),
    Packet(Box<Arrival>),
}

/// The range of source ports for translated flows: narrow, so that a choice by chance has one
/// outcome.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Snat {
    /// Port 20000 alone.
    Low,
    /// Port 61000 alone, in the second range.
    High,
    /// As `Low`, with `--masquerade-all`.
    MasqueradeAll,
    /// As `Low`, with `--cluster-cidr`.
    ClusterCidr,
    /// The default ranges: for the simulator alone, whose chance is known.
    Wide,
}

impl Snat {
    /// Those that the programs are loaded with.
    pub const LOADED: [Self; 4] = [Self::Low, Self::High, Self::MasqueradeAll, Self::ClusterCidr];

    /// What of the programs' settings a row relies on.
    pub const fn settings(self) -> SettingsFlags {
        match self {
            Self::MasqueradeAll => SettingsFlags::MASQUERADE_ALL,
            Self::ClusterCidr => SettingsFlags::CLUSTER_CIDR,
            Self::Low | Self::High | Self::Wide => SettingsFlags(0),
        }
    }

    pub const fn ranges(self) -> [PortRange; 2] {
        match self {
            Self::Low | Self::MasqueradeAll | Self::ClusterCidr => {
                [PortRange { first: 20_000, last: 20_000 }, PortRange::EMPTY]
            }
            Self::High => [PortRange::EMPTY, PortRange { first: 61_000, last: 61_000 }],
            Self::Wide => {
                [PortRange { first: 10_000, last: 29_999 }, PortRange { first: 61_000, last: 65_535 }]
            }
        }
    }
}

/// One row.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: &'static str,
    pub snat: Snat,
    /// What sockets of the host have taken, TCP and UDP.
    pub sockets: Vec<SocketAddr>,
    /// Connected sockets of the host: their own address and their peer's.
    pub connected: Vec<(SocketAddr, SocketAddr)>,
    /// Flows that netfilter translates.
    pub foreign: BTreeMap<FlowKey, Foreign>,
    /// Not all of them are known yet.
    pub hold: bool,
    /// Why the kernel's test-run cannot run this row.
    pub simulator_only: Option<&'static str>,
    pub steps: Vec<Step>,
    services: ServiceId,
    backends: BackendId,
}

impl Row {
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            snat: Snat::Low,
            sockets: Vec::new(),
            connected: Vec::new(),
            foreign: BTreeMap::new(),
            hold: false,
            simulator_only: None,
            steps: Vec::new(),
            services: 0,
            backends: 0,
        }
    }

    /// Leaves packets with this tuple to netfilter, for ever or no longer.
    pub fn leave(&mut self, proto: Proto, from: &str, to: &str, flags: ForeignFlags, alive: bool) {
        let (from, to) = (at(from), at(to));
        let key = FlowKey {
            source: from.ip().into(),
            destination: to.ip().into(),
            source_port: Be16::new(from.port()),
            destination_port: Be16::new(to.port()),
            proto,
            pad: [0; 3],
        };
        self.foreign.insert(key, Foreign { until: Ticks(if alive { u32::MAX } else { 0 }), flags });
    }

    /// What the node says of them.
    pub fn flags(&self) -> NodeFlags {
        match (self.hold, self.foreign.is_empty()) {
            (true, _) => NodeFlags::FOREIGN.with(NodeFlags::HOLD),
            (false, false) => NodeFlags::FOREIGN,
            (false, true) => NodeFlags::default(),
        }
    }

    /// Programs a Service; the answer can be changed and programmed again.
    pub fn service(&mut self, mut service: Service) -> Service {
        self.services += 1;
        service.id = self.services;
        for endpoint in &mut service.endpoints {
            self.backends += 1;
            endpoint.id = self.backends;
        }
        self.ops(service.ops());
        service
    }

    pub fn ops(&mut self, ops: Vec<Op>) {
        self.steps.push(Step::Ops(ops));
    }

    pub fn wait(&mut self, seconds: u64) {
        self.steps.push(Step::Wait(seconds));
    }

    /// From the network, by eth0.
    pub fn outside(&mut self, packet: &Packet) -> Pending<'_> {
        self.packet(if packet.link == Link::None { Hook::OutsideL3 } else { Hook::Outside }, ETH0, packet)
    }

    /// From a pod of this node.
    pub fn inside(&mut self, packet: &Packet) -> Pending<'_> {
        self.packet(if packet.link == Link::None { Hook::InsideL3 } else { Hook::Inside }, POD0, packet)
    }

    /// Leaves by eth0.
    pub fn egress(&mut self, packet: &Packet) -> Pending<'_> {
        self.packet(if packet.link == Link::None { Hook::EgressL3 } else { Hook::Egress }, ETH0, packet)
    }

    fn packet(&mut self, hook: Hook, device: u32, packet: &Packet) -> Pending<'_> {
        self.frame(hook, device, packet.bytes())
    }

    /// Any bytes, on any hook.
    pub fn frame(&mut self, hook: Hook, device: u32, input: Vec<u8>) -> Pending<'_> {
        Pending { row: self, hook, device, input, notes: Vec::new(), early: false }
    }
}

/// A packet whose fate is still to be said.
#[must_use]
pub struct Pending<'a> {
    row: &'a mut Row,
    hook: Hook,
    device: u32,
    input: Vec<u8>,
    notes: Vec<Reason>,
    early: bool,
}

impl Pending<'_> {
    /// Beside the verdict, this is counted.
    pub fn noting(mut self, reason: Reason) -> Self {
        self.notes.push(reason);
        self
    }

    /// The same, in some of the rows that a function makes.
    pub fn noting_if(self, when: bool, reason: Reason) -> Self {
        if when { self.noting(reason) } else { self }
    }

    /// XDP finishes this one; all others it leaves to tc.
    pub fn by_xdp(self) -> Self {
        Self { early: true, ..self }
    }

    /// On through the stack, as this packet.
    pub fn passes(self, reason: PassReason, output: &Packet) {
        self.end(Expected::Pass(reason), output.bytes());
    }

    /// On through the stack, every byte as it was.
    pub fn untouched(self, reason: PassReason) {
        let same = self.input.clone();
        self.end(Expected::Pass(reason), same);
    }

    /// Past the stack, as this packet.
    pub fn redirected(self, reason: PassReason, device: u32, output: &Packet) {
        self.end(Expected::Redirect(reason, device), output.bytes());
    }

    /// Refused: a RST for a SYN, else ICMP "port unreachable".
    pub fn refused(self) {
        self.refused_as(DropReason::NoEndpoint);
    }

    /// The same, for another reason.
    pub fn refused_as(self, reason: DropReason) {
        let answer = refusal(&self.input, self.hook.link());
        self.end(Expected::Answer(reason), answer);
    }

    pub fn dropped(self, reason: DropReason) {
        self.end(Expected::Drop(reason), Vec::new());
    }

    fn end(self, expected: Expected, output: Vec<u8>) {
        let Self { row, hook, device, input, notes, early } = self;
        row.steps.push(Step::Packet(Box::new(Arrival {
            hook,
            device,
            input,
            expected,
            output,
            notes,
            early,
        })));
    }
}

/// An endpoint of a Service.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    pub id: BackendId,
    pub at: SocketAddr,
    pub local: bool,
    pub serving: bool,
}

/// A Service port as rows program it: by the operations that a plan would hold.
#[derive(Clone, Debug)]
pub struct Service {
    pub id: ServiceId,
    proto: Proto,
    frontends: Vec<(FrontendKey, FrontendFlags)>,
    pub endpoints: Vec<Endpoint>,
    /// Clients from outside get local endpoints alone, and silence when there is none.
    local_policy: bool,
    affinity_seconds: u32,
    maglev: bool,
    retired: bool,
    /// Who may use the external address; none: everybody.
    ranges: Vec<(Addr, u8)>,
    /// Clients of frontends other than the ClusterIP take the node's address.
    masquerades: bool,
}

impl Service {
    pub const fn new(proto: Proto) -> Self {
        Self {
            id: 0,
            proto,
            frontends: Vec::new(),
            endpoints: Vec::new(),
            local_policy: false,
            affinity_seconds: 0,
            maglev: false,
            retired: false,
            ranges: Vec::new(),
            masquerades: false,
        }
    }

    /// `--masquerade-external`.
    #[must_use]
    pub const fn masquerading(mut self) -> Self {
        self.masquerades = true;
        self
    }

    #[must_use]
    pub fn cluster_ip(self, text: &str) -> Self {
        self.frontend(text, FrontendFlags::CLUSTER_IP)
    }

    #[must_use]
    pub fn external(self, text: &str) -> Self {
        self.frontend(text, FrontendFlags::EXTERNAL)
    }

    /// On every node-port address of both families.
    #[must_use]
    pub fn node_port(mut self, port: u16) -> Self {
        for family in [Family::V4, Family::V6] {
            let key = FrontendKey::new(family.any(), Be16::new(port), self.proto);
            self.frontends.push((key, FrontendFlags::NODE_PORT));
        }
        self
    }

    fn frontend(mut self, text: &str, flags: FrontendFlags) -> Self {
        let at = at(text);
        let key = FrontendKey::new(Addr::from(at.ip()), Be16::new(at.port()), self.proto);
        self.frontends.push((key, flags));
        self
    }

    #[must_use]
    pub fn local(mut self, text: &str) -> Self {
        self.endpoints.push(Endpoint { id: 0, at: at(text), local: true, serving: true });
        self
    }

    #[must_use]
    pub fn remote(mut self, text: &str) -> Self {
        self.endpoints.push(Endpoint { id: 0, at: at(text), local: false, serving: true });
        self
    }

    #[must_use]
    pub const fn local_policy(mut self) -> Self {
        self.local_policy = true;
        self
    }

    #[must_use]
    pub const fn affinity(mut self, seconds: u32) -> Self {
        self.affinity_seconds = seconds;
        self
    }

    /// Only clients out of this prefix may use the external address.
    #[must_use]
    pub fn range(mut self, address: &str, bits: u8) -> Self {
        let address: IpAddr = address.parse().unwrap_or_else(|error| panic!("{address}: {error}"));
        self.ranges.push((address.into(), bits));
        self
    }

    /// New flows are spread by a Maglev table, here one that names the last endpoint alone.
    #[must_use]
    pub const fn maglev(mut self) -> Self {
        self.maglev = true;
        self
    }

    /// The Service is gone; its flows live on.
    #[must_use]
    pub fn retire(&self) -> Vec<Op> {
        Self { retired: true, ..self.clone() }.ops()
    }

    /// The same Service without some endpoints, and what it takes to get there.
    pub fn without(&self, gone: &[usize]) -> (Self, Vec<Op>) {
        let mut left = self.clone();
        let mut number = 0;
        left.endpoints.retain(|_| {
            number += 1;
            !gone.contains(&(number - 1))
        });
        let mut ops = left.ops();
        ops.extend(gone.iter().map(|index| Op::DeleteBackend(self.endpoints[*index].id)));
        (left, ops)
    }

    /// The same Service with some endpoints in no set, yet still there and serving.
    pub fn draining(&self, drained: &[usize]) -> Vec<Op> {
        let (_, mut ops) = self.without(drained);
        ops.retain(|op| !matches!(op, Op::DeleteBackend(_)));
        for index in drained {
            let endpoint = self.endpoints[*index];
            ops.push(Op::PutBackend(endpoint.id, self.backend(&endpoint, BackendFlags::SERVING)));
        }
        ops
    }

    fn backend(&self, endpoint: &Endpoint, flags: BackendFlags) -> Backend {
        let local = if endpoint.local { BackendFlags::LOCAL } else { BackendFlags::default() };
        Backend {
            addr: endpoint.at.ip().into(),
            service: self.id,
            port: Be16::new(endpoint.at.port()),
            proto: self.proto,
            flags: flags.with(local),
        }
    }

    /// Backends, tables, frontends: make before break.
    pub fn ops(&self) -> Vec<Op> {
        let mut ops: Vec<Op> = self
            .ranges
            .iter()
            .map(|(addr, bits)| Op::PutPrefix(Prefix::new(self.id, *addr, *bits), Held::MEMBER))
            .collect();
        for endpoint in &self.endpoints {
            let mut flags = BackendFlags::INSIDE.with(BackendFlags::CLUSTER).with(BackendFlags::SERVING);
            if endpoint.local || !self.local_policy {
                flags = flags.with(BackendFlags::OUTSIDE);
            }
            ops.push(Op::PutBackend(endpoint.id, self.backend(endpoint, flags)));
        }
        let ids = |local: bool| -> Vec<BackendId> {
            self.endpoints.iter().filter(|e| !local || e.local).map(|e| e.id).collect()
        };
        let mut tables = Vec::new();
        for (block, ids) in [(self.id * 4, ids(false)), (self.id * 4 + 1, ids(self.local_policy))] {
            let mut table = Table { slots: block, count: ids.len() as u32, maglev: 0, maglev_len: 0 };
            if let (true, Some(last)) = (self.maglev, ids.last()) {
                (table.maglev, table.maglev_len) = (64, 251);
                ops.push(Op::WriteTable { block: 64, ids: vec![*last; 251] });
            }
            if !ids.is_empty() {
                ops.push(Op::WriteTable { block, ids });
            }
            tables.push(table);
        }
        for (key, flags) in &self.frontends {
            let cluster_ip = flags.has(FrontendFlags::CLUSTER_IP);
            let mut flags = *flags;
            if self.local_policy && !cluster_ip {
                flags = flags.with(FrontendFlags::OUTSIDE_DROPS);
            }
            if flags.has(FrontendFlags::EXTERNAL) && !self.ranges.is_empty() {
                flags = flags.with(FrontendFlags::SOURCE_RANGES);
            }
            if self.masquerades && !cluster_ip {
                flags = flags.with(FrontendFlags::MASQUERADE);
            }
            if self.retired {
                flags = flags.with(FrontendFlags::RETIRED);
            }
            let frontend = Frontend {
                service: self.id,
                flags,
                affinity_seconds: self.affinity_seconds,
                pad: 0,
                inside: tables[0],
                outside: if cluster_ip { tables[0] } else { tables[1] },
            };
            ops.push(Op::PutFrontend(*key, frontend));
        }
        ops
    }
}
