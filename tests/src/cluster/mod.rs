//! A real cluster on this machine, without a container engine: etcd, API server, controllers
//! and scheduler in a namespace of their own, which is also the outside client's; and up to
//! three nodes out of namespaces, each with containerd, kubelet, CNI and real Pods.
//!
//! ```text
//!             weir-cp (control plane, outside client)      run folder: keys, logs, disks, state.json
//!                br0 172.31.77.1, fd00:31:77::1
//!       ┌───────────────┼───────────────┐
//!   weir-n1 node1   weir-n2 node2   weir-n3 node3          10.244.N.0/24, fd00:10:244:N::/64
//! ```
//!
//! `cargo xtask cluster up` starts it ([`up`]) and ends; the cluster stays until `down`
//! ([`down`]). What comes between attaches to it: [`Cluster::attach`]. Nothing is changed in
//! the machine's own network namespace, and nothing is pulled from anywhere: programs come
//! from the Go module proxy ([`programs`]), images are put together here ([`images`]).

mod addons;
mod archive;
pub mod balancer;
pub mod boot;
mod cgroups;
mod control_plane;
pub mod down;
pub mod e2e;
pub mod images;
pub mod inspect;
pub mod kind;
mod node;
pub mod plan;
pub(crate) mod process;
pub mod programs;
pub mod state;
pub mod up;

pub use inspect::{Agent, BpfObjects, Thread};
pub use plan::{Cni, IpFamily, Plan, Proxy};
pub use process::Identity;

use crate::apiserver::Connection;
use crate::apiserver::assets::{self, Program};
use crate::netns::Netns;
use crate::wait::until;
use anyhow::{Context, Result, bail, ensure};
use images::Store;
use plan::{OUTSIDE, Place};
use programs::Programs;
use serde_json::Value;
use state::Run;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The cluster that is up on this machine. Dropping it changes nothing.
#[derive(Debug)]
pub struct Cluster {
    run: Run,
    plan: Plan,
    api: Connection,
    outside: Netns,
    kubectl: PathBuf,
}

impl Cluster {
    /// Attaches to the cluster that `cargo xtask cluster up` started.
    ///
    /// # Errors
    /// When none is up.
    pub fn attach() -> Result<Self> {
        let run = Run::find()?;
        let state = run.state()?.filter(|state| !state.processes.is_empty());
        let Some(state) = state else { bail!("no cluster is up: cargo xtask cluster up") };
        Ok(Self {
            plan: state.plan,
            api: control_plane::connect(&run)?,
            outside: Netns::attach(OUTSIDE)?,
            kubectl: assets::locate(Program::Kubectl)?,
            run,
        })
    }

    /// What was asked for.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The folder of keys, logs and disks.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The namespace of the control plane, which is where clients outside of the cluster are:
    /// on the nodes' network, with no address of a node or a Pod.
    pub fn outside(&self) -> &Netns {
        &self.outside
    }

    /// All nodes, in order, on or off.
    pub fn nodes(&self) -> Vec<Node<'_>> {
        self.plan.places().into_iter().map(|place| Node { cluster: self, place }).collect()
    }

    /// A node by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<Node<'_>> {
        Ok(Node { cluster: self, place: node::find(&self.plan, name)? })
    }

    /// A kubeconfig with every right; its server is reached from [`Self::outside`].
    pub fn kubeconfig(&self) -> PathBuf {
        self.run.kubeconfig()
    }

    /// Objects: `get`, `list`, `apply`, `delete`, and `ask` for anything with a typed client.
    pub fn api(&self) -> &Connection {
        &self.api
    }

    /// Another connection, for a thread that asks beside others.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn connect(&self) -> Result<Connection> {
        control_plane::connect(&self.run)
    }

    /// Runs kubectl with every right and returns what it printed.
    ///
    /// # Errors
    /// With what it said when it fails.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.kubectl_with(words, "")
    }

    /// As [`Self::kubectl`], with a standard input.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn kubectl_with(&self, words: &[&str], input: &str) -> Result<String> {
        let out = self.kubectl_output(words, input)?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("kubectl {}: {}", words.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// As [`Self::kubectl_with`], whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn kubectl_output(&self, words: &[&str], input: &str) -> Result<Output> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(words);
        // Nothing of the caller's: neither its KUBECONFIG nor a cache in its home.
        command.arg("--cache-dir").arg(self.run.root().join("kubectl")).env_remove("KUBECONFIG");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.outside.enter(|| command.spawn())?.context("starting kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may have ended before it read all: its exit code tells.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(child.wait_with_output()?)
    }

    /// Applies manifests, as `kubectl apply --server-side`.
    ///
    /// # Errors
    /// With the refusal.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests).map(drop)
    }

    /// Runs a command in a Pod's first container and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let words: Vec<&str> = ["exec", "-n", namespace, pod, "--"].iter().chain(command).copied().collect();
        self.kubectl(&words)
    }

    /// Waits until a Deployment or DaemonSet is as its object says (`ds/weir`).
    ///
    /// # Errors
    /// When it is not, in this time.
    pub fn wait_rollout(&self, namespace: &str, what: &str, patience: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", patience.as_secs());
        let done = self.kubectl(&["rollout", "status", "-n", namespace, what, &timeout]);
        done.map(drop).with_context(|| self.pods_that_wait(namespace))
    }

    /// What keeps Pods of a namespace from being ready, for a message.
    pub fn pods_that_wait(&self, namespace: &str) -> String {
        let words = ["get", "pods", "-n", namespace, "-o", "wide"];
        let pods = self.kubectl(&words).unwrap_or_else(|error| error.to_string());
        let events = ["get", "events", "-n", namespace, "--field-selector=type=Warning", "-o"];
        let columns = "custom-columns=:involvedObject.name,:reason,:message";
        let events = self.kubectl(&[&events[..], &[columns]].concat()).unwrap_or_default();
        let lines: Vec<&str> = events.lines().collect();
        format!("{pods}{}", lines[lines.len().saturating_sub(8)..].join("\n"))
    }

    /// Waits until all nodes that are on are Ready.
    ///
    /// # Errors
    /// When they are not, in this time.
    pub fn wait_nodes(&self, patience: Duration) -> Result<()> {
        until("all nodes are ready", patience, || {
            for node in self.nodes().iter().filter(|node| node.is_on()) {
                let object = self.api.get("v1", "Node", "", &node.name())?;
                let object = object.with_context(|| format!("no Node {}", node.name()))?;
                let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let ready = conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
                ensure!(ready, "{} is not", node.name());
            }
            Ok(())
        })
    }

    /// Loads an image archive into every node that is on and returns the names of its images.
    ///
    /// # Errors
    /// When a node refuses it.
    pub fn load_image(&self, archive: &Path) -> Result<Vec<String>> {
        let file = archive.canonicalize().with_context(|| archive.display().to_string())?;
        let names = archive::names(&file)?;
        std::thread::scope(|scope| {
            let nodes: Vec<Node<'_>> = self.nodes().into_iter().filter(Node::is_on).collect();
            let imports: Vec<_> = nodes
                .into_iter()
                .map(|node| {
                    scope.spawn({
                        let file = &file;
                        move || node.load_image(file)
                    })
                })
                .collect();
            imports.into_iter().try_for_each(|import| match import.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(names)
    }

    /// Loads Weir's image into all nodes and installs it ([`Self::install_weir`]).
    ///
    /// # Errors
    /// When a node or the API server refuses something, or a Pod does not become ready.
    pub fn install_weir_from(&self, image: &Path) -> Result<()> {
        addons::load_weir(self, image)?;
        self.install_weir()
    }

    /// Installs Weir, whose image the nodes have, as a user does (`kubectl apply -k deploy`) and
    /// waits until it is ready on every node.
    ///
    /// # Errors
    /// When the API server refuses something, or a Pod does not become ready.
    pub fn install_weir(&self) -> Result<()> {
        addons::install_weir(self)
    }

    /// Removes Weir, where it is installed, by the lines of docs/install.md: its agents, what they
    /// programmed on the nodes, which outlives them on purpose, the rest of its objects.
    ///
    /// # Errors
    /// When something does not go.
    pub fn uninstall_weir(&self) -> Result<()> {
        if self.api.get("v1", "Namespace", "", addons::WEIR_NAMESPACE)?.is_none() {
            return Ok(());
        }
        self.end_agents()?;
        addons::wait_agents_gone(self)?;
        self.begin_cleaning(None)?;
        self.end_cleaning(addons::PATIENCE)?;
        self.delete_weir()
    }

    /// Tells Weir's agents to end, by deleting their DaemonSets. Their programs go on.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn end_agents(&self) -> Result<()> {
        addons::end_agents(self)
    }

    /// Deletes what is left of Weir's objects.
    ///
    /// # Errors
    /// When something does not go.
    pub fn delete_weir(&self) -> Result<()> {
        addons::delete_weir(self)
    }

    /// Starts `weir cleanup` on every node, as `deploy/cleanup` does; with `drain` it lets open
    /// connections end first, for so long.
    ///
    /// # Errors
    /// When the API server refuses something.
    pub fn begin_cleaning(&self, drain: Option<Duration>) -> Result<()> {
        addons::begin_cleaning(self, drain)
    }

    /// Waits until all nodes are clean, and deletes what [`Self::begin_cleaning`] made.
    ///
    /// # Errors
    /// When a node is not clean in time.
    pub fn end_cleaning(&self, patience: Duration) -> Result<()> {
        addons::end_cleaning(self, patience)
    }

    /// The Pods of Weir that run: node and name.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn weir_pods(&self) -> Result<Vec<(String, String)>> {
        let pods = self.api.list("v1", "Pod", addons::WEIR_NAMESPACE, "app.kubernetes.io/name=weir")?;
        let text =
            |pod: &Value, at: &str| pod.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        let running = pods.iter().filter(|pod| text(pod, "/status/phase") == "Running");
        Ok(running.map(|pod| (text(pod, "/spec/nodeName"), text(pod, "/metadata/name"))).collect())
    }

    /// Where the API server writes who read which Secret, a JSON object a line.
    pub fn audit_log(&self) -> PathBuf {
        self.run.audit_log()
    }

    /// Ends the API server at once, as a crash does, and with it the controllers.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_api(&self) -> Result<()> {
        control_plane::kill_api(&self.run)
    }

    /// Starts the API server again, waits until it is ready, and starts the controllers.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_api(&self) -> Result<()> {
        let programs = Programs::locate()?;
        control_plane::start_api_alone(&self.run, &self.plan, &programs.api_server)?;
        control_plane::wait_ready(&self.run, &self.api)?;
        control_plane::start_controllers(&self.run, &self.plan, &programs)
    }

    /// Installs or removes kube-proxy; Weir is not touched.
    ///
    /// # Errors
    /// When it does not become ready, or does not go.
    pub fn set_kube_proxy(&self, proxy: Proxy) -> Result<()> {
        match proxy.kube_proxy_mode() {
            Some(mode) => addons::install_kube_proxy(self, mode),
            None => addons::remove_kube_proxy(self),
        }
    }
}

/// A node of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    cluster: &'a Cluster,
    place: Place,
}

impl Node<'_> {
    pub fn name(&self) -> String {
        self.place.name()
    }

    /// The address that its Node object has, IPv4.
    pub fn v4(&self) -> IpAddr {
        self.place.v4()
    }

    /// The address that its Node object has in a dual-stack cluster, IPv6.
    pub fn v6(&self) -> IpAddr {
        self.place.v6()
    }

    /// The node's network namespace; another one each time the node is switched on.
    ///
    /// # Errors
    /// When the node is off.
    pub fn netns(&self) -> Result<Netns> {
        Netns::attach(self.place.netns())
    }

    /// The node's process 1, as the machine counts: its namespaces are the node's.
    ///
    /// # Errors
    /// When the node is off.
    pub fn pid(&self) -> Result<u32> {
        Ok(node::first_process(&self.cluster.run, self.place)?.pid)
    }

    pub fn is_on(&self) -> bool {
        self.pid().is_ok()
    }

    /// All of its processes, as the machine counts them.
    ///
    /// # Errors
    /// When the machine has no cgroups.
    pub fn processes(&self) -> Result<Vec<u32>> {
        cgroups::processes(&self.name())
    }

    /// Runs a command on the node, in all of its namespaces, and returns what it printed.
    ///
    /// # Errors
    /// When the node is off, or the command fails: with what it said.
    pub fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let out = self.command(program, words)?.output().context("starting nsenter")?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("{}: {program} {}: {}", self.name(), words.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// A command that runs on the node, in all of its namespaces and in its cgroups: its
    /// connects are the node's.
    ///
    /// # Errors
    /// When the node is off.
    pub fn command(&self, program: &str, words: &[&str]) -> Result<Command> {
        let pid = self.pid()?.to_string();
        let entering = cgroups::entering(&self.name())?;
        let mut command = Command::new(&entering[0]);
        command.args(&entering[1..]).args(["nsenter", "--target", &pid]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--", program]).args(words);
        command.env("PATH", process::PATH).stdin(Stdio::null());
        Ok(command)
    }

    /// Imports an image archive.
    ///
    /// # Errors
    /// With what containerd said.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_string_lossy();
        self.run("ctr", &["-n", "k8s.io", "images", "import", &archive]).map(drop)
    }

    /// Gives an image that is there a further name.
    ///
    /// # Errors
    /// With what containerd said.
    pub fn tag_image(&self, name: &str, further: &str) -> Result<()> {
        self.run("ctr", &["-n", "k8s.io", "images", "tag", "--force", name, further]).map(drop)
    }

    /// Switches the node off at once: processes, network, mounts are gone, disks stay, and so
    /// does its Node object.
    ///
    /// # Errors
    /// When something of it does not end.
    pub fn switch_off(&self) -> Result<()> {
        node::switch_off(&self.cluster.run, self.place)
    }

    /// Switches it on again with the disks that it had. [`Cluster::wait_nodes`] waits for it.
    ///
    /// # Errors
    /// When it does not boot.
    pub fn switch_on(&self) -> Result<()> {
        node::make_network(self.place)?;
        node::switch_on(&self.cluster.run, self.place)?;
        node::allow_kubelet(&self.cluster.run, self.place)
    }

    /// Takes the node out of the cluster: off, its disks and its Node object gone.
    ///
    /// # Errors
    /// When something of it stays.
    pub fn remove(&self) -> Result<()> {
        self.switch_off()?;
        let disks = self.cluster.run.node(&self.name());
        std::fs::remove_dir_all(&disks).with_context(|| disks.display().to_string())?;
        self.cluster.api.delete("v1", "Node", "", &self.name())
    }

    /// Brings a new node of the same name: fresh disks, with the images that all nodes begin
    /// with and none that were loaded later.
    ///
    /// # Errors
    /// When it does not boot.
    pub fn add(&self) -> Result<()> {
        let Cluster { run, plan, api, .. } = self.cluster;
        let programs = Programs::locate()?;
        node::write_disks(run, plan, self.place, &programs, &Store::prepare(&programs)?)?;
        api.apply(&node::object(plan, self.place))?;
        self.switch_on()
    }
}
