//! Reads frames for people: what is in one, whether its checksums hold, where two differ.

use super::build::{Link, internet_sum, transport_sum};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What of a frame can be read: whole packets of known protocols only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Read {
    pub from: IpAddr,
    pub to: IpAddr,
    pub proto: u8,
    pub ttl: u8,
    /// Offsets of the network and transport headers, and the IP packet's end.
    pub l3: usize,
    pub l4: usize,
    pub end: usize,
    /// Not the first fragment; or more follow.
    pub fragment: bool,
}

impl Read {
    /// Reads the network header and walks extension headers; `None` when something is cut off.
    pub fn new(frame: &[u8], l3: usize) -> Option<Self> {
        let ip = frame.get(l3..)?;
        match ip.first()? >> 4 {
            4 => {
                let header = usize::from(ip[0] & 15) * 4;
                let head: &[u8; 20] = ip.first_chunk()?;
                let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
                if header < 20 || total < header || total > ip.len() {
                    return None;
                }
                Some(Self {
                    from: Ipv4Addr::new(head[12], head[13], head[14], head[15]).into(),
                    to: Ipv4Addr::new(head[16], head[17], head[18], head[19]).into(),
                    proto: head[9],
                    ttl: head[8],
                    l3,
                    l4: l3 + header,
                    end: l3 + total,
                    fragment: u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0,
                })
            }
            6 => {
                let head: &[u8; 40] = ip.first_chunk()?;
                let total = 40 + usize::from(u16::from_be_bytes([head[4], head[5]]));
                if total > ip.len() {
                    return None;
                }
                let address = |at: usize| -> Option<IpAddr> {
                    Some(Ipv6Addr::from(<[u8; 16]>::try_from(head.get(at..at + 16)?).ok()?).into())
                };
                let (mut proto, mut at, mut fragment) = (head[6], 40, false);
                while matches!(proto, 0 | 43 | 44 | 60) && at + 8 <= total {
                    let length = if proto == 44 { 8 } else { 8 + usize::from(ip[at + 1]) * 8 };
                    fragment |= proto == 44 && (ip[at + 2], ip[at + 3] & 0xf9) != (0, 0);
                    proto = ip[at];
                    at += length;
                }
                if at > total {
                    return None;
                }
                Some(Self {
                    from: address(8)?,
                    to: address(24)?,
                    proto,
                    ttl: head[7],
                    l3,
                    l4: l3 + at,
                    end: l3 + total,
                    fragment,
                })
            }
            _ => None,
        }
    }

    /// Where the transport checksum is.
    pub fn sum_at(&self) -> Option<usize> {
        let at = match self.proto {
            6 => 16,
            17 => 6,
            _ => return None,
        };
        (self.l4 + at + 2 <= self.end).then_some(self.l4 + at)
    }

    /// The transport checksum as it is and as it should be; `None` when there is none, or
    /// only a part of the datagram is here.
    pub fn transport_sums(&self, frame: &[u8]) -> Option<(u16, u16)> {
        let at = self.sum_at()?;
        if self.fragment {
            return None;
        }
        let mut bytes = frame.get(self.l4..self.end)?.to_vec();
        let field = at - self.l4;
        let there = u16::from_be_bytes([bytes[field], bytes[field + 1]]);
        bytes[field..field + 2].fill(0);
        Some((there, transport_sum(self.from, self.to, self.proto, &bytes)))
    }

    /// The IPv4 header's checksum as it is and as it should be.
    pub fn header_sums(&self, frame: &[u8]) -> Option<(u16, u16)> {
        if self.from.is_ipv6() {
            return None;
        }
        let mut header = frame.get(self.l3..self.l3 + usize::from(frame[self.l3] & 15) * 4)?.to_vec();
        let there = u16::from_be_bytes([header[10], header[11]]);
        header[10..12].fill(0);
        Some((there, internet_sum(&[&header])))
    }

    /// Source and destination port of TCP and UDP.
    pub fn ports(&self, frame: &[u8]) -> Option<(u16, u16)> {
        if !matches!(self.proto, 6 | 17) {
            return None;
        }
        let bytes: &[u8; 4] = frame.get(self.l4..self.end)?.first_chunk()?;
        Some((u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])))
    }
}

/// One frame, a line for each layer, its bytes last.
pub fn describe(frame: &[u8], link: Link) -> String {
    let mut out = String::new();
    if let Link::Ethernet | Link::Vlan(_) = link {
        let _ = writeln!(out, "  link {}", hex(frame.get(..link.len()).unwrap_or(frame)));
    }
    match Read::new(frame, link.len()) {
        Some(read) => {
            let _ = write!(out, "  {} > {} ttl {} proto {}", read.from, read.to, read.ttl, read.proto);
            let _ = write!(out, " length {}", read.end - read.l3);
            if let Some((there, right)) = read.header_sums(frame) {
                let _ = write!(out, " sum {}", verdict(there, right));
            }
            if read.fragment {
                out.push_str(" fragment");
            }
            out.push('\n');
            if let Some((from, to)) = read.ports(frame) {
                let _ = write!(out, "  ports {from} > {to}");
                if let Some((there, right)) = read.transport_sums(frame) {
                    let _ = write!(out, " sum {}", verdict(there, right));
                }
                if read.proto == 6
                    && let Some(tcp) = frame.get(read.l4..read.l4 + 20)
                {
                    let number =
                        |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
                    let _ = write!(out, " flags {:#04x} seq {} ack {}", tcp[13], number(4), number(8));
                }
                out.push('\n');
            }
        }
        None => out.push_str("  (not a whole IP packet)\n"),
    }
    let _ = writeln!(out, "  {} bytes: {}", frame.len(), hex(frame));
    out
}

fn verdict(there: u16, right: u16) -> String {
    if there == right { format!("{there:04x} ok") } else { format!("{there:04x} (right: {right:04x})") }
}

/// Both frames and the offsets where they differ.
pub fn difference(expected: &[u8], actual: &[u8], link: Link) -> String {
    let offsets: Vec<usize> = (0..expected.len().max(actual.len()))
        .filter(|at| expected.get(*at) != actual.get(*at))
        .map(|at| at.saturating_sub(link.len()))
        .collect();
    format!(
        "expected:\n{}actual:\n{}differ at these offsets behind the link header: {offsets:?}",
        describe(expected, link),
        describe(actual, link)
    )
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that [`hex`] wrote.
///
/// # Errors
/// When a character is no hexadecimal digit, or one is left over.
pub fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    anyhow::ensure!(text.len().is_multiple_of(2), "an odd number of digits");
    (0..text.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&text[at..at + 2], 16)?)).collect()
}
