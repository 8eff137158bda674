//! Bounds on the first bytes of a connection: a ClientHello of at most 16 KiB.
//!
//! rustls takes handshake messages of up to 64 KiB. A ClientHello with post-quantum shares is
//! below 2 KiB, so the bound is lower here (H29). It holds for what the message says of its
//! own length, before that much is buffered, and for the bytes on the wire, since a record
//! may carry a single byte of it (H28); and it has to be complete soon after its first byte, so
//! that one with a wrong length is not waited for (H29). Everything else about the bytes is rustls's to judge.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Longest ClientHello, without its 4 bytes of header.
pub(super) const LONGEST: usize = 16 << 10;
/// Most bytes on the wire until it is complete: each of its bytes in a record of its own.
const WIRE: usize = 6 * LONGEST;

const HANDSHAKE: u8 = 22;

/// Why the bytes are not read any further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    TooLarge,
    /// They begin as an HTTP request does.
    PlainHttp,
    /// They stopped coming, or come too slowly.
    Slow,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "ClientHello too large",
            Self::PlainHttp => "plain HTTP",
            Self::Slow => "ClientHello too slow",
        })
    }
}

impl std::error::Error for Fault {}

/// Follows record and message headers of the first handshake message.
#[derive(Debug, Default)]
pub(super) struct Hello {
    wire: usize,
    /// Bytes of the record header that have come, and the last two of them: its length.
    header: u8,
    record: [u8; 2],
    /// Bytes left in this record.
    left: usize,
    /// Bytes of the message header that have come, and the last three of them: its length.
    message: u8,
    length: [u8; 3],
    /// Bytes of the message's body that have come.
    body: usize,
    /// Complete, to the end of its last record.
    done: bool,
    /// Not a handshake at all: rustls refuses it once it has the whole record.
    foreign: bool,
}

impl Hello {
    /// Takes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        if self.wire == 0 && bytes.first().is_some_and(u8::is_ascii_uppercase) {
            return Err(Fault::PlainHttp);
        }
        self.wire = self.wire.saturating_add(bytes.len());
        while !self.done && !self.foreign {
            let Some((&byte, rest)) = bytes.split_first() else { break };
            if self.left > 0 && self.message == 4 {
                let step = self.left.min(bytes.len());
                self.left -= step;
                self.body += step;
                bytes = &bytes[step..];
            } else if self.left > 0 {
                bytes = rest;
                self.left -= 1;
                if self.message > 0 {
                    self.length[usize::from(self.message - 1)] = byte;
                }
                self.message += 1;
                if self.message == 4 && self.declared() > LONGEST {
                    return Err(Fault::TooLarge);
                }
            } else {
                bytes = rest;
                self.take_header(byte);
                continue;
            }
            self.done = self.message == 4 && self.left == 0 && self.body >= self.declared();
        }
        if !self.done && self.wire > WIRE { Err(Fault::TooLarge) } else { Ok(()) }
    }

    fn take_header(&mut self, byte: u8) {
        match self.header {
            0 if byte != HANDSHAKE => self.foreign = true,
            0..=2 => {}
            at => self.record[usize::from(at - 3)] = byte,
        }
        self.header += 1;
        if self.header == 5 {
            self.header = 0;
            self.left = usize::from(u16::from_be_bytes(self.record));
        }
    }

    fn declared(&self) -> usize {
        let [high, middle, low] = self.length.map(usize::from);
        high << 16 | middle << 8 | low
    }
}

/// A connection whose reader is held to the bounds.
#[derive(Debug)]
pub(super) struct Guard<IO> {
    io: IO,
    hello: Hello,
    time: Duration,
    /// Set once a part of the message has come.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<IO> Guard<IO> {
    /// `time`: from the message's first byte to its last.
    pub(super) fn new(io: IO, time: Duration) -> Self {
        Self { io, hello: Hello::default(), time, deadline: None }
    }

    pub(super) fn into_inner(self) -> IO {
        self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let fault = |fault| Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, buf) else {
            let late = self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
            return if late { fault(Fault::Slow) } else { Poll::Pending };
        };
        read?;
        let new = buf.filled().get(before..).unwrap_or_default();
        if let Err(found) = self.hello.feed(new) {
            return fault(found);
        }
        if self.hello.done {
            self.deadline = None;
        } else if let Some(deadline) = &self.deadline {
            // Bytes that trickle in do not hold it up.
            if deadline.is_elapsed() || deadline.deadline() <= Instant::now() {
                return fault(Fault::Slow);
            }
        } else {
            self.deadline = Some(Box::pin(sleep(self.time)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// A handshake message of `length` bytes, in records of `size` bytes each.
    fn records(length: usize, size: usize) -> Vec<u8> {
        let [_, length_bytes @ ..] = u32::try_from(length).unwrap().to_be_bytes();
        let message: Vec<u8> =
            [1].into_iter().chain(length_bytes).chain(std::iter::repeat_n(7, length)).collect();
        let record = |part: &[u8]| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[22, 3, 1], &length[..], part].concat()
        };
        message.chunks(size).flat_map(record).collect()
    }

    fn feed(bytes: &[u8], step: usize) -> (Result<(), Fault>, Hello) {
        let mut hello = Hello::default();
        let fed = bytes.chunks(step).try_for_each(|part| hello.feed(part));
        (fed, hello)
    }

    #[test]
    fn a_hello_passes_in_any_pieces_up_to_the_bound() {
        for length in [0, 1, 300, 1_700, LONGEST] {
            for size in [1, 2, 3, 5, 512, 16 << 10] {
                for step in [1, 7, 4096] {
                    let bytes = records(length, size);
                    if bytes.len() > WIRE {
                        continue;
                    }
                    let (fed, hello) = feed(&bytes, step);
                    assert_eq!(fed, Ok(()), "{length} in {size} by {step}");
                    assert!(hello.done, "{length} in {size} by {step}: {hello:?}");
                }
            }
        }
    }

    #[test]
    fn one_byte_more_is_refused_as_soon_as_it_is_said() {
        for size in [1, 4, 5, 16 << 10] {
            let bytes = records(LONGEST + 1, size);
            // Nothing of the body has come yet.
            let head = if size < 4 { 4 * (5 + size) } else { 5 + 4 };
            assert_eq!(feed(&bytes[..head], 1).0, Err(Fault::TooLarge), "{size}");
            assert_eq!(feed(&bytes[..head - 1], 1).0, Ok(()), "{size}");
        }
    }

    #[test]
    fn empty_records_end_at_the_bound_of_the_wire() {
        let bytes = [22, 3, 1, 0, 0].repeat(WIRE / 5 + 1);
        assert_eq!(feed(&bytes, 4096).0, Err(Fault::TooLarge));
        assert_eq!(feed(&bytes[..WIRE], 4096).0, Ok(()));
    }

    #[test]
    fn http_is_told_from_tls_by_its_first_byte() {
        assert_eq!(feed(b"GET / HTTP/1.1\r\n", 16).0, Err(Fault::PlainHttp));
        assert_eq!(feed(b"PRI * HTTP/2.0\r\n", 1).0, Err(Fault::PlainHttp));
        let (fed, hello) = feed(&[21, 3, 1, 0, 2, 1, 0], 7);
        assert!(fed.is_ok() && hello.foreign, "rustls says what is wrong with it");
        // What follows a hello is none of its business.
        let bytes = [records(9, 4), b"GET".to_vec()].concat();
        assert_eq!(feed(&bytes, 3).0, Ok(()));
    }
}
