//! Idle connections of one worker to its origins.
//!
//! By address, so that a Service behind several routes, or an endpoint in several pools, uses
//! the same ones. The connection that was used last is used first: the others grow old and go.
//! What an origin has closed is noticed when it is taken, and by the sweep.

use crate::proxy::deadline::millis;
use crate::proxy::settings::UpstreamLimits;
use crate::proxy::upstream::{Http1, Http2};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;

#[derive(Default)]
pub(super) struct Idle {
    #[expect(clippy::vec_box, reason = "a connection is large and moves between requests and this list")]
    http1: RefCell<HashMap<SocketAddr, Vec<Box<Http1>>>>,
    count: Cell<usize>,
    /// Shared connections, each with when it was used last; streams are their concurrency, and
    /// another one is made only when those that are there have no room.
    http2: RefCell<HashMap<SocketAddr, Vec<(Http2, u64)>>>,
}

impl Idle {
    /// Takes a connection that is still open. `probe`: the kernel is asked.
    pub(super) fn take(&self, address: SocketAddr, probe: bool) -> Option<Box<Http1>> {
        loop {
            let mut connection = self.http1.borrow_mut().get_mut(&address)?.pop()?;
            self.count.set(self.count.get().saturating_sub(1));
            if connection.is_usable(probe) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request, if it is fit for one and there is room.
    pub(super) fn put(&self, mut connection: Box<Http1>, now: u64, limits: &UpstreamLimits) {
        if self.count.get() < limits.idle_connections
            && connection.requests < limits.requests
            && connection.is_usable(false)
        {
            connection.idle_since = now;
            self.count.set(self.count.get() + 1);
            self.http1.borrow_mut().entry(connection.address).or_default().push(connection);
        }
    }

    /// Drops all to an address: one of them was found dead.
    pub(super) fn forget(&self, address: SocketAddr) {
        let gone = self.http1.borrow_mut().remove(&address).unwrap_or_default();
        self.count.set(self.count.get().saturating_sub(gone.len()));
    }

    /// A shared HTTP/2 connection to an address, with room for one more stream.
    pub(super) fn shared(&self, address: SocketAddr, now: u64) -> Option<Http2> {
        let mut shared = self.http2.borrow_mut();
        let with_room = |(connection, _): &&mut (Http2, u64)| connection.has_room();
        let (connection, used) = shared.get_mut(&address)?.iter_mut().find(with_room)?;
        *used = now;
        Some(connection.clone())
    }

    /// Shares a new connection, unless another was made at the same time and has room: then it
    /// is used once.
    pub(super) fn share(&self, address: SocketAddr, connection: Http2, now: u64) {
        let mut shared = self.http2.borrow_mut();
        let connections = shared.entry(address).or_default();
        connections.retain(|(connection, _)| connection.is_usable());
        if !connections.iter().any(|(connection, _)| connection.has_room()) {
            connections.push((connection, now));
        }
    }

    /// Opens no more streams over a connection; those that are open go on.
    pub(super) fn unshare(&self, address: SocketAddr, connection: &Http2) {
        if let Some(connections) = self.http2.borrow_mut().get_mut(&address) {
            connections.retain(|(shared, _)| !shared.is(connection));
        }
    }

    /// Drops what was idle for too long, and what its origin has closed.
    pub(super) fn sweep(&self, now: u64, limits: &UpstreamLimits) {
        let oldest = now.saturating_sub(millis(limits.idle));
        let mut left = 0;
        self.http1.borrow_mut().retain(|_, connections| {
            connections
                .retain_mut(|connection| connection.idle_since >= oldest && connection.is_usable(false));
            // A burst's room is not kept.
            connections.shrink_to(8);
            left += connections.len();
            !connections.is_empty()
        });
        self.count.set(left);
        // Streams hold their own handle: one that is still used only loses its place here.
        self.http2.borrow_mut().retain(|_, connections| {
            connections.retain(|(connection, used)| *used >= oldest && connection.is_usable());
            !connections.is_empty()
        });
    }
}
