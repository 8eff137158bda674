//! The agent's side of its supervisor: which proxies there are, how things stand, and that the
//! agent ends with it.

use crate::board::Board;
use crate::link::{Link, Peer};
use crate::proxy::channel::PROTOCOL;
use crate::proxy::control::{Control, Order, ProxyState, Report, Status, View, inherited};
use anyhow::Context;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::fmt::Write;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

/// Takes the control socket, and ends with the supervisor from now on, however that ends: the
/// next one starts an agent of its own.
///
/// # Errors
/// When this process was started by something else.
pub(super) fn inherit() -> anyhow::Result<OwnedFd> {
    let control = inherited()?;
    // Only what tools show.
    let _cosmetic = rustix::thread::set_name(c"weir-agent");
    // One that is gone by now is seen by the end of its socket.
    set_parent_process_death_signal(Some(Signal::KILL)).context("PR_SET_PDEATHSIG")?;
    Ok(control)
}

/// Follows the supervisor, if there is one. Notify the first when the agent works; the second
/// is over when the supervisor is gone.
pub(super) fn follow(
    tasks: &mut JoinSet<()>,
    supervisor: Option<OwnedFd>,
    link: &Link,
    board: &Arc<Board>,
) -> anyhow::Result<(Arc<Notify>, impl Future<Output = ()> + use<>)> {
    let up = Arc::new(Notify::new());
    let (gone, seen) = oneshot::channel::<()>();
    if let Some(supervisor) = supervisor {
        let control = Control::new(supervisor).context("the supervisor cannot be heard")?;
        let (up, link, board) = (Arc::clone(&up), link.clone(), Arc::clone(board));
        tasks.spawn(async move {
            attend(&control, &up, &link, &board).await;
            // Nobody waits for it when the agent is stopping.
            let _stopping = gone.send(());
        });
    }
    let over = async move {
        // The task does not end before the supervisor; without one, this never is.
        if seen.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    Ok((up, over))
}

async fn attend(control: &Control, up: &Notify, link: &Link, board: &Board) {
    let mut links = JoinSet::new();
    let version = env!("CARGO_PKG_VERSION").into();
    let hello = Report::Hello { protocol: PROTOCOL, version, view: View::default() };
    // A supervisor that is gone is noticed below.
    let _gone = control.send(&hello, None).await;
    loop {
        tokio::select! {
            order = control.recv::<Order>() => match order {
                Ok(Some((Order::Link { number, pid }, Some(stream)))) => {
                    let link = link.clone();
                    links.spawn(async move {
                        if let Err(error) = feed(&link, Peer { number, pid }, stream).await {
                            tracing::error!(proxy = number, %error, "the proxy cannot be fed");
                        }
                    });
                }
                Ok(Some((Order::Status(status), _))) => board.set_surroundings(status),
                // Meant for proxies.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            },
            () = up.notified() => {
                let _gone = control.send(&Report::Up, None).await;
            }
            Some(_) = links.join_next() => {}
        }
    }
}

async fn feed(link: &Link, peer: Peer, stream: OwnedFd) -> std::io::Result<()> {
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(true)?;
    link.attend(peer, tokio::net::UnixStream::from_std(stream)?).await;
    Ok(())
}

/// Puts the metrics of the processes, and those of the proxy, in front of the text's end mark.
pub(super) async fn append(text: &mut String, status: &Status, link: &Link) {
    let ended = text.trim_end().strip_suffix("# EOF").map(str::len);
    if let Some(length) = ended {
        text.truncate(length);
    }
    text.push_str(&processes(status, link));
    if let Some(proxy) = link.metrics().await {
        text.push_str(&proxy);
    }
    text.push_str("# EOF\n");
}

fn processes(status: &Status, link: &Link) -> String {
    let count = |state| status.proxies.iter().filter(|proxy| proxy.state == state).count();
    let linked = link.proxies();
    let applied = linked.iter().map(|linked| linked.applied).max().unwrap_or(0);
    let newest = status.proxies.iter().map(|proxy| proxy.number).max().unwrap_or(0);
    let mut text = String::new();
    for (name, kind, help, rows) in [
        (
            "lb_supervisor_restarts",
            "counter",
            "Processes that ended unasked and were started again",
            &[
                ("_total{process=\"agent\"}", status.agent_restarts),
                ("_total{process=\"proxy\"}", status.proxy_restarts),
            ][..],
        ),
        (
            "lb_proxy_processes_count",
            "gauge",
            "Proxy processes, by state",
            &[
                ("{state=\"starting\"}", count(ProxyState::Starting) as u64),
                ("{state=\"serving\"}", count(ProxyState::Serving) as u64),
                ("{state=\"draining\"}", count(ProxyState::Draining) as u64),
            ],
        ),
        ("lb_proxy_process_number", "gauge", "Number of the newest proxy process", &[("", newest)]),
        (
            "lb_proxy_table_generation",
            "gauge",
            "Routing tables published, and the newest that a proxy routes by",
            &[("{state=\"published\"}", link.published()), ("{state=\"applied\"}", applied)],
        ),
    ] {
        // Writing to a String cannot fail.
        let _written = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}");
        for (labels, value) in rows {
            let _written = writeln!(text, "{name}{labels} {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_mark_stays_last_and_every_family_is_told() {
        let mut text = "# TYPE lb_x gauge\nlb_x 1\n# EOF\n".to_string();
        let status = Status { agent_restarts: 2, ..Status::default() };
        append(&mut text, &status, &Link::default()).await;
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(
            text.starts_with("# TYPE lb_x gauge\nlb_x 1\n# HELP ") && text.ends_with("# EOF\n"),
            "{text}"
        );
        assert!(text.contains("\nlb_supervisor_restarts_total{process=\"agent\"} 2\n"), "{text}");
        assert!(text.contains("\nlb_proxy_table_generation{state=\"applied\"} 0\n"), "{text}");
    }
}
