//! What is known of one request for metrics and access log, from its head to the end of its
//! answer. It is told when it is dropped: however a request ends, it is counted once.

use crate::model::routes::{Action, PoolKey, Target};
use crate::problem::ObjectKey;
use crate::proxy::conn::{Conn, Open};
use crate::proxy::error::Refusal;
use crate::proxy::headers;
use crate::proxy::record::{Attempt, Record, Route};
use crate::proxy::upload::Source;
use http::header::{HOST, REFERER, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The client went away before it was answered, in nginx's count.
const GONE: u16 = 499;

pub(super) struct Account {
    open: Open,
    pub(super) parts: Parts,
    /// The client's, or made here; the origin gets it too.
    pub(super) request_id: HeaderValue,
    begun: Instant,
    /// The head was refused: the fields are the judge's stand-in.
    judged: Cell<bool>,
    status: Cell<u16>,
    body_bytes: Cell<u64>,
    route: OnceCell<(Arc<ObjectKey>, Option<PoolKey>)>,
    source: OnceCell<Rc<Source>>,
    attempts: RefCell<Vec<Attempt>>,
    attempt_begun: Cell<Instant>,
    local: Cell<Option<&'static str>>,
}

impl Account {
    pub(super) fn new(open: Open, parts: Parts) -> Box<Self> {
        let begun = Instant::now();
        open.conn().worker.recorder.begun();
        Box::new(Self {
            request_id: headers::request_id(&parts.headers, open.conn()),
            open,
            parts,
            begun,
            judged: Cell::new(false),
            status: Cell::new(GONE),
            body_bytes: Cell::new(0),
            route: OnceCell::new(),
            source: OnceCell::new(),
            attempts: RefCell::default(),
            attempt_begun: Cell::new(begun),
            local: Cell::new(None),
        })
    }

    pub(super) fn conn(&self) -> &Rc<Conn> {
        self.open.conn()
    }

    pub(super) fn is_judged(&self) {
        self.judged.set(true);
    }

    pub(super) fn has_body(&self, source: &Rc<Source>) {
        let _first = self.source.set(Rc::clone(source));
    }

    pub(super) fn routed(&self, action: &Action) {
        let pool = match &action.target {
            Target::Pool(key) => Some(key.clone()),
            Target::Unavailable(_) => None,
        };
        let _first = self.route.set((Arc::clone(&action.ingress), pool));
    }

    /// The proxy answers by itself.
    pub(super) fn refused(&self, refusal: Refusal) {
        self.local.set(Some(refusal.label()));
    }

    pub(super) fn redirected(&self) {
        self.local.set(Some(REDIRECT));
    }

    pub(super) fn answered(&self, status: StatusCode) {
        self.status.set(status.as_u16());
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.body_bytes.set(self.body_bytes.get() + bytes as u64);
    }

    pub(super) fn attempt_begins(&self) {
        self.attempt_begun.set(Instant::now());
    }

    /// What came of a try at an origin: over a new connection after `connect`, a head or not.
    pub(super) fn attempted(
        &self,
        address: SocketAddr,
        connect: Option<Duration>,
        status: Option<StatusCode>,
    ) {
        let response = self.attempt_begun.get().elapsed();
        self.attempts.borrow_mut().push(Attempt {
            address,
            connect,
            header: status.is_some().then_some(response),
            response,
            bytes: 0,
            status: status.map(|status| status.as_u16()),
        });
    }

    /// Bytes of the request: the lines of its head, and of its body what was taken.
    fn request_bytes(&self) -> u64 {
        let line = self.parts.method.as_str().len() + self.target().len() + 12;
        let fields: usize =
            self.parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        (line + fields + 2) as u64 + self.source.get().map_or(0, |source| source.received())
    }

    fn target(&self) -> &str {
        self.parts.uri.path_and_query().map_or("/", |target| target.as_str())
    }
}

/// The reason of an answer that sends the client to HTTPS.
pub(super) const REDIRECT: &str = "redirect";

impl Drop for Account {
    fn drop(&mut self) {
        let conn = self.open.conn();
        let body_bytes = self.body_bytes.get();
        let mut attempts = self.attempts.borrow_mut();
        if let Some(last) = attempts.last_mut()
            && last.status.is_some()
        {
            last.response = self.attempt_begun.get().elapsed();
            last.bytes = body_bytes;
        }
        let field = |name| self.parts.headers.get(name).map(HeaderValue::as_bytes);
        let judged = self.judged.get();
        let host = match self.parts.uri.authority() {
            Some(authority) => authority.as_str(),
            None => match self.parts.headers.get(HOST).map(HeaderValue::to_str) {
                Some(Ok(host)) => host,
                Some(_) | None => "",
            },
        };
        let worker = &conn.worker;
        let client = match &worker.lane {
            Some(_) if conn.trusted => headers::client(&self.parts.headers, conn),
            Some(_) | None => conn.peer.ip(),
        };
        let record = Record {
            peer: conn.peer,
            client,
            method: if judged { "-" } else { self.parts.method.as_str() },
            target: if judged { "-" } else { self.target() },
            host: if judged { "" } else { host },
            http: self.parts.version,
            tls: conn.tls.get().map(|facts| facts.version),
            referer: field(REFERER).filter(|_| !judged),
            user_agent: field(USER_AGENT).filter(|_| !judged),
            request_id: self.request_id.to_str().unwrap_or_default(),
            status: self.status.get(),
            request_bytes: self.request_bytes(),
            body_bytes,
            took: self.begun.elapsed(),
            route: self.route.get().map(|(ingress, pool)| Route { ingress, pool: pool.as_ref() }),
            attempts: &attempts,
            local: self.local.get(),
        };
        worker.recorder.ended(&record);
        if let Some(lane) = &worker.lane {
            lane.log(&record);
        }
    }
}
