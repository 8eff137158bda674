//! Waiting for the node while another agent has it.

use crate::board::{Board, Phase, Snapshot};
use crate::lock::Lock;
use anyhow::Context;
use std::future::{Future, pending};
use tokio::sync::oneshot;

/// Awaits a lock that `acquire` makes, which calls what it is given where it has to wait. Then
/// `rehearse` finds out whether this agent could take over; one that could not must not count as
/// a standby, or a rollout would stop the agent that works.
///
/// # Errors
/// When the lock cannot be had, and with what `rehearse` found.
pub(super) async fn hold<F>(
    acquire: impl FnOnce(Box<dyn FnOnce() + Send>) -> F,
    rehearse: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    board: &Board,
) -> anyhow::Result<Lock>
where
    F: Future<Output = anyhow::Result<Lock>>,
{
    let (wait, waits) = oneshot::channel::<()>();
    let lock = acquire(Box::new(move || {
        // Whoever listens lives as long as the lock is awaited.
        let _told = wait.send(());
    }));
    let standby = async {
        if waits.await.is_err() {
            return pending().await;
        }
        tracing::info!("another agent runs on this node: trying whether this one could take over");
        let tried = tokio::task::spawn_blocking(rehearse).await.context("the rehearsal")?;
        tried.context("another agent runs on this node, and this one could not take over from it")?;
        tracing::info!("standing by");
        board.publish(Snapshot { phase: Phase::Standby, ..Snapshot::default() });
        pending().await
    };
    tokio::select! {
        // The node is free: what the rehearsal would have found is found in earnest.
        biased;
        lock = lock => lock,
        failed = standby => failed,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::lock;
    use anyhow::bail;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn only_who_could_take_over_stands_by() {
        let dir = std::env::temp_dir().join(format!("weir-hold-{}", std::process::id()));
        lock::prepare(&dir).unwrap();
        let board = Board::default();
        let free = hold(|told| lock::acquire(&dir, told), || bail!("nobody to wait for"), &board);
        let first = free.await.unwrap();

        let refused = hold(|told| lock::acquire(&dir, told), || bail!("EPERM"), &board).await;
        let error = format!("{:#}", refused.unwrap_err());
        assert!(error.contains("could not take over") && error.ends_with("EPERM"), "{error}");
        assert_eq!(board.snapshot().phase, Phase::Starting);

        let mut waiting = Box::pin(hold(|told| lock::acquire(&dir, told), || Ok(()), &board));
        assert!(timeout(Duration::from_millis(200), &mut waiting).await.is_err(), "it is held");
        assert_eq!(board.snapshot().phase, Phase::Standby);
        drop(first);
        waiting.await.unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
