//! Bodies on their way to the client.
//!
//! An origin's body is handed on as it comes, trailers included. The connection that it comes
//! over is driven here, only when the client can take more: that is the back-pressure. Where
//! it breaks, the client's answer is broken off as well, never ended cleanly (H11).

use crate::proxy::account::Account;
use crate::proxy::deadline::Deadline;
use crate::proxy::headers;
use crate::proxy::silence::Silence;
use crate::proxy::table::InFlight;
use crate::proxy::upload::{Cut, Source};
use crate::proxy::upstream::{Http1, Stream};
use crate::proxy::worker::Worker;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The body of an answer. While it lives, its request is open.
pub(super) struct AnswerBody {
    kind: Kind,
    /// When the whole answer must have come: a gRPC client's own deadline (I52).
    total: Option<Deadline>,
    account: Option<Box<Account>>,
}

enum Kind {
    Empty,
    /// The proxy's own words.
    Text(Bytes),
    Http1(Http1Body),
    Http2(Http2Body),
}

/// An answer over an HTTP/1 connection, which goes back to its pool at the end.
pub(super) struct Http1Body {
    pub(super) incoming: Incoming,
    pub(super) connection: Option<Box<Http1>>,
    pub(super) worker: Rc<Worker>,
    pub(super) source: Option<Rc<Source>>,
    pub(super) _in_flight: InFlight,
}

/// An answer over a stream of an HTTP/2 connection.
pub(super) struct Http2Body {
    pub(super) incoming: Incoming,
    pub(super) silence: Silence,
    pub(super) source: Option<Rc<Source>>,
    pub(super) _stream: Stream,
    pub(super) _in_flight: InFlight,
}

impl AnswerBody {
    fn new(kind: Kind) -> Self {
        Self { kind, total: None, account: None }
    }

    pub(super) fn empty() -> Self {
        Self::new(Kind::Empty)
    }

    pub(super) fn text(text: Bytes) -> Self {
        Self::new(Kind::Text(text))
    }

    pub(super) fn http1(mut body: Http1Body) -> Self {
        if body.incoming.is_end_stream() {
            body.finish();
            return Self::empty();
        }
        Self::new(Kind::Http1(body))
    }

    pub(super) fn http2(body: Http2Body) -> Self {
        if body.incoming.is_end_stream() { Self::empty() } else { Self::new(Kind::Http2(body)) }
    }

    /// Breaks the answer off at a deadline.
    pub(super) fn limit(&mut self, total: Deadline) {
        self.total = Some(total);
    }

    /// Keeps the request open until the body is dropped.
    pub(super) fn keep(&mut self, account: Box<Account>) {
        self.account = Some(account);
    }
}

/// Leaves out of trailers what has no place there.
fn cleaned(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => Frame::trailers(headers::trailers(trailers)),
        Err(frame) => frame,
    }
}

impl Http1Body {
    /// The answer is complete: the connection is free for the next request.
    fn finish(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.silence().rest();
            let now = self.worker.deadlines.now();
            self.worker.idle.put(connection, now, &self.worker.shared.settings.upstream);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        // Frames come out of the connection, which is polled here: only it needs to wake.
        let mut nobody = Context::from_waker(Waker::noop());
        let mut polled = Pin::new(&mut self.incoming).poll_frame(&mut nobody);
        if let Some(connection) = &mut self.connection
            && polled.is_pending()
        {
            let is_done = connection.poll_done(cx);
            polled = Pin::new(&mut self.incoming).poll_frame(&mut nobody);
            if polled.is_pending() && is_done {
                polled = Poll::Ready(None);
            }
        }
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(connection) = &self.connection {
                    connection.silence().rest();
                }
                if self.incoming.is_end_stream() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(cleaned(frame))))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => {
                self.connection = None;
                Poll::Ready(Some(Err(Cut)))
            }
            Poll::Pending => self.poll_silence(cx),
        }
    }

    fn poll_silence(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Some(connection) = &self.connection else { return Poll::Ready(Some(Err(Cut))) };
        let silence = connection.silence();
        silence.watch();
        if !silence.poll(cx, self.source.as_deref()) {
            return Poll::Pending;
        }
        self.connection = None;
        Poll::Ready(Some(Err(Cut)))
    }
}

impl Http2Body {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) {
            self.silence.rest();
            if let Some(source) = &self.source {
                source.answer_moves();
            }
            return Poll::Ready(frame.map(|frame| frame.map(cleaned).map_err(|_| Cut)));
        }
        self.silence.watch();
        if self.silence.poll(cx, self.source.as_deref()) {
            return Poll::Ready(Some(Err(Cut)));
        }
        Poll::Pending
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        if this.total.as_ref().is_some_and(|total| total.poll(cx)) {
            this.kind = Kind::Empty;
            return Poll::Ready(Some(Err(Cut)));
        }
        let polled = match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Text(text) => {
                let text = std::mem::take(text);
                this.kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(text))))
            }
            Kind::Http1(body) => body.poll_frame(cx),
            Kind::Http2(body) => body.poll_frame(cx),
        };
        let Poll::Ready(frame) = polled else {
            if let Some(account) = &this.account {
                account.conn().has_handed_all();
            }
            return Poll::Pending;
        };
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(account), Some(data)) = (&this.account, frame.data_ref()) {
                    account.sent(data.len());
                    account.conn().has_handed(data.len());
                }
            }
            Some(Err(Cut)) => {
                // What the answer held goes at once: the origin is to know that nobody reads on.
                this.kind = Kind::Empty;
                if let Some(account) = &this.account {
                    account.conn().breaks_off();
                }
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Text(text) => text.is_empty(),
            Kind::Http1(body) => body.incoming.is_end_stream(),
            Kind::Http2(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Text(text) => SizeHint::with_exact(text.len() as u64),
            Kind::Http1(body) => body.incoming.size_hint(),
            Kind::Http2(body) => body.incoming.size_hint(),
        }
    }
}
