//! `healthCheckNodePort`: tells load balancers whether this node has an endpoint of a Service
//! (S52 to S54).
//!
//! The reconciler says which Services ask for a port, how many endpoints of each are here, and on
//! which addresses node ports answer; [`serve`] keeps one socket open for each address and port.
//! One that cannot be opened is a problem of its Service, an Event, and tried again; the others
//! go on. The answer is kube-proxy's.

mod answer;
mod tell;

pub use tell::{EventOptions, post};

use crate::board::Board;
use crate::http;
use crate::model::HealthCheck;
use crate::problem::ObjectKey;
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// What is to be served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// As node ports: an unspecified one stands for all addresses of its family.
    pub addresses: BTreeSet<IpAddr>,
    pub checks: BTreeMap<ObjectKey, HealthCheck>,
}

/// Sockets that are open at most: Services times addresses.
const SOCKETS: usize = 4096;
/// A port that is taken is tried again after this, then less and less often: an agent that is
/// replaced has it for a moment yet.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
const BACKLOG: u32 = 128;

/// A socket that could not be opened, for an Event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub service: ObjectKey,
    pub uid: String,
    pub text: String,
}

/// What a socket is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    service: ObjectKey,
    at: SocketAddr,
}

/// The sockets that there should be, and the Services for which there is no room.
fn places(wanted: &Wanted) -> (BTreeSet<Place>, BTreeSet<ObjectKey>) {
    let (mut places, mut left_out) = (BTreeSet::new(), BTreeSet::new());
    for (service, check) in &wanted.checks {
        let here = wanted.addresses.iter().filter(|ip| check.families[usize::from(ip.is_ipv6())]);
        for ip in here {
            if places.len() < SOCKETS {
                places.insert(Place { service: service.clone(), at: SocketAddr::new(*ip, check.port) });
            } else {
                left_out.insert(service.clone());
            }
        }
    }
    (places, left_out)
}

/// Serves what is wanted until the sender is gone.
pub async fn serve(
    mut wanted: watch::Receiver<Arc<Wanted>>,
    board: Arc<Board>,
    failures: mpsc::Sender<Failure>,
) {
    let now = Arc::new(ArcSwap::from(wanted.borrow_and_update().clone()));
    let mut open: BTreeMap<Place, Socket> = BTreeMap::new();
    loop {
        let next = wanted.borrow_and_update().clone();
        now.store(Arc::clone(&next));
        let (places, left_out) = places(&next);
        open.retain(|place, _| places.contains(place));
        for place in places {
            open.entry(place.clone()).or_insert_with(|| {
                let keeper = Keeper {
                    place: place.clone(),
                    wanted: Arc::clone(&now),
                    board: Arc::clone(&board),
                    failures: failures.clone(),
                };
                Socket { place, board: Arc::clone(&board), task: tokio::spawn(keeper.keep()).abort_handle() }
            });
        }
        let none = || {
            (!left_out.is_empty()).then(|| {
                format!("there is room for {SOCKETS} sockets: {} Services find none", left_out.len())
            })
        };
        board.set_part("healthCheckNodePort", none());
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// An open socket, or one that is tried. Dropping it closes it.
struct Socket {
    place: Place,
    board: Arc<Board>,
    task: AbortHandle,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        self.board.set_health_port(&self.place.service, self.place.at, None);
    }
}

/// Keeps one socket open.
struct Keeper {
    place: Place,
    wanted: Arc<ArcSwap<Wanted>>,
    board: Arc<Board>,
    failures: mpsc::Sender<Failure>,
}

impl Keeper {
    async fn keep(self) {
        let mut pause = FIRST_RETRY;
        let mut told = false;
        loop {
            let Place { service, at } = &self.place;
            let error = match listen(*at) {
                Ok(listener) => {
                    pause = FIRST_RETRY;
                    told = false;
                    self.board.set_health_port(service, *at, Some(Ok(())));
                    let (wanted, board, service) =
                        (Arc::clone(&self.wanted), Arc::clone(&self.board), service.clone());
                    let v6 = at.is_ipv6();
                    http::accept(&listener, move |_| {
                        std::future::ready(answer::answer(&service, v6, &wanted.load(), &board))
                    })
                    .await
                }
                Err(error) => error,
            };
            self.board.set_health_port(service, *at, Some(Err(error.to_string())));
            // The predecessor of an agent lets go of it within a moment.
            if !told && pause > FIRST_RETRY * 8 {
                told = true;
                self.fail(&error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    fn fail(&self, error: &std::io::Error) {
        let wanted = self.wanted.load();
        let Place { service, at } = &self.place;
        let Some(check) = wanted.checks.get(service) else { return };
        // In kube-proxy's words. One that finds no room is a problem all the same.
        let text = format!("node {at} failed to start healthcheck {service} on port {}: {error}", at.port());
        let _full =
            self.failures.try_send(Failure { service: service.clone(), uid: check.uid.clone(), text });
    }
}

/// An IPv6 socket takes no IPv4 connections: that family has one of its own, or none.
fn listen(at: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if at.is_ipv6() {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
        socket.set_only_v6(true)?;
        socket.set_nonblocking(true)?;
        TcpSocket::from_std_stream(socket.into())
    } else {
        TcpSocket::new_v4()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests;
