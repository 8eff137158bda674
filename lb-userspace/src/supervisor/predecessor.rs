//! The supervisor before us, or the proxy that it left: gets its listeners, and relieves it.

use crate::proxy::control::Succession;
use crate::proxy::handover::{Offer, ask};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// Pause before somebody who answered wrongly, or went, is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// What is found out.
#[derive(Debug)]
pub(super) enum Found {
    /// Nobody holds listeners: they are ours to bind.
    Nobody,
    Offered(Vec<Offer>),
    /// It knows that we serve.
    Relieved,
}

/// Looks after the predecessor until it is relieved or gone.
#[derive(Debug)]
pub(super) struct Predecessor {
    relieve: Option<oneshot::Sender<()>>,
    task: AbortHandle,
}

impl Predecessor {
    /// Asks at `path`.
    pub(super) fn look(path: PathBuf, found: mpsc::Sender<Found>) -> Self {
        let (relieve, relieved) = oneshot::channel();
        let task = tokio::spawn(async move { look(&path, &found, relieved).await });
        Self { relieve: Some(relieve), task: task.abort_handle() }
    }

    /// We serve: it may drain.
    pub(super) fn relieve(&mut self) {
        if let Some(relieve) = self.relieve.take() {
            // There was none, or it is gone.
            let _nobody = relieve.send(());
        }
    }
}

impl Drop for Predecessor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(path: &Path, found: &mpsc::Sender<Found>, mut relieved: oneshot::Receiver<()>) {
    let mut serving = false;
    loop {
        let (holder, offers) = match ask(path).await {
            Ok(Some(held)) => held,
            Ok(None) => {
                // Nobody hears it when we are ending.
                let _ending = found.send(Found::Nobody).await;
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "the earlier weir does not answer");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let _ending = found.send(Found::Offered(offers)).await;
        loop {
            if serving {
                if holder.send(&Succession::Done, None).await.is_err() {
                    break;
                }
                let _ending = found.send(Found::Relieved).await;
                return;
            }
            tokio::select! {
                said = holder.recv::<Succession>() => if !matches!(said, Ok(Some(_))) { break },
                told = &mut relieved => match told {
                    Ok(()) => serving = true,
                    // We are ending.
                    Err(_) => return,
                },
            }
        }
        // A supervisor that goes leaves its proxy to answer.
        tokio::time::sleep(PAUSE).await;
    }
}
