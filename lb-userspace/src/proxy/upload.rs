//! A request's body on its way to the origin.
//!
//! Streamed, never collected. It is cut at the size limit (I57), must keep to a least rate
//! (H24), and says afterwards what was wrong with it: the origin's side of hyper only knows
//! that it broke. It also knows whether any of it was taken, which is what decides whether the
//! request can be sent to another endpoint (I59).

use crate::proxy::conn::Conn;
use crate::proxy::deadline::{Deadline, millis};
use crate::proxy::error::Refusal;
use crate::proxy::headers;
use crate::proxy::pace::Pace;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The body of a request to an origin; none is empty.
pub(super) struct Upload(Option<Rc<Source>>);

/// Where the body comes from, shared with whoever sends the request.
pub(super) struct Source {
    incoming: RefCell<Incoming>,
    conn: Rc<Conn>,
    deadline: Deadline,
    /// A stream of messages: slow as its makers like, and silent while the answer moves.
    is_stream: Cell<bool>,
    begun: u64,
    /// When something of it came, or of a stream's answer.
    moved: Cell<u64>,
    pace: Pace,
    received: Cell<u64>,
    fault: Cell<Option<Fault>>,
    done: Cell<bool>,
}

/// What was wrong with a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// It is the client's, who can be told.
    Refused(Refusal),
    /// The client went away, or broke the protocol.
    Broken,
}

/// A body that did not come to its end.
#[derive(Debug)]
pub(super) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body was cut off")
    }
}

impl std::error::Error for Cut {}

impl Source {
    /// None for a body that is known to be empty.
    pub(super) fn new(incoming: Incoming, conn: &Rc<Conn>) -> Option<Rc<Self>> {
        if incoming.is_end_stream() {
            return None;
        }
        let now = conn.worker.deadlines.now();
        Some(Rc::new(Self {
            incoming: RefCell::new(incoming),
            conn: Rc::clone(conn),
            deadline: conn.worker.deadlines.add(),
            is_stream: Cell::new(false),
            begun: now,
            moved: Cell::new(now),
            pace: Pace::new(&conn.worker.shared.settings.client),
            received: Cell::new(0),
            fault: Cell::new(None),
            done: Cell::new(false),
        }))
    }

    /// What its head says of its length, in bytes.
    pub(super) fn length(&self) -> Option<u64> {
        self.incoming.borrow().size_hint().exact()
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.get()
    }

    /// Tells whether all of it is still there to be sent.
    pub(super) fn is_untouched(&self) -> bool {
        self.received.get() == 0 && !self.done.get() && self.fault.get().is_none()
    }

    /// Tells whether all of it was received.
    pub(super) fn is_whole(&self) -> bool {
        self.fault.get().is_none() && (self.done.get() || self.incoming.borrow().is_end_stream())
    }

    /// It is one direction of a gRPC exchange over HTTP/2 on both sides (I52).
    pub(super) fn is_stream(&self) {
        self.is_stream.set(true);
    }

    /// Something of the answer came.
    pub(super) fn answer_moves(&self) {
        self.moved.set(self.now());
    }

    /// How long the origin may go on to be silent because of the client: it is the client that
    /// is waited for, and has limits of its own, or something came from it a while ago. Of a
    /// stream, silence counts when it is in both directions.
    pub(super) fn excuse(&self, limit: Duration) -> Option<Duration> {
        if self.pace.is_waiting() && !self.is_stream.get() {
            return Some(limit);
        }
        let left = millis(limit).saturating_sub(self.now().saturating_sub(self.moved.get()));
        (left > 0).then(|| Duration::from_millis(left))
    }

    pub(super) fn received(&self) -> u64 {
        self.received.get()
    }

    fn now(&self) -> u64 {
        self.conn.worker.deadlines.now()
    }

    /// From now on the client is waited for; returns how long at most.
    fn waits(&self) -> Duration {
        let (now, limits) = (self.now(), &self.conn.worker.shared.settings.client);
        let patience = self.pace.waits(now);
        if self.is_stream.get() {
            return limits.stall;
        }
        let total = millis(limits.body).saturating_sub(now.saturating_sub(self.begun));
        patience.min(Duration::from_millis(total))
    }

    fn fail(&self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.fault.set(Some(self.fault.get().unwrap_or(fault)));
        Poll::Ready(Some(Err(Cut)))
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.fault.get().is_some() {
            return Poll::Ready(Some(Err(Cut)));
        }
        let polled = Pin::new(&mut *self.incoming.borrow_mut()).poll_frame(cx);
        let Poll::Ready(frame) = polled else {
            if !self.pace.is_waiting() {
                self.deadline.set(self.waits());
            }
            if self.deadline.poll(cx) {
                let stall = self.conn.worker.shared.settings.client.stall;
                let Some(more) = self.excuse(stall).filter(|_| self.is_stream.get()) else {
                    return self.fail(Fault::Refused(Refusal::TooSlow));
                };
                self.deadline.set(more);
                let _ = self.deadline.poll(cx);
            }
            return Poll::Pending;
        };
        if self.pace.is_waiting() {
            self.pace.goes_on(self.now());
            self.deadline.clear();
        }
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.received.set(self.received.get() + data.len() as u64);
                    self.moved.set(self.now());
                    self.pace.moved(data.len());
                    let limit = self.conn.worker.shared.settings.client.body_size;
                    if limit != 0 && self.received.get() > limit {
                        return self.fail(Fault::Refused(Refusal::BodyTooLarge));
                    }
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Err(frame) => {
                    self.done.set(true);
                    let kept = frame.into_trailers().map(headers::trailers).unwrap_or_default();
                    if kept.is_empty() {
                        Poll::Ready(None)
                    } else {
                        Poll::Ready(Some(Ok(Frame::trailers(kept))))
                    }
                }
            },
            Some(Err(_)) => self.fail(Fault::Broken),
            None => {
                self.done.set(true);
                Poll::Ready(None)
            }
        }
    }
}

impl Upload {
    pub(super) fn new(source: Option<Rc<Source>>) -> Self {
        Self(source)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.0.as_ref().map_or(Poll::Ready(None), |source| source.poll(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|source| source.is_whole())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Some(source) => source.incoming.borrow().size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
