//! One kind's watch: what the server says, turned into changes.

use super::{Backoff, Teller, reference};
use crate::problem::{Kind, ObjectRef};
use crate::source::{Change, Object};
use ::kube::Api;
use ::kube::runtime::watcher::{self, Event, watcher};
use futures_util::StreamExt;
use k8s_openapi::serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::pin::pin;
use tokio::sync::Notify;
use tokio::time::sleep;

/// Events that are there at once are one batch, up to so many.
const BATCH: usize = 256;
/// Failures in a row before one that may pass by itself is told as a problem.
const PATIENCE: u32 = 3;

/// Turns events into changes; a list is kept back until it is whole.
struct Folder<P> {
    kind: Kind,
    project: P,
    list: Vec<Object>,
    batch: Vec<Change>,
}

impl<P> Folder<P> {
    /// Takes one event. An object that is none of ours (`Err` of the projection) is deleted,
    /// since it may have been ours before.
    fn take<K>(&mut self, event: Event<K>)
    where
        K: ::kube::Resource,
        P: FnMut(K) -> Result<Object, ObjectRef>,
    {
        match event {
            Event::Init => self.list = Vec::new(),
            Event::InitApply(object) => self.list.extend((self.project)(object)),
            Event::InitDone => {
                // What came before the relist is in it already.
                self.batch = vec![Change::Replace(self.kind, std::mem::take(&mut self.list))];
            }
            Event::Apply(object) => self.batch.push(match (self.project)(object) {
                Ok(object) => Change::Upsert(object),
                Err(gone) => Change::Delete(gone),
            }),
            Event::Delete(object) => self.batch.push(Change::Delete(reference(self.kind, &object))),
        }
    }
}

/// Watches one kind for ever.
pub(super) async fn watch<K, P>(
    kind: Kind,
    api: Api<K>,
    config: watcher::Config,
    project: P,
    doubt: &Notify,
    teller: &Teller,
) where
    K: ::kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    P: FnMut(K) -> Result<Object, ObjectRef>,
{
    let part = format!("watch of {kind}");
    let mut folder = Folder { kind, project, list: Vec::new(), batch: Vec::new() };
    let mut backoff = Backoff::default();
    let mut events = pin!(watcher(api, config).ready_chunks(BATCH));
    while let Some(chunk) = events.next().await {
        let mut failure = None;
        let mut listed = false;
        for event in chunk {
            match event {
                Ok(event) => {
                    listed |= matches!(event, Event::InitDone);
                    // The first sign of life is an event, not the attempt to list.
                    if !matches!(event, Event::Init) {
                        failure = None;
                        backoff.reset();
                    }
                    folder.take(event);
                }
                Err(error) => failure = Some(error),
            }
        }
        if !folder.batch.is_empty() {
            let batch = std::mem::take(&mut folder.batch);
            teller.note(kind, &batch);
            if listed {
                teller.syncs.listed(kind)
            } else {
                teller.syncs.event(kind)
            }
            teller.tell(&part, None).await;
            teller.send(batch).await;
        }
        let Some(error) = failure else { continue };
        let pause = backoff.next();
        let reason = reason(kind, &error);
        tracing::debug!(%kind, error = reason, "watch");
        teller.syncs.failed(kind, reason.clone());
        if is_refusal(&error) || backoff.failures >= PATIENCE {
            teller.tell(&part, Some(reason)).await;
        }
        if !is_refusal(&error) {
            doubt.notify_one();
        }
        sleep(pause).await;
    }
}

fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => {
            if let ::kube::Error::Api(status) = error {
                Some(status.code)
            } else {
                None
            }
        }
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::NoResourceVersion => None,
    }
}

/// The server is there and says no: that does not pass by itself.
fn is_refusal(error: &watcher::Error) -> bool {
    matches!(status(error), Some(401 | 403 | 404))
}

fn reason(kind: Kind, error: &watcher::Error) -> String {
    let said = match error {
        watcher::Error::InitialListFailed(::kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(::kube::Error::Api(status))
        | watcher::Error::WatchFailed(::kube::Error::Api(status)) => status.message.clone(),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error.to_string(),
        watcher::Error::NoResourceVersion => error.to_string(),
    };
    match status(error) {
        Some(code @ (401 | 403 | 404)) => {
            format!("the API server refuses {kind} ({code}): {said}; tried again, what is known stays")
        }
        Some(code) => format!("the watch of {kind} fails ({code}): {said}; tried again, what is known stays"),
        None => format!("the watch of {kind} fails: {said}; tried again, what is known stays"),
    }
}
