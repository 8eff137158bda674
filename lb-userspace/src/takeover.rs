//! Which of netfilter's flows are to be left to it: those whose first packet was addressed to
//! a frontend of ours, and that kube-proxy's rules sent to a backend before Weir came (S82).
//!
//! Pure: from what netfilter has and what is programmed to the entries of
//! [`FOREIGN`](lb_common::abi::map::FOREIGN). A flow once found stays until netfilter forgets
//! it, also when its frontend goes. UDP flows whose backend serves no more are to be ended,
//! as kube-proxy did while it was there (S60); TCP ones drain (S65).

use crate::netfilter::{Tcp, Translated};
use lb_common::abi::{
    Addr, Backend, BackendFlags, BackendId, Be16, FlowKey, Foreign, ForeignFlags, Frontend, FrontendFlags,
    FrontendKey, Proto, ServiceId, Ticks,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Ticks to which the end of an entry is rounded up: 18 minutes, and 17 seconds.
const TCP_STEP: u32 = 1024;
const UDP_STEP: u32 = 16;

/// What is programmed, as far as it decides here.
pub struct Surroundings<'a> {
    pub frontends: &'a BTreeMap<FrontendKey, Frontend>,
    pub backends: &'a BTreeMap<BackendId, Backend>,
    /// Whether an address is one of this node's.
    pub is_local: &'a dyn Fn(&Addr) -> bool,
}

/// How many flows netfilter still carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Carried {
    pub tcp: usize,
    pub udp: usize,
}

impl Carried {
    pub const fn any(self) -> bool {
        self.tcp + self.udp > 0
    }
}

/// What is told of it (`weir status`).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Takeover {
    /// Flows that netfilter still carries.
    pub carried: Carried,
    /// The table that keeps netfilter at it is there.
    pub held: bool,
    /// What kube-proxy has in the kernel.
    pub rules: Vec<String>,
}

/// What follows from one look at netfilter's flows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Judged {
    /// What the map is to hold: both directions of each flow, and the sockets of UDP ones.
    pub foreign: BTreeMap<FlowKey, Foreign>,
    /// Flows that are not over.
    pub carried: Carried,
    /// Tuples of the first packets of those that count.
    pub originals: BTreeSet<FlowKey>,
    /// UDP flows to end: their backend is gone, and others are there.
    pub stale: Vec<FlowKey>,
    /// Flows that found no room.
    pub beyond: usize,
}

/// Sorts out netfilter's flows. `known` are those that an earlier look found; the map has room
/// for `room` entries.
pub fn judge(
    flows: &[Translated],
    known: &BTreeSet<FlowKey>,
    around: &Surroundings<'_>,
    now: Ticks,
    room: usize,
) -> Judged {
    let mut judged = Judged::default();
    let found: Vec<_> = flows
        .iter()
        .map(|flow| (flow, frontend(flow, around)))
        .filter(|(flow, frontend)| frontend.is_some() || known.contains(&flow.original))
        .collect();
    let udp = found.iter().filter(|(flow, _)| flow.original.proto == Proto::UDP);
    let services: BTreeSet<ServiceId> =
        udp.filter_map(|(_, frontend)| Some(frontend.as_ref()?.service)).collect();
    let serving = serving(&services, around.backends);
    for (flow, frontend) in found {
        let backends = frontend.and_then(|frontend| serving.get(&frontend.service));
        if flow.original.proto == Proto::UDP
            && backends.is_some_and(|there| !there.contains(&(flow.reply.source, flow.reply.source_port)))
        {
            judged.stale.push(flow.original);
            continue;
        }
        // A flow may take three entries.
        if judged.foreign.len() + 3 > room {
            judged.beyond += 1;
            continue;
        }
        judged.add(flow, around, now);
    }
    judged
}

impl Judged {
    fn add(&mut self, flow: &Translated, around: &Surroundings<'_>, now: Ticks) {
        match flow.tcp {
            Some(Tcp::Over) => {}
            Some(Tcp::Opening | Tcp::Open) => self.carried.tcp += 1,
            None => self.carried.udp += 1,
        }
        let whose =
            if (around.is_local)(&flow.original.source) { ForeignFlags::HOST } else { ForeignFlags::POD };
        let flags = match flow.tcp {
            Some(Tcp::Opening) => whose.with(ForeignFlags::OPENING),
            Some(Tcp::Open | Tcp::Over) | None => whose,
        };
        // Rounded up, so that not every entry differs at every look.
        let step = if flow.tcp.is_some() { TCP_STEP } else { UDP_STEP };
        let until = now.0.saturating_add(Ticks::in_seconds(flow.timeout.into()));
        let until = Ticks(until.checked_next_multiple_of(step).unwrap_or(until));
        self.originals.insert(flow.original);
        for key in [flow.original, flow.reply] {
            self.put(key, Foreign { until, flags });
        }
        if flow.original.proto == Proto::UDP {
            let any = flow.original.source.family().any();
            self.put(FlowKey { source: any, ..flow.original }, Foreign { until, flags });
        }
    }

    /// Two flows may share a socket's key: both count.
    fn put(&mut self, key: FlowKey, foreign: Foreign) {
        let entry = self.foreign.entry(key).or_insert(foreign);
        entry.until = entry.until.max(foreign.until);
        entry.flags = entry.flags.with(foreign.flags);
    }
}

/// The frontend that a flow's first packet was addressed to.
fn frontend<'a>(flow: &Translated, around: &Surroundings<'a>) -> Option<&'a Frontend> {
    let FlowKey { destination, destination_port, proto, .. } = flow.original;
    let exact = around.frontends.get(&FrontendKey::new(destination, destination_port, proto));
    exact.filter(|frontend| !frontend.flags.has(FrontendFlags::RETIRED)).or_else(|| {
        let any = FrontendKey::new(destination.family().any(), destination_port, proto);
        around.frontends.get(&any).filter(|_| (around.is_local)(&destination)).or(exact)
    })
}

/// The backends of these Services that serve; Services without any are left out.
fn serving(
    services: &BTreeSet<ServiceId>,
    backends: &BTreeMap<BackendId, Backend>,
) -> BTreeMap<ServiceId, BTreeSet<(Addr, Be16)>> {
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    if services.is_empty() {
        return found;
    }
    for backend in backends.values() {
        if services.contains(&backend.service) && backend.flags.has(BackendFlags::SERVING) {
            found.entry(backend.service).or_default().insert((backend.addr, backend.port));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use lb_common::abi::Table;
    use std::net::IpAddr;

    const NODE: &str = "192.0.2.1";
    const ROOM: usize = 100;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn key(from: (&str, u16), to: (&str, u16), proto: Proto) -> FlowKey {
        FlowKey {
            source: addr(from.0),
            destination: addr(to.0),
            source_port: Be16::new(from.1),
            destination_port: Be16::new(to.1),
            proto,
            pad: [0; 3],
        }
    }

    fn flow(from: (&str, u16), to: (&str, u16), backend: (&str, u16), tcp: Option<Tcp>) -> Translated {
        let proto = if tcp.is_some() { Proto::TCP } else { Proto::UDP };
        Translated { original: key(from, to, proto), reply: key(backend, from, proto), timeout: 100, tcp }
    }

    /// A ClusterIP 10.96.0.1:80 and a node port 30080 of Service 1, whose backends are .3 and,
    /// draining, .4.
    fn world() -> (BTreeMap<FrontendKey, Frontend>, BTreeMap<BackendId, Backend>) {
        let table = Table::default();
        let flags = FrontendFlags::CLUSTER_IP;
        let frontend =
            Frontend { service: 1, flags, affinity_seconds: 0, pad: 0, inside: table, outside: table };
        let frontends = [Proto::TCP, Proto::UDP]
            .into_iter()
            .flat_map(|proto| [(addr("10.96.0.1"), 80, proto), (Addr::ANY_V4, 30_080, proto)])
            .map(|(addr, port, proto)| (FrontendKey::new(addr, Be16::new(port), proto), frontend))
            .collect();
        let backend = |last: &str, flags| Backend {
            addr: addr(last),
            port: Be16::new(8080),
            service: 1,
            flags,
            ..Backend::default()
        };
        let backends =
            [(1, backend("10.244.2.3", BackendFlags::SERVING)), (2, backend("10.244.2.4", BackendFlags(0)))];
        (frontends, backends.into())
    }

    fn judged(flows: &[Translated], known: &BTreeSet<FlowKey>, room: usize) -> Judged {
        let (frontends, backends) = world();
        let is_local = |a: &Addr| *a == addr(NODE);
        let around = Surroundings { frontends: &frontends, backends: &backends, is_local: &is_local };
        judge(flows, known, &around, Ticks(1000), room)
    }

    const POD: (&str, u16) = ("10.244.1.9", 40_000);
    const VIP: (&str, u16) = ("10.96.0.1", 80);
    const SERVES: (&str, u16) = ("10.244.2.3", 8080);
    const DRAINS: (&str, u16) = ("10.244.2.4", 8080);

    #[test]
    fn flows_to_frontends_are_left_to_netfilter_in_both_directions() {
        let until = Ticks((1000 + Ticks::in_seconds(100)).next_multiple_of(TCP_STEP));
        for (name, flow, flags) in [
            ("pod", flow(POD, VIP, SERVES, Some(Tcp::Open)), ForeignFlags::POD),
            ("draining", flow(POD, VIP, DRAINS, Some(Tcp::Open)), ForeignFlags::POD),
            ("host", flow((NODE, 1), VIP, SERVES, Some(Tcp::Open)), ForeignFlags::HOST),
            (
                "opening",
                flow(POD, VIP, SERVES, Some(Tcp::Opening)),
                ForeignFlags::POD.with(ForeignFlags::OPENING),
            ),
            (
                "node port",
                flow(("198.51.100.7", 5), (NODE, 30_080), SERVES, Some(Tcp::Open)),
                ForeignFlags::POD,
            ),
        ] {
            let judged = judged(std::slice::from_ref(&flow), &BTreeSet::new(), ROOM);
            let foreign = Foreign { until, flags };
            assert_eq!(judged.foreign, [(flow.original, foreign), (flow.reply, foreign)].into(), "{name}");
            assert_eq!(judged.carried, Carried { tcp: 1, udp: 0 }, "{name}");
        }
    }

    #[test]
    fn what_is_addressed_to_no_frontend_is_not_ours_unless_it_was() {
        let strange = [
            flow(POD, ("10.96.0.1", 81), SERVES, Some(Tcp::Open)),
            flow(POD, ("10.96.0.2", 80), SERVES, Some(Tcp::Open)),
            flow(POD, ("192.0.2.9", 30_080), SERVES, Some(Tcp::Open)),
        ];
        assert_eq!(judged(&strange, &BTreeSet::new(), ROOM), Judged::default());
        let known = [strange[1].original].into();
        assert_eq!(judged(&strange, &known, ROOM).originals, known);
    }

    #[test]
    fn flows_that_are_over_are_no_longer_carried_but_keep_their_tuples() {
        let over = flow(POD, VIP, SERVES, Some(Tcp::Over));
        let judged = judged(&[over], &BTreeSet::new(), ROOM);
        assert_eq!((judged.carried.any(), judged.foreign.len()), (false, 2));
    }

    #[test]
    fn datagrams_keep_a_backend_that_serves_and_their_sockets_are_known() {
        let (kept, lost) = (flow(POD, VIP, SERVES, None), flow((NODE, 7), VIP, DRAINS, None));
        let judged = judged(&[kept.clone(), lost.clone()], &BTreeSet::new(), ROOM);
        assert_eq!(judged.carried, Carried { tcp: 0, udp: 1 });
        assert_eq!(judged.stale, [lost.original]);
        let socket = FlowKey { source: Addr::ANY_V4, ..kept.original };
        let keys: BTreeSet<FlowKey> = judged.foreign.keys().copied().collect();
        assert_eq!(keys, [kept.original, kept.reply, socket].into());
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let flows: Vec<_> = (1..=5).map(|port| flow((POD.0, port), VIP, SERVES, Some(Tcp::Open))).collect();
        let judged = judged(&flows, &BTreeSet::new(), 6);
        assert_eq!((judged.foreign.len(), judged.beyond), (4, 3));
    }
}
