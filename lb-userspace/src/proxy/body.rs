//! Bodies on their way to the client.

use crate::proxy::conn::Open;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The body of an answer. While it lives, its request is open.
pub(super) struct AnswerBody {
    kind: Kind,
    open: Option<Open>,
}

enum Kind {
    Empty,
    /// The proxy's own words.
    Text(Bytes),
}

impl AnswerBody {
    pub(super) fn empty() -> Self {
        Self { kind: Kind::Empty, open: None }
    }

    pub(super) fn text(text: Bytes) -> Self {
        Self { kind: Kind::Text(text), open: None }
    }

    /// Keeps the request open until the body is dropped.
    pub(super) fn keep(&mut self, open: Open) {
        self.open = Some(open);
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match std::mem::replace(&mut self.kind, Kind::Empty) {
            Kind::Empty => Poll::Ready(None),
            Kind::Text(text) => Poll::Ready(Some(Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Text(text) => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Text(text) => SizeHint::with_exact(text.len() as u64),
        }
    }
}
