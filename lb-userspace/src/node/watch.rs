//! Following the tables: events ask for a re-read, and a slow clock does too.

use super::netlink::{Tables, read};
use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Events come in bursts: a pod's start is a dozen of them.
const DEBOUNCE: Duration = Duration::from_millis(3);
/// Heals what a lost event would leave wrong.
const REREAD: Duration = Duration::from_secs(60);

/// Keeps `tables` current for as long as somebody looks at it.
///
/// Events are read on a socket of their own: one that overflows loses events, never the
/// answer to a question, and is opened again.
pub async fn follow(tables: watch::Sender<Arc<Tables>>) {
    while !tables.is_closed() {
        if let Err(error) = follow_once(&tables).await {
            tracing::warn!(%error, "node facts cannot be followed; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = tables.closed() => return,
        }
    }
}

async fn follow_once(tables: &watch::Sender<Arc<Tables>>) -> anyhow::Result<()> {
    let (events, _handle, mut messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])?;
    let events = tokio::spawn(events);
    let (questions, handle, _) = rtnetlink::new_connection()?;
    let questions = tokio::spawn(questions);
    let result = async {
        loop {
            let started = Instant::now();
            let now = read(&handle).await?;
            tables.send_if_modified(|known| {
                let changed = **known != now;
                if changed {
                    *known = Arc::new(now);
                }
                changed
            });
            // Where reading takes long (full BGP tables), events cannot make it the only
            // thing that this thread does.
            let pause = DEBOUNCE.max(started.elapsed() * 4);
            tokio::select! {
                () = tokio::time::sleep(REREAD) => {}
                () = tables.closed() => return Ok(()),
                message = messages.next() => if message.is_none() {
                    anyhow::bail!("the kernel closed the event socket");
                },
            }
            tokio::time::sleep(pause).await;
            while let Ok(_message) = messages.try_recv() {}
        }
    }
    .await;
    events.abort();
    questions.abort();
    result
}
