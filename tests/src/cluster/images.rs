//! The images that a cluster runs, and how they get onto its nodes.
//!
//! Nothing is pulled: each image is an archive of our own, put together from programs that
//! were built here and from Debian's. They are imported once per machine, into the *store*: a
//! containerd root with images and nothing else. A node's root starts as a copy of it by
//! hard links: layers and blobs are never written again, only the databases are copied.

use super::archive::Image;
use super::process::PATH;
use super::programs::{Programs, installed, porter};
use super::state::home;
use crate::go::say;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What holds a pod's namespaces.
pub const PAUSE: &str = "weir.test/pause:dev";
/// The upstream suites' server and client, with a shell and the tools of a network.
pub const AGNHOST: &str = "weir.test/agnhost:dev";
pub const BUSYBOX: &str = "weir.test/busybox:dev";
pub const COREDNS: &str = "weir.test/coredns:dev";
/// The real kube-proxy with nft, iptables and conntrack.
pub const KUBE_PROXY: &str = "weir.test/kube-proxy:dev";
/// Stands in for nginx: agnhost's web server on port 80.
pub const WEB: &str = "weir.test/web:dev";
/// The suites' reproduction of Kubernetes issue 74839.
pub const REGRESSION: &str = "weir.test/regression-issue-74839:dev";

/// Another number here makes all archives anew.
const RECIPE: u32 = 1;

/// The images and what is in each.
fn recipes(programs: &Programs) -> Result<Vec<(&'static str, Image)>> {
    let mut pause = Image::default();
    pause.file("/pause", &programs.pause, 0o755).entrypoint(&["/pause"]).user("65535:65535");

    let mut base = Image::default();
    for folder in ["/var/run", "/run", "/usr/bin", "/etc"] {
        base.folder(folder, 0o755);
    }
    base.folder("/tmp", 0o1777).folder("/root", 0o700);
    base.text(
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\n\
         nobody:x:65534:65534::/:/bin/false\n",
    );
    base.text(
        "/etc/group",
        "root:x:0:\nuser-defined-in-image:x:1000:\n\
         group-defined-in-image:x:50000:user-defined-in-image\nnobody:x:65534:\n",
    );
    base.text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n");

    let mut tools = base.clone();
    let program = installed("busybox")?;
    let applets = Command::new(&program).arg("--list").output().context("busybox")?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox") {
        tools.link(&format!("/bin/{applet}"), "busybox");
    }
    tools.file("/bin/busybox", &program.canonicalize()?, 0o755);

    let mut busybox = tools.clone();
    busybox.command(&["sh"]);

    // Debian's busybox runs its own applets first and its nc and wget are not what the suites
    // ask for; so these come as programs of their own.
    let mut agnhost = tools.clone();
    agnhost.program("/bin/sh", "dash")?.program("/usr/bin/nc", "nc.openbsd")?;
    for name in ["wget", "curl", "bash", "dig", "host", "nslookup", "ss", "ip", "iperf", "ipcs", "getent"] {
        agnhost.program(&format!("/usr/bin/{name}"), name)?;
        if tools_link(name) {
            agnhost.link(&format!("/bin/{name}"), &format!("../usr/bin/{name}"));
        }
    }
    agnhost.link("/bin/nc", "../usr/bin/nc").link("/usr/local/bin/iperf", "/usr/bin/iperf");
    agnhost.text("/etc/wgetrc", "tries = 1\n").folder("/uploads", 0o755);
    agnhost.file("/agnhost", &programs.agnhost, 0o755).link("/agnhost-2", "agnhost");
    agnhost.file("/coredns", &programs.coredns, 0o755);
    for file in ["localhost.crt", "localhost.key"] {
        agnhost.file(&format!("/{file}"), &porter(file)?, 0o644);
    }
    agnhost.entrypoint(&["/agnhost"]).command(&["pause"]);

    let mut web = base.clone();
    web.file("/agnhost", &programs.agnhost, 0o755).entrypoint(&["/agnhost"]).command(&["test-webserver"]);

    let mut regression = Image::default();
    regression.file("/regression-issue-74839", &programs.regression, 0o755);
    regression.entrypoint(&["/regression-issue-74839"]);

    let mut coredns = base;
    coredns.file("/coredns", &programs.coredns, 0o755).entrypoint(&["/coredns"]);

    let mut kube_proxy = tools;
    kube_proxy.program("/usr/sbin/xtables-nft-multi", "xtables-nft-multi")?;
    for name in ["iptables", "ip6tables"] {
        for verb in ["", "-save", "-restore"] {
            kube_proxy.link(&format!("/usr/sbin/{name}{verb}"), "xtables-nft-multi");
        }
    }
    for name in ["nft", "conntrack", "ipset", "ip"] {
        kube_proxy.program(&format!("/usr/sbin/{name}"), name)?;
    }
    let extensions = PathBuf::from(format!("/usr/lib/{}-linux-gnu/xtables", std::env::consts::ARCH));
    kube_proxy.plugins(&extensions)?;
    kube_proxy.file("/usr/local/bin/kube-proxy", &programs.kube_proxy, 0o755).entrypoint(&["kube-proxy"]);

    Ok(vec![
        (PAUSE, pause),
        (BUSYBOX, busybox),
        (AGNHOST, agnhost),
        (WEB, web),
        (REGRESSION, regression),
        (COREDNS, coredns),
        (KUBE_PROXY, kube_proxy),
    ])
}

/// Writes the image of the lab's own server ([`crate::helper`]): `executable` and what it is
/// linked to.
///
/// # Errors
/// When it cannot be written.
pub fn write_lab(name: &str, executable: &Path, to: &Path) -> Result<()> {
    let mut image = Image::default();
    image.linked("/lab", executable)?.entrypoint(&["/lab"]);
    image.write(name, to)
}

/// True for a tool that busybox also has, in `/bin`.
fn tools_link(name: &str) -> bool {
    !matches!(name, "curl" | "dig" | "host" | "ss" | "iperf" | "getent")
}

/// A containerd root that holds the images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store of these programs: made once, found again afterwards.
    ///
    /// # Errors
    /// When an image cannot be made or imported.
    pub fn prepare(programs: &Programs) -> Result<Self> {
        let folder = home()?.join("images");
        let store = Self { root: folder.join(fingerprint(programs)?) };
        if store.root.is_dir() {
            return Ok(store);
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let work = folder.join("work");
        for old in [&work].into_iter().cloned().chain(children(&folder)) {
            // Stores of programs that are no longer used.
            if old.exists() {
                fs::remove_dir_all(&old).with_context(|| old.display().to_string())?;
            }
        }
        fs::create_dir_all(&work)?;
        let mut archives = Vec::new();
        for (name, image) in recipes(programs)? {
            say(&format!("image {name}: put together (once)"));
            let short = name.rsplit('/').next().unwrap_or(name).replace(':', "-");
            let archive = work.join(format!("{short}.tar"));
            image.write(name, &archive)?;
            archives.push(archive);
        }
        import_all(&work, &archives)?;
        fs::rename(work.join("root"), &store.root)?;
        fs::remove_dir_all(&work)?;
        Ok(store)
    }

    /// Makes a node's containerd root out of it.
    ///
    /// # Errors
    /// When it cannot be copied: both must be on one file system.
    pub fn copy_to(&self, root: &Path) -> Result<()> {
        fs::create_dir_all(root)?;
        let mut copy = Command::new("cp");
        copy.args(["--archive", "--link", "--no-target-directory"]).arg(&self.root).arg(root);
        let said = copy.output().context("starting cp")?;
        if !said.status.success() {
            bail!("copying {}: {}", self.root.display(), String::from_utf8_lossy(&said.stderr));
        }
        // Databases are written in place.
        for file in files(root)?.iter().filter(|file| file.extension().is_some_and(|end| end == "db")) {
            let temporary = file.with_extension("copy");
            fs::copy(file, &temporary)?;
            fs::rename(&temporary, file)?;
        }
        Ok(())
    }
}

/// Imports archives into `WORK/root`, with a containerd of their own.
fn import_all(work: &Path, archives: &[PathBuf]) -> Result<()> {
    let (root, state) = (work.join("root"), work.join("state"));
    let socket = state.join("containerd.sock");
    let config = work.join("containerd.toml");
    fs::create_dir_all(&root)?;
    fs::create_dir_all(&state)?;
    fs::write(
        &config,
        format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = {socket:?}\n"
        ),
    )?;
    let log = File::create(work.join("containerd.log"))?;
    let mut containerd = Command::new(installed("containerd")?);
    containerd.arg("--config").arg(&config).env("PATH", PATH);
    containerd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = containerd.spawn().context("starting containerd")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let imported = loop {
        let ready = ctr(&socket, &["version"]);
        match ready {
            Ok(_) => {
                break archives.iter().try_for_each(|archive| {
                    ctr(&socket, &["-n", "k8s.io", "images", "import", &archive.to_string_lossy()]).map(drop)
                });
            }
            Err(error) if Instant::now() > deadline => break Err(error),
            Err(_) => std::thread::park_timeout(Duration::from_millis(100)),
        }
    };
    let stopped = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id())?),
        nix::sys::signal::Signal::SIGTERM,
    );
    child.wait()?;
    stopped?;
    imported
}

fn ctr(socket: &Path, words: &[&str]) -> Result<String> {
    let said = Command::new("ctr").arg("--address").arg(socket).args(words).env("PATH", PATH).output();
    let said = said.context("starting ctr")?;
    if !said.status.success() {
        bail!("ctr {}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// Changes with whatever goes into the images.
fn fingerprint(programs: &Programs) -> Result<String> {
    let mut text = format!("recipe {RECIPE}\n");
    let built =
        [&programs.agnhost, &programs.regression, &programs.coredns, &programs.pause, &programs.kube_proxy];
    let debian = ["busybox", "dash", "nc.openbsd", "wget", "curl", "iperf", "nft", "xtables-nft-multi", "ip"];
    let debian: Vec<PathBuf> = debian.iter().map(|name| installed(name)).collect::<Result<_>>()?;
    for file in built.into_iter().chain(&debian) {
        let meta = fs::metadata(file).with_context(|| file.display().to_string())?;
        let _ = writeln!(text, "{} {} {}", file.display(), meta.len(), meta.mtime());
    }
    let sum = Sha256::digest(text.as_bytes());
    Ok(sum[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn children(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The files right in a containerd root and its plugins' folders, not those of snapshots.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for plugin in children(root) {
        found.extend(children(&plugin).into_iter().filter(|path| path.is_file()));
        if plugin.is_file() {
            found.push(plugin);
        }
    }
    if found.is_empty() {
        bail!("{}: no database in it", root.display());
    }
    Ok(found)
}
