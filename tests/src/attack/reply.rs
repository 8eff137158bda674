//! Reads HTTP/1.1 answers one after the other, as a careful client does, and says whether
//! each of them came whole.

use super::exchange::{Wire, is_timeout};
use std::time::{Duration, Instant};

/// One answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body ended where its head said that it would.
    pub whole: bool,
    /// Another request may follow on the connection.
    pub reusable: bool,
    /// HTTP/1.0: the connection ends unless the answer says otherwise.
    old: bool,
}

impl Reply {
    /// The body as text, without blanks around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn says(&self, name: &str, word: &str) -> bool {
        self.value(name).is_some_and(|value| value.to_ascii_lowercase().contains(word))
    }
}

/// What came in place of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nothing {
    /// The connection ended before an answer began.
    Ended,
    /// Nothing until time was up; the connection is open.
    Silent,
    /// What came is no answer.
    Garbage,
}

/// A connection, and what of it was read too far.
#[derive(Debug)]
pub struct Replies<W> {
    pub wire: W,
    read: Vec<u8>,
    ended: bool,
}

impl<W: Wire> Replies<W> {
    pub fn new(wire: W) -> Self {
        Self { wire, read: Vec::new(), ended: false }
    }

    /// The next final answer; interim ones are passed over, 101 is final. `head`: to a HEAD
    /// request, so without a body.
    ///
    /// # Errors
    /// When none comes.
    pub fn next(&mut self, head: bool, patience: Duration) -> Result<Reply, Nothing> {
        let until = Instant::now() + patience;
        loop {
            let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") else {
                if !self.more(until) {
                    return Err(match (self.ended, self.read.is_empty()) {
                        (true, true) => Nothing::Ended,
                        (false, true) => Nothing::Silent,
                        (_, false) => Nothing::Garbage,
                    });
                }
                continue;
            };
            let mut reply = parse(&self.read[..end + 4]).ok_or(Nothing::Garbage)?;
            self.read.drain(..end + 4);
            if (100..200).contains(&reply.status) && reply.status != 101 {
                continue;
            }
            self.body(&mut reply, head, until);
            let kept = if reply.old { reply.says("connection", "keep-alive") } else { true };
            reply.reusable = reply.whole && !self.ended && kept && !reply.says("connection", "close");
            return Ok(reply);
        }
    }

    /// Whether the other side closes within that time, and sends nothing before.
    pub fn ends(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.read.is_empty() && self.more(until) {}
        self.read.is_empty() && self.ended
    }

    fn body(&mut self, reply: &mut Reply, head: bool, until: Instant) {
        if head || matches!(reply.status, 101 | 204 | 304) {
            reply.whole = true;
        } else if reply.says("transfer-encoding", "chunked") {
            reply.whole = self.chunks(&mut reply.body, until).is_some();
        } else if let Some(length) = reply.value("content-length").and_then(|text| text.parse().ok()) {
            reply.whole = self.take(length, &mut reply.body, until).is_some();
        } else {
            while self.more(until) {}
            reply.body = std::mem::take(&mut self.read);
            reply.whole = self.ended;
        }
    }

    fn chunks(&mut self, body: &mut Vec<u8>, until: Instant) -> Option<()> {
        loop {
            let line = self.line(until)?;
            let size = usize::from_str_radix(std::str::from_utf8(&line).ok()?, 16).ok()?;
            if size == 0 {
                break;
            }
            self.take(size, body, until)?;
            if !self.line(until)?.is_empty() {
                return None;
            }
        }
        while !self.line(until)?.is_empty() {}
        Some(())
    }

    fn line(&mut self, until: Instant) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = self.read.drain(..end + 2).take(end).collect();
                return Some(line);
            }
            if !self.more(until) {
                return None;
            }
        }
    }

    /// Moves so many bytes; what there is of them, if there are fewer.
    fn take(&mut self, count: usize, to: &mut Vec<u8>, until: Instant) -> Option<()> {
        while self.read.len() < count {
            if !self.more(until) {
                to.append(&mut self.read);
                return None;
            }
        }
        to.extend(self.read.drain(..count));
        Some(())
    }

    /// Reads once; false at the end, and when time is up.
    fn more(&mut self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        if self.ended || left.is_zero() || self.wire.socket().set_read_timeout(Some(left)).is_err() {
            return false;
        }
        let mut piece = [0; 16 * 1024];
        match self.wire.read(&mut piece) {
            Ok(0) => self.ended = true,
            Ok(count) => self.read.extend_from_slice(&piece[..count]),
            Err(error) if is_timeout(&error) => return false,
            // A reset, or TLS without its own end.
            Err(_) => self.ended = true,
        }
        !self.ended
    }
}

fn parse(head: &[u8]) -> Option<Reply> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Response::new(&mut fields);
    parsed.parse(head).ok()?;
    let field = |field: &httparse::Header<'_>| {
        (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned())
    };
    Some(Reply {
        status: parsed.code?,
        old: parsed.version == Some(0),
        fields: parsed.headers.iter().map(field).collect(),
        ..Reply::default()
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    fn replies(bytes: &[u8]) -> Replies<TcpStream> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.accept().unwrap().0.write_all(bytes).unwrap();
        Replies::new(near)
    }

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn answers_are_told_apart_and_broken_ones_are_not_whole() {
        let mut read = replies(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab\
              HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ncd\r\n0\r\n\r\n\
              HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n\
              HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nef\r\n",
        );
        for (status, body, whole) in
            [(200, "ab", true), (200, "cd", true), (304, "", true), (200, "ef", false)]
        {
            let reply = read.next(false, SOON).unwrap();
            assert_eq!((reply.status, reply.text().as_str(), reply.whole), (status, body, whole));
        }
        assert_eq!(read.next(false, SOON), Err(Nothing::Ended));
    }

    #[test]
    fn an_end_after_which_something_came_is_none() {
        assert!(replies(b"").ends(SOON));
        assert!(!replies(b"x").ends(SOON));
        assert_eq!(replies(b"HTTP/1").next(false, SOON), Err(Nothing::Garbage));
    }
}
