//! After a 101: bytes of another protocol, both ways (H8, H35).
//!
//! Nothing is read into them but, for WebSocket, where the origin's frames end: that is where
//! a close frame can be put when the tunnel has to go (I73). Silence in both directions ends
//! the tunnel after the read timeout (I50).

use crate::proxy::conn::{Conn, Expiry, Tunnel};
use bytes::Bytes;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Bytes on their way in each direction.
const BUFFER: usize = 16 * 1024;
/// A close frame without mask, status 1001: the server goes away (RFC 6455 section 7.4.1).
const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];
/// How long the client has to take the close frame.
const GOODBYE: Duration = Duration::from_millis(100);

/// Carries bytes until one side has ended and the other has been told, or nothing moved for
/// too long, or the drain is over. `early`: read already from the client.
pub(super) async fn run<IO>(client: IO, early: Bytes, tunnel: Tunnel, conn: &Rc<Conn>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    conn.is_upgraded();
    let _counted = Counted::new(conn);
    let Tunnel { mut connection, in_flight, websocket } = tunnel;
    poll_fn(|cx| if connection.poll_done(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    let (mut origin, first, pulse) = connection.into_tunnel();
    let mut client = Client { io: client, frames: websocket.then(Frames::default) };
    pulse.silence.watch();
    let ended = {
        let carried = async {
            origin.write_all(&early).await?;
            client.write_all(&first).await?;
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut origin, BUFFER, BUFFER).await
        };
        let mut carried = pin!(carried);
        poll_fn(|cx| {
            if carried.as_mut().poll(cx).is_ready() || pulse.silence.poll(cx, None) {
                return Poll::Ready(None);
            }
            conn.poll_expiry(cx).map_or(Poll::Pending, |expiry| Poll::Ready(Some(expiry)))
        })
        .await
    };
    if ended == Some(Expiry::End) && client.frames.as_ref().is_some_and(Frames::is_between) {
        let goodbye = async {
            client.io.write_all(&GOING_AWAY).await?;
            client.io.shutdown().await
        };
        // Who does not take it now is cut off, which is what the deadline says.
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }
    drop(in_flight);
}

/// Counts the tunnel for as long as it lives.
struct Counted<'a>(&'a Conn);

impl<'a> Counted<'a> {
    fn new(conn: &'a Conn) -> Self {
        conn.worker.recorder.tunnel_opened();
        Self(conn)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.worker.recorder.tunnel_closed();
    }
}

/// The client's side, following the frames that are written to it.
struct Client<IO> {
    io: IO,
    frames: Option<Frames>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Client<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Client<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        if let Some(frames) = &mut self.frames {
            frames.pass(buf.get(..count).unwrap_or_default());
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Where the frames of a WebSocket begin and end, RFC 6455 section 5.2.
#[derive(Debug, Default)]
struct Frames {
    /// Of a frame's head, what has passed: at most 14 bytes.
    head: Vec<u8>,
    /// Payload that has not passed yet.
    payload: u64,
}

impl Frames {
    fn is_between(&self) -> bool {
        self.head.is_empty() && self.payload == 0
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload > 0 {
                let count = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= count as u64;
                bytes = bytes.get(count..).unwrap_or_default();
                continue;
            }
            self.head.push(*first);
            bytes = rest;
            if let Some(length) = payload_length(&self.head) {
                self.payload = length;
                self.head.clear();
            }
        }
    }
}

/// The payload's length, once all of the frame's head is there.
fn payload_length(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let (size, length) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(head.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(head.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(short)),
    };
    (head.len() >= size + mask).then_some(length)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn frames_are_followed_however_they_are_cut() {
        let mut stream = Vec::new();
        for length in [0_usize, 5, 125, 126, 70_000] {
            stream.push(0x82);
            match length {
                0..=125 => stream.push(u8::try_from(length).unwrap()),
                126..=65_535 => {
                    stream.push(126);
                    stream.extend(u16::try_from(length).unwrap().to_be_bytes());
                }
                _ => {
                    stream.push(127);
                    stream.extend((length as u64).to_be_bytes());
                }
            }
            stream.resize(stream.len() + length, 7);
        }
        // A masked one, as only clients send them.
        stream.extend([0x81, 0x83, 1, 2, 3, 4, 9, 9, 9]);
        for size in [1, 2, 3, 1000, stream.len()] {
            let mut frames = Frames::default();
            let mut between = 0;
            for part in stream.chunks(size) {
                assert_eq!(part.len().min(size), part.len());
                frames.pass(part);
                between += usize::from(frames.is_between());
            }
            assert!(frames.is_between(), "{size}");
            if size == 1 {
                assert_eq!(between, 6, "as many moments between frames as there are frames");
            }
            frames.pass(&[0x81]);
            assert!(!frames.is_between());
        }
    }
}
