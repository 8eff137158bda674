//! Network namespaces of our own: named, entered by threads, gone when dropped.
//!
//! A [`Netns`] is bind-mounted below `/run/netns`, so that a person can look into it
//! (`nsenter --net=/run/netns/NAME ss -tn`), and is entered by `setns` in a thread of its
//! own: the thread that calls never changes its namespace. What stays behind when a test
//! process is killed is removed by the next one ([`crate::scratch`]).

pub(crate) mod sys;

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where namespaces get their names; the place that `ip netns` uses.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// A named network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: File,
    /// Gone when dropped.
    ours: bool,
}

impl Netns {
    /// Makes a namespace of this name with its loopback up, duplicate address detection off
    /// and forwarding off.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or when the name is taken.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        fs::create_dir_all(NETNS_DIR)?;
        let path = Path::new(NETNS_DIR).join(&name);
        File::create_new(&path).with_context(|| format!("name of a namespace: {}", path.display()))?;
        let mounted = in_thread(|| {
            sys::unshare_net()?;
            sys::bind_mount(Path::new("/proc/thread-self/ns/net"), &path)
        });
        if let Err(error) = mounted {
            fs::remove_file(&path)?;
            bail!("cannot make a network namespace (run as root): {error}");
        }
        let netns = Self { name, file: File::open(&path)?, path, ours: true };
        for (key, value) in [
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            netns.sysctl(key, value)?;
        }
        netns.ip(&["link set lo up"])?;
        Ok(netns)
    }

    /// Opens a namespace that has a name already; it stays when the value is dropped.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn attach(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let path = Path::new(NETNS_DIR).join(&name);
        let file = File::open(&path).with_context(|| format!("no namespace {}", path.display()))?;
        Ok(Self { name, path, file, ours: false })
    }

    /// Keeps the namespace when the value is dropped: [`Self::attach`] finds it again.
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.ours = false;
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open namespace file, for `setns`.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Runs `f` in a thread that lives in this namespace. Sockets and child processes made
    /// there belong to the namespace for good.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let file = &self.file;
        in_thread(move || sys::set_netns(file.as_fd()).map(|()| f()))
            .with_context(|| format!("entering namespace {}", self.name))
    }

    /// Runs lines of `ip -batch`.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn ip<S: AsRef<str>>(&self, lines: &[S]) -> Result<()> {
        let text = lines.iter().map(|line| format!("{}\n", line.as_ref())).collect::<String>();
        self.feed("ip", &["-batch", "-"], &text)
    }

    /// Loads an nftables ruleset.
    ///
    /// # Errors
    /// With what `nft` said.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], rules)
    }

    /// Runs a command in the namespace and returns its output.
    ///
    /// # Errors
    /// When it cannot be run or exits with another code than 0.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let out = self.enter(|| Command::new(program).args(args).stdin(Stdio::null()).output())??;
        if !out.status.success() {
            bail!("{}: {program} {}: {}", self.name, args.join(" "), String::from_utf8_lossy(&out.stderr));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Writes a key below `/proc/sys` as this namespace sees it.
    ///
    /// # Errors
    /// When the key does not exist or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&path, value))?
            .with_context(|| format!("{}: {} = {value}", self.name, path.display()))
    }

    fn feed(&self, program: &str, args: &[&str], text: &str) -> Result<()> {
        let out = self.enter(|| -> Result<_> {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("{program} is not installed"))?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(text.as_bytes())?;
            }
            Ok(child.wait_with_output()?)
        })??;
        if !out.status.success() {
            bail!("{}: {program}: {}in:\n{text}", self.name, String::from_utf8_lossy(&out.stderr));
        }
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.ours {
            remove(&self.path);
        }
    }
}

/// Takes a namespace's name away; the namespace itself ends with its last process.
pub(crate) fn remove(path: &Path) {
    let unmounted = sys::unmount(path);
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => eprintln!("cannot remove {}: {error} (umount: {unmounted:?})", path.display()),
    }
}

/// Runs `f` in a thread of its own, so that what it does to its namespaces ends with it.
fn in_thread<T: Send>(f: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| match scope.spawn(f).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
