//! The words of an explanation.

use super::{
    Client, EndpointTold, Explanation, FrontendTold, Outcome, Target, Translation, View, client, owner,
    socket,
};
use lb_common::abi::{
    Addr, Backend, BackendFlags, BackendId, DropReason, Family, Frontend, FrontendKey, Held, PassReason,
    Proto, prefix_set,
};
use std::net::IpAddr;

/// A frontend that takes new flows, and what is behind it for this client.
pub(super) struct Matched {
    pub(super) client: Client,
    pub(super) frontend: FrontendTold,
    pub(super) endpoints: Vec<EndpointTold>,
    pub(super) chosen: Vec<(BackendId, Backend)>,
    pub(super) remembered: Option<(Backend, u64)>,
    pub(super) outcome: Outcome,
    pub(super) reason: Option<&'static str>,
    pub(super) proto: Proto,
    /// Source ranges say who may come.
    pub(super) ranges: bool,
    /// Who comes takes this node's address (S44).
    pub(super) masquerades: bool,
}

pub(super) fn matched(view: &View<'_>, target: &Target, parts: Matched, from: Option<IpAddr>) -> Explanation {
    let Matched {
        client,
        frontend,
        endpoints,
        chosen,
        remembered,
        outcome,
        reason,
        proto,
        ranges,
        masquerades,
    } = parts;
    let named = if frontend.port_name.is_empty() {
        String::new()
    } else {
        format!(", port \"{}\"", frontend.port_name)
    };
    let mut steps = vec![
        format!(
            "{}/{proto} is the {} of Service {}{named}.",
            frontend.address, frontend.kind, frontend.service
        ),
        match frontend.set {
            "cluster_ip" => {
                format!("The client is {}; for a ClusterIP the internal traffic policy decides.", client.what)
            }
            "inside" => format!(
                "The client is {}: inside, where an external address leads to all endpoints of the cluster.",
                client.what
            ),
            _ => {
                format!("The client is {}: outside, where the external traffic policy decides.", client.what)
            }
        },
    ];
    if ranges && outcome == Outcome::Served {
        steps.push(match client.address {
            Some(_) => "The Service's loadBalancerSourceRanges let this client in.".into(),
            None => "The Service has loadBalancerSourceRanges: say by --from who asks.".into(),
        });
    }
    let mut choice = None;
    let mut translation = None;
    match outcome {
        Outcome::Served => {
            let all = endpoints.len();
            let how = match (&remembered, chosen.len()) {
                (Some((backend, age)), _) => format!(
                    "the one that this client used {age} s ago, {} (session affinity, {} s)",
                    socket(backend.addr.into(), backend.port.get()),
                    frontend.affinity_seconds
                ),
                (None, 1) => "the only one there is".to_string(),
                (None, n) if frontend.affinity_seconds > 0 => {
                    format!("any of {n}, and then the same for {} s (session affinity)", frontend.affinity_seconds)
                }
                (None, n) => format!("any of {n}, each as likely"),
            };
            steps.push(format!("{} of {all} endpoints take new flows; chosen is {how}.", chosen.len()));
            choice = Some(how);
            let candidates = match &remembered {
                Some((backend, _)) => vec![*backend],
                None => chosen.iter().map(|(_, backend)| *backend).collect(),
            };
            let told = translate(view, &client, &candidates, from, masquerades);
            steps.push(format!("The destination becomes {}; the source {}.", told.destination, told.source));
            translation = Some(told);
        }
        Outcome::Refused => steps.push(match endpoints.len() {
            0 => "No usable endpoint exists anywhere: the client is refused at once (ECONNREFUSED at connect(), port unreachable or reset on the wire).".to_string(),
            n => format!("None of its {n} endpoints takes new flows: the client is refused at once."),
        }),
        Outcome::Dropped if reason == Some("source_range") => steps.push(
            "The Service's loadBalancerSourceRanges do not hold this client: dropped in silence (a program of the host gets EPERM).".into(),
        ),
        Outcome::Dropped | Outcome::NotBalanced => steps.push(if reason == Some("stale_table") {
            "The backend table names backends that do not exist: dropped. This is a fault; the next check repairs it.".to_string()
        } else {
            "Endpoints exist on other nodes, but the traffic policy is Local and none is on this one: dropped in silence.".to_string()
        }),
    }
    Explanation {
        target: target.text.clone(),
        served: outcome == Outcome::Served,
        outcome,
        reason,
        client,
        frontend: Some(frontend),
        endpoints,
        choice,
        translation,
        steps,
        nearest: Vec::new(),
    }
}

/// Destination and source as the backend sees them.
fn translate(
    view: &View<'_>,
    client: &Client,
    candidates: &[Backend],
    from: Option<IpAddr>,
    masquerades: bool,
) -> Translation {
    let destination = match candidates {
        [one] => socket(one.addr.into(), one.port.get()),
        _ => "the endpoint's".to_string(),
    };
    let hairpin = from.is_some_and(|ip| candidates.iter().any(|backend| backend.addr == Addr::from(ip)));
    let remote = candidates.iter().filter(|backend| !backend.flags.has(BackendFlags::LOCAL)).count();
    let family = candidates.first().map_or(Family::V4, |backend| backend.addr.family());
    let config = &view.node.facts.config;
    let own = if family == Family::V4 { config.v4 } else { config.v6 };
    let masked = format!("becomes this node's ({own}, or that of the device it leaves by)");
    let source = if masquerades {
        format!("{masked}, as --masquerade-external has it")
    } else if client.inside {
        if hairpin && candidates.len() == 1 {
            format!("{masked}, since the endpoint is the client itself")
        } else if hairpin {
            format!("stays the client's; if the client itself is chosen, it {masked}")
        } else {
            "stays the client's".to_string()
        }
    } else if remote == 0 {
        "stays the client's, since the endpoint is on this node".to_string()
    } else if remote == candidates.len() {
        format!("{masked}, so that replies come back this way")
    } else {
        format!("stays the client's for an endpoint on this node; for one elsewhere it {masked}")
    };
    Translation { destination, source }
}

fn untouched(target: &Target, client: Client, steps: Vec<String>, nearest: Vec<String>) -> Explanation {
    Explanation {
        target: target.text.clone(),
        served: false,
        outcome: Outcome::NotBalanced,
        reason: Some(PassReason::NoService.label()),
        client,
        frontend: None,
        endpoints: Vec::new(),
        choice: None,
        translation: None,
        steps,
        nearest,
    }
}

pub(super) fn no_l7(target: &Target) -> Explanation {
    let client = Client { address: None, inside: false, what: "a client outside of this node".into() };
    let step = "L7 is off (--l7 off): URLs are not served. Ask for IP:PORT or svc/NS/NAME:PORT.";
    Explanation { reason: None, ..untouched(target, client, vec![step.into()], Vec::new()) }
}

pub(super) fn unknown(view: &View<'_>, target: &Target, why: String, from: Option<IpAddr>) -> Explanation {
    Explanation { reason: None, ..untouched(target, client(view, from, true), vec![why], Vec::new()) }
}

pub(super) fn retired(
    view: &View<'_>,
    target: &Target,
    key: &FrontendKey,
    frontend: &Frontend,
    from: Option<IpAddr>,
) -> Explanation {
    let step = format!(
        "{}/{} belonged to a Service (id {}) that is gone: its open flows live on, new ones pass untouched.",
        socket(key.addr.into(), key.port.get()),
        key.proto,
        frontend.service
    );
    untouched(target, client(view, from, false), vec![step], Vec::new())
}

/// No frontend: the nearest misses, most telling first.
pub(super) fn missed(
    view: &View<'_>,
    target: &Target,
    key: &FrontendKey,
    from: Option<IpAddr>,
) -> Explanation {
    let ip = IpAddr::from(key.addr);
    let at = format!("{}/{}", socket(ip, key.port.get()), key.proto);
    let mut steps = vec![format!("No frontend is {at}: Weir leaves the packet to the stack, untouched.")];
    let mut nearest = Vec::new();
    let frontends = &view.programmed.frontends;
    let name = |key: &FrontendKey| {
        owner(view, key).map_or_else(String::new, |(port, ..)| format!(" of {}", port.service))
    };
    let same_address: Vec<&FrontendKey> = frontends.keys().filter(|other| other.addr == key.addr).collect();
    for other in same_address.iter().filter(|other| other.port == key.port) {
        nearest.push(format!(
            "{}/{}{} has the same port in another protocol",
            socket(ip, key.port.get()),
            other.proto,
            name(other)
        ));
    }
    for other in same_address.iter().filter(|other| other.port != key.port) {
        nearest.push(format!(
            "{}/{}{} is another port of this address",
            socket(ip, other.port.get()),
            other.proto,
            name(other)
        ));
    }
    let local = view.node.facts.addresses.get(&key.addr);
    let any = |proto| FrontendKey { addr: key.addr.family().any(), proto, ..*key };
    if ip.is_loopback() {
        steps.push("It is a loopback address, where node ports never answer.".into());
    } else if let Some(address) = local {
        let node_port = frontends.contains_key(&any(key.proto));
        match (node_port, address.node_port == 1) {
            (true, _) => {
                steps.push(format!(
                    "{} is a node port{}, but --nodeport-addresses leaves {ip} out.",
                    key.port,
                    name(&any(key.proto))
                ));
                let eligible = view
                    .node
                    .facts
                    .addresses
                    .iter()
                    .filter(|(addr, node)| node.node_port == 1 && addr.family() == key.addr.family());
                nearest.extend(eligible.map(|(addr, _)| {
                    format!("{}/{} would answer", socket((*addr).into(), key.port.get()), key.proto)
                }));
            }
            (false, _) => {
                steps.push(format!("{ip} is this node's own address: a socket of the host may answer."))
            }
        }
        for proto in [Proto::TCP, Proto::UDP, Proto::SCTP] {
            if proto != key.proto && frontends.contains_key(&any(proto)) {
                nearest.push(format!(
                    "{}/{proto}{} is a node port in another protocol",
                    key.port,
                    name(&any(proto))
                ));
            }
        }
    } else if frontends.contains_key(&any(key.proto)) {
        nearest.push(format!(
            "{} is a node port{}, but {ip} is not an address of this node",
            key.port,
            name(&any(key.proto))
        ));
    }
    let behind: Vec<String> = view
        .programmed
        .backends
        .values()
        .filter(|backend| backend.addr == key.addr)
        .filter_map(|backend| {
            let port = view.services.values().flat_map(|state| &state.ports).find(|(_, state)| {
                state.backends.iter().any(|b| b.addr == backend.addr && b.port == backend.port.get())
            })?;
            Some(format!(
                "{} is an endpoint of {}, reached without balancing",
                socket(ip, backend.port.get()),
                port.0.service
            ))
        })
        .collect();
    nearest.extend(behind);
    let held = held(view, &key.addr).filter(|_| local.is_none());
    if held == Some(Held::FOREIGN) {
        steps.push(format!("{ip} belongs to a Service that another proxy serves."));
    } else if held.is_none() && !same_address.is_empty() {
        steps.push(format!("{ip} is a Service's address, but this port is not defined."));
    }
    let (outcome, reason) = match held {
        Some(Held::TAKEN) => (Outcome::Refused, DropReason::UndefinedPort),
        Some(Held::MEMBER) => (Outcome::Dropped, DropReason::Unallocated),
        _ => (Outcome::NotBalanced, DropReason::Unallocated),
    };
    nearest.sort();
    nearest.dedup();
    nearest.truncate(12);
    let client = client(view, from, false);
    if outcome == Outcome::NotBalanced {
        return untouched(target, client, steps, nearest);
    }
    steps.truncate(0);
    steps.push(match outcome {
        Outcome::Refused => {
            format!("{at}: {ip} is a Service's ClusterIP, but this port is not defined: refused at once.")
        }
        Outcome::Served | Outcome::Dropped | Outcome::NotBalanced => {
            format!("{at}: {ip} lies in a range of ClusterIPs, but no Service has it: dropped in silence.")
        }
    });
    Explanation { outcome, reason: Some(reason.label()), ..untouched(target, client, steps, nearest) }
}

/// What the longest prefix says of an address of Services (S38).
fn held(view: &View<'_>, addr: &Addr) -> Option<Held> {
    let set = prefix_set::services(addr);
    // A prefix sorts by its length.
    let longest = view.programmed.reach.iter().rev().find(|(prefix, _)| prefix.contains(set, addr));
    longest.map(|(_, held)| *held)
}

impl Explanation {
    /// The answer for people: a paragraph, then numbered steps.
    pub fn text(&self) -> String {
        let verdict = match self.outcome {
            Outcome::Served => "would be served",
            Outcome::Refused => "would be refused at once",
            Outcome::Dropped => "would be dropped in silence",
            Outcome::NotBalanced => "would not be balanced",
        };
        let because = self.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        let mut text = format!("{} from {} {verdict}{because}.\n", self.target, self.client.what);
        for (number, step) in (1..).zip(&self.steps) {
            text.push_str(&format!(" {number}. {step}\n"));
        }
        if !self.endpoints.is_empty() {
            text.push_str("Endpoints:\n");
            for endpoint in &self.endpoints {
                let mark = if endpoint.chosen_from { "*" } else { " " };
                let place = if endpoint.local { "this node" } else { "elsewhere" };
                text.push_str(&format!(" {mark} {:<24} {place:<10} {}\n", endpoint.address, endpoint.state));
            }
        }
        if !self.nearest.is_empty() {
            text.push_str("Nearest misses:\n");
            for miss in &self.nearest {
                text.push_str(&format!("   {miss}\n"));
            }
        }
        text
    }
}
