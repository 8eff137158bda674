//! One watch: what the server says of its subject, turned into changes.

use super::{Backoff, Teller, reference};
use crate::problem::{Kind, ObjectRef};
use crate::source::{Batch, Change, Object};
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

/// What a watch is of, and what its events mean.
pub(super) trait Subject<K> {
    fn kind(&self) -> Kind;

    /// How problems name the watch.
    fn part(&self) -> String {
        format!("watch of {}", self.kind())
    }

    /// An object that came or changed, projected at once; `None` when it concerns nobody.
    fn take(&mut self, object: K) -> Option<Change>;

    /// An object that is gone.
    fn lose(&mut self, object: &K) -> Option<Change>;

    /// The whole list, as [`Self::take`] made it.
    fn list(&mut self, list: Vec<Change>) -> Batch;

    /// Reading does not work, and why: what follows from that beside the problem that is told.
    fn fail(&mut self, reason: &str) -> Batch;

    /// Whether the watch ends when it is forbidden, since there is another way to read.
    fn yields(&self) -> bool {
        false
    }
}

/// All objects of a kind.
pub(super) struct Whole<P> {
    pub(super) kind: Kind,
    /// Answers the compact form, or which object is none of ours: it may have been before.
    pub(super) project: P,
}

impl<K, P> Subject<K> for Whole<P>
where
    K: ::kube::Resource,
    P: FnMut(K) -> Result<Object, ObjectRef>,
{
    fn kind(&self) -> Kind {
        self.kind
    }

    fn take(&mut self, object: K) -> Option<Change> {
        Some((self.project)(object).map_or_else(Change::Delete, Change::Upsert))
    }

    fn lose(&mut self, object: &K) -> Option<Change> {
        Some(Change::Delete(reference(self.kind, object)))
    }

    fn list(&mut self, list: Vec<Change>) -> Batch {
        let object = |change| if let Change::Upsert(object) = change { Some(object) } else { None };
        vec![Change::Replace(self.kind, list.into_iter().filter_map(object).collect())]
    }

    fn fail(&mut self, _reason: &str) -> Batch {
        Batch::new()
    }
}

/// Turns events into changes; a list is kept back until it is whole.
struct Folder<S> {
    subject: S,
    list: Vec<Change>,
    batch: Batch,
}

impl<S> Folder<S> {
    fn take<K>(&mut self, event: Event<K>)
    where
        S: Subject<K>,
    {
        match event {
            Event::Init => self.list = Vec::new(),
            Event::InitApply(object) => self.list.extend(self.subject.take(object)),
            Event::InitDone => {
                // What came before the relist is in it already.
                self.batch = self.subject.list(std::mem::take(&mut self.list));
            }
            Event::Apply(object) => self.batch.extend(self.subject.take(object)),
            Event::Delete(object) => self.batch.extend(self.subject.lose(&object)),
        }
    }
}

/// Watches one subject for ever, or until it is forbidden and [yields](Subject::yields).
pub(super) async fn watch<K, S>(
    subject: S,
    api: Api<K>,
    config: watcher::Config,
    doubt: &Notify,
    teller: &Teller,
) where
    K: ::kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    S: Subject<K>,
{
    let kind = subject.kind();
    let part = subject.part();
    let mut folder = Folder { subject, list: Vec::new(), batch: Batch::new() };
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
        let batch = std::mem::take(&mut folder.batch);
        if listed || !batch.is_empty() {
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
        if status(&error) == Some(403) && folder.subject.yields() {
            return;
        }
        // The kind is younger than the server.
        if status(&error) == Some(404) && kind == Kind::ServiceCidr {
            teller.send(folder.subject.list(Vec::new())).await;
            return;
        }
        let pause = backoff.next();
        let reason = reason(kind, &error);
        tracing::debug!(%kind, error = reason, "watch");
        teller.syncs.failed(kind, reason.clone());
        if is_refusal(&error) || backoff.failures >= PATIENCE {
            // A server that is away is no answer.
            if status(&error).is_some() {
                teller.send(folder.subject.fail(&reason)).await;
            }
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
