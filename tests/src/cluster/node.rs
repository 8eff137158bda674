//! A node: one process tree with network, mount, pid, uts, ipc and cgroup namespaces of its
//! own on the shared root file system, with a containerd and a kubelet. Killing the node's
//! first process ends all of it, as switching a machine off does.
//!
//! Here is what is done from outside; what the node's process 1 does is in [`super::boot`].

use super::boot::Boot;
use super::cgroups;
use super::control_plane::end;
use super::images::{PAUSE, Store};
use super::plan::{CONTROL_PLANE, Cni, DNS, MOST_NODES, OUTSIDE, Place, Plan};
use super::process::{self, Identity};
use super::programs::{Programs, installed};
use super::state::Run;
use crate::netns::{self, Netns};
use crate::wait::until;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a node may take to give its process 1 a name.
const PATIENCE: Duration = Duration::from_secs(20);
/// Namespaces of dozens of pods may end before a node's own.
const ENDS: Duration = Duration::from_secs(120);

/// Places of the shared root file system that each node mounts its own over.
pub(super) const OWN_FOLDERS: [(&str, &str); 6] = [
    ("/var/lib/kubelet", "kubelet"),
    ("/var/lib/containerd", "containerd"),
    ("/etc/cni/net.d", "cni"),
    ("/var/lib/cni", "lib-cni"),
    ("/etc/kubernetes", "kubernetes"),
    ("/var/log", "log"),
];
/// The same, files.
pub(super) const OWN_FILES: [(&str, &str); 3] =
    [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")];

/// Makes the places to mount over where they are missing, and writes down which.
///
/// # Errors
/// When one cannot be made.
pub(super) fn make_mount_points(run: &Run) -> Result<()> {
    let mut made = Vec::new();
    for (folder, _) in OWN_FOLDERS {
        let missing = Path::new(folder).ancestors().take_while(|path| !path.exists());
        made.extend(missing.map(Path::to_path_buf));
        fs::create_dir_all(folder).with_context(|| format!("making {folder}"))?;
    }
    for (file, _) in OWN_FILES {
        if !Path::new(file).exists() {
            fs::write(file, "").with_context(|| format!("making {file}"))?;
            made.push(file.into());
        }
    }
    run.change(|state| state.made.extend(made))
}

/// Removes those that were made.
///
/// # Errors
/// When the state cannot be read.
pub(super) fn remove_mount_points(made: impl DoubleEndedIterator<Item = PathBuf>) {
    // What is below comes later in the order of names.
    for path in made.rev() {
        // Somebody else may use it by now: then it stays.
        let _ = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
    }
}

/// Makes a node's network: its device, addresses, and ways to the other nodes' Pods.
///
/// # Errors
/// When it is there already, or cannot be made.
pub(super) fn make_network(place: Place) -> Result<()> {
    let outside = Netns::attach(OUTSIDE)?;
    let netns = Netns::new(place.netns())?;
    // As a machine that runs Pods has it.
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
    ] {
        netns.sysctl(key, value)?;
    }
    let port = place.port();
    outside.ip(&[
        format!("link add {port} type veth peer name eth0 netns {}", place.netns()),
        format!("link set {port} master br0 up"),
    ])?;
    let [gateway, gateway6] = CONTROL_PLANE;
    let mut lines = vec![
        format!("addr add {}/24 dev eth0", place.v4()),
        format!("addr add {}/64 dev eth0 nodad", place.v6()),
        "link set eth0 up".to_owned(),
        format!("route add default via {gateway}"),
        format!("route add default via {gateway6}"),
    ];
    let others = (1..=MOST_NODES).map(|number| Place { number }).filter(|other| *other != place);
    lines.extend(others.flat_map(routes_to));
    netns.ip(&lines)?;
    outside.ip(&routes_to(place))?;
    drop(netns.kept());
    Ok(())
}

/// The Pods of a node are behind it.
fn routes_to(place: Place) -> [String; 2] {
    let [v4, v6] = place.pod_cidrs();
    [format!("route replace {v4} via {}", place.v4()), format!("route replace {v6} via {}", place.v6())]
}

/// Writes a node's settings and gives it disks with the images on them.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn write_disks(
    run: &Run,
    plan: &Plan,
    place: Place,
    programs: &Programs,
    store: &Store,
) -> Result<()> {
    let name = place.name();
    let folder = run.node(&name);
    for (_, own) in OWN_FOLDERS.iter().filter(|(_, own)| *own != "containerd") {
        fs::create_dir_all(folder.join(own))?;
    }
    store.copy_to(&folder.join("containerd"))?;
    let write = |file: &str, text: String| {
        fs::write(folder.join(file), text).with_context(|| format!("writing {file} of {name}"))
    };
    write("cni/10-weir.conflist", serde_json::to_string_pretty(&cni_config(plan, place))?)?;
    write("containerd.toml", containerd_config(&programs.cni))?;
    write("kubelet.json", serde_json::to_string_pretty(&kubelet_config(run, place))?)?;
    write("hostname", format!("{name}\n"))?;
    write(
        "hosts",
        format!("127.0.0.1 localhost\n::1 localhost\n{} {name}\n{} {name}\n", place.v4(), place.v6()),
    )?;
    write("resolv.conf", format!("nameserver {}\n", CONTROL_PLANE[0]))?;
    // Where every installer puts it; its certificate and key are named by path.
    let kubeconfig = run.pki().join(format!("{name}.kubeconfig"));
    fs::copy(&kubeconfig, folder.join("kubernetes/kubelet.conf"))?;
    let addresses =
        if plan.dual() { format!("{},{}", place.v4(), place.v6()) } else { place.v4().to_string() };
    let text = |path: &Path| path.display().to_string();
    let boot = Boot {
        name: name.clone(),
        folder: folder.clone(),
        log: run.log(&name),
        containerd: vec![
            text(&installed("containerd")?),
            "--config".into(),
            text(&folder.join("containerd.toml")),
        ],
        kubelet: vec![
            text(&programs.kubelet),
            format!("--config={}", folder.join("kubelet.json").display()),
            "--kubeconfig=/etc/kubernetes/kubelet.conf".into(),
            format!("--hostname-override={name}"),
            format!("--node-ip={addresses}"),
            "--v=2".into(),
        ],
    };
    write("boot.json", serde_json::to_string_pretty(&boot)?)
}

/// Switches a node on; its kubelet starts when [`allow_kubelet`] lets it.
///
/// # Errors
/// When it does not start.
pub(super) fn switch_on(run: &Run, place: Place) -> Result<()> {
    let name = place.name();
    cgroups::make(&name)?;
    let netns = Netns::attach(place.netns())?;
    let pid_file = run.node(&name).join("pid");
    let _ = fs::remove_file(&pid_file);
    // Into the cgroups first: the cgroup namespace begins where its maker is.
    let mut words = cgroups::entering(&name)?;
    words.extend(
        "unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --cgroup"
            .split(' ')
            .map(str::to_owned),
    );
    words.extend([run.program().display().to_string(), "boot".into()]);
    words.push(run.node(&name).join("boot.json").display().to_string());
    let log = run.log(&name);
    let holder = process::start(&netns, &log, &words)?;
    run.keep(&name, holder)?;
    until(&format!("{name} boots"), PATIENCE, || {
        ensure!(holder.alive(), "it ended; it said last:\n{}", process::last_words(&log));
        first_process(run, place).map(drop)
    })
}

/// Lets the kubelet start: the API server is there, and knows the Node.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn allow_kubelet(run: &Run, place: Place) -> Result<()> {
    Ok(fs::write(run.node(&place.name()).join(super::boot::GATE), "")?)
}

/// The node's process 1, as the machine counts.
///
/// # Errors
/// When the node is off.
pub(super) fn first_process(run: &Run, place: Place) -> Result<Identity> {
    let file = run.node(&place.name()).join("pid");
    let text = fs::read_to_string(&file).with_context(|| format!("{} is off", place.name()))?;
    let pid = text.trim().parse().with_context(|| format!("{}: {text:?}", file.display()))?;
    let found = Identity::of(pid).with_context(|| format!("{} is off", place.name()))?;
    // The id may be somebody else's by now; the node's process is in the node's cgroup.
    ensure!(cgroups::processes(&place.name())?.contains(&pid), "{} is off", place.name());
    Ok(found)
}

/// Switches a node off, at once and whole: its processes, network and mounts are gone, its
/// disks stay.
///
/// # Errors
/// When something of it does not end.
pub(super) fn switch_off(run: &Run, place: Place) -> Result<()> {
    let name = place.name();
    end(run, &name, true)?;
    cgroups::remove(&name)?;
    let path = Path::new(netns::NETNS_DIR).join(place.netns());
    if path.exists() {
        netns::remove(&path);
    }
    // A device goes with its namespace, when the kernel comes round to it: namespaces end one
    // after the other.
    if let Ok(outside) = Netns::attach(OUTSIDE) {
        let port = place.port();
        until(&format!("{port} goes"), ENDS, || {
            ensure!(outside.output("ip", &["link", "show", &port]).is_err(), "still there");
            Ok(())
        })?;
    }
    let _ = fs::remove_file(run.node(&name).join("pid"));
    let _ = fs::remove_file(run.node(&name).join(super::boot::GATE));
    Ok(())
}

/// The Node object, made before its kubelet asks for it: it gives the ranges of Pods.
pub(super) fn object(plan: &Plan, place: Place) -> Value {
    let cidrs = cidrs(plan, place);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": place.name(), "labels": {
            "kubernetes.io/hostname": place.name(),
            "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": format!("zone{}", place.number),
        } },
        "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs },
    })
}

fn cidrs(plan: &Plan, place: Place) -> Vec<String> {
    let count = if plan.dual() { 2 } else { 1 };
    place.pod_cidrs().into_iter().take(count).collect()
}

fn cni_config(plan: &Plan, place: Place) -> Value {
    let ranges: Vec<Value> = cidrs(plan, place).iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
    let mut routes = vec![json!({ "dst": "0.0.0.0/0" })];
    if plan.dual() {
        routes.push(json!({ "dst": "::/0" }));
    }
    let ipam = json!({ "type": "host-local", "ranges": ranges, "routes": routes });
    let link = match plan.cni {
        Cni::Ptp => json!({ "type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": ipam }),
        Cni::Bridge => json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
            "ipMasq": false, "mtu": 1500, "ipam": ipam,
        }),
    };
    let ports = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    json!({ "cniVersion": "1.0.0", "name": "weir", "plugins": [link, ports] })
}

/// For containerd 1.6 and later 1.x, which Debian packages.
fn containerd_config(plugins: &Path) -> String {
    // The score of the out-of-memory killer may not be lowered without CAP_SYS_RESOURCE.
    format!(
        "version = 2
root = \"/var/lib/containerd\"
state = \"/run/containerd\"
[grpc]
  address = \"/run/containerd/containerd.sock\"
[plugins.\"io.containerd.grpc.v1.cri\"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  sandbox_image = \"{PAUSE}\"
  [plugins.\"io.containerd.grpc.v1.cri\".cni]
    bin_dir = {plugins:?}
    conf_dir = \"/etc/cni/net.d\"
  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
    runtime_type = \"io.containerd.runc.v2\"
    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]
      SystemdCgroup = false
"
    )
}

fn kubelet_config(run: &Run, place: Place) -> Value {
    let pki = run.pki();
    let name = place.name();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        // The machine may still have cgroup v1.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "featureGates": { "KubeletInUserNamespace": true },
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki.join("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pki.join(format!("{name}.crt")),
        "tlsPrivateKeyFile": pki.join(format!("{name}.key")),
        "resolvConf": "/etc/resolv.conf",
        // Images cannot be pulled again; the machine's disk is not the node's to judge.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "1%",
            "imagefs.available": "1%", "nodefs.inodesFree": "1%",
        },
        "failSwapOn": false,
        "maxPods": 110,
        "logging": { "verbosity": 2 },
    })
}

/// Says what is wrong when a node is asked for that is not there.
///
/// # Errors
/// Always, unless there is such a node.
pub(super) fn find(plan: &Plan, name: &str) -> Result<Place> {
    let places = plan.places();
    let Some(place) = places.iter().find(|place| place.name() == name) else {
        let names: Vec<String> = places.iter().map(|place| place.name()).collect();
        bail!("no node {name}: there are {}", names.join(", "));
    };
    Ok(*place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::plan::IpFamily;

    #[test]
    fn pods_get_addresses_of_the_ranges_that_the_node_object_names() {
        let place = Place { number: 2 };
        let plan = Plan::default();
        let node = object(&plan, place);
        let config = cni_config(&plan, place);
        let ranges = &config["plugins"][0]["ipam"]["ranges"];
        assert_eq!(node["spec"]["podCIDRs"], json!(["10.244.2.0/24", "fd00:10:244:2::/64"]));
        assert_eq!(ranges[0][0]["subnet"], node["spec"]["podCIDRs"][0]);
        assert_eq!(ranges[1][0]["subnet"], node["spec"]["podCIDRs"][1]);
        let single = Plan { ip_family: IpFamily::Ipv4, cni: Cni::Bridge, ..plan };
        let config = cni_config(&single, place);
        assert_eq!(config["plugins"][0]["type"], "bridge");
        assert_eq!(config["plugins"][0]["ipam"]["routes"].as_array().map(Vec::len), Some(1));
        assert_eq!(object(&single, place)["spec"]["podCIDRs"], json!(["10.244.2.0/24"]));
    }

    #[test]
    fn kubelet_reads_its_own_node_files() {
        let run = Run::at("/cache/run");
        let config = kubelet_config(&run, Place { number: 1 });
        assert_eq!(config["tlsCertFile"], "/cache/run/pki/node1.crt");
        assert_eq!(config["clusterDNS"], json!(["10.96.0.10"]));
        assert!(containerd_config(Path::new("/cache/cni")).contains("bin_dir = \"/cache/cni\""));
    }
}
