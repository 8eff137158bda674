//! The tasks of an HTTP/2 connection's streams, each ended when its client takes too little.
//!
//! The library waits for a client's window for as long as the connection lives, and asks nothing
//! of an answer's body meanwhile. So it is from around the stream's task that the client is
//! watched: once a part of the body was handed over, the client has its [pace](Pace) to keep
//! until the library asks for the next. Ending the task resets the stream, and the origin's
//! connection or stream with it (H24).

use crate::proxy::conn::Conn;
use crate::proxy::deadline::Deadline;
use crate::proxy::pace::Pace;
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::task::spawn_local;

/// Runs the streams of a client's connection.
#[derive(Clone)]
pub(super) struct Streams(pub(super) Rc<Conn>);

/// What a stream's task has got of its answer when it was polled.
#[derive(Clone, Copy, Default)]
pub(super) struct Handed {
    pub(super) bytes: usize,
    /// There was no more to be had: the client is not what is waited for.
    pub(super) all: bool,
}

pin_project! {
    struct Stream<F> {
        #[pin]
        task: F,
        conn: Rc<Conn>,
        pace: Pace,
        // Made when the client is waited for first.
        deadline: Option<Deadline>,
    }
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, task: F) {
        let pace = Pace::new(&self.0.worker.shared.settings.client);
        spawn_local(Stream { task, conn: Rc::clone(&self.0), pace, deadline: None });
    }
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let is_over = this.task.poll(cx).is_ready();
        let handed = this.conn.take_handed();
        if is_over {
            return Poll::Ready(());
        }
        if let Some(handed) = handed {
            let now = this.conn.worker.deadlines.now();
            this.pace.goes_on(now);
            this.pace.moved(handed.bytes);
            if !handed.all {
                let deadline = this.deadline.get_or_insert_with(|| this.conn.worker.deadlines.add());
                deadline.set(this.pace.waits(now));
            }
        }
        let is_late = |deadline: &Deadline| this.pace.is_waiting() && deadline.poll(cx);
        if this.deadline.as_ref().is_some_and(is_late) { Poll::Ready(()) } else { Poll::Pending }
    }
}
