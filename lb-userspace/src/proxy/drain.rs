//! A graceful end (I73, H21), and the list of connections that it needs.
//!
//! Nobody is cut off at once. HTTP/1 connections end after their next answer, which says
//! `Connection: close`: closing an idle one would lose a request that is under way. HTTP/2
//! connections get GOAWAY twice. What is left at the deadline is closed.

use crate::proxy::conn::Conn;
use crate::proxy::worker::Worker;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long connections have to say goodbye after the deadline.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The client connections of one worker.
#[derive(Default)]
pub(super) struct Connections {
    open: RefCell<Slab<Rc<Conn>>>,
    draining: Cell<bool>,
    empty: Notify,
}

impl Connections {
    pub(super) fn count(&self) -> usize {
        self.open.borrow().len()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    pub(super) fn add(&self, conn: &Rc<Conn>) -> usize {
        self.open.borrow_mut().insert(Rc::clone(conn))
    }

    pub(super) fn remove(&self, key: usize) {
        let gone = self.open.borrow_mut().try_remove(key);
        drop(gone);
        if self.count() == 0 {
            self.empty.notify_waiters();
        }
    }

    fn each(&self, mut tell: impl FnMut(&Conn)) {
        self.open.borrow().iter().for_each(|(_, conn)| tell(conn));
    }
}

/// Returns when all connections are done, or soon after the deadline.
pub(super) async fn drain(worker: &Worker, deadline: Duration) {
    let connections = &worker.connections;
    connections.draining.set(true);
    connections.each(Conn::drain);
    if tokio::time::timeout(deadline, gone(connections)).await.is_err() {
        connections.each(Conn::end);
        // Those that do not end by themselves end with the worker.
        let _ = tokio::time::timeout(LAST_WORDS, gone(connections)).await;
    }
}

async fn gone(connections: &Connections) {
    loop {
        let empty = connections.empty.notified();
        if connections.count() == 0 {
            return;
        }
        empty.await;
    }
}
