//! Passes on what the programs log (`--bpf-log`).

use super::bpf::Bpf;
use anyhow::Context;
use aya_log::EbpfLogger;
use std::time::Duration;

/// How often lines are looked for: they are for people.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts a task that reads the programs' lines for as long as the process lives. To be
/// called within a tokio runtime.
///
/// # Errors
/// When the programs have no log map.
pub fn follow(bpf: &mut Bpf) -> anyhow::Result<()> {
    let mut logger = EbpfLogger::init(bpf.ebpf()).context("the programs' log cannot be read")?;
    tokio::spawn(async move {
        loop {
            logger.flush();
            tokio::time::sleep(PAUSE).await;
        }
    });
    Ok(())
}
