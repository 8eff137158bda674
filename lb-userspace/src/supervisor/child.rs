//! Starting a process of ours and hearing what becomes of it.
//!
//! It gets the supervisor's own arguments and its role; its standard input is its control
//! socket. A proxy gets no variable that could name a credential.

use super::state::{Program, Who};
use crate::proxy::control::{self, Control, Order, Report, View};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tokio::sync::mpsc;

/// Orders that may wait for a process that does not read.
const ORDERS: usize = 256;

/// What a child said or did.
#[derive(Debug)]
pub(super) enum Heard {
    Said(Report),
    /// It ended; the text says how. `failed`: it gave up by itself.
    Ended {
        failed: bool,
        how: String,
    },
}

/// How processes are started.
#[derive(Debug)]
pub(super) struct Launcher {
    /// Where our program was when we were started.
    program: PathBuf,
    /// What was there when an upgrade began, by its number.
    upgrades: BTreeMap<u64, File>,
    args: Vec<OsString>,
}

/// A process of ours.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: u32,
    /// What it said that it can see.
    pub(super) view: View,
    orders: mpsc::Sender<(Order, Option<OwnedFd>)>,
}

impl Launcher {
    /// Remembers program and arguments of this process.
    ///
    /// # Errors
    /// When the program's path cannot be found out.
    pub(super) fn new() -> io::Result<Self> {
        let program = std::env::current_exe()?;
        Ok(Self { program, upgrades: BTreeMap::new(), args: std::env::args_os().collect() })
    }

    /// Forgets the programs of those upgrades that nothing is started from any more.
    pub(super) fn keep(&mut self, needed: impl Fn(u64) -> bool) {
        self.upgrades.retain(|upgrade, _| needed(*upgrade));
    }

    /// The path to start a program by.
    fn program(&mut self, program: Program) -> io::Result<PathBuf> {
        Ok(match program {
            // The running file itself: it may have been replaced at its path.
            Program::Own => "/proc/self/exe".into(),
            Program::Upgraded(upgrade) => {
                let file = match self.upgrades.entry(upgrade) {
                    Entry::Occupied(held) => held.into_mut(),
                    Entry::Vacant(place) => place.insert(File::open(&self.program)?),
                };
                format!("/proc/self/fd/{}", file.as_raw_fd()).into()
            }
        })
    }

    /// Starts a process; what it says goes to `heard`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(
        &mut self,
        who: Who,
        program: Program,
        heard: mpsc::Sender<(Who, Heard)>,
    ) -> io::Result<Child> {
        let role = match who {
            Who::Agent => "agent",
            Who::Proxy(_) => "proxy",
        };
        let mut command = Command::new(self.program(program)?);
        if let Some(name) = self.args.first() {
            command.arg0(name);
        }
        if matches!(who, Who::Proxy(_)) {
            command.env_clear().envs(std::env::vars_os().filter(|(name, _)| harmless(name)));
        }
        let (ours, theirs) = control::pair()?;
        command.args(with_role(&self.args, role)).stdin(Stdio::from(theirs));
        let child = tokio::process::Command::from(command).spawn()?;
        let control = Control::new(ours)?;
        let pid = child.id().unwrap_or_default();
        let (orders, waiting) = mpsc::channel(ORDERS);
        tokio::spawn(attend(who, child, control, waiting, heard));
        Ok(Child { pid, view: View::default(), orders })
    }
}

impl Child {
    /// Gives an order. One that a process has no room for is lost: it hangs.
    pub(super) fn order(&self, order: Order, handed: Option<OwnedFd>) {
        if self.orders.try_send((order, handed)).is_err() {
            tracing::warn!(pid = self.pid, "a process takes no orders");
        }
    }
}

/// The arguments without the program's name, and the role among them.
fn with_role(args: &[OsString], role: &str) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.iter().skip(1).cloned().collect();
    let after = args.iter().position(|arg| arg == "run").map_or(0, |at| at + 1);
    args.insert(after, format!("--role={role}").into());
    args
}

/// What a proxy's environment keeps: our own flags but those that lead to the API server, and
/// what logs and panics look at.
fn harmless(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let own = name.starts_with("WEIR_") && !["WEIR_KUBECONFIG", "WEIR_APISERVER"].contains(&&*name);
    own || ["RUST_LOG", "RUST_BACKTRACE", "NODE_NAME", "TZ"].contains(&&*name)
}

/// Carries orders and reports to and fro until the process has ended.
async fn attend(
    who: Who,
    mut child: tokio::process::Child,
    control: Control,
    mut orders: mpsc::Receiver<(Order, Option<OwnedFd>)>,
    heard: mpsc::Sender<(Who, Heard)>,
) {
    let mut listening = true;
    let ended = loop {
        tokio::select! {
            biased;
            report = control.recv::<Report>(), if listening => match report {
                // The supervisor is ending when nobody hears.
                Ok(Some((report, _))) => drop(heard.send((who, Heard::Said(report))).await),
                Ok(None) | Err(_) => listening = false,
            },
            ended = child.wait() => break ended,
            Some((order, handed)) = orders.recv() => {
                // One that ends is told nothing more.
                let handed = handed.as_ref().map(AsFd::as_fd);
                let _gone = control.send(&order, handed).await;
            }
        }
    };
    let (failed, how) = match ended {
        Ok(status) => (status.code().is_some_and(|code| code != 0), status.to_string()),
        Err(error) => (false, error.to_string()),
    };
    let _ending = heard.send((who, Heard::Ended { failed, how })).await;
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_role_stands_behind_the_verb() {
        let args = ["weir", "run", "--l4", "off", "--"].map(OsString::from);
        assert_eq!(with_role(&args, "proxy"), ["run", "--role=proxy", "--l4", "off", "--"]);
    }

    /// H57: a file that comes later is nobody's upgrade until somebody asks for one.
    #[test]
    fn an_upgrade_is_the_file_that_was_there_when_it_began() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weir");
        let install = |text: &str| {
            let next = dir.path().join("next");
            std::fs::write(&next, text).unwrap();
            std::fs::rename(&next, &path).unwrap();
        };
        let mut launcher = Launcher { program: path.clone(), upgrades: BTreeMap::new(), args: Vec::new() };
        let mut read =
            |upgrade| std::fs::read_to_string(launcher.program(Program::Upgraded(upgrade)).unwrap()).unwrap();
        install("first");
        assert_eq!(read(1), "first");
        install("second");
        assert_eq!((read(1), read(2)), ("first".into(), "second".into()));
        launcher.keep(|upgrade| upgrade == 2);
        assert_eq!(launcher.upgrades.len(), 1);
    }

    #[test]
    fn a_proxy_inherits_no_credential() {
        for (name, kept) in [
            ("WEIR_HTTP_LISTEN", true),
            ("RUST_LOG", true),
            ("KUBECONFIG", false),
            ("WEIR_KUBECONFIG", false),
            ("WEIR_APISERVER", false),
            ("KUBERNETES_SERVICE_HOST", false),
            ("AWS_SECRET_ACCESS_KEY", false),
            ("PATH", false),
            ("LD_PRELOAD", false),
        ] {
            assert_eq!(harmless(OsStr::new(name)), kept, "{name}");
        }
    }
}
