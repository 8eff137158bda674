//! Builds frames, right or wrong in every field, with checksums summed from scratch.
//!
//! Nothing here is shared with the code under test: what a translated packet should look like
//! is the same packet built with other addresses.

use std::net::{IpAddr, SocketAddr};

/// Hardware addresses of every Ethernet frame.
pub const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// What is in front of the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    Ethernet,
    /// An 802.1Q tag.
    Vlan(u16),
    /// Nothing: tunnels.
    None,
}

impl Link {
    pub const fn len(self) -> usize {
        match self {
            Self::Ethernet => 14,
            Self::Vlan(_) => 18,
            Self::None => 0,
        }
    }

    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// A checksum as it should be, absent, or off by a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sum {
    Right,
    Zero,
    Off(u16),
}

/// An IPv6 extension header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extension {
    /// Of 8 bytes and so many times 8 more.
    HopByHop(u8),
    Routing(u8),
    Destination(u8),
    /// Offset in units of 8 bytes; more follow.
    Fragment(u16, bool),
}

/// What IP carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    Tcp {
        flags: u8,
        seq: u32,
        ack: u32,
        options: Vec<u8>,
        /// In place of the right data offset.
        doff: Option<u8>,
    },
    Udp {
        /// In place of the right length.
        len: Option<u16>,
    },
    /// Any other protocol, whose whole content is the payload.
    Other(u8),
}

/// A packet, field by field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    pub link: Link,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub tos: u8,
    pub ttl: u8,
    pub id: u16,
    /// IPv4 flags and fragment offset, as one word.
    pub fragment: u16,
    pub options: Vec<u8>,
    pub extensions: Vec<Extension>,
    pub body: Body,
    pub payload: Vec<u8>,
    pub sum: Sum,
    pub ip_sum: Sum,
    /// Only so many bytes of the transport header and payload are in this fragment.
    pub keep: Option<usize>,
    /// In place of the right IPv4 version and header length.
    pub version_ihl: Option<u8>,
    /// In place of the right total (IPv4) or payload (IPv6) length.
    pub length: Option<u16>,
    /// Zeroes behind the IP packet.
    pub padding: usize,
    /// The frame ends here.
    pub cut: Option<usize>,
}

/// Reads `address:port`.
pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text} is no address and port: {error}"))
}

/// A TCP segment; `flags` of `S`, `A`, `F`, `R`, `P`.
pub fn tcp(from: &str, to: &str, flags: &str) -> Packet {
    let bits = flags.chars().fold(0, |bits, flag| {
        bits | match flag {
            'F' => 1,
            'S' => 2,
            'R' => 4,
            'P' => 8,
            'A' => 16,
            other => panic!("no TCP flag: {other}"),
        }
    });
    Packet::new(from, to, Body::Tcp { flags: bits, seq: 1000, ack: 0, options: Vec::new(), doff: None })
}

/// A UDP datagram.
pub fn udp(from: &str, to: &str) -> Packet {
    Packet::new(from, to, Body::Udp { len: None }).payload(b"question")
}

/// A packet of another protocol between two addresses; the ports are not used.
pub fn other(proto: u8, from: &str, to: &str, content: &[u8]) -> Packet {
    Packet::new(from, to, Body::Other(proto)).payload(content)
}

impl Packet {
    fn new(from: &str, to: &str, body: Body) -> Self {
        Self {
            link: Link::Ethernet,
            from: at(from),
            to: at(to),
            tos: 0,
            ttl: 64,
            id: 0x1234,
            fragment: 0x4000,
            options: Vec::new(),
            extensions: Vec::new(),
            body,
            payload: Vec::new(),
            sum: Sum::Right,
            ip_sum: Sum::Right,
            keep: None,
            version_ihl: None,
            length: None,
            padding: 0,
            cut: None,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }

    #[must_use]
    pub fn from(&self, from: &str) -> Self {
        self.with(|p| p.from = at(from))
    }

    #[must_use]
    pub fn to(&self, to: &str) -> Self {
        self.with(|p| p.to = at(to))
    }

    #[must_use]
    pub fn ttl(&self, ttl: u8) -> Self {
        self.with(|p| p.ttl = ttl)
    }

    #[must_use]
    pub fn seq(&self, number: u32) -> Self {
        self.with(|p| {
            if let Body::Tcp { seq, .. } = &mut p.body {
                *seq = number;
            }
        })
    }

    #[must_use]
    pub fn ack(&self, number: u32) -> Self {
        self.with(|p| {
            if let Body::Tcp { ack, .. } = &mut p.body {
                *ack = number;
            }
        })
    }

    #[must_use]
    pub fn tcp_options(&self, bytes: &[u8]) -> Self {
        self.with(|p| {
            if let Body::Tcp { options, .. } = &mut p.body {
                *options = bytes.to_vec();
            }
        })
    }

    #[must_use]
    pub fn payload(&self, bytes: &[u8]) -> Self {
        self.with(|p| p.payload = bytes.to_vec())
    }

    #[must_use]
    pub fn sum(&self, sum: Sum) -> Self {
        self.with(|p| p.sum = sum)
    }

    #[must_use]
    pub fn ip_sum(&self, sum: Sum) -> Self {
        self.with(|p| p.ip_sum = sum)
    }

    #[must_use]
    pub fn options(&self, bytes: &[u8]) -> Self {
        self.with(|p| p.options = bytes.to_vec())
    }

    #[must_use]
    pub fn extension(&self, extension: Extension) -> Self {
        self.with(|p| p.extensions.push(extension))
    }

    #[must_use]
    pub fn link(&self, link: Link) -> Self {
        self.with(|p| p.link = link)
    }

    /// The first fragment, with so many bytes of the transport header and payload.
    #[must_use]
    pub fn first_fragment(&self, keep: usize) -> Self {
        self.with(|p| {
            p.keep = Some(keep);
            if p.from.is_ipv4() {
                p.fragment = 0x2000;
            } else {
                p.extensions.push(Extension::Fragment(0, true));
            }
        })
    }

    /// The fragment that follows so many bytes of the transport header and payload: it has no
    /// ports of its own.
    #[must_use]
    pub fn later_fragment(&self, behind: usize) -> Self {
        let rest = self.transport().split_off(behind);
        let (proto, offset) = (self.protocol(), (behind / 8) as u16);
        self.with(|p| {
            (p.body, p.payload) = (Body::Other(proto), rest);
            if p.from.is_ipv4() {
                p.fragment = offset;
            } else {
                p.extensions.push(Extension::Fragment(offset, false));
            }
        })
    }

    /// Bytes of the whole frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut transport = self.transport();
        if let Some(keep) = self.keep {
            transport.truncate(keep);
        }
        let mut frame = self.link_header();
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = 20 + self.options.len();
                let length = self.length.unwrap_or((header + transport.len()) as u16);
                let mut ip = vec![self.version_ihl.unwrap_or(0x40 | (header / 4) as u8), self.tos];
                ip.extend(length.to_be_bytes());
                ip.extend(self.id.to_be_bytes());
                ip.extend(self.fragment.to_be_bytes());
                ip.extend([self.ttl, self.protocol(), 0, 0]);
                ip.extend(from.octets());
                ip.extend(to.octets());
                ip.extend(&self.options);
                let sum = put(self.ip_sum, internet_sum(&[&ip]));
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(ip);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let (first, extensions) = self.extension_bytes();
                let length = self.length.unwrap_or((extensions.len() + transport.len()) as u16);
                frame.extend([0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([first, self.ttl]);
                frame.extend(from.octets());
                frame.extend(to.octets());
                frame.extend(extensions);
            }
            _ => panic!("{} and {} are of two families", self.from, self.to),
        }
        frame.extend(transport);
        frame.resize(frame.len() + self.padding, 0);
        if let Some(cut) = self.cut {
            frame.truncate(cut);
        }
        frame
    }

    const fn protocol(&self) -> u8 {
        match self.body {
            Body::Tcp { .. } => 6,
            Body::Udp { .. } => 17,
            Body::Other(proto) => proto,
        }
    }

    fn link_header(&self) -> Vec<u8> {
        let mut header = Vec::new();
        if self.link == Link::None {
            return header;
        }
        header.extend(RECEIVER);
        header.extend(SENDER);
        if let Link::Vlan(tag) = self.link {
            header.extend([0x81, 0x00]);
            header.extend(tag.to_be_bytes());
        }
        header.extend(if self.from.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        header
    }

    /// The number of the first next header, and the extension headers.
    fn extension_bytes(&self) -> (u8, Vec<u8>) {
        let number = |extension: &Extension| match extension {
            Extension::HopByHop(_) => 0,
            Extension::Routing(_) => 43,
            Extension::Fragment(..) => 44,
            Extension::Destination(_) => 60,
        };
        let mut bytes = Vec::new();
        for (index, extension) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(index + 1).map_or(self.protocol(), number);
            match extension {
                Extension::Fragment(offset, more) => {
                    bytes.extend([next, 0]);
                    bytes.extend((offset << 3 | u16::from(*more)).to_be_bytes());
                    bytes.extend([0, 0, 0x12, 0x34]);
                }
                // PadN fills the header.
                Extension::HopByHop(more) | Extension::Destination(more) => {
                    let pad = 4 + usize::from(*more) * 8;
                    bytes.extend([next, *more, 1, pad as u8]);
                    bytes.resize(bytes.len() + pad, 0);
                }
                // Type 253 (experiments), no segments left.
                Extension::Routing(more) => {
                    bytes.extend([next, *more, 253, 0]);
                    bytes.resize(bytes.len() + 4 + usize::from(*more) * 8, 0);
                }
            }
        }
        (self.extensions.first().map_or(self.protocol(), number), bytes)
    }

    fn transport(&self) -> Vec<u8> {
        let ports = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        let (mut bytes, sum_at) = match &self.body {
            Body::Tcp { flags, seq, ack, options, doff } => {
                let mut tcp = ports;
                tcp.extend(seq.to_be_bytes());
                tcp.extend(ack.to_be_bytes());
                tcp.extend([
                    doff.unwrap_or((5 + options.len() / 4) as u8) << 4,
                    *flags,
                    0xff,
                    0xff,
                    0,
                    0,
                    0,
                    0,
                ]);
                tcp.extend(options);
                (tcp, 16)
            }
            Body::Udp { len } => {
                let mut udp = ports;
                udp.extend(len.unwrap_or((8 + self.payload.len()) as u16).to_be_bytes());
                udp.extend([0, 0]);
                (udp, 6)
            }
            Body::Other(_) => return self.payload.clone(),
        };
        bytes.extend(&self.payload);
        let right = transport_sum(self.from.ip(), self.to.ip(), self.protocol(), &bytes);
        let sum = put(self.sum, right);
        bytes[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// The checksum of a TCP or UDP packet whose own checksum field is zero; never 0 for UDP.
pub fn transport_sum(from: IpAddr, to: IpAddr, proto: u8, bytes: &[u8]) -> u16 {
    let mut pseudo = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => panic!("{from} and {to} are of two families"),
    };
    pseudo.extend((bytes.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, proto]);
    match internet_sum(&[&pseudo, bytes]) {
        0 if proto == 17 => 0xffff,
        sum => sum,
    }
}

/// RFC 1071 over parts of even length (the last may be odd).
pub fn internet_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for pair in parts.concat().chunks(2) {
        sum += u64::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u64::from);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn put(sum: Sum, right: u16) -> u16 {
    match sum {
        Sum::Right => right,
        Sum::Zero => 0,
        Sum::Off(by) => {
            let sum = u32::from(right) + u32::from(by);
            ((sum & 0xffff) + (sum >> 16)) as u16
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_equal_published_examples() {
        // RFC 1071, section 3, the numbers of its example.
        assert_eq!(!internet_sum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
        // The header that Wikipedia's article on the IPv4 header checksum sums up.
        let header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(internet_sum(&[&header]), 0xb861);
    }
}
