//! Brings a cluster up, each part as soon as what it needs is there: the nodes boot while the
//! API server starts, and what is installed is applied before the nodes are ready.

use super::images::Store;
use super::plan::{Plan, Proxy};
use super::programs::Programs;
use super::state::{Lock, Run};
use super::{Cluster, addons, control_plane, down, node};
use crate::go::say;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the nodes may take to be ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    pub plan: Plan,
    pub proxy: Proxy,
    /// The archive with Weir's image.
    pub image: Option<PathBuf>,
}

/// Starts a cluster; it stays when this process ends.
///
/// # Errors
/// When one is up already, or a part does not start: what did start stays, to be looked at,
/// until `down`.
pub fn up(options: &Options) -> Result<Cluster> {
    let begin = Instant::now();
    if options.proxy == Proxy::Weir {
        let image = options.image.as_deref().context("no image of Weir is named")?;
        ensure!(image.is_file(), "no {}: cargo xtask image writes it", image.display());
    }
    let run = Run::find()?;
    let mut lock = Lock::take(&run)?;
    if let Some(state) = run.state()? {
        if state.processes.values().any(super::Identity::alive) {
            bail!("a cluster is up ({}): cargo xtask cluster down", run.root().display());
        }
        say("an earlier cluster has ended and was not taken down: removing what is left of it");
        down::remove(&run)?;
    }
    let programs = Programs::locate()?;
    let store = Store::prepare(&programs)?;
    let clock = Clock { begin: Instant::now() };
    clock.tell(&format!("programs and images are there ({:.1} s)", begin.elapsed().as_secs_f64()));

    let plan = options.plan;
    run.change(|state| state.plan = plan)?;
    lock.mark(&run)?;
    fs::create_dir_all(run.logs())?;
    let own = std::env::current_exe()?;
    fs::copy(&own, run.program()).with_context(|| format!("copying {}", own.display()))?;
    control_plane::write_keys(&run, &plan)?;
    node::make_mount_points(&run)?;
    drop(control_plane::network()?);
    control_plane::start_api(&run, &plan, &programs)?;
    let booted = std::thread::scope(|scope| {
        let nodes: Vec<_> = plan
            .places()
            .into_iter()
            .map(|place| {
                let (run, programs, store) = (&run, &programs, &store);
                scope.spawn(move || {
                    node::make_network(place)?;
                    node::write_disks(run, &plan, place, programs, store)?;
                    node::switch_on(run, place)
                })
            })
            .collect();
        nodes.into_iter().try_for_each(|node| match node.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    });
    booted?;
    clock.tell(&format!("{} nodes boot", plan.nodes));

    let cluster = Cluster::attach()?;
    control_plane::wait_ready(&run, cluster.api())?;
    clock.tell("the API server is ready");
    control_plane::start_controllers(&run, &plan, &programs)?;
    control_plane::start_balancer(&run)?;
    for place in plan.places() {
        cluster.api().apply(&node::object(&plan, place))?;
        node::allow_kubelet(&run, place)?;
    }
    addons::install_coredns(&cluster)?;
    if let Some(image) = options.image.as_deref().filter(|_| options.proxy == Proxy::Weir) {
        load_when_possible(&cluster, image)?;
    }
    cluster.wait_nodes(PATIENCE)?;
    clock.tell("the nodes are ready");
    match options.proxy {
        Proxy::Weir => cluster.install_weir()?,
        Proxy::KubeProxyNftables | Proxy::KubeProxyIptables => cluster.set_kube_proxy(options.proxy)?,
        Proxy::None => {}
    }
    clock.tell(&format!("proxy {} is ready", options.proxy));
    addons::wait_coredns(&cluster)?;
    clock.tell("CoreDNS is ready");
    say(&format!("up after {:.1} s in all", begin.elapsed().as_secs_f64()));
    Ok(cluster)
}

/// Another proxy on the cluster that runs.
///
/// # Errors
/// When it does not become ready.
pub fn switch(cluster: &Cluster, proxy: Proxy, image: Option<&Path>) -> Result<()> {
    if proxy == Proxy::Weir {
        cluster.install_weir_from(image.context("no image of Weir is named")?)?;
        return cluster.set_kube_proxy(Proxy::None);
    }
    cluster.set_kube_proxy(proxy)?;
    cluster.uninstall_weir()
}

/// containerd answers a moment after its node has booted.
fn load_when_possible(cluster: &Cluster, image: &Path) -> Result<()> {
    crate::wait::until("containerd answers", Duration::from_secs(30), || {
        cluster.nodes().iter().try_for_each(|node| node.run("ctr", &["version"]).map(drop))
    })?;
    addons::load_weir(cluster, image)
}

/// Tells how long each part took.
struct Clock {
    begin: Instant,
}

impl Clock {
    fn tell(&self, what: &str) {
        say(&format!("{:6.1} s  {what}", self.begin.elapsed().as_secs_f64()));
    }
}
