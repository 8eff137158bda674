//! The agent's end of the links to the proxies: what is published here reaches every proxy.
//!
//! Publishing never waits. A proxy that has just been linked gets the whole table, then each
//! step; what a slow one has not taken yet is bounded: past that it gets the whole table again
//! in place of the steps. Nothing is sent before the first publication, which carries all
//! there is (I72). A proxy that goes, or that speaks another protocol, costs nobody anything.

use crate::model::routes::{Routes, Update};
use crate::proxy::channel::{FromProxy, PROTOCOL, Reader, ToProxy, frame, frames, open};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot, watch};

/// Steps that may wait for a slow proxy beside as many as the table has values.
const WAITING: usize = 1024;
/// Longest wait for a proxy's metrics.
const PATIENCE: Duration = Duration::from_millis(500);

/// All links of this agent. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Link {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The newest table that a proxy has said it routes by; 0: none.
    in_force: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    routes: Routes,
    /// Publications so far; 0: nothing is known yet.
    generation: u64,
    next_id: u64,
    proxies: BTreeMap<u64, Proxy>,
}

/// One linked proxy.
#[derive(Debug)]
struct Proxy {
    peer: Peer,
    wake: Arc<Notify>,
    /// It is to be sent the whole table.
    whole: bool,
    steps: Vec<Update>,
    metrics: Vec<oneshot::Sender<String>>,
    asked: usize,
    version: Option<String>,
    applied: u64,
}

/// Which process is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Peer {
    /// Counts the proxies that the supervisor started.
    pub number: u64,
    pub pid: u32,
}

/// What is known of a linked proxy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Linked {
    pub peer: Peer,
    /// `None`: it has not spoken yet.
    pub version: Option<String>,
    /// The newest table that it routes by; 0: none.
    pub applied: u64,
}

/// What a proxy is to be sent.
#[derive(Debug, Default)]
struct Work {
    generation: u64,
    updates: Option<(bool, Vec<Update>)>,
    questions: usize,
}

impl Link {
    /// Publishes the next step, whole values each. The first call carries the whole table,
    /// empty or not; returns the number of this generation.
    pub fn publish(&self, updates: Vec<Update>) -> u64 {
        let mut state = self.state();
        let state = &mut *state;
        state.generation += 1;
        let routes = &state.routes;
        let values = routes.hosts.len() + routes.pools.len() + routes.names.len() + routes.certificates.len();
        for proxy in state.proxies.values_mut() {
            if proxy.steps.len() + updates.len() > WAITING + values {
                proxy.whole = true;
            }
            if proxy.whole {
                proxy.steps = Vec::new();
            } else {
                proxy.steps.extend(updates.iter().cloned());
            }
            proxy.wake.notify_one();
        }
        updates.into_iter().for_each(|update| state.routes.apply(update));
        state.generation
    }

    /// The newest generation that was published; 0: none yet.
    pub fn published(&self) -> u64 {
        self.state().generation
    }

    /// Follows the newest generation that some proxy routes by; 0: none yet.
    pub fn in_force(&self) -> watch::Receiver<u64> {
        self.shared.in_force.subscribe()
    }

    /// The proxies that are linked, oldest first.
    pub fn proxies(&self) -> Vec<Linked> {
        let state = self.state();
        let linked = state.proxies.values().map(|proxy| Linked {
            peer: proxy.peer,
            version: proxy.version.clone(),
            applied: proxy.applied,
        });
        linked.collect()
    }

    /// Some proxy routes by a table of ours (I72).
    pub fn serving(&self) -> bool {
        self.state().proxies.values().any(|proxy| proxy.applied > 0)
    }

    /// Metrics of the newest proxy that has a table; `None` when there is none or it is busy.
    pub async fn metrics(&self) -> Option<String> {
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.state();
            let newest = state.proxies.values_mut().rev().find(|proxy| proxy.applied > 0)?;
            newest.metrics.push(sender);
            newest.wake.notify_one();
        }
        tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
    }

    /// Feeds a proxy for as long as it is there.
    pub async fn attend(&self, peer: Peer, stream: impl AsyncRead + AsyncWrite) {
        let wake = Arc::new(Notify::new());
        let id = self.admit(peer, &wake);
        let (read, write) = tokio::io::split(stream);
        let (read, write) = (std::pin::pin!(read), std::pin::pin!(write));
        let ended = tokio::select! {
            ended = self.listen(id, read) => ended,
            ended = self.feed(id, &wake, write) => ended,
        };
        self.state().proxies.remove(&id);
        match ended {
            Ok(()) => tracing::info!(proxy = peer.number, pid = peer.pid, "the proxy's link is over"),
            Err(error) => {
                tracing::warn!(proxy = peer.number, pid = peer.pid, %error, "the proxy's link failed")
            }
        }
    }

    fn admit(&self, peer: Peer, wake: &Arc<Notify>) -> u64 {
        let mut state = self.state();
        state.next_id += 1;
        let id = state.next_id;
        let proxy = Proxy {
            peer,
            wake: Arc::clone(wake),
            whole: true,
            steps: Vec::new(),
            metrics: Vec::new(),
            asked: 0,
            version: None,
            applied: 0,
        };
        state.proxies.insert(id, proxy);
        id
    }

    /// Sends what is due, for ever.
    async fn feed(&self, id: u64, wake: &Notify, mut write: impl AsyncWrite + Unpin) -> io::Result<()> {
        write.write_all(&frame(&ToProxy::Hello { protocol: PROTOCOL })?).await?;
        loop {
            let Some(work) = self.work(id) else {
                wake.notified().await;
                continue;
            };
            if let Some((whole, updates)) = work.updates {
                for frame in frames(&updates, work.generation, whole) {
                    write.write_all(&frame?).await?;
                }
            }
            for _ in 0..work.questions {
                write.write_all(&frame(&ToProxy::Metrics)?).await?;
            }
        }
    }

    /// What is due now.
    fn work(&self, id: u64) -> Option<Work> {
        let mut state = self.state();
        let state = &mut *state;
        let proxy = state.proxies.get_mut(&id)?;
        let mut work = Work { generation: state.generation, ..Work::default() };
        // Until the other side has said who it is, it is told nothing.
        if state.generation > 0 && proxy.version.is_some() {
            if std::mem::take(&mut proxy.whole) {
                work.updates = Some((true, state.routes.updates()));
            } else if !proxy.steps.is_empty() {
                work.updates = Some((false, std::mem::take(&mut proxy.steps)));
            }
        }
        work.questions = proxy.metrics.len() - proxy.asked;
        proxy.asked = proxy.metrics.len();
        (work.updates.is_some() || work.questions > 0).then_some(work)
    }

    /// Takes what the proxy says, until it ends.
    async fn listen(&self, id: u64, read: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut reader = Reader::new(read);
        while let Some(payload) = reader.next().await? {
            let said = open::<FromProxy>(&payload)?.0;
            let mut state = self.state();
            let published = state.generation;
            let Some(proxy) = state.proxies.get_mut(&id) else { return Ok(()) };
            match said {
                FromProxy::Hello { protocol, version } => {
                    if protocol != PROTOCOL {
                        return Err(io::Error::other(format!("a proxy of version {version}, another build")));
                    }
                    proxy.version = Some(version);
                    proxy.wake.notify_one();
                }
                FromProxy::Applied { generation } => {
                    // It has no way to know of a table that was never sent.
                    proxy.applied = generation.min(published);
                    self.shared.in_force.send_if_modified(|newest| {
                        let grows = *newest < proxy.applied;
                        *newest = proxy.applied.max(*newest);
                        grows
                    });
                }
                FromProxy::Metrics { text } if proxy.asked > 0 => {
                    proxy.asked -= 1;
                    // Whoever asked may have lost patience.
                    let _late = proxy.metrics.remove(0).send(text);
                }
                FromProxy::Metrics { .. } => return Err(io::Error::other("an answer that nobody asked for")),
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::model::routes::{HostPattern, VirtualHost};
    use crate::proxy::channel::{Assembly, Batch};
    use tokio::io::DuplexStream;

    const PEER: Peer = Peer { number: 1, pid: 2 };

    fn host(name: &str) -> Update {
        Update::Host(HostPattern::Exact(name.into()), Some(Arc::new(VirtualHost::default())))
    }

    fn gone(name: &str) -> Update {
        Update::Host(HostPattern::Exact(name.into()), None)
    }

    /// A proxy's end of a link.
    struct Far {
        reader: Reader<tokio::io::ReadHalf<DuplexStream>>,
        write: tokio::io::WriteHalf<DuplexStream>,
    }

    impl Far {
        /// Links a proxy through a pipe that holds so many bytes.
        async fn new(link: &Link, pipe: usize, protocol: u64) -> Self {
            let (near, far) = tokio::io::duplex(pipe);
            let link = link.clone();
            tokio::spawn(async move { link.attend(PEER, near).await });
            let (read, write) = tokio::io::split(far);
            let mut far = Self { reader: Reader::new(read), write };
            let hello = open::<ToProxy>(&far.reader.next().await.unwrap().unwrap()).unwrap().0;
            assert_eq!(hello, ToProxy::Hello { protocol: PROTOCOL });
            far.say(&FromProxy::Hello { protocol, version: "1".into() }).await;
            far
        }

        async fn say(&mut self, what: &FromProxy) {
            self.write.write_all(&frame(what).unwrap()).await.unwrap();
        }

        async fn batch(&mut self) -> Batch {
            let mut assembly = Assembly::default();
            loop {
                let payload = self.reader.next().await.unwrap().unwrap();
                let (head, body) = open::<ToProxy>(&payload).unwrap();
                let ToProxy::Updates { generation, whole, last } = head else { panic!("{head:?}") };
                if let Some(batch) = assembly.take(generation, whole, last, body).unwrap() {
                    return batch;
                }
            }
        }
    }

    #[tokio::test]
    async fn a_proxy_gets_the_whole_table_and_then_the_steps() {
        let link = Link::default();
        let mut far = Far::new(&link, 1 << 16, PROTOCOL).await;
        let early = tokio::time::timeout(Duration::from_millis(50), far.batch());
        assert!(early.await.is_err(), "told before anything is known");
        link.publish(vec![host("a"), host("b")]);
        assert_eq!(
            far.batch().await,
            Batch { generation: 1, whole: true, updates: vec![host("a"), host("b")] }
        );
        link.publish(vec![gone("a")]);
        assert_eq!(far.batch().await, Batch { generation: 2, whole: false, updates: vec![gone("a")] });
        let mut second = Far::new(&link, 1 << 16, PROTOCOL).await;
        assert_eq!(second.batch().await, Batch { generation: 2, whole: true, updates: vec![host("b")] });
        assert!(!link.serving());
        second.say(&FromProxy::Applied { generation: 2 }).await;
        while !link.serving() {
            tokio::task::yield_now().await;
        }
        drop(far);
        while link.proxies().len() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(link.proxies()[0].applied, 2);
    }

    #[tokio::test]
    async fn what_is_in_force_grows_with_what_proxies_have_applied() {
        let link = Link::default();
        let mut in_force = link.in_force();
        let (mut old, mut new) =
            (Far::new(&link, 1 << 16, PROTOCOL).await, Far::new(&link, 1 << 16, PROTOCOL).await);
        link.publish(vec![host("a")]);
        link.publish(vec![host("b")]);
        assert_eq!(*in_force.borrow_and_update(), 0);
        new.say(&FromProxy::Applied { generation: 2 }).await;
        in_force.changed().await.unwrap();
        assert_eq!(*in_force.borrow_and_update(), 2);
        // One that is behind takes nothing back, and one that lies is not believed.
        old.say(&FromProxy::Applied { generation: 1 }).await;
        while link.proxies()[0].applied == 0 {
            tokio::task::yield_now().await;
        }
        new.say(&FromProxy::Applied { generation: 7 }).await;
        link.publish(vec![host("c")]);
        new.say(&FromProxy::Applied { generation: 3 }).await;
        in_force.changed().await.unwrap();
        assert_eq!(*in_force.borrow_and_update(), 3);
    }

    #[tokio::test]
    async fn an_empty_table_is_published_too() {
        let link = Link::default();
        link.publish(Vec::new());
        let mut far = Far::new(&link, 1 << 16, PROTOCOL).await;
        assert_eq!(far.batch().await, Batch { generation: 1, whole: true, updates: Vec::new() });
    }

    #[tokio::test]
    async fn a_slow_proxy_gets_the_whole_table_again_and_its_queue_is_bounded() {
        let link = Link::default();
        // Holds nothing worth the name: the feeder gets stuck at once.
        let mut far = Far::new(&link, 64, PROTOCOL).await;
        link.publish(vec![host("first")]);
        while link.state().proxies[&1].whole {
            tokio::task::yield_now().await;
        }
        for n in 0..10 * WAITING {
            link.publish(vec![host(&format!("h{}", n % 10)), gone("first")]);
            assert!(link.state().proxies[&1].steps.len() <= WAITING + 20);
        }
        let mut routes = Routes::default();
        let mut last = 0;
        while last < link.published() {
            let batch = far.batch().await;
            if batch.whole {
                routes = Routes::default();
            }
            batch.updates.into_iter().for_each(|update| routes.apply(update));
            assert!(batch.generation > last);
            last = batch.generation;
        }
        assert_eq!(routes, link.state().routes);
        assert_eq!(routes.hosts.len(), 10);
    }

    #[tokio::test]
    async fn another_protocol_is_told_nothing() {
        let link = Link::default();
        link.publish(vec![host("a")]);
        let mut far = Far::new(&link, 1 << 16, PROTOCOL ^ 1).await;
        assert!(far.reader.next().await.unwrap().is_none());
        assert_eq!(link.proxies(), []);
    }

    #[tokio::test]
    async fn metrics_are_those_of_the_newest_proxy_with_a_table() {
        let link = Link::default();
        assert_eq!(link.metrics().await, None);
        link.publish(Vec::new());
        let mut far = Far::new(&link, 1 << 16, PROTOCOL).await;
        far.batch().await;
        far.say(&FromProxy::Applied { generation: 1 }).await;
        while !link.serving() {
            tokio::task::yield_now().await;
        }
        let asked = tokio::spawn({
            let link = link.clone();
            async move { link.metrics().await }
        });
        let question = far.reader.next().await.unwrap().unwrap();
        assert_eq!(open::<ToProxy>(&question).unwrap().0, ToProxy::Metrics);
        far.say(&FromProxy::Metrics { text: "lb_x 1\n".into() }).await;
        assert_eq!(asked.await.unwrap().as_deref(), Some("lb_x 1\n"));
        // Silent: given up after a while.
        assert_eq!(link.metrics().await, None);
    }
}
