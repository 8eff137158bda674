//! Waiting on a condition with a deadline.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Tries `f` until it gives a value; after `deadline` fails with what was waited for and
/// why the last try did not do.
///
/// # Errors
/// When the deadline passes.
pub fn until<T>(what: &str, deadline: Duration, mut f: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match f() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                bail!("{what}: not within {deadline:?}: {error:#}")
            }
            Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
        }
    }
}
