//! The client's socket as the HTTP side reads and writes it.
//!
//! Tells the connection of each byte that moves or cannot move, which is what its deadlines
//! live on, and gives back first what was read to find out which protocol is spoken.

use crate::proxy::conn::Conn;
use crate::proxy::tls::TlsStream;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A client's connection, plain or within TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

pub(super) struct ClientIo {
    stream: Stream,
    conn: Rc<Conn>,
    /// Read already, to be given first.
    first: Vec<u8>,
}

impl ClientIo {
    pub(super) fn new(stream: Stream, conn: Rc<Conn>) -> Self {
        Self { stream, conn, first: Vec::new() }
    }

    /// Puts bytes in front of what will be read.
    pub(super) fn unread(&mut self, bytes: Vec<u8>) {
        self.first = bytes;
    }

    /// Waits for something to read, without a buffer to read it into.
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        if let Stream::Tls(tls) = &mut self.stream {
            // What came along with the end of the handshake lies in the session, and the socket
            // knows nothing of it. An error is told by the read that follows.
            match tls.get_mut().1.process_new_packets() {
                Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {}
                Ok(_) | Err(_) => return Ok(()),
            }
        }
        self.socket_readable().await
    }

    /// Waits for something to read after a read has found nothing, in the session either.
    pub(super) async fn socket_readable(&self) -> io::Result<()> {
        self.stream.tcp().readable().await
    }

    /// Makes the end of the connection a reset: the client is not to take it for an orderly
    /// end of what it was sent (H11).
    pub(super) fn reset(&self) {
        // It fails only when the connection is gone already.
        let _ = socket2::SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO));
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.first.is_empty() {
            let count = this.first.len().min(buf.remaining());
            buf.put_slice(&this.first[..count]);
            this.first.drain(..count);
            if this.first.is_empty() {
                this.first = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(match &mut this.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        })?;
        if buf.filled().len() > before {
            this.conn.has_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl ClientIo {
    fn tell(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(Ok(count)) => self.conn.has_written(*count),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.conn.cannot_write(),
        }
        result
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        };
        self.tell(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        };
        self.tell(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        };
        match &result {
            Poll::Ready(_) => self.conn.has_flushed(),
            Poll::Pending => self.conn.cannot_write(),
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
