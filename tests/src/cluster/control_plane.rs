//! etcd, API server, controllers and scheduler, in a namespace of their own: a bridge in it is
//! the network between the nodes, and whoever asks from here asks from outside of the cluster.

use super::plan::{CONTROL_PLANE, OUTSIDE, Plan, api_address};
use super::process::{self, Identity};
use super::programs::Programs;
use super::state::Run;
use crate::apiserver::pki::{Accounts, Pair, Signer};
use crate::apiserver::{Connection, etcd_arguments, serving_arguments};
use crate::netns::Netns;
use crate::wait::until;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;
/// How long the API server may take to be ready on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The names under which the processes are kept.
pub(super) const ETCD: &str = "etcd";
pub(super) const API: &str = "kube-apiserver";
pub(super) const CONTROLLERS: &str = "kube-controller-manager";
pub(super) const SCHEDULER: &str = "kube-scheduler";
pub(super) const BALANCER: &str = "balancer";

/// What is written down of reads of Secrets: who asked for which, not what was in them.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [get, list, watch]
  resources: [{group: \"\", resources: [secrets]}]
- level: None
";

/// Makes the namespace and the nodes' network.
///
/// # Errors
/// When it is there already, or cannot be made.
pub(super) fn network() -> Result<Netns> {
    let netns = Netns::new(OUTSIDE)?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        netns.sysctl(key, "1")?;
    }
    let [v4, v6] = CONTROL_PLANE;
    netns.ip(&[
        "link add br0 type bridge".to_owned(),
        format!("addr add {v4}/24 dev br0"),
        format!("addr add {v6}/64 dev br0 nodad"),
        "link set br0 up".to_owned(),
    ])?;
    // The network is a plain switch: frames between nodes meet no netfilter here. Without
    // the module there is nothing to turn off.
    for key in ["iptables", "ip6tables"] {
        let _ = netns.sysctl(&format!("net/bridge/bridge-nf-call-{key}"), "0");
    }
    Ok(netns.kept())
}

/// Makes all keys and kubeconfigs.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn write_keys(run: &Run, plan: &Plan) -> Result<()> {
    let pki = run.pki();
    fs::create_dir_all(&pki)?;
    let signer = Signer::new(&pki)?;
    signer.api_server(&CONTROL_PLANE)?;
    signer.accounts()?;
    let none = Vec::new;
    let admin = signer.pair("admin", "admin", Some("system:masters"), none())?;
    fs::write(run.kubeconfig(), signer.kubeconfig(api_address(), &admin))?;
    signer.pair("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"), none())?;
    signer.pair("front-proxy", "front-proxy-client", None, none())?;
    for name in [CONTROLLERS, SCHEDULER] {
        let pair = signer.pair(name, &format!("system:{name}"), None, none())?;
        fs::write(pki.join(format!("{name}.kubeconfig")), signer.kubeconfig(api_address(), &pair))?;
    }
    for place in plan.places() {
        let name = place.name();
        let names = vec![name.clone(), place.v4().to_string(), place.v6().to_string()];
        let pair = signer.pair(&name, &format!("system:node:{name}"), Some("system:nodes"), names)?;
        fs::write(pki.join(format!("{name}.kubeconfig")), signer.kubeconfig(api_address(), &pair))?;
    }
    fs::write(pki.join("audit-policy.yaml"), AUDIT_POLICY)?;
    Ok(())
}

/// Starts etcd and the API server.
///
/// # Errors
/// When one cannot be started.
pub(super) fn start_api(run: &Run, plan: &Plan, programs: &Programs) -> Result<()> {
    let etcd = etcd_arguments(run.root(), ETCD_PORT, ETCD_PEER_PORT);
    launch(run, ETCD, &programs.etcd, etcd)?;
    start_api_alone(run, plan, &programs.api_server)
}

/// Starts the API server over an etcd that runs.
///
/// # Errors
/// When it cannot be started.
pub(super) fn start_api_alone(run: &Run, plan: &Plan, program: &Path) -> Result<()> {
    launch(run, API, program, api_arguments(run, plan))
}

/// Starts what works for the API server, once that is ready.
///
/// # Errors
/// When one cannot be started.
pub(super) fn start_controllers(run: &Run, plan: &Plan, programs: &Programs) -> Result<()> {
    launch(run, CONTROLLERS, &programs.controller_manager, controller_arguments(run, plan))?;
    launch(run, SCHEDULER, &programs.scheduler, client_arguments(run, SCHEDULER))
}

/// Connects, and waits until the API server calls itself ready.
///
/// # Errors
/// When it does not, with what it said last.
pub(super) fn wait_ready(run: &Run, api: &Connection) -> Result<()> {
    until("the API server is ready", PATIENCE, || {
        api.ready().with_context(|| process::last_words(&run.log(API)))
    })
}

/// Opens a connection to it, from the outside.
///
/// # Errors
/// When there is no such namespace or kubeconfig.
pub(super) fn connect(run: &Run) -> Result<Connection> {
    let netns = Netns::attach(OUTSIDE)?;
    let mut api = Connection::open(Some(netns.path()))?;
    api.connect(&run.kubeconfig())?;
    Ok(api)
}

/// Starts the load balancer, in the outside client's namespace.
///
/// # Errors
/// When it cannot be started.
pub(super) fn start_balancer(run: &Run) -> Result<()> {
    let folder = run.root().display().to_string();
    launch(run, BALANCER, &run.program(), vec!["balancer".into(), folder])
}

fn launch(run: &Run, name: &str, program: &Path, arguments: Vec<String>) -> Result<()> {
    let netns = Netns::attach(OUTSIDE)?;
    let words: Vec<String> = std::iter::once(program.display().to_string()).chain(arguments).collect();
    let identity = process::start(&netns, &run.log(name), &words)?;
    run.keep(name, identity)
}

/// Ends a process of the cluster; one that is gone is as good.
///
/// # Errors
/// When it does not end.
pub(super) fn end(run: &Run, name: &str, kill: bool) -> Result<()> {
    let Some(state) = run.state()? else { bail!("no cluster is up") };
    let patience = if kill { Duration::ZERO } else { Duration::from_secs(10) };
    let gone = |process: &Identity| if kill { process.signal(libc::SIGKILL) } else { Ok(()) };
    if let Some(process) = state.processes.get(name) {
        gone(process)?;
        process.end(patience)?;
    }
    run.forget(name)
}

/// Ends the API server at once, as a crash does, and what works for it: without their leases
/// the controllers of any other cluster end too. One that went on would call every node
/// NotReady in the moment in which the API server is back, before it hears of any.
///
/// # Errors
/// When one does not end.
pub(super) fn kill_api(run: &Run) -> Result<()> {
    [API, CONTROLLERS, SCHEDULER].iter().try_for_each(|name| end(run, name, true))
}

fn pair(run: &Run, name: &str) -> Pair {
    let file = |end: &str| run.pki().join(format!("{name}.{end}"));
    Pair { certificate: file("crt"), key: file("key") }
}

fn api_arguments(run: &Run, plan: &Plan) -> Vec<String> {
    let pki = run.pki();
    let ca = pki.join("ca.crt");
    let accounts = Accounts { public: pki.join("accounts.pub"), key: pki.join("accounts.key") };
    let mut words = serving_arguments(&ca, &pair(run, "server"), &accounts, api_address(), ETCD_PORT);
    let (kubelet, front) = (pair(run, "kubelet-client"), pair(run, "front-proxy"));
    let file = |flag: &str, path: PathBuf| format!("--{flag}={}", path.display());
    words.extend([
        format!("--service-cluster-ip-range={}", plan.service_cidrs()),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--kubelet-preferred-address-types=InternalIP".into(),
        file("kubelet-certificate-authority", ca.clone()),
        file("kubelet-client-certificate", kubelet.certificate),
        file("kubelet-client-key", kubelet.key),
        file("requestheader-client-ca-file", ca),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        file("proxy-client-cert-file", front.certificate),
        file("proxy-client-key-file", front.key),
        file("audit-policy-file", pki.join("audit-policy.yaml")),
        file("audit-log-path", run.audit_log()),
    ]);
    words
}

fn client_arguments(run: &Run, name: &str) -> Vec<String> {
    let kubeconfig = run.pki().join(format!("{name}.kubeconfig"));
    let mut words: Vec<String> = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
        .map(|flag| format!("--{flag}={}", kubeconfig.display()))
        .into();
    words.extend(["--leader-elect=false".into(), "--bind-address=127.0.0.1".into()]);
    words
}

fn controller_arguments(run: &Run, plan: &Plan) -> Vec<String> {
    let pki = run.pki();
    let mut words = client_arguments(run, CONTROLLERS);
    words.extend([
        format!("--root-ca-file={}", pki.join("ca.crt").display()),
        format!("--service-account-private-key-file={}", pki.join("accounts.key").display()),
        format!("--service-cluster-ip-range={}", plan.service_cidrs()),
        format!("--cluster-cidr={}", plan.pod_cidrs()),
        // The nodes' ranges are given with the Node objects: the CNI's files name them.
        "--allocate-node-cidrs=false".into(),
        "--use-service-account-credentials=true".into(),
    ]);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_server_authorizes_nodes_and_writes_down_reads_of_secrets() {
        let run = Run::at("/cache/cluster/run");
        let words = api_arguments(&run, &Plan::default());
        for wanted in [
            "--authorization-mode=Node,RBAC",
            "--advertise-address=172.31.77.1",
            "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
            "--audit-log-path=/cache/cluster/run/log/audit.log",
            "--kubelet-client-key=/cache/cluster/run/pki/kubelet-client.key",
        ] {
            assert!(words.iter().any(|word| word == wanted), "{wanted}: {words:?}");
        }
        let policy: serde_json::Value = serde_saphyr::from_str(AUDIT_POLICY).expect("YAML");
        assert_eq!(policy["rules"][0]["level"], "Metadata", "values of Secrets are never written");
    }

    #[test]
    fn keys_of_every_part_are_there() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("weir-keys-{}", std::process::id()));
        let run = Run::at(&folder);
        write_keys(&run, &Plan::default())?;
        let words = api_arguments(&run, &Plan::default());
        let named =
            words.iter().filter_map(|word| word.split_once('=')).filter(|(_, path)| path.ends_with(".key"));
        let missing: Vec<_> = named.filter(|(_, path)| !Path::new(path).is_file()).collect();
        let kubeconfig = fs::read_to_string(run.pki().join("node3.kubeconfig"))?;
        fs::remove_dir_all(&folder)?;
        assert!(missing.is_empty(), "{missing:?}");
        assert!(kubeconfig.contains("https://172.31.77.1:6443") && kubeconfig.contains("node3.key"));
        Ok(())
    }
}
