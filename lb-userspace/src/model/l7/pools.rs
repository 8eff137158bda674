//! From a Service port to the endpoints that requests go to (I19, I20, I22, H38).
//!
//! Straight to the endpoints, past the Service's own addresses. Nothing is decided here about
//! one request: which endpoint it goes to is the proxy's choice.

use super::budget::{Beyond, ENDPOINTS, PORTS, VISITS};
use super::{L7Options, Names};
use crate::address::special;
use crate::model::limits;
use crate::model::routes::{Pool, Protocol};
use crate::problem::{Kind, ObjectKey, ObjectRef, Problem};
use crate::source::{BackendPort, Endpoint, EndpointSlice, Objects, Service, ServicePort, ServiceType};
use ipnet::IpNet;
use lb_common::abi::Proto;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Where the API server's own addresses are found.
pub(super) const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// What one Service gives to those who refer to it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Offer {
    /// There is such a Service.
    pub(super) exists: bool,
    /// The number of each port that is asked for, or why there is no way to it.
    pub(super) ports: BTreeMap<BackendPort, Result<u16, String>>,
    pub(super) pools: BTreeMap<u16, Arc<Pool>>,
    /// The name that it stands for (I22).
    pub(super) external_name: Option<String>,
    pub(super) problems: Vec<Problem>,
}

impl Offer {
    /// Endpoints, counted over the ports.
    pub(super) fn endpoints(&self) -> usize {
        self.pools.values().map(|pool| pool.endpoints.len()).sum()
    }

    /// Takes the endpoints away, and leaves the ports: they answer 503.
    pub(super) fn emptied(mut self) -> Self {
        for pool in self.pools.values_mut() {
            *pool = Arc::new(Pool { protocol: pool.protocol, endpoints: Vec::new() });
        }
        self
    }

    /// The same for a Service that is beyond a limit, which is told.
    pub(super) fn refused(mut self, key: &ObjectKey, beyond: Beyond) -> Self {
        self.problems.push(Problem {
            object: ObjectRef { kind: Kind::Service, key: key.clone() },
            field: "spec.ports".into(),
            reason: format!(
                "with this Service, endpoints that Ingresses lead to, counted over all ports, are beyond \
                 {beyond}: none of it is used, and requests for it answer 503"
            ),
        });
        self.emptied()
    }
}

/// Addresses that no request is sent to, whoever asks for it (H38, SSRF).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Guard {
    /// `--allow-endpoint-cidr`: accepted all the same.
    allowed: Vec<IpNet>,
    nodes: BTreeSet<IpAddr>,
    api_server: BTreeSet<IpAddr>,
}

impl Guard {
    pub(super) fn of(objects: &Objects, options: &L7Options, nodes: &BTreeSet<IpAddr>) -> Self {
        let key = ObjectKey::new(API_SERVER.0, API_SERVER.1);
        let service = objects.services.get(&key).map(|service| service.cluster_ips.as_slice());
        let endpoints = slices(objects, &key).flat_map(|slice| &slice.endpoints).map(|e| e.addr);
        Self {
            allowed: options.allow_endpoint_cidrs.clone(),
            nodes: nodes.clone(),
            api_server: endpoints.chain(service.unwrap_or_default().iter().copied()).collect(),
        }
    }

    fn allows(&self, ip: IpAddr) -> bool {
        self.allowed.iter().any(|net| net.contains(&ip))
    }

    /// Why no endpoint has this address, if so: it means something else on each node.
    fn refuses(&self, ip: IpAddr) -> Option<&'static str> {
        special(ip).filter(|_| !self.allows(ip.to_canonical()))
    }

    /// The same for what somebody wrote by hand: it could lead to what only the node may reach.
    fn refuses_written(&self, ip: IpAddr) -> Option<&'static str> {
        let ip = ip.to_canonical();
        let reason = if let Some(reason) = special(ip) {
            reason
        } else if self.nodes.contains(&ip) {
            "an address of the node"
        } else if self.api_server.contains(&ip) {
            "an address of the API server"
        } else {
            return None;
        };
        (!self.allows(ip)).then_some(reason)
    }
}

/// Looks up what a Service gives for the ports that are asked for.
pub(super) fn offer(
    objects: &Objects,
    options: &L7Options,
    guard: &Guard,
    names: &Names,
    key: &ObjectKey,
    asked: &BTreeSet<BackendPort>,
) -> Offer {
    let mut offer = Offer::default();
    let Some(service) = objects.services.get(key) else {
        let missing = || Err(format!("there is no Service {key}"));
        offer.ports = asked.iter().map(|port| (port.clone(), missing())).collect();
        return offer;
    };
    offer.exists = true;
    let external = (service.kind == ServiceType::ExternalName).then(|| {
        let (name, addresses) = resolve(service, options, guard, names, &mut offer.problems);
        offer.external_name = name;
        addresses
    });
    let listed = Listed::of(service);
    let mut led: BTreeMap<u16, (Protocol, Option<&ServicePort>)> = BTreeMap::new();
    for port in asked {
        let found = listed.find(service, port).and_then(|(number, port)| {
            let protocol = port.map_or(Ok(Protocol::Http1), |port| protocol(service, port))?;
            if let Some(Err(reason)) = &external {
                return Err(reason.clone());
            }
            if led.len() == PORTS && !led.contains_key(&number) {
                return Err(format!("Ingresses lead to more than {PORTS} ports of Service {key}"));
            }
            led.entry(number).or_insert((protocol, port));
            Ok(number)
        });
        offer.ports.insert(port.clone(), found);
    }
    let mut written = BTreeSet::new();
    let (mut found, mut cut) = match external {
        Some(addresses) => (named(&led, &addresses.unwrap_or_default()), false),
        None => endpoints(objects, guard, service, &led, &mut written),
    };
    if let Some(share) = limits::share(found.values().map(Vec::len).collect(), ENDPOINTS) {
        found.values_mut().for_each(|endpoints| endpoints.truncate(share));
        cut = true;
    }
    if cut {
        offer.problems.push(Problem {
            object: ObjectRef { kind: Kind::Service, key: key.clone() },
            field: "spec.ports".into(),
            reason: format!(
                "more than {ENDPOINTS} endpoints, counted over all ports that Ingresses lead to: only some of \
                 each port are used there"
            ),
        });
    }
    offer.pools = led
        .into_iter()
        .map(|(number, (protocol, _))| {
            let endpoints = found.remove(&number).unwrap_or_default();
            (number, Arc::new(Pool { protocol, endpoints }))
        })
        .collect();
    offer.problems.extend(written.into_iter().map(|(slice, index, reason)| Problem {
        object: ObjectRef { kind: Kind::EndpointSlice, key: slice },
        field: format!("endpoints[{index}].addresses[0]"),
        reason,
    }));
    offer
}

/// The ports of a Service as backends may name them: of several that fit, the first TCP one.
struct Listed<'a> {
    by_number: BTreeMap<u16, &'a ServicePort>,
    by_name: BTreeMap<&'a str, &'a ServicePort>,
}

impl<'a> Listed<'a> {
    fn of(service: &'a Service) -> Self {
        let prefer = |held: &mut &'a ServicePort, port: &'a ServicePort| {
            if held.proto != Proto::TCP && port.proto == Proto::TCP {
                *held = port;
            }
        };
        let mut listed = Self { by_number: BTreeMap::new(), by_name: BTreeMap::new() };
        for port in &service.ports {
            prefer(listed.by_number.entry(port.port).or_insert(port), port);
            prefer(listed.by_name.entry(&port.name).or_insert(port), port);
        }
        listed
    }

    /// The port that a backend means (I19). An ExternalName need not list any: the number is
    /// then taken as it is.
    fn find(
        &self,
        service: &Service,
        wanted: &BackendPort,
    ) -> Result<(u16, Option<&'a ServicePort>), String> {
        let fitting = match wanted {
            BackendPort::Number(number) => self.by_number.get(number).copied(),
            BackendPort::Name(name) => self.by_name.get(name.as_str()).copied(),
        };
        let asked = match (wanted, fitting) {
            (_, Some(port)) if port.proto == Proto::TCP => return Ok((port.port, Some(port))),
            (BackendPort::Number(number), _)
                if service.kind == ServiceType::ExternalName && service.ports.is_empty() =>
            {
                return Ok((*number, None));
            }
            (BackendPort::Number(number), _) => number.to_string(),
            (BackendPort::Name(name), _) => format!("{:?}", name.chars().take(80).collect::<String>()),
        };
        if let Some(port) = fitting {
            return Err(format!("port {asked} of Service {} is {}, not TCP", service.key, port.proto));
        }
        let mut has: Vec<String> = service
            .ports
            .iter()
            .take(8)
            .map(|port| {
                if port.name.is_empty() {
                    port.port.to_string()
                } else {
                    format!("{} ({})", port.port, port.name)
                }
            })
            .collect();
        if has.is_empty() {
            has.push("none".into());
        }
        Err(format!("Service {} has no port {asked}; it has {}", service.key, has.join(", ")))
    }
}

/// What `appProtocol` asks for (I51). What is not spoken is refused: plain text sent to a port
/// that wants TLS would be answered by nobody. Other names are hints for somebody else.
fn protocol(service: &Service, port: &ServicePort) -> Result<Protocol, String> {
    let Some(asked) = &port.app_protocol else { return Ok(Protocol::Http1) };
    match asked.to_ascii_lowercase().as_str() {
        "kubernetes.io/h2c" | "h2c" | "grpc" => Ok(Protocol::H2c),
        "https" | "kubernetes.io/wss" | "wss" | "grpcs" | "kubernetes.io/https" => Err(format!(
            "appProtocol {asked} of Service {} port {}: TLS towards endpoints is not spoken by this version",
            service.key, port.port
        )),
        _ => Ok(Protocol::Http1),
    }
}

fn slices<'a>(objects: &'a Objects, key: &ObjectKey) -> impl Iterator<Item = &'a EndpointSlice> {
    let keys = objects.slices_of.get(key).into_iter().flatten();
    keys.filter_map(|key| objects.slices.get(key)).map(|slice| &**slice)
}

/// A refused endpoint: its slice, its index there, and why.
type Refused = (ObjectKey, usize, String);

/// What is behind each port that is led to.
type Behind = BTreeMap<u16, Vec<SocketAddr>>;

/// The addresses of a name, at each port.
fn named(led: &BTreeMap<u16, (Protocol, Option<&ServicePort>)>, addresses: &BTreeSet<IpAddr>) -> Behind {
    let of = |number: u16, port: Option<&ServicePort>| {
        let target = port.and_then(|port| port.target_port).unwrap_or(number);
        addresses.iter().map(|ip| SocketAddr::new(*ip, target)).collect()
    };
    led.iter().map(|(number, (_, port))| (*number, of(*number, *port))).collect()
}

/// The endpoints of each port, and whether there are more than are looked at. The slice's port has
/// the name of the Service's, and its own number (I19).
fn endpoints(
    objects: &Objects,
    guard: &Guard,
    service: &Service,
    led: &BTreeMap<u16, (Protocol, Option<&ServicePort>)>,
    refused: &mut BTreeSet<Refused>,
) -> (Behind, bool) {
    let mut offers: BTreeMap<&str, Vec<(u16, &EndpointSlice)>> = BTreeMap::new();
    for slice in slices(objects, &service.key) {
        let ports = slice.ports.iter().filter(|port| port.proto == Proto::TCP && port.port != 0);
        for (name, number) in ports.map(|port| (&*port.name, port.port)).collect::<BTreeSet<_>>() {
            offers.entry(name).or_default().push((number, slice));
        }
    }
    let offered = |port: &Option<&ServicePort>| port.and_then(|port| offers.get(&*port.name));
    let visits: usize =
        led.values().filter_map(|(_, port)| offered(port)).flatten().map(|(_, of)| of.endpoints.len()).sum();
    let most = if visits > VISITS { VISITS / led.len() } else { usize::MAX };
    let behind = led.iter().map(|(number, (_, port))| {
        let offered = offered(port).map(Vec::as_slice).unwrap_or_default();
        (*number, usable(guard, service, offered, most, refused))
    });
    (behind.collect(), visits > VISITS)
}

/// Those of one port that are ready, else those that serve while they terminate (I20). Of all of
/// them the first `most` are looked at.
///
/// A slice counts as written by hand unless the endpoint slice controller keeps it: for a
/// Service without selector it keeps none, whatever a label says.
fn usable(
    guard: &Guard,
    service: &Service,
    offered: &[(u16, &EndpointSlice)],
    most: usize,
    refused: &mut BTreeSet<Refused>,
) -> Vec<SocketAddr> {
    let mut found: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    let all = offered.iter().flat_map(|(number, slice)| {
        slice.endpoints.iter().enumerate().map(move |(index, endpoint)| (*number, *slice, index, endpoint))
    });
    for (number, slice, index, endpoint) in all.take(most) {
        if guard.refuses(endpoint.addr).is_some() {
            // Told with the Service itself, which L4 looks at too.
            continue;
        }
        let kept = slice.managed && service.selector;
        if !kept && let Some(reason) = guard.refuses_written(endpoint.addr) {
            let reason = format!(
                "{} is {reason}, which a slice that is written by hand may not name for Ingress: not used there",
                endpoint.addr
            );
            refused.insert((slice.key.clone(), index, reason));
            continue;
        }
        let at = SocketAddr::new(endpoint.addr.to_canonical(), number);
        let kept = found.entry(at).or_insert(endpoint);
        if precedence(endpoint) < precedence(kept) {
            *kept = endpoint;
        }
    }
    let any_ready = found.values().any(|endpoint| endpoint.ready);
    let usable = |e: &Endpoint| if any_ready { e.ready } else { e.serving && e.terminating };
    found.into_iter().filter(|(_, e)| usable(e)).map(|(at, _)| at).collect()
}

/// Which of two entries for one address counts (S4): smaller wins.
fn precedence(endpoint: &Endpoint) -> (bool, Reverse<bool>, Reverse<bool>) {
    (endpoint.terminating, Reverse(endpoint.ready), Reverse(endpoint.serving))
}

/// What came of looking up an ExternalName: the addresses, or why there are none.
type Resolved = Result<BTreeSet<IpAddr>, String>;

/// The addresses behind an ExternalName, without those that it may not lead to (I22).
fn resolve(
    service: &Service,
    options: &L7Options,
    guard: &Guard,
    names: &Names,
    problems: &mut Vec<Problem>,
) -> (Option<String>, Resolved) {
    let key = &service.key;
    if !options.external_names {
        return (None, Err(format!("Service {key} is an ExternalName, and --external-names is off")));
    }
    let written = service.external_name.as_deref().unwrap_or_default();
    let name = written.strip_suffix('.').unwrap_or(written).to_ascii_lowercase();
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let bad = name.is_empty() || name.len() > 253 || !name.bytes().all(is_name);
    if bad || name.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return (None, Err(format!("the externalName of Service {key} is not a DNS name")));
    }
    if name.parse::<IpAddr>().is_ok() {
        return (None, Err(format!("the externalName of Service {key} is an address, not a DNS name")));
    }
    let found = match names.get(&name) {
        None => Err(format!("{name}, the externalName of Service {key}, is being looked up")),
        Some(Err(error)) => {
            Err(format!("{name}, the externalName of Service {key}, cannot be looked up: {error}"))
        }
        Some(Ok(addresses)) => {
            let mut kept = BTreeSet::new();
            for &ip in addresses.iter().take(ENDPOINTS) {
                match guard.refuses_written(ip) {
                    None => {
                        kept.insert(ip.to_canonical());
                    }
                    Some(reason) => problems.push(Problem {
                        object: ObjectRef { kind: Kind::Service, key: key.clone() },
                        field: "spec.externalName".into(),
                        reason: format!("{name} leads to {ip}, {reason}: not used"),
                    }),
                }
            }
            if kept.is_empty() {
                Err(format!(
                    "{name}, the externalName of Service {key}, leads to no address that may be used"
                ))
            } else {
                Ok(kept)
            }
        }
    };
    (Some(name), found)
}
