//! An origin that records every request as it arrives, and answers as the target asks.
//!
//! | target | answer |
//! |---|---|
//! | `/answer/NAME` | the scripted bytes of that name, then the connection is closed |
//! | `/stays/NAME` | the same bytes; the connection stays open for the next request |
//! | `/bytes/N` | 200 with N bytes |
//! | `/slow/MS` | 200 after so many milliseconds |
//! | `/hang` | none; waits for the connection to end |
//! | `/tunnel` | 101, then every byte comes back |
//! | else | 200, with a serial number and the target in the body |

use super::strict::{self, Request};
use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A request, and when.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub connection: usize,
    pub request: Request,
}

#[derive(Default, Debug)]
struct State {
    answers: BTreeMap<String, Vec<u8>>,
    seen: Mutex<Vec<Seen>>,
    /// Bytes that arrived and were no request.
    broken: Mutex<Vec<String>>,
    connections: AtomicUsize,
    active: AtomicUsize,
    peak: AtomicUsize,
    /// When hanging requests were given up by the other side.
    hung_up: Mutex<Vec<Instant>>,
}

/// A running origin; its threads end with the test process.
#[derive(Clone, Debug)]
pub struct Origin {
    addr: SocketAddr,
    state: Arc<State>,
}

impl Origin {
    /// Serves a listening socket, which may have been made in another namespace.
    ///
    /// # Errors
    /// When the socket has no address.
    pub fn serve(listener: TcpListener, answers: BTreeMap<String, Vec<u8>>) -> std::io::Result<Self> {
        let addr = listener.local_addr()?;
        let state = Arc::new(State { answers, ..State::default() });
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&served);
                let number = state.connections.fetch_add(1, Ordering::Relaxed);
                // A thread that cannot be made closes the connection: the test sees it.
                let _ = std::thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || serve(&state, stream, number));
            }
        });
        Ok(Self { addr, state })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What arrived since the last call.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.state.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What arrived since the last call and was no request that a strict reader takes.
    pub fn take_broken(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.broken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Moments at which requests to `/hang` were given up.
    pub fn take_hung_up(&self) -> Vec<Instant> {
        std::mem::take(&mut *self.state.hung_up.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests that are being served now.
    pub fn active(&self) -> usize {
        self.state.active.load(Ordering::Relaxed)
    }

    /// The most that were served at once since the last call.
    pub fn take_peak(&self) -> usize {
        self.state.peak.swap(self.active(), Ordering::Relaxed)
    }

    /// Connections that were ever made.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }
}

fn serve(state: &State, stream: TcpStream, connection: usize) {
    let Ok(mut writer) = stream.try_clone() else { return };
    // An answer must not wait for acknowledgements; without the option it only takes longer.
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    loop {
        match strict::read(&mut reader) {
            Ok(None) => return,
            Ok(Some(request)) => {
                let target = request.target.clone();
                let head_only = request.method == "HEAD";
                let serial = {
                    let mut seen = state.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.push(Seen { at: Instant::now(), connection, request });
                    seen.len()
                };
                let active = state.active.fetch_add(1, Ordering::Relaxed) + 1;
                state.peak.fetch_max(active, Ordering::Relaxed);
                let open = answer(state, &target, serial, head_only, &mut reader, &mut writer);
                state.active.fetch_sub(1, Ordering::Relaxed);
                if !open.unwrap_or(false) {
                    return;
                }
            }
            Err(error) => {
                state.broken.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                return;
            }
        }
    }
}

/// Answers one request; says whether the connection can be used again.
fn answer(
    state: &State,
    target: &str,
    serial: usize,
    head_only: bool,
    reader: &mut BufReader<TcpStream>,
    writer: &mut TcpStream,
) -> std::io::Result<bool> {
    let path = target.split('?').next().unwrap_or_default();
    let (first, rest) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    match (first, path) {
        ("answer" | "stays", _) => {
            writer.write_all(state.answers.get(rest).map_or(b"HTTP/1.1 404 None\r\n\r\n", Vec::as_slice))?;
            return Ok(first == "stays");
        }
        ("bytes", _) => {
            let length: usize = rest.parse().unwrap_or(0);
            write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
            let piece = [b'x'; 16 * 1024];
            let mut left = if head_only { 0 } else { length };
            while left > 0 {
                let now = left.min(piece.len());
                writer.write_all(&piece[..now])?;
                left -= now;
            }
            return Ok(true);
        }
        ("slow", _) => std::thread::park_timeout(Duration::from_millis(rest.parse().unwrap_or(0))),
        (_, "/hang") => {
            // Bytes would be the next request: whoever gave up sends none.
            let _ended = reader.read(&mut [0; 1]);
            state.hung_up.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            return Ok(false);
        }
        (_, "/tunnel") => {
            writer.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
            )?;
            writer.write_all(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")?;
            let mut buffer = [0; 4096];
            loop {
                let count = reader.read(&mut buffer)?;
                if count == 0 {
                    return Ok(false);
                }
                writer.write_all(&buffer[..count])?;
            }
        }
        _ => {}
    }
    let body = format!("{serial} {target}\n");
    let shown = if head_only { "" } else { &body };
    // One piece: formatting would write each part by itself.
    let whole = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{shown}",
        body.len()
    );
    writer.write_all(whole.as_bytes())?;
    Ok(true)
}
