//! Keeps the books of an HTTP/2 connection's frames, and ends those that only cost (H15 to H19).
//!
//! It reads frame headers in both directions, and the few payload bytes that say what a frame
//! costs; the HTTP/2 library does all the rest. Two budgets, each filled again by what is
//! useful and, slowly, by time:
//! - *resets*, of a stream before its answer is whole, whoever sends them: a client that makes
//!   the server reset streams (MadeYouReset, CVE-2025-8671) is charged like one that resets
//!   them itself (Rapid Reset, CVE-2023-44487); a completed request pays one back;
//! - *control frames*: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA, unknown ones
//!   (CVE-2019-9511 to 9518); data in either direction and answers pay them back, so a stream
//!   of many small messages, each acknowledged, never runs out. Data that a client draws byte
//!   by byte out of a closed window pays by its bytes alone.
//!
//! A head is bounded in bytes, frames and empty frames (CONTINUATION floods, VU#421644).

use std::collections::HashMap;
use std::time::Duration;

/// What a client's first bytes are (RFC 9113 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER: usize = 9;

/// Resets that a fresh connection may have outstanding, in quarters of one.
const RESETS: u32 = 4 * 200;
/// A reset before the answer began, and one after; what a completed request pays back.
const RESET_UNANSWERED: u32 = 4;
const RESET_ANSWERED: u32 = 1;
/// Quarters of a reset that a second pays back.
const RESETS_PER_SECOND: u64 = 8;
/// Control frames that a fresh connection may send, and the most that it can save up.
const CONTROL: u32 = 4_000;
const CONTROL_MOST: u32 = 8_000;
const CONTROL_PER_SECOND: u64 = 20;
/// Control frames that a completed request pays for, and a part of an answer.
const COMPLETED: u32 = 20;
const PART: u32 = 4;
/// Bytes of data that pay for one control frame.
const BYTES_A_FRAME: u64 = 64;
/// The longest head, compressed, and the frames that it may come in.
const HEAD: usize = 48 * 1024;
const HEAD_FRAMES: u32 = 256;
const HEAD_EMPTY_FRAMES: u32 = 16;
/// From a head's first byte to its last (H24).
const HEAD_TIME: Duration = Duration::from_secs(60);
/// Changes of the HPACK table's size at the beginning of one head (RFC 7541 4.2).
const TABLE_SIZES: u32 = 2;
/// Streams on the books at once: far above what a server allows.
const STREAMS: usize = 1_024;
/// Window of a stream or connection before anything is said (RFC 9113 6.9.2).
const WINDOW: i64 = 65_535;

/// Why a connection is ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Abuse {
    /// It does not begin with the preface.
    Preface,
    /// Streams are opened and reset without an answer (H15, H16).
    Resets,
    /// Control frames without useful work (H18).
    Control,
    /// A head in too many bytes or frames (H17).
    Continuations,
    /// A head that changes the table's size over and over (H19).
    TableSizes,
    /// More streams than any server allows.
    Streams,
    /// A head that does not come to its end in time (H24).
    SlowHead,
}

impl Abuse {
    /// All of them, in the order of their counters.
    pub const ALL: &[Self] = &[
        Self::Preface,
        Self::Resets,
        Self::Control,
        Self::Continuations,
        Self::TableSizes,
        Self::Streams,
        Self::SlowHead,
    ];

    /// The metric label, and the name in the corpus.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Preface => "h2-preface",
            Self::Resets => "h2-resets",
            Self::Control => "h2-control-frames",
            Self::Continuations => "h2-continuations",
            Self::TableSizes => "h2-table-sizes",
            Self::Streams => "h2-streams",
            Self::SlowHead => "h2-slow-head",
        }
    }
}

/// What becomes of the bytes that a client sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ruling {
    /// So many, from the first on, may go on.
    Pass(usize),
    /// None before there are more: a frame's header is not whole.
    More,
    /// The connection is to be ended, here: between two frames, but for a head that is too slow.
    End(Abuse),
}

/// The books of one connection.
#[derive(Clone, Debug)]
pub struct Frames {
    preface: usize,
    client: Payload,
    server: Outgoing,
    streams: HashMap<u32, Stream>,
    initial_window: i64,
    window: i64,
    head: Option<Block>,
    /// When the head that is on its way began; else when something came last.
    head_begun: Duration,
    resets: u32,
    control: u32,
    /// Bytes of data that have not paid for a frame yet.
    bytes: u64,
    paid_resets: Duration,
    paid_control: Duration,
    abuse: Option<Abuse>,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    answered: bool,
    /// What the server may still send.
    window: i64,
}

/// A head that has begun and not ended.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    bytes: usize,
    frames: u32,
    empty: u32,
}

/// The header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Header {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY_FLAG: u8 = 0x20;

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, w, x, y, z] = bytes.get(..HEADER)?.as_array::<HEADER>()?;
        Some(Self {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            stream: u32::from_be_bytes([w & 0x7f, x, y, z]),
        })
    }

    const fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The payload of a client's frame that is on its way.
#[derive(Clone, Copy, Debug, Default)]
struct Payload {
    header: Header,
    left: usize,
    /// The last bytes of a value that is read across pieces, and how many there are.
    value: [u8; 6],
    filled: usize,
    /// Of a head: bytes before its first field, then whether table sizes are still looked for.
    skip: usize,
    sizes: Sizes,
}

/// The table-size changes at the beginning of a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Sizes {
    #[default]
    Done,
    Begin(u32),
    /// Within a change's number.
    Number(u32),
}

/// What the server writes, as far as it has to be read.
#[derive(Clone, Copy, Debug, Default)]
struct Outgoing {
    header: [u8; HEADER],
    filled: usize,
    frame: Header,
    left: usize,
    /// The error code of a reset, as far as it was written.
    code: u32,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            preface: 0,
            client: Payload::default(),
            server: Outgoing::default(),
            streams: HashMap::new(),
            initial_window: WINDOW,
            window: WINDOW,
            head: None,
            head_begun: Duration::ZERO,
            resets: RESETS,
            control: CONTROL,
            bytes: 0,
            paid_resets: Duration::ZERO,
            paid_control: Duration::ZERO,
            abuse: None,
        }
    }
}

impl Frames {
    /// Takes what the client sent and was not let through yet; `now` is the connection's age.
    pub fn client(&mut self, bytes: &[u8], now: Duration) -> Ruling {
        self.pay_by_time(now);
        if !self.is_within_head() {
            self.head_begun = now;
        } else if now.saturating_sub(self.head_begun) > HEAD_TIME {
            self.abuse = Some(Abuse::SlowHead);
            return Ruling::End(Abuse::SlowHead);
        }
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if self.client.left > 0 {
                let here = self.client.left.min(rest.len());
                self.payload(rest.get(..here).unwrap_or_default());
                self.client.left -= here;
                at += here;
            } else if self.abuse.is_some() {
                break;
            } else if self.preface < PREFACE.len() {
                let wanted = PREFACE.get(self.preface..).unwrap_or_default();
                let here = wanted.len().min(rest.len());
                if wanted.get(..here) != rest.get(..here) {
                    self.abuse = Some(Abuse::Preface);
                    break;
                }
                self.preface += here;
                at += here;
            } else {
                let Some(header) = Header::read(rest) else { break };
                self.begin(header);
                // The frame that is too much does not go on.
                if self.abuse.is_none() {
                    at += HEADER;
                }
            }
        }
        match self.abuse {
            _ if at > 0 => Ruling::Pass(at),
            Some(abuse) if self.client.left == 0 => Ruling::End(abuse),
            Some(_) | None => Ruling::More,
        }
    }

    /// Takes what the server wrote.
    pub fn server(&mut self, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            let out = &mut self.server;
            if out.left > 0 {
                let here = out.left.min(bytes.len());
                if out.frame.kind == RST_STREAM {
                    out.code =
                        bytes.iter().take(here).fold(out.code, |code, byte| code << 8 | u32::from(*byte));
                }
                out.left -= here;
                bytes = bytes.get(here..).unwrap_or_default();
                if out.left == 0 && out.frame.kind == RST_STREAM {
                    let (stream, code) = (out.frame.stream, out.code);
                    self.server_reset(stream, code);
                }
                continue;
            }
            if let Some(place) = out.header.get_mut(out.filled) {
                *place = first;
            }
            out.filled += 1;
            bytes = bytes.get(1..).unwrap_or_default();
            if out.filled == HEADER
                && let Some(frame) = Header::read(&out.header)
            {
                (out.filled, out.frame, out.left, out.code) = (0, frame, frame.length, 0);
                self.sent(frame);
            }
        }
    }

    fn is_within_head(&self) -> bool {
        let frame = self.client.left > 0 && matches!(self.client.header.kind, HEADERS | CONTINUATION);
        frame || self.head.is_some()
    }

    /// Why the connection is to be ended, once what went on ends with a frame.
    #[must_use]
    pub fn overdrawn(&self) -> Option<Abuse> {
        self.abuse.filter(|_| self.client.left == 0)
    }

    /// How many of the client's next bytes are payload that need not be shown.
    #[must_use]
    pub fn unseen(&self) -> usize {
        let Payload { header, left, .. } = self.client;
        let plain = header.kind == DATA && (!header.has(PADDED) || left < header.length);
        if plain { left } else { 0 }
    }

    /// Tells that so many bytes, at most [`Self::unseen`], went on without being shown.
    pub fn passed_unseen(&mut self, count: usize) {
        self.client.left = self.client.left.saturating_sub(count);
    }

    fn pay_by_time(&mut self, now: Duration) {
        let due = |since: Duration, a_second: u64| {
            let gained = u64::try_from(now.saturating_sub(since).as_millis())
                .unwrap_or(u64::MAX)
                .saturating_mul(a_second)
                / 1000;
            (gained, since + Duration::from_millis(gained.saturating_mul(1000) / a_second))
        };
        let (gained, paid) = due(self.paid_resets, RESETS_PER_SECOND);
        if gained > 0 {
            self.paid_resets = paid;
            self.earn_resets(u32::try_from(gained).unwrap_or(u32::MAX));
        }
        let (gained, paid) = due(self.paid_control, CONTROL_PER_SECOND);
        if gained > 0 {
            self.paid_control = paid;
            self.earn(u32::try_from(gained).unwrap_or(u32::MAX));
        }
    }

    fn earn(&mut self, frames: u32) {
        self.control = self.control.saturating_add(frames).min(CONTROL_MOST);
    }

    fn earn_resets(&mut self, quarters: u32) {
        self.resets = self.resets.saturating_add(quarters).min(RESETS);
    }

    fn earn_bytes(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.earn(u32::try_from(self.bytes / BYTES_A_FRAME).unwrap_or(u32::MAX));
        self.bytes %= BYTES_A_FRAME;
    }

    fn spend(&mut self, frames: u32) {
        match self.control.checked_sub(frames) {
            Some(left) => self.control = left,
            None => self.abuse = Some(Abuse::Control),
        }
    }

    fn spend_reset(&mut self, stream: Stream) {
        let quarters = if stream.answered { RESET_ANSWERED } else { RESET_UNANSWERED };
        match self.resets.checked_sub(quarters) {
            Some(left) => self.resets = left,
            None => self.abuse = Some(Abuse::Resets),
        }
    }

    /// A frame of the client begins.
    fn begin(&mut self, header: Header) {
        match header.kind {
            DATA if header.length == 0 && !header.has(END_STREAM) => self.spend(1),
            DATA if !header.has(PADDED) => self.received(header.length),
            DATA => {}
            HEADERS => self.open(header),
            RST_STREAM => match self.streams.remove(&header.stream) {
                Some(stream) => self.spend_reset(stream),
                None => self.spend(1),
            },
            SETTINGS if !header.has(ACK) => self.spend(2),
            CONTINUATION => {}
            _ => self.spend(1),
        }
        match header.kind {
            HEADERS if header.has(END_HEADERS) => self.head = None,
            HEADERS => self.head = Some(Block { bytes: header.length, ..Block::default() }),
            CONTINUATION => self.go_on(header),
            _ => {}
        }
        if self.abuse.is_some() {
            return;
        }
        // Table sizes may go on in a CONTINUATION.
        let (skip, sizes) = match header.kind {
            HEADERS => {
                let priority = if header.has(PRIORITY_FLAG) { 5 } else { 0 };
                (usize::from(header.has(PADDED)) + priority, Sizes::Begin(0))
            }
            CONTINUATION => (0, self.client.sizes),
            _ => (0, Sizes::Done),
        };
        self.client = Payload { header, left: header.length, skip, sizes, ..Payload::default() };
    }

    fn open(&mut self, header: Header) {
        if self.streams.contains_key(&header.stream) {
            return;
        }
        if self.streams.len() >= STREAMS {
            self.abuse = Some(Abuse::Streams);
            return;
        }
        self.streams.insert(header.stream, Stream { answered: false, window: self.initial_window });
    }

    fn go_on(&mut self, header: Header) {
        // One without a head before it is a connection error, which the library knows.
        let block = self.head.get_or_insert_default();
        block.bytes += header.length;
        block.frames += 1;
        block.empty += u32::from(header.length == 0);
        if block.bytes > HEAD || block.frames > HEAD_FRAMES || block.empty > HEAD_EMPTY_FRAMES {
            self.abuse = Some(Abuse::Continuations);
        }
        if header.has(END_HEADERS) {
            self.head = None;
        }
    }

    fn received(&mut self, data: usize) {
        if data > 0 {
            self.earn(1);
            self.earn_bytes(data);
        }
    }

    /// Bytes of a client's payload: only those that tell what a frame costs are looked at.
    fn payload(&mut self, bytes: &[u8]) {
        let header = self.client.header;
        match header.kind {
            DATA if header.has(PADDED) && self.client.left == header.length => {
                let padding = bytes.first().map_or(0, |length| usize::from(*length));
                match header.length.saturating_sub(1 + padding) {
                    0 if !header.has(END_STREAM) => self.spend(1),
                    data => self.received(data),
                }
            }
            SETTINGS if !header.has(ACK) => self.values(bytes, 6, |this, value| {
                if let [0, 4, rest @ ..] = value {
                    let window = i64::from(u32::from_be_bytes(rest));
                    let change = window - this.initial_window;
                    this.initial_window = window;
                    this.streams.values_mut().for_each(|stream| stream.window += change);
                }
            }),
            WINDOW_UPDATE => self.values(bytes, 4, |this, [a, b, c, d, ..]| {
                let more = i64::from(u32::from_be_bytes([a & 0x7f, b, c, d]));
                match this.client.header.stream {
                    0 => this.window += more,
                    stream => {
                        if let Some(stream) = this.streams.get_mut(&stream) {
                            stream.window += more;
                        }
                    }
                }
            }),
            HEADERS | CONTINUATION => self.table_sizes(bytes),
            _ => {}
        }
    }

    /// Calls `take` with each whole value of `size` bytes in a payload.
    fn values(&mut self, bytes: &[u8], size: usize, take: impl Fn(&mut Self, [u8; 6])) {
        for byte in bytes {
            if let Some(place) = self.client.value.get_mut(self.client.filled) {
                *place = *byte;
            }
            self.client.filled += 1;
            if self.client.filled == size {
                self.client.filled = 0;
                take(self, self.client.value);
            }
        }
    }

    fn table_sizes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.client.skip > 0 {
                self.client.skip -= 1;
                continue;
            }
            self.client.sizes = match self.client.sizes {
                Sizes::Done => return,
                Sizes::Begin(count) if byte & 0xe0 == 0x20 => {
                    if count >= TABLE_SIZES {
                        self.abuse = Some(Abuse::TableSizes);
                    }
                    self.spend(1);
                    if byte & 0x1f == 0x1f { Sizes::Number(count + 1) } else { Sizes::Begin(count + 1) }
                }
                Sizes::Begin(_) => Sizes::Done,
                Sizes::Number(count) if byte & 0x80 == 0 => Sizes::Begin(count),
                Sizes::Number(count) => Sizes::Number(count),
            };
        }
    }

    /// A frame of the server begins.
    fn sent(&mut self, frame: Header) {
        match frame.kind {
            DATA => {
                let length = i64::try_from(frame.length).unwrap_or(i64::MAX);
                self.window -= length;
                let connection = self.window;
                if let Some(stream) = self.streams.get_mut(&frame.stream) {
                    stream.window -= length;
                    // What fills the window to its last byte may have been cut to fit it.
                    let open = stream.window.min(connection) > 0;
                    stream.answered = true;
                    if open && frame.length > 0 {
                        self.earn(PART);
                    }
                }
                self.earn_bytes(frame.length);
            }
            HEADERS => {
                if let Some(stream) = self.streams.get_mut(&frame.stream) {
                    stream.answered = true;
                    self.earn(PART);
                }
            }
            _ => return,
        }
        if frame.has(END_STREAM) && self.streams.remove(&frame.stream).is_some() {
            self.earn(COMPLETED);
            self.earn_resets(RESET_UNANSWERED);
        }
    }

    fn server_reset(&mut self, stream: u32, code: u32) {
        let known = self.streams.remove(&stream);
        // NO_ERROR: the answer is whole, and the rest of the request is not wanted.
        if code != 0 {
            self.spend_reset(known.unwrap_or(Stream { answered: false, window: 0 }));
        }
    }
}

#[cfg(test)]
mod tests;
