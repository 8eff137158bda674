//! Processes that outlive the command which started them: each in a session of its own, its
//! words in a file, known by its id *and* its start time, so that an id which the kernel has
//! given out anew is never mistaken for it.

use crate::netns::{Netns, sys};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where programs are looked for, whatever the caller's `PATH`.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a process calls itself (`comm`).
pub(crate) fn name_of(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// A process, for as long as it lives and never longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    /// Clock ticks between the machine's start and the process's.
    pub start: u64,
}

impl Identity {
    /// The process that has this id now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        let stat = stat.with_context(|| format!("no process {pid}"))?;
        let start = start_time(&stat).with_context(|| format!("process {pid} has ended"))?;
        Ok(Self { pid, start })
    }

    /// True while that very process runs.
    pub fn alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// Sends a signal; a process that has ended is as good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match sys::kill(self.pid, signal) {
            Err(error) if self.alive() => Err(error).with_context(|| format!("signal to {}", self.pid)),
            _ => Ok(()),
        }
    }

    /// Asks it to end, then makes it; returns once it is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(&self, patience: Duration) -> Result<()> {
        self.signal(libc::SIGTERM)?;
        if self.gone_within(patience) {
            return Ok(());
        }
        self.signal(libc::SIGKILL)?;
        if !self.gone_within(Duration::from_secs(10)) {
            bail!("process {} does not end", self.pid);
        }
        Ok(())
    }

    /// Waits for its end; true when it came.
    pub fn gone_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.alive() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        true
    }
}

/// The start time out of `/proc/PID/stat` (proc(5), field 22); none of a process that has
/// ended and is only waited for. The name in brackets may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // The state is field 3.
    fields.nth(22 - 4)?.parse().ok()
}

/// Starts a program in a namespace and leaves it to itself.
///
/// # Errors
/// When it cannot be started.
pub(super) fn start(netns: &Netns, log: &Path, words: &[impl AsRef<str>]) -> Result<Identity> {
    let out = File::options().create(true).append(true).open(log);
    let out = out.with_context(|| format!("opening {}", log.display()))?;
    // setsid becomes the program: the child that we make leads no process group.
    let mut command = Command::new("setsid");
    command.args(words.iter().map(AsRef::as_ref)).env("PATH", PATH).current_dir("/");
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let child = netns.enter(|| command.spawn())?;
    let child = child.with_context(|| format!("starting {}", words.first().map_or("", AsRef::as_ref)))?;
    Identity::of(child.id())
}

/// The end of a log.
pub(super) fn last_words(log: &Path) -> String {
    let log =
        fs::read(log).map_or_else(|error| error.to_string(), |log| String::from_utf8_lossy(&log).into());
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_read_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(start_time(&format!("42 (a) {tail}")), Some(4711));
        assert_eq!(start_time(&format!("42 (a ) b (c) {tail}")), Some(4711));
        assert_eq!(start_time(&format!("42 (a) {}", tail.replace('S', "Z"))), None);
        assert_eq!(start_time("42 (a) S 1"), None);
    }

    #[test]
    fn id_that_was_given_out_anew_is_another_process() -> Result<()> {
        let own = Identity::of(std::process::id())?;
        assert!(own.alive());
        let earlier = Identity { start: own.start - 1, ..own };
        assert!(!earlier.alive());
        earlier.signal(libc::SIGKILL)?;
        earlier.end(Duration::ZERO)?;
        Ok(())
    }
}
