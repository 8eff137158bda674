//! An engine on a loopback port, origins that do as they are told, and clients that write raw
//! bytes: nothing between the test and the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use weir::model::routes::{
    Action, HostPattern, PathKind, PathRule, Pool, PoolKey, Protocol, Target, Update, VirtualHost,
};
use weir::problem::ObjectKey;
use weir::proxy::engine::{Engine, Scheme, Settings};

/// The longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Proxy {
    pub(crate) engine: Engine,
    pub(crate) http: SocketAddr,
}

/// An origin: each connection is given to the script, in a thread of its own.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

pub(crate) struct Client {
    pub(crate) stream: BufReader<TcpStream>,
}

pub(crate) fn settings() -> Settings {
    Settings { workers: 1, ..Settings::default() }
}

impl Proxy {
    /// An engine that sends `a.test` to these endpoints.
    pub(crate) fn start(settings: Settings, endpoints: &[SocketAddr]) -> Self {
        let proxy = Self::empty(settings);
        proxy.engine.update(routes("a.test", Protocol::Http1, endpoints), true);
        proxy
    }

    pub(crate) fn empty(settings: Settings) -> Self {
        let engine = Engine::start(settings).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let http = listener.local_addr().unwrap();
        engine.listen(listener, Scheme::Http).unwrap();
        Self { engine, http }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.http)
    }

    /// One request over a connection of its own.
    pub(crate) fn get(&self, path: &str) -> Reply {
        let mut client = self.client();
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n"));
        client.reply()
    }
}

pub(crate) fn pool_key(name: &str) -> PoolKey {
    PoolKey { service: Arc::new(ObjectKey::new("default", name)), port: 80 }
}

pub(crate) fn action(name: &str) -> Action {
    Action {
        ingress: Arc::new(ObjectKey::new("default", name)),
        target: Target::Pool(pool_key(name)),
        https_redirect: None,
    }
}

pub(crate) fn pool(name: &str, protocol: Protocol, endpoints: &[SocketAddr]) -> Update {
    let mut endpoints = endpoints.to_vec();
    endpoints.sort_unstable();
    Update::Pool(pool_key(name), Some(Arc::new(Pool { protocol, endpoints })))
}

pub(crate) fn host(name: &str, action: Action) -> Update {
    let rule = PathRule { kind: PathKind::Prefix, path: "".into(), action };
    let host = VirtualHost { rules: vec![rule], default: None };
    Update::Host(HostPattern::Exact(name.into()), Some(Arc::new(host)))
}

/// All paths of a host to a pool of its name.
pub(crate) fn routes(name: &str, protocol: Protocol, endpoints: &[SocketAddr]) -> Vec<Update> {
    vec![pool(name, protocol, endpoints), host(name, action(name))]
}

impl Origin {
    pub(crate) fn start(script: impl Fn(Client) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (script, counted) = (Arc::new(script), Arc::clone(&connections));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                let script = Arc::clone(&script);
                std::thread::spawn(move || script(Client::of(stream.unwrap())));
            }
        });
        Self { address, connections }
    }

    /// Answers every request with the same bytes.
    pub(crate) fn saying(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |mut client| {
            while client.request().is_some() {
                client.write(&answer);
            }
        })
    }

    /// Answers every request with its own head as the body.
    pub(crate) fn echo() -> Self {
        Self::start(|mut client| {
            while let Some((head, body)) = client.request() {
                let text = head + &String::from_utf8_lossy(&body);
                client.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()));
            }
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A port where nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Client {
    pub(crate) fn new(to: SocketAddr) -> Self {
        Self::of(TcpStream::connect(to).unwrap())
    }

    pub(crate) fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.write(text.as_bytes());
    }

    /// What cannot be written is seen by what is read, or is not.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// Asks for `/` at `a.test` and reads the answer.
    pub(crate) fn get(&mut self, path: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n\r\n"));
        self.reply()
    }

    /// Reads up to the end of a head; none when the connection ends before it.
    pub(crate) fn head(&mut self) -> Option<String> {
        let mut head = String::new();
        loop {
            let mut line = Vec::new();
            if self.stream.read_until(b'\n', &mut line).ok()? == 0 {
                return None;
            }
            head.push_str(&String::from_utf8_lossy(&line));
            if line == b"\r\n" {
                return Some(head);
            }
        }
    }

    /// Reads a request with its body.
    pub(crate) fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.head()?;
        let body = self.body(&head)?;
        Some((head, body))
    }

    /// Reads an answer with its body.
    pub(crate) fn reply(&mut self) -> Reply {
        self.try_reply().expect("an answer")
    }

    pub(crate) fn try_reply(&mut self) -> Option<Reply> {
        let head = self.head()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let body =
            if status == 304 || status == 204 || status == 101 { Vec::new() } else { self.body(&head)? };
        Some(Reply { status, head, body })
    }

    fn body(&mut self, head: &str) -> Option<Vec<u8>> {
        if field(head, "transfer-encoding").is_some() {
            let mut body = Vec::new();
            loop {
                let mut line = String::new();
                self.stream.read_line(&mut line).ok()?;
                let size = usize::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
                if size == 0 {
                    self.head_or_trailers(&mut body)?;
                    return Some(body);
                }
                let at = body.len();
                body.resize(at + size, 0);
                self.stream.read_exact(&mut body[at..]).ok()?;
                self.stream.read_line(&mut line).ok()?;
            }
        }
        let mut body = Vec::new();
        match field(head, "content-length") {
            Some(length) => {
                body.resize(length.parse().ok()?, 0);
                self.stream.read_exact(&mut body).ok()?;
            }
            None if head.starts_with("HTTP/") => {
                self.stream.read_to_end(&mut body).ok()?;
            }
            None => {}
        }
        Some(body)
    }

    /// Trailers are put behind the body, as `|name: value`.
    fn head_or_trailers(&mut self, body: &mut Vec<u8>) -> Option<()> {
        let trailers = self.head()?;
        for line in trailers.lines().filter(|line| !line.is_empty()) {
            body.push(b'|');
            body.extend_from_slice(line.as_bytes());
        }
        Some(())
    }

    /// Tells whether the peer has closed, without having sent anything more.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0) | Err(_))
    }
}

impl Reply {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
