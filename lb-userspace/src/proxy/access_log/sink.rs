//! Where lines end: a file that may be renamed, or standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How often a file's name is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a reader that does not keep up is waited for, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Sink {
    /// `None`: standard output.
    path: Option<PathBuf>,
    open: Option<File>,
    looked: Option<Instant>,
    /// The last write ended within a line.
    torn: bool,
    failing: bool,
}

impl Sink {
    pub(super) fn stdout() -> Self {
        // A descriptor of our own: writes go past the standard library's buffer and lock.
        let open = io::stdout().as_fd().try_clone_to_owned().ok().map(File::from);
        Self { path: None, open, looked: None, torn: false, failing: false }
    }

    pub(super) fn file(path: PathBuf) -> Self {
        Self { path: Some(path), open: None, looked: None, torn: false, failing: false }
    }

    /// Writes lines; returns how many of them were written whole.
    pub(super) fn write(&mut self, lines: &[u8], now: Instant) -> u64 {
        self.look(now);
        let torn = std::mem::take(&mut self.torn);
        let (written, error) = match &mut self.open {
            // What came of a torn line ends before the next one begins.
            Some(file) => match if torn { put(file, b"\n").1 } else { None } {
                Some(error) => {
                    self.torn = true;
                    (0, Some(error))
                }
                None => put(file, lines),
            },
            None => (0, Some(ErrorKind::NotFound.into())),
        };
        let done = lines.get(..written).unwrap_or_default();
        if written > 0 && done.last() != Some(&b'\n') {
            self.torn = true;
        }
        self.tell(error);
        memchr::memchr_iter(b'\n', done).count() as u64
    }

    /// Opens the file that has the name now.
    fn look(&mut self, now: Instant) {
        let Some(path) = &self.path else { return };
        if self.open.is_some() && self.looked.is_some_and(|last| now.saturating_duration_since(last) < LOOK) {
            return;
        }
        self.looked = Some(now);
        let identity = |meta: &std::fs::Metadata| (meta.dev(), meta.ino());
        let held = self.open.as_ref().and_then(|file| file.metadata().ok());
        let named = std::fs::metadata(path).ok();
        if held.is_some() && held.as_ref().map(identity) == named.as_ref().map(identity) {
            return;
        }
        // Not blocking: a pipe without a reader, or with a slow one, must not hold the thread
        // for ever.
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path);
        match opened {
            Ok(file) => {
                self.open = Some(file);
                self.torn = false;
            }
            // The file that is open goes on being written, under whatever name.
            Err(error) => self.tell(Some(error)),
        }
    }

    /// Says once that writing fails, and once that it works again.
    fn tell(&mut self, error: Option<io::Error>) {
        match error {
            Some(error) if !self.failing => {
                self.failing = true;
                tracing::warn!(path = ?self.path, %error, "the access log cannot be written: lines are dropped");
            }
            None if self.failing => {
                self.failing = false;
                tracing::info!(path = ?self.path, "the access log is written again");
            }
            _ => {}
        }
    }
}

/// Writes as much as goes; returns how much that was and what stopped it.
fn put(file: &mut File, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    let mut waited = Duration::ZERO;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return (written, Some(ErrorKind::WriteZero.into())),
            Ok(n) => {
                written += n;
                waited = Duration::ZERO;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && waited < PATIENCE => {
                thread::sleep(STEP);
                waited += STEP;
            }
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}
