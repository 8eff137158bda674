//! Manifests in; desired state, maps, routes and problems out.
//!
//! A case is a folder of numbered steps: `2-web.yaml` is what the manifest `web.yaml` holds from
//! the second step on. `expected.txt` has what follows from each step, without ids;
//! `cargo xtask bless` rewrites it. Each case also runs with its steps in another order (those
//! of one manifest keep theirs), with one operation in ten failing, and with the agent restarted
//! before every step: the end is always the same. A file `options` holds flags of `weir run`
//! that matter here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir::datapath::sim::Sim;
use weir::datapath::{Capacity, Datapath};
use weir::model::l7::{L7Input, L7Model, L7Options, Names};
use weir::model::routes::{Action, Certificate, Routes, Target};
use weir::model::{BackendState, ExternalIps, Model, ModelOptions, NodeView, PortKey, PortState};
use weir::plan::Planner;
use weir::problem::ObjectKey;
use weir::source::dir::Manifests;
use weir::source::fill::FillConfig;
use weir::source::{Batch, Objects};

const NODE: &str = "node-a";
/// Seconds since the epoch: certificates of the cases are judged at this time.
const NOW: i64 = 1_800_000_000;

const CAPACITY: Capacity = Capacity {
    frontends: 100,
    backends: 100,
    table_blocks: 1_000,
    flows: 100,
    transient: 100,
    services: 100,
    prefixes: 100,
};

/// Orders of a case that are tried, at most.
const ORDERS: usize = 24;

struct Step {
    /// Name of the file in the case.
    file: String,
    /// The manifest that it is the text of.
    manifest: String,
    text: String,
}

struct Case {
    name: String,
    folder: PathBuf,
    steps: Vec<Step>,
    options: Options,
}

/// Flags of `weir run` that matter to a case, and the answers of its name server.
#[derive(Clone)]
struct Options {
    l4: ModelOptions,
    l7: L7Options,
    names: Arc<Names>,
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut folders: Vec<_> = entries(&root).into_iter().filter(|path| path.is_dir()).collect();
    folders.sort();
    folders.into_iter().map(Case::read).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    listed.map(|entry| entry.expect("an entry").path()).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

impl Case {
    fn read(folder: PathBuf) -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).expect("a readable file");
        let mut steps: Vec<_> = entries(&folder)
            .into_iter()
            .filter(|path| path.extension().is_some_and(|ext| ext == "yaml"))
            .map(|path| {
                let file = name_of(&path);
                let (number, manifest) = file.split_once('-').expect("a numbered step");
                let number: u32 = number.parse().expect("a number");
                (number, Step { manifest: manifest.into(), text: read(&path), file })
            })
            .collect();
        steps.sort_by_key(|(number, _)| *number);
        let options = folder.join("options");
        let options = if options.exists() { options_from(&read(&options)) } else { default_options() };
        let steps = steps.into_iter().map(|(_, step)| step).collect();
        Self { name: name_of(&folder), folder, steps, options }
    }

    /// Other orders in which each manifest still has its texts in turn.
    fn orders(&self) -> Vec<Vec<usize>> {
        let mut found = Vec::new();
        let mut order = Vec::new();
        self.extend_order(&mut order, &mut found);
        found
    }

    fn extend_order(&self, order: &mut Vec<usize>, found: &mut Vec<Vec<usize>>) {
        if order.len() == self.steps.len() {
            found.push(order.clone());
        }
        // From the end, so that the orders least like the written one come first.
        for next in (0..self.steps.len()).rev() {
            let is_free =
                |n: usize| !order.contains(&n) && self.steps[n].manifest == self.steps[next].manifest;
            if found.len() < ORDERS && is_free(next) && !(0..next).any(is_free) {
                order.push(next);
                self.extend_order(order, found);
                order.pop();
            }
        }
    }

    /// What is programmed at the end of the steps in their order, retired frontends forgotten.
    fn end(&self) -> String {
        let mut agent = Agent::new(self);
        for step in &self.steps {
            agent.step(step);
        }
        agent.end()
    }
}

fn default_options() -> Options {
    Options {
        l4: ModelOptions { protected_ports: [22, 10250].into(), ..ModelOptions::default() },
        l7: L7Options {
            controllers: ["weir.dev/ingress".to_string()].into(),
            manifests: true,
            external_names: true,
            ..L7Options::default()
        },
        names: Arc::default(),
    }
}

/// Lines of `--flag value`, and of `name host.example 203.0.113.1,…`.
fn options_from(text: &str) -> Options {
    let mut options = default_options();
    for line in text.lines() {
        match line.split_once(' ').expect("a flag and a value") {
            ("--allow-endpoint-cidr", cidr) => {
                options.l4.allow_endpoint_cidrs.push(cidr.parse().expect("a CIDR"));
                options.l7.allow_endpoint_cidrs.push(cidr.parse().expect("a CIDR"));
            }
            ("--external-ips", "off") => options.l4.external_ips = ExternalIps::Off,
            ("--external-ips", cidrs) => {
                let cidrs = cidrs.split(',').map(|cidr| cidr.parse().expect("a CIDR"));
                options.l4.external_ips = ExternalIps::Within(cidrs.collect());
            }
            ("--ingress-controller", name) => options.l7.controllers = [name.to_string()].into(),
            ("--watch-namespace", name) => options.l7.namespace = Some(name.into()),
            ("--default-ssl-certificate", secret) => {
                let (namespace, name) = secret.split_once('/').expect("NS/NAME");
                options.l7.default_certificate = Some(ObjectKey::new(namespace, name));
            }
            ("name", answer) => {
                let (name, addresses) = answer.split_once(' ').expect("a name and its addresses");
                let addresses = addresses.split(',').map(|ip| ip.parse().expect("an address")).collect();
                Arc::make_mut(&mut options.names).insert(name.into(), Ok(addresses));
            }
            (flag, _) => panic!("unknown flag {flag}"),
        }
    }
    options
}

/// All stages from manifests to maps, and a clock.
struct Agent<'a> {
    case: &'a Case,
    manifests: Manifests,
    objects: Objects,
    model: Model,
    l7: L7Model,
    /// What a proxy knows that took every step.
    routes: Routes,
    planner: Planner,
    sim: Sim,
    dirty: BTreeSet<ObjectKey>,
    now: u64,
}

impl<'a> Agent<'a> {
    fn new(case: &'a Case) -> Self {
        Self::over(case, Sim::new(CAPACITY), 100)
    }

    /// An agent that finds this data path when it starts.
    fn over(case: &'a Case, mut sim: Sim, now: u64) -> Self {
        let (manifests, batch) = Manifests::new(FillConfig::default());
        let mut objects = Objects::new(NODE);
        objects.apply_all(batch);
        let mut planner = Planner::new(sim.capacity());
        planner.restore(sim.read().expect("the simulator reads"), now);
        let model = Model::new(case.options.l4.clone());
        let l7 = L7Model::new(case.options.l7.clone());
        let (routes, dirty) = (Routes::default(), BTreeSet::new());
        Self { case, manifests, objects, model, l7, routes, planner, sim, dirty, now }
    }

    /// Takes a step and plans until everything is applied.
    fn step(&mut self, step: &Step) {
        let batch = self.manifests.put(&step.manifest, &step.text);
        self.take(batch);
        self.settle();
    }

    fn take(&mut self, batch: Batch) {
        let touched = self.objects.apply_all(batch);
        let node = self.objects.node.as_deref();
        let view = NodeView {
            name: NODE.into(),
            zone: node.and_then(|node| node.zone.clone()),
            addresses: node.map(|node| node.internal_ips.iter().copied().collect()).unwrap_or_default(),
            internal_ips: node.map(|node| node.internal_ips.clone()).unwrap_or_default(),
            external_ips: node.map(|node| node.external_ips.clone()).unwrap_or_default(),
        };
        self.dirty.append(&mut self.model.update(&self.objects, &view, &touched.services));
        let input = L7Input {
            now: NOW,
            node_addresses: view.addresses,
            names: Arc::clone(&self.case.options.names),
            self_signed: Some(Arc::new(self_signed())),
        };
        for update in self.l7.update(&self.objects, &input, &touched) {
            self.routes.apply(update);
        }
        assert_eq!(&self.routes, self.l7.routes(), "{}", self.case.name);
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            self.now += 10;
            for key in std::mem::take(&mut self.dirty) {
                let plan = self.planner.diff(&key, self.model.state(&key), self.now);
                let failed = self.planner.carry_out(&plan.ops, self.now, |ops| self.sim.apply(ops));
                if !failed.is_empty() || !plan.problems.is_empty() {
                    self.dirty.insert(key);
                }
            }
            if self.dirty.is_empty() {
                return;
            }
        }
        panic!("{}: does not come to rest: {:?}", self.case.name, self.dirty);
    }

    /// Retires what nobody claimed after a restart.
    fn finish_first_round(&mut self) {
        let ops = self.planner.finish_first_round();
        assert!(self.planner.carry_out(&ops, self.now, |ops| self.sim.apply(ops)).is_empty());
    }

    /// The maps once no open flow needs a retired frontend.
    fn end(mut self) -> String {
        self.sim.fail_every(None);
        for (key, ..) in self.planner.retired().collect::<Vec<_>>() {
            let ops = self.planner.forget(&key);
            self.planner.carry_out(&ops, self.now, |ops| self.sim.apply(ops));
        }
        self.sim.text() + &spell_routes(&self.routes)
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let section = |out: &mut String, title: &str, text: &str| {
            let _ = writeln!(out, "{title}:{}", if text.is_empty() { " none" } else { "" });
            for line in text.lines() {
                let _ = writeln!(out, "  {line}");
            }
        };
        let mut desired = String::new();
        for (key, port) in self.model.states().values().flat_map(|state| &state.ports) {
            spell_port(&mut desired, key, port);
        }
        for (key, state) in self.model.states() {
            if let Some(check) = &state.health {
                let _ = writeln!(desired, "{key} health check {}: {:?} here", check.port, check.local);
            }
        }
        section(&mut out, "desired", &desired);
        section(&mut out, "maps", &self.sim.text());
        // Cases without an Ingress say nothing about routes.
        if !self.objects.ingresses.is_empty() {
            section(&mut out, "routes", &spell_routes(&self.routes));
        }
        let problems = self.model.problems().chain(&self.objects.source_problems).cloned();
        let problems = problems.chain(self.l7.problems());
        let mut problems: Vec<_> = problems.map(|p| format!("{p}\n")).collect();
        problems.sort();
        section(&mut out, "problems", &problems.concat());
        out
    }
}

/// The certificate for names without one.
fn self_signed() -> Certificate {
    Certificate {
        chain: Vec::new(),
        key: Default::default(),
        names: vec!["ingress.weir.invalid".into()],
        not_before: 0,
        not_after: i64::MAX,
    }
}

fn spell_routes(routes: &Routes) -> String {
    let mut out = String::new();
    let action = |action: &Action| {
        let target = match &action.target {
            Target::Pool(pool) => pool.to_string(),
            Target::Unavailable(reason) => format!("503, {reason}"),
        };
        let redirect = action.https_redirect.map(|code| format!(" https-{code}")).unwrap_or_default();
        format!("{target} ({}){redirect}", action.ingress)
    };
    for (pattern, host) in &routes.hosts {
        let _ = writeln!(out, "host {pattern}");
        for rule in &host.rules {
            let path = if rule.path.is_empty() { "/" } else { &*rule.path };
            let _ = writeln!(out, "  {:?} {path} -> {}", rule.kind, action(&rule.action));
        }
        if let Some(default) = &host.default {
            let _ = writeln!(out, "  default -> {}", action(default));
        }
    }
    for (key, pool) in &routes.pools {
        let endpoints: Vec<_> = pool.endpoints.iter().map(ToString::to_string).collect();
        let endpoints = if endpoints.is_empty() { "none".to_string() } else { endpoints.join(", ") };
        let _ = writeln!(out, "pool {key} {:?}: {endpoints}", pool.protocol);
    }
    for (pattern, certificate) in &routes.names {
        let _ = writeln!(out, "name {pattern}: {certificate}");
    }
    for (key, certificate) in &routes.certificates {
        let _ = writeln!(out, "certificate {key}: {}", certificate.names.join(", "));
    }
    out
}

/// Says whether a backend is in a set.
type Pick = fn(&BackendState) -> bool;

fn spell_port(out: &mut String, key: &PortKey, port: &PortState) {
    let name = if key.port_name.is_empty() { String::new() } else { format!(" {}", key.port_name) };
    let affinity = match port.affinity_seconds {
        0 => String::new(),
        seconds => format!(" affinity {seconds}s"),
    };
    let _ = writeln!(out, "{}{name} {} {:?}{affinity}", key.service, key.proto, key.family);
    for frontend in &port.frontends {
        let address = SocketAddr::new(IpAddr::from(frontend.addr), frontend.port);
        let _ = writeln!(out, "  {address} {:?}", frontend.kind);
    }
    let sets: [(&str, bool, Pick); 3] = [
        ("cluster-ip", port.cluster_ip_drops, |b| b.in_cluster_ip),
        ("inside", port.inside_drops, |b| b.in_inside),
        ("outside", port.outside_drops, |b| b.in_outside),
    ];
    let members = |pick: Pick| {
        let address = |b: &BackendState| SocketAddr::new(IpAddr::from(b.addr), b.port).to_string();
        port.backends.iter().filter(|b| pick(b)).map(address).collect::<Vec<_>>().join(", ")
    };
    for (name, drops, pick) in sets {
        let empty = if drops { "(drops)" } else { "(refuses)" };
        let members = members(pick);
        let _ = writeln!(out, "  {name}: {}", if members.is_empty() { empty } else { &members });
    }
    if let Some(ranges) = &port.source_ranges {
        let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
        let _ = writeln!(out, "  load balancer from: {}", ranges.join(", "));
    }
    let kept = members(|b| !(b.in_cluster_ip || b.in_inside || b.in_outside));
    if !kept.is_empty() {
        let _ = writeln!(out, "  kept for open flows: {kept}");
    }
}

#[test]
fn each_step_gives_the_expected_text() {
    let bless = std::env::var_os("WEIR_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let mut agent = Agent::new(&case);
        let mut found = String::new();
        for step in &case.steps {
            agent.step(step);
            let _ = writeln!(found, "== {}\n{}", step.file, agent.text());
        }
        let path = case.folder.join("expected.txt");
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        if found != expected && bless {
            std::fs::write(&path, &found).expect("a writable folder");
        } else if found != expected {
            let line = found.lines().zip(expected.lines()).position(|(f, e)| f != e);
            let line = line.unwrap_or(found.lines().count().min(expected.lines().count()));
            wrong.push(format!(
                "{}: line {}:\n  expected {:?}\n  found    {:?}\n{found}",
                case.name,
                line + 1,
                expected.lines().nth(line).unwrap_or_default(),
                found.lines().nth(line).unwrap_or_default()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}\n`cargo xtask bless` rewrites what is expected", wrong.join("\n"));
}

#[test]
fn the_order_of_steps_does_not_matter() {
    let mut tried = 0;
    for case in cases() {
        let expected = case.end();
        for order in case.orders() {
            let mut agent = Agent::new(&case);
            for step in &order {
                agent.step(&case.steps[*step]);
            }
            assert_eq!(agent.end(), expected, "{}: {order:?}", case.name);
            tried += 1;
        }
    }
    assert!(tried > 2 * cases().len(), "{tried}");
}

#[test]
fn failures_of_one_operation_in_ten_do_not_matter() {
    for case in cases() {
        for every in [10, 7, 3] {
            let mut agent = Agent::new(&case);
            agent.sim.fail_every(Some(every));
            for step in &case.steps {
                agent.step(step);
            }
            assert_eq!(agent.end(), case.end(), "{}: every {every}th", case.name);
        }
    }
}

#[test]
fn restarts_do_not_matter() {
    for case in cases() {
        let mut agent = Agent::new(&case);
        let mut texts: BTreeMap<&str, &str> = BTreeMap::new();
        for step in &case.steps {
            texts.insert(&step.manifest, &step.text);
            // It comes back to find that the step was taken meanwhile.
            agent = Agent::over(&case, agent.sim, agent.now);
            for (manifest, text) in &texts {
                let batch = agent.manifests.put(manifest, text);
                agent.take(batch);
            }
            agent.settle();
            agent.finish_first_round();
        }
        assert_eq!(agent.end(), case.end(), "{}", case.name);
    }
}

#[test]
fn a_restart_without_a_change_leaves_the_maps_alone() {
    for case in cases() {
        let mut agent = Agent::new(&case);
        let mut texts: BTreeMap<&str, &str> = BTreeMap::new();
        for step in &case.steps {
            texts.insert(&step.manifest, &step.text);
            agent.step(step);
        }
        let (frontends, backends) = (agent.sim.frontends.clone(), agent.sim.backends.clone());
        let mut agent = Agent::over(&case, agent.sim, agent.now);
        for (manifest, text) in &texts {
            let batch = agent.manifests.put(manifest, text);
            agent.take(batch);
        }
        agent.settle();
        agent.finish_first_round();
        assert_eq!((&agent.sim.frontends, &agent.sim.backends), (&frontends, &backends), "{}", case.name);
    }
}
