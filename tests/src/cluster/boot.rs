//! Process 1 of a node: mounts what a machine mounts, then keeps containerd and the kubelet
//! running, and reaps what their children leave.
//!
//! The kubelet insists on a few machine-wide settings of its own and ends where it may not
//! write them. It is shown files that hold the wanted values; the machine's settings stay.

use super::cgroups;
use super::node::{OWN_FILES, OWN_FOLDERS};
use super::process::PATH;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The kubelet waits for this file in the node's folder.
pub(super) const GATE: &str = "kubelet-may-start";
/// Between two starts of a program that ends.
const PAUSE: Duration = Duration::from_secs(1);
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// What the kubelet wants to find below `/proc/sys`.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// What process 1 is told, as a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Boot {
    pub(super) name: String,
    /// The node's disks.
    pub(super) folder: PathBuf,
    /// Where its programs' words go: this name and theirs.
    pub(super) log: PathBuf,
    pub(super) containerd: Vec<String>,
    pub(super) kubelet: Vec<String>,
}

/// Boots and runs the node; returns only when it cannot.
///
/// # Errors
/// When something cannot be mounted.
pub fn run(file: &Path) -> Result<()> {
    let boot: Boot = serde_json::from_slice(&fs::read(file)?).with_context(|| file.display().to_string())?;
    // The machine's /proc is still there: this is our id as the machine counts.
    let own = fs::read_link("/proc/self")?;
    mount_all(&boot).with_context(|| format!("{} cannot boot", boot.name))?;
    fs::write(boot.folder.join("pid"), own.as_os_str().as_encoded_bytes())?;
    keep(&boot)
}

fn mount_all(boot: &Boot) -> Result<()> {
    let hierarchies = cgroups::hierarchies()?;
    nix::unistd::sethostname(&boot.name)?;
    fresh("proc", "/proc", None)?;
    fresh("sysfs", "/sys", None)?;
    cgroups::mount_own(&hierarchies)?;
    fresh("bpf", "/sys/fs/bpf", None)?;
    let settings = boot.folder.join("settings");
    fs::create_dir_all(&settings)?;
    for (key, value) in SETTINGS {
        let file = settings.join(key.replace('/', "_"));
        fs::write(&file, format!("{value}\n"))?;
        bind(&file, &Path::new("/proc/sys").join(key))?;
    }
    for (place, own) in OWN_FOLDERS.iter().chain(&OWN_FILES) {
        bind(&boot.folder.join(own), Path::new(place))?;
    }
    for folder in ["pods", "containers"] {
        fs::create_dir_all(Path::new("/var/log").join(folder))?;
    }
    fresh("tmpfs", "/run", Some("mode=755"))?;
    for folder in ["/run/lock", "/run/netns", "/run/mount"] {
        fs::create_dir_all(folder)?;
    }
    // What a pod mounts with Bidirectional propagation reaches the node.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("making / shared")
}

fn fresh(kind: &str, at: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), options).with_context(|| format!("mounting {at}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(Some(from), to, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("mounting {} on {}", from.display(), to.display()))
}

/// A program that is started again when it ends.
struct Kept<'a> {
    name: &'static str,
    words: &'a [String],
    pid: Option<i32>,
    not_before: Instant,
}

impl<'a> Kept<'a> {
    fn new(name: &'static str, words: &'a [String]) -> Self {
        Self { name, words, pid: None, not_before: Instant::now() }
    }

    fn start_if_ended(&mut self, boot: &Boot) {
        if self.pid.is_some() || Instant::now() < self.not_before {
            return;
        }
        match self.start(boot) {
            Ok(pid) => self.pid = Some(pid),
            Err(error) => eprintln!("{}: {error:#}", self.name),
        }
        self.not_before = Instant::now() + PAUSE;
    }

    fn start(&self, boot: &Boot) -> Result<i32> {
        let (program, arguments) = self.words.split_first().context("no program")?;
        let out = File::options().create(true).append(true).open(boot.folder_log(self.name))?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", PATH).env("HOME", "/root").process_group(0);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(i32::try_from(command.spawn()?.id())?)
    }
}

impl Boot {
    fn folder_log(&self, program: &str) -> PathBuf {
        self.log.with_file_name(format!("{}-{program}.log", self.name))
    }
}

/// Keeps both programs running.
fn keep(boot: &Boot) -> Result<()> {
    let mut containerd = Kept::new("containerd", &boot.containerd);
    let mut kubelet = Kept::new("kubelet", &boot.kubelet);
    loop {
        containerd.start_if_ended(boot);
        if Path::new(CONTAINERD_SOCKET).exists() && boot.folder.join(GATE).exists() {
            kubelet.start_if_ended(boot);
        }
        loop {
            let ended = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(status) => status,
                Err(error) => return Err(error.into()),
            };
            for kept in [&mut containerd, &mut kubelet] {
                if kept.pid.is_some() && kept.pid == ended.pid().map(nix::unistd::Pid::as_raw) {
                    eprintln!("{} ended: {ended:?}", kept.name);
                    kept.pid = None;
                }
            }
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
