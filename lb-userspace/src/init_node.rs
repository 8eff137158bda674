//! `weir init-node`: what a node needs before an agent without the right to mount can work there.
//!
//! Run by the privileged init container of the agent's Pod. It mounts the BPF file system where
//! there is none, looks whether there is a cgroup2, and takes one thing out of the kubelet's
//! kubeconfig, the API server's address, so that the agent never sees the kubelet's key: on a node
//! without kube-proxy the address that Pods are told leads nowhere before Weir works.

use crate::args::InitNodeArgs;
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
