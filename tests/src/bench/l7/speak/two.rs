//! HTTP/2 as a browser's library speaks it: the fields of the first request of a connection go
//! into the table of RFC 7541, those that follow are four bytes of indices.

use super::Wanted;
use anyhow::{Result, bail, ensure};
use std::collections::BTreeMap;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// One connection. What is to be sent gathers in `out`.
#[derive(Debug)]
pub(in crate::bench::l7) struct Two {
    authority: String,
    wanted: Wanted,
    next: u32,
    /// Bytes that each open stream's body has brought, once its head has come.
    open: BTreeMap<u32, Option<usize>>,
    partial: Vec<u8>,
    pub(in crate::bench::l7) out: Vec<u8>,
    /// The server takes no stream after this one.
    last: Option<u32>,
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

impl Two {
    /// A connection that begins with so many requests at once.
    pub(in crate::bench::l7) fn new(authority: &str, wanted: Wanted, streams: usize) -> Self {
        let mut two = Self {
            authority: authority.into(),
            wanted,
            next: 1,
            open: BTreeMap::new(),
            partial: Vec::new(),
            out: PREFACE.to_vec(),
            last: None,
        };
        // No push, and windows that never close: what is measured is requests.
        let settings = [0, 2, 0, 0, 0, 0, 0, 4, 0x40, 0, 0, 0];
        frame(&mut two.out, SETTINGS, 0, 0, &settings);
        frame(&mut two.out, WINDOW_UPDATE, 0, 0, &0x4000_0000_u32.to_be_bytes());
        for _ in 0..streams {
            two.ask();
        }
        two
    }

    /// Sends the next request.
    fn ask(&mut self) {
        let mut block = vec![0x82, 0x87, 0x84];
        if self.next == 1 {
            // :authority, user-agent and accept, each into the table.
            for (name, value) in [(0x41, self.authority.as_str()), (0x7a, "bench"), (0x53, "*/*")] {
                block.push(name);
                // All of them are shorter than 127 bytes.
                block.push(u8::try_from(value.len()).unwrap_or(0));
                block.extend_from_slice(value.as_bytes());
            }
        } else {
            block.extend_from_slice(&[0x80 | 64, 0x80 | 63, 0x80 | 62]);
        }
        frame(&mut self.out, HEADERS, END_STREAM | END_HEADERS, self.next, &block);
        self.open.insert(self.next, None);
        self.next += 2;
    }

    /// The server goes away and owes nothing any more: time for another connection.
    pub(in crate::bench::l7) fn is_over(&self) -> bool {
        self.last.is_some() && self.open.is_empty()
    }

    /// Takes what came; the number of answers that are whole, each replaced by a new request.
    pub(in crate::bench::l7) fn take(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut held = std::mem::take(&mut self.partial);
        let all = if held.is_empty() {
            bytes
        } else {
            held.extend_from_slice(bytes);
            &held
        };
        let (mut rest, mut done) = (all, 0);
        while let Some((head, after)) = rest.split_at_checked(HEADER) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let Some((payload, next)) = after.split_at_checked(length) else { break };
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            done += usize::from(self.frame(head[3], head[4], stream, payload)?);
            rest = next;
        }
        self.partial = rest.to_vec();
        Ok(done)
    }

    /// Takes a frame; true when it ends an answer.
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<bool> {
        match kind {
            HEADERS => {
                ensure!(flags & END_HEADERS != 0, "a head in pieces is not expected here");
                let skip = usize::from(flags & PADDED != 0) + if flags & PRIORITY == 0 { 0 } else { 5 };
                let mut block = payload.get(skip..).unwrap_or_default();
                // Changes of the table's size come first.
                while let Some((&first, after)) = block.split_first()
                    && first & 0xe0 == 0x20
                {
                    let more = if first & 0x1f == 0x1f {
                        after.iter().position(|byte| byte & 0x80 == 0).map_or(0, |at| at + 1)
                    } else {
                        0
                    };
                    block = after.get(more..).unwrap_or_default();
                }
                // `:status: 200` is number 8 of the static table.
                ensure!(block.first() == Some(&0x88), "not answered with 200: {:02x?}", block.get(..8));
                let Some(open) = self.open.get_mut(&stream) else { bail!("an answer to nothing") };
                *open = Some(0);
                Ok(flags & END_STREAM != 0 && self.ended(stream)?)
            }
            DATA => {
                ensure!(flags & PADDED == 0, "padding is not expected here");
                let Some(Some(received)) = self.open.get_mut(&stream) else { bail!("a body without a head") };
                *received += payload.len();
                Ok(flags & END_STREAM != 0 && self.ended(stream)?)
            }
            SETTINGS if flags & ACK == 0 => {
                frame(&mut self.out, SETTINGS, ACK, 0, &[]);
                Ok(false)
            }
            PING if flags & ACK == 0 => {
                frame(&mut self.out, PING, ACK, 0, payload);
                Ok(false)
            }
            GOAWAY => {
                let word = |at: usize| {
                    payload.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
                };
                ensure!(word(4) == 0, "GOAWAY with error {}", word(4));
                let last = word(0) & 0x7fff_ffff;
                self.last = Some(last);
                // Streams beyond it were not begun (RFC 9113 6.8): they are asked anew elsewhere.
                self.open.retain(|stream, _| *stream <= last);
                Ok(false)
            }
            RST_STREAM => bail!("stream {stream} was reset"),
            _ => Ok(false),
        }
    }

    fn ended(&mut self, stream: u32) -> Result<bool> {
        let received = self.open.remove(&stream).flatten();
        ensure!(received == Some(self.wanted.body), "a body of {received:?} bytes");
        if self.last.is_none() {
            self.ask();
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(stream: u32, status: u8, body: usize) -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, HEADERS, END_HEADERS, stream, &[0x3f, 0xe1, 0x1f, status]);
        frame(&mut out, DATA, END_STREAM, stream, &vec![b'x'; body]);
        out
    }

    #[test]
    fn answers_are_counted_and_asked_anew() {
        let mut two = Two::new("a.test", Wanted { body: 5 }, 2);
        let both = [answer(3, 0x88, 5), answer(1, 0x88, 5)].concat();
        let before = two.out.len();
        assert_eq!(two.take(&both[..20]).expect("half"), 0);
        assert_eq!(two.take(&both[20..]).expect("whole"), 2);
        assert!(two.out.len() > before);
        assert_eq!(two.open.keys().copied().collect::<Vec<_>>(), [5, 7]);
        let mut goaway = Vec::new();
        frame(&mut goaway, GOAWAY, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 0]);
        assert_eq!(two.take(&goaway).expect("goaway"), 0);
        assert!(!two.is_over());
        assert_eq!(two.take(&answer(5, 0x88, 5)).expect("the last"), 1);
        assert!(two.is_over());
    }

    #[test]
    fn another_status_or_length_is_an_error() {
        for wrong in [answer(1, 0x8d, 5), answer(1, 0x88, 4), answer(9, 0x88, 5)] {
            assert!(Two::new("a.test", Wanted { body: 5 }, 1).take(&wrong).is_err());
        }
    }
}
