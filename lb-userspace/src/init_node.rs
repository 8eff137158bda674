//! `weir init-node`: what a node needs before an agent without the right to mount can work there.
//!
//! Run by the privileged init container of the agent's Pod. It mounts the BPF file system where
//! there is none, looks whether there is a cgroup2, and takes one thing out of the kubelet's
//! kubeconfig, the API server's address, so that the agent never sees the kubelet's key: on a node
//! without kube-proxy the address that Pods are told leads nowhere before Weir works. And it sets
//! the kernel's connection tracking as kube-proxy does (S67): Services have a table of their own,
//! but whatever else the node forwards or serves counts on those values.

use crate::args::{InitNodeArgs, NfConntrackArgs};
use crate::source::kube::remember_kubelet_server;
use crate::{cgroup, lock};
use ::kube::config::Kubeconfig;
use anyhow::Context;
use rustix::mount::{MountFlags, mount};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS: u64 = 0xcafe_4a11;

/// The settings of the kernel's connection tracking, those of the caller's network namespace.
const NF_CONNTRACK: &str = "/proc/sys/net/netfilter";
/// No table is made larger on its own account, as with kube-proxy: 300 MiB or so.
const LARGEST_CONNTRACK: u64 = 1 << 20;

/// Where kubelets have their kubeconfig: kubeadm, kind, minikube; EKS, AKS, GKE; Talos; k3s;
/// RKE2; k0s.
const KUBECONFIGS: [&str; 6] = [
    "etc/kubernetes/kubelet.conf",
    "var/lib/kubelet/kubeconfig",
    "etc/kubernetes/kubeconfig-kubelet",
    "var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "var/lib/rancher/rke2/agent/kubelet.kubeconfig",
    "var/lib/k0s/kubelet.conf",
];

/// Does it, and says what it found.
///
/// # Errors
/// When the BPF file system can neither be found nor mounted, or the state folder not be written.
pub fn run(args: &InitNodeArgs) -> anyhow::Result<()> {
    if mount_bpffs(&args.bpffs)? {
        println!("mounted a BPF file system at {}", args.bpffs.display());
    } else {
        println!("a BPF file system is at {}", args.bpffs.display());
    }
    match cgroup::root(Some(&args.cgroup)) {
        Ok(found) => println!("cgroup2 is at {}", found.display()),
        // The agent tells it too, and --socket-lb off does without.
        Err(error) => println!("{error:#}"),
    }
    for line in set_conntrack(Path::new(NF_CONNTRACK), &args.conntrack) {
        println!("{line}");
    }
    lock::prepare(&args.state_dir)?;
    // Made by the kubelet, for everybody to look into.
    std::fs::set_permissions(&args.state_dir, Permissions::from_mode(0o700))
        .with_context(|| format!("state folder {}", args.state_dir.display()))?;
    let found = kubelet_server(&args.host_root);
    remember_kubelet_server(&args.state_dir, found.as_ref().map(|(_, url)| url.as_str()))
        .with_context(|| format!("state folder {}", args.state_dir.display()))?;
    match found {
        Some((file, url)) => println!("the kubelet's API server is {url} ({file})"),
        None => println!(
            "the kubelet's kubeconfig is in none of the usual places: where no API server is found, set \
             WEIR_APISERVER"
        ),
    }
    Ok(())
}

/// Sets what is not so yet, and says what it did. The table only ever grows. What cannot be set is
/// told and costs nothing else: Weir does not depend on it.
fn set_conntrack(folder: &Path, args: &NfConntrackArgs) -> Vec<String> {
    if !folder.join("nf_conntrack_max").exists() {
        return vec!["the kernel tracks no connections".into()];
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let entries = match args.conntrack_max_per_core {
        0 => 0,
        each => (u64::from(each) * cores).max(args.conntrack_min.into()).min(LARGEST_CONNTRACK),
    };
    let wanted = [
        ("nf_conntrack_max", entries, true),
        ("nf_conntrack_tcp_timeout_established", args.conntrack_tcp_timeout_established.into(), false),
        ("nf_conntrack_tcp_timeout_close_wait", args.conntrack_tcp_timeout_close_wait.into(), false),
    ];
    let mut said = Vec::new();
    for (name, value, least) in wanted.into_iter().filter(|(_, value, _)| *value > 0) {
        let file = folder.join(name);
        let old = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if old.is_some_and(|old| old == value || least && old > value) {
            continue;
        }
        said.push(match std::fs::write(&file, value.to_string()) {
            Ok(()) => format!("{name} is {value} now"),
            Err(error) => format!("{name} stays as it is, not {value}: {error}"),
        });
    }
    said
}

/// Mounts one if there is none; says whether.
fn mount_bpffs(path: &Path) -> anyhow::Result<bool> {
    let about = || format!("--bpffs {}", path.display());
    let found = rustix::fs::statfs(path).with_context(about)?;
    if u64::try_from(found.f_type).is_ok_and(|kind| kind & u64::from(u32::MAX) == BPF_FS) {
        return Ok(false);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", path, "bpf", flags, Some(c"mode=0700")).with_context(about)?;
    Ok(true)
}

/// The file, and the server's URL in it.
fn kubelet_server(root: &Path) -> Option<(&'static str, String)> {
    KUBECONFIGS.iter().find_map(|file| Some((*file, server(&root.join(file))?)))
}

/// The server of the current context; nothing else of the file is looked at.
fn server(file: &Path) -> Option<String> {
    let config = Kubeconfig::read_from(file).ok()?;
    let current = config.current_context.as_ref()?;
    let context = config.contexts.iter().find(|context| context.name == *current)?.context.as_ref()?;
    let cluster = config.clusters.iter().find(|cluster| cluster.name == context.cluster)?;
    let url = cluster.cluster.as_ref()?.server.clone()?;
    (url.starts_with("https://") && !url.contains(char::is_whitespace)).then_some(url)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const KUBELET: &str = "\
apiVersion: v1
kind: Config
clusters:
- name: other
  cluster: {server: https://other:6443}
- name: ours
  cluster: {server: 'https://control-plane:6443', certificate-authority-data: Zm9v}
users:
- name: node
  user: {client-certificate: /var/lib/kubelet/pki/current.pem, client-key: /var/lib/kubelet/pki/current.pem}
contexts:
- name: node@ours
  context: {cluster: ours, user: node}
current-context: node@ours
";

    #[test]
    fn only_the_address_is_taken_from_the_first_kubeconfig_that_has_one() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(kubelet_server(root.path()), None);
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("var/lib/rancher/k3s/agent/kubelet.kubeconfig", KUBELET);
        assert_eq!(
            kubelet_server(root.path()),
            Some(("var/lib/rancher/k3s/agent/kubelet.kubeconfig", "https://control-plane:6443".into()))
        );
        write("var/lib/kubelet/kubeconfig", "not: [a kubeconfig");
        write("etc/kubernetes/kubelet.conf", &KUBELET.replace("control-plane", "first"));
        let (file, url) = kubelet_server(root.path()).unwrap();
        assert_eq!((file, url.as_str()), ("etc/kubernetes/kubelet.conf", "https://first:6443"));

        let state = root.path().join("state");
        remember_kubelet_server(&state, Some(&url)).unwrap();
        assert_eq!(std::fs::read_to_string(state.join("kubelet-apiserver")).unwrap(), "https://first:6443\n");
        remember_kubelet_server(&state, None).unwrap();
        remember_kubelet_server(&state, None).unwrap();
        assert_eq!(std::fs::read_dir(state).unwrap().count(), 0);
    }

    /// S67: as kube-proxy sets them, R67 reads the last.
    #[test]
    fn connection_tracking_is_set_as_kube_proxy_does_and_the_table_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = NfConntrackArgs {
            conntrack_max_per_core: 1,
            conntrack_min: 131_072,
            conntrack_tcp_timeout_established: 86_400,
            conntrack_tcp_timeout_close_wait: 3_600,
        };
        assert_eq!(set_conntrack(dir.path(), &args), ["the kernel tracks no connections"]);
        let files = ["max", "tcp_timeout_established", "tcp_timeout_close_wait"];
        let files = files.map(|name| dir.path().join(format!("nf_conntrack_{name}")));
        let set = |values: [&str; 3]| {
            for (file, value) in files.iter().zip(values) {
                std::fs::write(file, value).unwrap();
            }
        };
        let now = || files.each_ref().map(|file| std::fs::read_to_string(file).unwrap());

        set(["262144\n", "432000\n", "60\n"]);
        assert_eq!(set_conntrack(dir.path(), &args).len(), 2);
        assert_eq!(now(), ["262144\n", "86400", "3600"]);
        assert_eq!(set_conntrack(dir.path(), &args), [""; 0], "nothing to do");

        set(["65536\n", "86400\n", "60\n"]);
        args.conntrack_tcp_timeout_close_wait = 0;
        assert_eq!(set_conntrack(dir.path(), &args), ["nf_conntrack_max is 131072 now"]);
        assert_eq!(now(), ["131072", "86400\n", "60\n"]);

        args.conntrack_max_per_core = u32::MAX;
        set_conntrack(dir.path(), &args);
        assert_eq!(now()[0], LARGEST_CONNTRACK.to_string());
    }

    #[test]
    fn what_is_no_address_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubelet.conf");
        for text in [
            KUBELET.replace("https://control-plane", "http://control-plane"),
            KUBELET.replace("current-context: node@ours", "current-context: another"),
            KUBELET.replace("https://control-plane:6443", "https://a b"),
        ] {
            std::fs::write(&file, &text).unwrap();
            assert_eq!(server(&file), None, "{text}");
        }
    }

    #[test]
    fn a_path_without_a_bpf_file_system_is_told_by_its_flag() {
        let error = mount_bpffs(Path::new("/nowhere")).unwrap_err();
        assert!(format!("{error:#}").starts_with("--bpffs /nowhere: "), "{error:#}");
    }
}
