//! What a server pod does: it answers questions with as many bytes, or swallows and counts.

use super::load::MESSAGE;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Answers, TCP and UDP.
pub(super) const ANSWER_PORT: u16 = 7001;
/// Swallows, TCP and UDP.
pub(super) const SINK_PORT: u16 = 7002;

/// What was swallowed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
}

#[derive(Default)]
pub(super) struct Server {
    datagrams: AtomicU64,
    bytes: AtomicU64,
}

impl Server {
    /// Starts the server's threads. UDP is answered from the address that was asked, so each
    /// has a socket of its own.
    pub(super) fn start(addresses: &[Ipv4Addr]) -> Result<Arc<Self>> {
        let server = Arc::<Self>::default();
        let answers = listen(ANSWER_PORT)?;
        answers.set_nonblocking(true)?;
        thread::spawn(move || {
            if let Err(error) = answer_streams(&answers) {
                eprintln!("bench server: {error:#}");
            }
        });
        let sink = listen(SINK_PORT)?;
        let counting = Arc::clone(&server);
        thread::spawn(move || {
            for stream in sink.incoming().flatten() {
                let counting = Arc::clone(&counting);
                thread::spawn(move || counting.swallow_stream(stream));
            }
        });
        let sink = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SINK_PORT))?;
        let counting = Arc::clone(&server);
        thread::spawn(move || counting.swallow_datagrams(&sink));
        for address in addresses {
            let socket = UdpSocket::bind((*address, ANSWER_PORT)).with_context(|| format!("{address}"))?;
            thread::spawn(move || answer_datagrams(&socket));
        }
        Ok(server)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            datagrams: self.datagrams.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    fn swallow_stream(&self, mut stream: TcpStream) {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            self.bytes.fetch_add(n as u64, Ordering::Relaxed);
        }
    }

    fn swallow_datagrams(&self, socket: &UdpSocket) {
        let mut buffer = [0; 2048];
        loop {
            if socket.recv(&mut buffer).is_ok() {
                self.datagrams.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    // The standard library's backlog is 128; 16 connections at a time need no more.
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("TCP port {port}"))
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // Errors are ICMP answers to earlier replies: of no concern to the next datagram.
        if let Ok((n, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], peer);
        }
    }
}

/// One thread for all connections.
fn answer_streams(listener: &TcpListener) -> Result<()> {
    const LISTENER: u64 = u64::MAX;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut streams: HashMap<u64, TcpStream> = HashMap::new();
    let mut events = [EpollEvent::empty(); 64];
    let mut buffer = [0; MESSAGE];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..ready] {
            if event.data() == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let token = stream.as_raw_fd() as u64;
                    epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
                    streams.insert(token, stream);
                }
            } else if let Some(stream) = streams.get_mut(&event.data()) {
                let open = match stream.read(&mut buffer) {
                    Ok(0) => false,
                    Ok(n) => stream.write_all(&buffer[..n]).is_ok(),
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                };
                if !open {
                    streams.remove(&event.data());
                }
            }
        }
    }
}
