//! The access log: one line for each request, as ingress-nginx writes it or as JSON (I75).
//!
//! A worker formats lines into a buffer of its own and never waits: when the buffer is full,
//! because whoever reads the log does not keep up, lines are dropped and counted. One thread
//! gathers the buffers and writes them. When writing fails (a full disk, a reader that is
//! gone), what could not be written is dropped and counted, and writing is tried again with
//! the next lines (H60). A file that was renamed or removed is opened anew within a second of
//! the next line, so rotation needs no signal.

mod line;
mod sink;

#[cfg(test)]
mod tests;

use crate::proxy::record::Record;
use line::Clock;
pub use line::Format;
use sink::Sink;
use std::cell::RefCell;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};

/// Where the log goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Target {
    #[default]
    Off,
    /// Standard output.
    Stdout,
    File(PathBuf),
}

impl FromStr for Target {
    type Err = std::convert::Infallible;

    /// `off`, `-`, or the path of a file.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" | "" => Self::Off,
            "-" => Self::Stdout,
            path => Self::File(path.into()),
        })
    }
}

/// What became of lines.
#[derive(Debug, Default)]
pub struct Tally {
    written: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    /// By result: written, dropped because the buffer was full, failed to be written.
    pub fn read(&self) -> [(&'static str, u64); 3] {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [("written", of(&self.written)), ("dropped", of(&self.dropped)), ("failed", of(&self.failed))]
    }
}

/// Bytes of lines that may wait, for each worker.
const ROOM: usize = 4 << 20;
/// How long lines are gathered.
const GATHER: Duration = Duration::from_millis(100);
/// How long the end of the process waits for the last lines.
const LAST: Duration = Duration::from_secs(1);

/// The log of a proxy. Dropping it writes what is there, for at most a second.
pub struct AccessLog {
    shared: Arc<Shared>,
    format: Format,
    writer: Option<Thread>,
}

#[derive(Default)]
struct Shared {
    lanes: Mutex<Vec<Arc<Mutex<Buffer>>>>,
    tally: Arc<Tally>,
    /// The writer sleeps until it is woken.
    asleep: AtomicBool,
    stop: AtomicBool,
    ended: Mutex<bool>,
    end: Condvar,
}

/// Lines of one worker.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    lines: u64,
}

impl Buffer {
    fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

impl AccessLog {
    /// Opens the log. A file that cannot be opened is tried again with every batch of lines.
    ///
    /// # Errors
    ///
    /// When the writer's thread cannot be started.
    pub fn open(target: Target, format: Format) -> std::io::Result<Self> {
        let sink = match target {
            Target::Off => None,
            Target::Stdout => Some(Sink::stdout()),
            Target::File(path) => Some(Sink::file(path)),
        };
        let shared = Arc::<Shared>::default();
        let writer = match sink {
            None => None,
            Some(sink) => {
                let shared = Arc::clone(&shared);
                let thread =
                    thread::Builder::new().name("access-log".into()).spawn(move || shared.write(sink))?;
                Some(thread.thread().clone())
            }
        };
        Ok(Self { shared, format, writer })
    }

    /// The lane of a worker; `None`: the log is off, and costs nothing.
    pub fn lane(&self) -> Option<Lane> {
        let writer = self.writer.clone()?;
        let buffer = Arc::<Mutex<Buffer>>::default();
        self.shared.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&buffer));
        Some(Lane {
            shared: Arc::clone(&self.shared),
            buffer,
            writer,
            format: self.format,
            local: RefCell::default(),
            clock: RefCell::default(),
            room: ROOM,
        })
    }

    /// What became of lines so far.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.shared.tally)
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        let Some(writer) = &self.writer else { return };
        self.shared.stop.store(true, Ordering::Release);
        writer.unpark();
        let ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // A writer that is stuck ends with the process.
        let _waited = self.shared.end.wait_timeout_while(ended, LAST, |ended| !*ended);
    }
}

impl Shared {
    /// Gathers and writes until told to stop.
    fn write(&self, mut sink: Sink) {
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            let mut batch = Buffer::default();
            for lane in self.lanes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let lines = lane.lock().unwrap_or_else(PoisonError::into_inner).take();
                if batch.lines == 0 {
                    batch = lines;
                } else {
                    batch.bytes.extend_from_slice(&lines.bytes);
                    batch.lines += lines.lines;
                }
            }
            if batch.lines > 0 {
                let written = sink.write(&batch.bytes, Instant::now());
                let failed = batch.lines.saturating_sub(written);
                self.tally.written.fetch_add(batch.lines - failed, Ordering::Relaxed);
                self.tally.failed.fetch_add(failed, Ordering::Relaxed);
            }
            if stopping {
                break;
            }
            if batch.lines > 0 {
                // Lines that come now wait for others; the end of the process does not.
                thread::park_timeout(GATHER);
                continue;
            }
            self.asleep.store(true, Ordering::SeqCst);
            let nothing =
                |lane: &Arc<Mutex<Buffer>>| lane.lock().unwrap_or_else(PoisonError::into_inner).lines == 0;
            if !self.stop.load(Ordering::SeqCst)
                && self.lanes.lock().unwrap_or_else(PoisonError::into_inner).iter().all(nothing)
            {
                thread::park();
            }
            self.asleep.store(false, Ordering::SeqCst);
        }
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.notify_all();
    }
}

/// Where one worker leaves its lines. It stays in the worker's thread.
pub struct Lane {
    shared: Arc<Shared>,
    buffer: Arc<Mutex<Buffer>>,
    writer: Thread,
    format: Format,
    /// The line that is being made, and lines that were made while the writer held the buffer.
    local: RefCell<Buffer>,
    clock: RefCell<Clock>,
    room: usize,
}

impl Lane {
    /// Logs a request. Never waits.
    pub fn log(&self, record: &Record<'_>) {
        self.log_at(record, SystemTime::now());
    }

    fn log_at(&self, record: &Record<'_>, now: SystemTime) {
        let mut local = self.local.borrow_mut();
        let mut clock = self.clock.borrow_mut();
        line::write(&mut local.bytes, self.format, record, clock.at(now));
        local.lines += 1;
        let mut buffer = match self.buffer.try_lock() {
            Ok(buffer) => buffer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // The writer is just taking it, which is over at once; should it have been
            // interrupted in that, the lines go with the next one.
            Err(TryLockError::WouldBlock) => {
                if local.bytes.len() > self.room {
                    self.drop_lines(&mut local);
                }
                return;
            }
        };
        if buffer.bytes.len() + local.bytes.len() > self.room {
            self.drop_lines(&mut local);
            return;
        }
        buffer.bytes.extend_from_slice(&local.bytes);
        buffer.lines += local.lines;
        drop(buffer);
        local.bytes.clear();
        local.lines = 0;
        if self.shared.asleep.swap(false, Ordering::SeqCst) {
            self.writer.unpark();
        }
    }

    fn drop_lines(&self, local: &mut Buffer) {
        self.shared.tally.dropped.fetch_add(local.lines, Ordering::Relaxed);
        local.bytes.clear();
        local.lines = 0;
    }
}
