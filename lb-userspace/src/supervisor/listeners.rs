//! The sockets that clients connect to: bound or taken over, tried again while a port is taken,
//! kept open whatever becomes of the proxies (H57).

use crate::proxy::control::{ListenerName, ListenerStatus, Scheme};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted; the kernel's own limit may be lower.
const BACKLOG: i32 = 4096;

/// All listeners, in the order of the flags.
#[derive(Debug)]
pub(crate) struct Listeners {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: ListenerName,
    socket: Option<TcpListener>,
    error: Option<String>,
    /// When it is tried next; `None`: not wanted now.
    retry: Option<Instant>,
    wait: Duration,
}

impl Listeners {
    /// The listeners that the flags ask for; none is bound.
    pub(crate) fn new(http: &[SocketAddr], https: &[SocketAddr]) -> Self {
        let wanted =
            [(Scheme::Http, http), (Scheme::Https, https)].into_iter().flat_map(|(scheme, addresses)| {
                addresses.iter().enumerate().map(move |(index, address)| {
                    let number = addresses[..index].iter().filter(|earlier| *earlier == address).count();
                    ListenerName {
                        scheme,
                        address: *address,
                        number: u32::try_from(number).unwrap_or(u32::MAX),
                    }
                })
            });
        let entries = wanted.map(|name| Entry { name, socket: None, error: None, retry: None, wait: FIRST });
        Self { entries: entries.collect() }
    }

    /// Takes over a socket that another supervisor bound; says whether it was wanted.
    pub(crate) fn adopt(&mut self, name: &ListenerName, socket: TcpListener) -> bool {
        let wanted = self.entries.iter_mut().find(|entry| entry.name == *name && entry.socket.is_none());
        let Some(entry) = wanted else { return false };
        *entry =
            Entry { socket: Some(socket), error: None, retry: None, wait: FIRST, name: entry.name.clone() };
        true
    }

    /// From now on, what is missing is bound when [`Self::bind`] is called.
    pub(crate) fn want(&mut self, now: Instant) {
        for entry in self.entries.iter_mut().filter(|entry| entry.socket.is_none()) {
            entry.retry = Some(now);
        }
    }

    /// Binds what is due; returns what is bound now and was not.
    pub(crate) fn bind(&mut self, now: Instant) -> Vec<ListenerName> {
        let mut bound = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| entry.retry.is_some_and(|at| at <= now)) {
            match listen(entry.name.address) {
                Ok(socket) => {
                    tracing::info!(address = %entry.name.address, scheme = ?entry.name.scheme, "listening");
                    entry.socket = Some(socket);
                    entry.error = None;
                    entry.retry = None;
                    entry.wait = FIRST;
                    bound.push(entry.name.clone());
                }
                Err(error) => {
                    let error = error.to_string();
                    if entry.error.as_ref() != Some(&error) {
                        tracing::warn!(address = %entry.name.address, error, "cannot listen; tried again");
                    }
                    entry.error = Some(error);
                    entry.retry = Some(now + entry.wait);
                    entry.wait = LONGEST.min(entry.wait * 2);
                }
            }
        }
        bound
    }

    /// When [`Self::bind`] has something to do.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        self.entries.iter().filter_map(|entry| entry.retry).min()
    }

    /// Closes ours; other processes may hold them too.
    pub(crate) fn release(&mut self) {
        for entry in &mut self.entries {
            entry.socket = None;
            entry.error = None;
            entry.retry = None;
        }
    }

    /// Those that are bound.
    pub(crate) fn bound(&self) -> impl Iterator<Item = (&ListenerName, &TcpListener)> {
        self.entries.iter().filter_map(|entry| Some((&entry.name, entry.socket.as_ref()?)))
    }

    pub(crate) fn status(&self) -> Vec<ListenerStatus> {
        let status = |entry: &Entry| ListenerStatus {
            name: entry.name.clone(),
            bound: entry.socket.as_ref().and_then(|socket| socket.local_addr().ok()),
            error: entry.error.clone(),
        };
        self.entries.iter().map(status).collect()
    }
}

/// Binds; "all addresses" means both families, and IPv4 alone where IPv6 is off.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match listen_at(address) {
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            listen_at((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        result => result,
    }
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    // Shared with the proxies, which wait for connections in an event loop.
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn a_taken_port_is_told_and_tried_again() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut listeners = Listeners::new(&[address], &["127.0.0.1:0".parse().unwrap()]);
        let mut now = Instant::now();
        assert!(listeners.bind(now).is_empty(), "not wanted yet");
        listeners.want(now);
        assert_eq!(listeners.bind(now).len(), 1, "one does not hold up the other");
        assert!(listeners.status()[0].error.as_ref().unwrap().contains("in use"));
        let mut waits = Vec::new();
        for _ in 0..7 {
            let next = listeners.next_retry().unwrap();
            waits.push((next - now).as_millis());
            now = next;
            assert!(listeners.bind(now).is_empty());
        }
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        drop(taken);
        assert_eq!(listeners.bind(listeners.next_retry().unwrap()).len(), 1);
        assert_eq!((listeners.next_retry(), listeners.status()[0].error.clone()), (None, None));
        TcpStream::connect(address).unwrap();
        listeners.release();
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn all_addresses_are_both_families() {
        let socket = listen("[::]:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }

    #[test]
    fn sockets_are_taken_over_by_what_they_were_asked_to_be() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut before = Listeners::new(&[any, any], &[]);
        before.want(Instant::now());
        before.bind(Instant::now());
        let mut after = Listeners::new(&[any, any], &[any]);
        for (name, socket) in before.bound() {
            assert!(after.adopt(name, socket.try_clone().unwrap()));
            assert!(!after.adopt(name, socket.try_clone().unwrap()), "twice");
        }
        let bound =
            |listeners: &Listeners| listeners.status().iter().map(|one| one.bound).collect::<Vec<_>>();
        assert_eq!(bound(&after)[..2], bound(&before));
        assert_eq!(bound(&after)[2], None);
    }
}
