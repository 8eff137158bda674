//! From a Service to its frontends and, with its slices, to its whole state (S1, S2, S10 to S16).
//!
//! First every address and port that the Service asks for is listed, with what is refused on
//! its own account; who gets a contested one is decided in [`super::claims`].

use super::claims::{Asked, Claim, Claims};
use super::endpoints::Offers;
use super::limits;
use super::ranges::Ranges;
use super::{
    FrontendKind, FrontendState, HealthCheck, ModelOptions, NodeView, PortKey, PortState, ServiceState,
    endpoints, policy,
};
use crate::address::special;
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem, bounded};
use crate::source::{Objects, Service, ServicePort, ServiceType, TrafficPolicy};
use lb_common::abi::{Addr, Family, Proto};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A frontend that a Service asks for.
pub(super) struct Wanted {
    pub(super) claim: Claim,
    /// For an external address that is the node's own: the node port that it would hide from
    /// the Service that has it, as the exact address is found first. Where there is such a
    /// Service, the address is not programmed (H36).
    hides: Option<Claim>,
    /// Index into the Service's ports.
    port: usize,
    kind: FrontendKind,
    /// What asks for it, for the Problem of the one who does not get it.
    field: String,
}

/// What a Service asks for, and what is wrong with it.
#[derive(Default)]
pub(super) struct Frontends {
    pub(super) wanted: Vec<Wanted>,
    problems: Vec<Problem>,
}

/// Computes the state of a Service; `None` when it is not there (or another proxy's, S1) and
/// nothing is to be told.
///
/// Slices may come before their Service and outlive it (S3): their problems are told anyway.
pub(super) fn build(
    objects: &Objects,
    node: &NodeView,
    options: &ModelOptions,
    claims: &Claims,
    key: &ObjectKey,
) -> Option<ServiceState> {
    let service = objects.services.get(key);
    if service.is_some_and(|service| service.foreign) {
        return None;
    }
    let slices: Vec<_> = objects
        .slices_of
        .get(key)
        .into_iter()
        .flatten()
        .filter_map(|slice| objects.slices.get(slice))
        .map(|slice| &**slice)
        .filter(|slice| !slice.headless)
        .collect();
    let mut state =
        ServiceState { problems: endpoints::problems(&slices, options), ..ServiceState::default() };
    let Some(service) = service else {
        state.problems = told(state.problems);
        return (!state.problems.is_empty()).then_some(state);
    };

    let Frontends { wanted, mut problems } = frontends(service, node, options);
    let mut granted: BTreeMap<(usize, Family), Vec<FrontendState>> = BTreeMap::new();
    for want in wanted {
        let (addr, port, _) = want.claim;
        if let Some(reason) = denial(&want, key, claims) {
            problems.push(problem(service, want.field, reason));
        } else {
            granted.entry((want.port, addr.family())).or_default().push(FrontendState {
                addr,
                port,
                kind: want.kind,
            });
        }
    }
    let ranges = Ranges::of(service, node);
    problems.extend(ranges.problems(service).into_iter().map(|reason| {
        let field = "spec.loadBalancerSourceRanges";
        problem(service, field, reason)
    }));
    let guarded = granted.values().filter(|found| has_balanced(found)).count();
    if ranges.are_too_many(guarded) {
        let reason = format!(
            "more than {} ranges, counted over all ports: only the first ones let clients in",
            limits::RANGES
        );
        problems.push(problem(service, "spec.loadBalancerSourceRanges", reason));
    }
    let offers = Offers::of(&slices);
    let mut health = health_check(service, options, &mut problems);
    let mut here: BTreeSet<Addr> = BTreeSet::new();
    let offered: usize =
        granted.keys().map(|&(index, family)| offers.count(&service.ports[index], family)).sum();
    let most = if offered > limits::VISITS { limits::VISITS / granted.len() } else { usize::MAX };
    for ((index, family), mut frontends) in granted {
        let port = &service.ports[index];
        frontends.sort();
        let found = offers.endpoints(port, family, most, &node.name, options);
        let decision = policy::decide(&found, service, node);
        if let Some(health) = &mut health {
            health.families[usize::from(family == Family::V6)] = true;
            let ready = found.iter().filter(|(_, e)| e.ready && endpoints::is_local(e, &node.name));
            here.extend(ready.map(|((addr, _), _)| *addr));
        }
        let port_key =
            PortKey { service: key.clone(), port_name: port.name.clone(), proto: port.proto, family };
        let source_ranges = if has_balanced(&frontends) { ranges.of_family(family, guarded) } else { None };
        let port_state = PortState {
            frontends,
            source_ranges,
            backends: decision.backends,
            affinity_seconds: service.affinity_seconds.unwrap_or(0),
            cluster_ip_drops: decision.cluster_ip_drops,
            inside_drops: false,
            outside_drops: decision.outside_drops,
            // As kube-proxy does it: under Local, who is let through keeps its address (S45, S46).
            masquerades: options.masquerade_external && service.external_policy == TrafficPolicy::Cluster,
        };
        state.ports.insert(port_key, port_state);
    }
    for addr in here {
        let family = usize::from(!addr.is_v4());
        health.iter_mut().for_each(|health| health.local[family] += 1);
    }
    state.health = health.map(HealthCheck::at_all_addresses);
    if limits::cut(&mut state.ports, service) || offered > limits::VISITS {
        let reason = format!(
            "more than {} endpoints, counted over all ports: only some of each port are used",
            limits::BACKENDS
        );
        problems.push(problem(service, "spec.ports", reason));
    }
    state.problems.append(&mut problems);
    state.problems = told(state.problems);
    Some(state)
}

/// The Service's health check, where it has one (S52).
fn health_check(
    service: &Service,
    options: &ModelOptions,
    problems: &mut Vec<Problem>,
) -> Option<HealthCheck> {
    let port = service.health_check_node_port;
    let asks = service.kind == ServiceType::LoadBalancer && service.external_policy == TrafficPolicy::Local;
    if !asks || port == 0 {
        return None;
    }
    if options.protected_ports.contains(&port) {
        let reason = format!("{port} is a protected port of this node: not served");
        problems.push(problem(service, "spec.healthCheckNodePort", reason));
        return None;
    }
    Some(HealthCheck { port, uid: service.uid.clone(), families: [false; 2], local: [0; 2] })
}

fn has_balanced(frontends: &[FrontendState]) -> bool {
    frontends.iter().any(|frontend| frontend.kind == FrontendKind::LoadBalancer)
}

/// Each Problem once, and not too many of one object.
fn told(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort();
    problems.dedup();
    bounded(problems)
}

/// The claims of a Service: what it asks for, and at the node ports that it could hide, so that
/// it is looked at again when somebody takes or leaves one.
pub(super) fn asked(wanted: &[Wanted]) -> Asked {
    let mut asked = Asked::new();
    for want in wanted {
        for claim in [Some(want.claim), want.hides].into_iter().flatten() {
            let kind = asked.entry(claim).or_insert(want.kind);
            *kind = want.kind.min(*kind);
        }
    }
    asked
}

/// Why a Service does not get a frontend, if so.
fn denial(want: &Wanted, key: &ObjectKey, claims: &Claims) -> Option<String> {
    let spelled = |(addr, port, proto)| spell(addr, port, proto);
    if let Some(holder) = claims.holder(&want.claim)
        && holder.service != *key
    {
        let why = if holder.kind == want.kind { "is older or sorts first" } else { outranks(holder.kind) };
        return Some(format!(
            "{} is held by Service {}, which {why}: not programmed until that one lets go",
            spelled(want.claim),
            holder.service
        ));
    }
    let hidden = want.hides?;
    let holder = claims.holder(&hidden)?;
    (holder.kind == FrontendKind::NodePort && holder.service != *key).then(|| {
        format!(
            "{} is an address of this node and would hide {} of Service {}: not programmed until that one \
             lets go",
            spelled(want.claim),
            spelled(hidden),
            holder.service
        )
    })
}

/// Why a claim of this kind wins over one of another.
fn outranks(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "has it as its ClusterIP",
        FrontendKind::NodePort => "has it as its node port",
        FrontendKind::LoadBalancer => "has it as its load balancer's address",
        FrontendKind::ExternalIp => "has it among its externalIPs",
    }
}

/// Lists the frontends that a Service asks for.
///
/// A family is served when the Service has a ClusterIP of it (S12); without any, as for
/// headless and ExternalName, nothing is, whatever else the object says (S2).
pub(super) fn frontends(service: &Service, node: &NodeView, options: &ModelOptions) -> Frontends {
    let mut out = Frontends::default();
    if service.foreign {
        return out;
    }
    out.problems.extend(service.problems.iter().map(|p| problem(service, p.field.clone(), p.reason.clone())));
    if service.headless || service.kind == ServiceType::ExternalName {
        return out;
    }
    let cluster_ips = out.cluster_ips(service);
    if cluster_ips.is_empty() {
        return out;
    }
    let external = out.external_ips(service, options, &cluster_ips);
    let balanced = out.load_balancer_ips(service, &cluster_ips);

    let mut taken: BTreeMap<Claim, usize> = BTreeMap::new();
    let mut room = limits::FRONTENDS;
    'ports: for index in out.usable_ports(service) {
        let port = &service.ports[index];
        let mut asked: Vec<(Addr, u16, FrontendKind, String)> = Vec::new();
        for (&family, &(ip, ref field)) in &cluster_ips {
            asked.push((ip.into(), port.port, FrontendKind::ClusterIp, field.clone()));
            if port.node_port != 0
                && matches!(service.kind, ServiceType::NodePort | ServiceType::LoadBalancer)
            {
                let field = format!("spec.ports[{index}].nodePort");
                asked.push((family.any(), port.node_port, FrontendKind::NodePort, field));
            }
        }
        for &ip in &balanced {
            let field = "status.loadBalancer.ingress".into();
            asked.push((ip.into(), port.port, FrontendKind::LoadBalancer, field));
        }
        for &ip in &external {
            asked.push((ip.into(), port.port, FrontendKind::ExternalIp, "spec.externalIPs".into()));
        }
        for (addr, number, kind, field) in asked {
            if room == 0 {
                let reason = format!(
                    "more than {} frontends, counted over all ports and addresses: from here on they are not \
                     programmed",
                    limits::FRONTENDS
                );
                out.tell(service, format!("spec.ports[{index}]"), reason);
                break 'ports;
            }
            room -= 1;
            let claim = (addr, number, port.proto);
            let own = addr.is_unspecified() || node.addresses.contains(&addr.into());
            let kept = addr.is_unspecified() || node.keeps(addr.into(), kind);
            if kept && options.protected_ports.contains(&number) && !taken.contains_key(&claim) {
                let spelled = spell(addr, number, port.proto);
                out.tell(
                    service,
                    field,
                    format!("{spelled} is a protected port of this node: not programmed"),
                );
                continue;
            }
            match taken.get(&claim) {
                // An address that is listed twice is one frontend, its first kind counts.
                Some(&first) if first == index => {}
                Some(first) => out.tell(
                    service,
                    format!("spec.ports[{index}]"),
                    format!(
                        "{} is already asked for by spec.ports[{first}]",
                        spell(addr, number, port.proto)
                    ),
                ),
                None => {
                    taken.insert(claim, index);
                    let external = matches!(kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp);
                    let hides = (own && external).then(|| (addr.family().any(), number, port.proto));
                    out.wanted.push(Wanted { claim, hides, port: index, kind, field });
                }
            }
        }
    }
    out
}

impl Frontends {
    fn tell(&mut self, service: &Service, field: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(problem(service, field, reason));
    }

    /// The ClusterIP of each family.
    fn cluster_ips(&mut self, service: &Service) -> BTreeMap<Family, (IpAddr, String)> {
        let mut found = BTreeMap::new();
        for (index, &ip) in service.cluster_ips.iter().enumerate() {
            let field = format!("spec.clusterIPs[{index}]");
            let family = Addr::from(ip).family();
            if let Some(reason) = special(ip) {
                self.tell(service, field, format!("{ip} is {reason}: not programmed"));
            } else if let Entry::Vacant(vacant) = found.entry(family) {
                vacant.insert((ip, field));
            } else {
                self.tell(service, field, format!("{ip} is a second address of its family: not programmed"));
            }
        }
        found
    }

    /// Those of `externalIPs` that are served (S14, H36).
    fn external_ips(
        &mut self,
        service: &Service,
        options: &ModelOptions,
        families: &BTreeMap<Family, (IpAddr, String)>,
    ) -> Vec<IpAddr> {
        let mut kept = Vec::new();
        for &ip in &service.external_ips {
            let refusal = options.refuses_external(ip).map(str::to_owned);
            match refusal.or_else(|| unfit(ip, families)) {
                Some(reason) => {
                    self.tell(service, "spec.externalIPs", format!("{ip}: {reason}: not programmed"))
                }
                None => kept.push(ip),
            }
        }
        kept
    }

    /// Those of the status addresses that are served (S15).
    fn load_balancer_ips(
        &mut self,
        service: &Service,
        families: &BTreeMap<Family, (IpAddr, String)>,
    ) -> Vec<IpAddr> {
        if service.kind != ServiceType::LoadBalancer {
            return Vec::new();
        }
        let mut kept = Vec::new();
        for &ip in &service.load_balancer_ips {
            match unfit(ip, families) {
                Some(reason) => self.tell(
                    service,
                    "status.loadBalancer.ingress",
                    format!("{ip}: {reason}: not programmed"),
                ),
                None => kept.push(ip),
            }
        }
        kept
    }

    /// Indices of the ports that can be programmed. Name and protocol identify a port, so a
    /// second one of the same is left out.
    fn usable_ports(&mut self, service: &Service) -> Vec<usize> {
        let mut seen: BTreeSet<(&str, Proto)> = BTreeSet::new();
        let mut usable = Vec::new();
        for (index, port) in service.ports.iter().enumerate() {
            if let Some((field, reason)) = unusable(port) {
                self.tell(service, format!("spec.ports[{index}].{field}"), reason);
            } else if !seen.insert((&port.name, port.proto)) {
                let reason = format!("a second {} port named {:?}: not programmed", port.proto, port.name);
                self.tell(service, format!("spec.ports[{index}].name"), reason);
            } else {
                usable.push(index);
            }
        }
        usable
    }
}

fn unusable(port: &ServicePort) -> Option<(&'static str, String)> {
    if port.port == 0 {
        return Some(("port", "0 is not a port: not programmed".into()));
    }
    match port.proto {
        Proto::TCP | Proto::UDP => None,
        Proto::SCTP => Some(("protocol", "SCTP is not carried by this version: not programmed".into())),
        other => Some(("protocol", format!("{other} is not a protocol of Services: not programmed"))),
    }
}

/// Why an external address cannot be a frontend of the Service.
fn unfit(ip: IpAddr, families: &BTreeMap<Family, (IpAddr, String)>) -> Option<String> {
    if let Some(reason) = special(ip) {
        return Some(reason.to_owned());
    }
    let family = Addr::from(ip).family();
    (!families.contains_key(&family)).then(|| format!("the Service has no {family} ClusterIP"))
}

fn problem(service: &Service, field: impl Into<String>, reason: impl Into<String>) -> Problem {
    Problem {
        object: ObjectRef { kind: Kind::Service, key: service.key.clone() },
        field: field.into(),
        reason: reason.into(),
    }
}

/// `10.0.0.1:80/TCP`; a node port, whose address is "any", without one.
fn spell(addr: Addr, port: u16, proto: Proto) -> String {
    match IpAddr::from(addr) {
        _ if addr.is_unspecified() => {
            format!("node port {port}/{proto} ({})", addr.family())
        }
        IpAddr::V4(ip) => format!("{ip}:{port}/{proto}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}/{proto}"),
    }
}
