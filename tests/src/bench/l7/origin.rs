//! The origin behind the proxies: one thread that answers HTTP/1.1 from memory.
//!
//! It takes every message apart as far as it must to know where the body ends, and answers once
//! the body is whole: a proxy that sends less, more or other than it was sent does not get a 200.

use super::BODY;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

/// What a POST brings, in bytes.
pub(super) const UPLOAD: usize = 16 * 1024;
/// The target of the answer with a large body, and its bytes.
pub(super) const LARGE_TARGET: &str = "/large";
pub(super) const LARGE: usize = 1024 * 1024;

const LISTENER: u64 = u64::MAX;

struct Answers {
    small: Vec<u8>,
    large: Vec<u8>,
    refused: Vec<u8>,
}

/// One connection of a proxy.
struct Client {
    stream: TcpStream,
    /// What came of the next request.
    received: Vec<u8>,
    /// What is being sent, and how much of it went.
    sending: Option<(Which, usize)>,
    waits_to_write: bool,
}

#[derive(Clone, Copy)]
enum Which {
    Small,
    Large,
    Refused,
}

impl Answers {
    fn new() -> Self {
        let answer = |status: &str, length: usize| {
            let head = format!(
                "HTTP/1.1 {status}\r\nserver: origin\r\ncontent-type: text/plain\r\n\
                 cache-control: no-cache\r\ncontent-length: {length}\r\n\r\n"
            );
            [head.into_bytes(), vec![b'x'; length]].concat()
        };
        Self {
            small: answer("200 OK", BODY),
            large: answer("200 OK", LARGE),
            refused: answer("400 Bad Request", 0),
        }
    }

    fn of(&self, which: Which) -> &[u8] {
        match which {
            Which::Small => &self.small,
            Which::Large => &self.large,
            Which::Refused => &self.refused,
        }
    }
}

/// Answers in a thread of its own, on a CPU, for as long as this process lives.
///
/// # Errors
/// When the socket cannot be waited on.
pub(super) fn serve(listener: TcpListener, cpu: usize) -> Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let answers = Arc::new(Answers::new());
    thread::Builder::new().name("origin".into()).spawn(move || {
        let done = super::pin(cpu).and_then(|()| answer(&listener, &epoll, &answers));
        if let Err(error) = done {
            eprintln!("bench origin: {error:#}");
        }
    })?;
    Ok(())
}

fn answer(listener: &TcpListener, epoll: &Epoll, answers: &Answers) -> Result<()> {
    let mut clients: HashMap<u64, Client> = HashMap::new();
    let mut events = [EpollEvent::empty(); 128];
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..ready] {
            let token = event.data();
            if token == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let token = stream.as_raw_fd() as u64;
                    epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
                    let client =
                        Client { stream, received: Vec::new(), sending: None, waits_to_write: false };
                    clients.insert(token, client);
                }
            } else if let Some(client) = clients.get_mut(&token)
                && !client.turn(epoll, answers, &mut buffer).unwrap_or(false)
            {
                clients.remove(&token);
            }
        }
    }
}

impl Client {
    /// Does what can be done; false: the connection is over.
    fn turn(&mut self, epoll: &Epoll, answers: &Answers, buffer: &mut [u8]) -> Result<bool> {
        if self.sending.is_none() {
            match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(count) if self.received.is_empty() => {
                    let bytes = &buffer[..count];
                    self.sending = whole(bytes).map(|which| (which, 0));
                    if self.sending.is_none() {
                        self.received.extend_from_slice(bytes);
                    }
                }
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    self.sending = whole(&self.received).map(|which| (which, 0));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Ok(false),
            }
        }
        while let Some((which, sent)) = &mut self.sending {
            match self.stream.write(answers.of(*which).get(*sent..).context("sent too much")?) {
                Ok(count) => *sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Ok(false),
            }
            if *sent == answers.of(*which).len() {
                self.sending = None;
                self.received.clear();
            }
        }
        if self.sending.is_some() != self.waits_to_write {
            self.waits_to_write = self.sending.is_some();
            let flags = if self.waits_to_write { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            epoll.modify(&self.stream, &mut EpollEvent::new(flags, self.stream.as_raw_fd() as u64))?;
        }
        Ok(true)
    }
}

/// What a request is answered with, once all of it is there.
fn whole(bytes: &[u8]) -> Option<Which> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return None,
        Err(_) => return Some(Which::Refused),
    };
    let length = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = match length {
        None => 0,
        Some(field) => match std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok()) {
            Some(length) => length,
            None => return Some(Which::Refused),
        },
    };
    let wanted = if request.method == Some("POST") { UPLOAD } else { 0 };
    if length != wanted || bytes.len() > head + length {
        return Some(Which::Refused);
    }
    if bytes.len() < head + length {
        return None;
    }
    Some(if request.path == Some(LARGE_TARGET) { Which::Large } else { Which::Small })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(request: &[u8]) -> Option<String> {
        let answers = Answers::new();
        let text = answers.of(whole(request)?).to_vec();
        Some(String::from_utf8_lossy(&text[9..12]).into_owned())
    }

    #[test]
    fn only_what_is_whole_and_as_long_as_it_should_be_is_answered_well() {
        assert_eq!(status(b"GET / HTTP/1.1\r\nhost: a\r\n"), None);
        assert_eq!(status(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").as_deref(), Some("200"));
        assert_eq!(status(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nx").as_deref(), Some("400"));
        assert_eq!(status(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello").as_deref(), Some("400"));
        let mut post = b"POST / HTTP/1.1\r\ncontent-length: 16384\r\n\r\n".to_vec();
        post.resize(post.len() + UPLOAD - 1, b'x');
        assert_eq!(status(&post), None);
        post.push(b'x');
        assert_eq!(status(&post).as_deref(), Some("200"));
    }
}
