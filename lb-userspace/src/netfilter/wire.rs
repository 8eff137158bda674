//! nfnetlink: messages of attributes to the kernel and back (RFC 3549; linux/netfilter/nfnetlink.h).

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::io;

/// `NFNL_SUBSYS_*`: the upper half of a message's type.
pub(super) const CONNTRACK: u8 = 1;
pub(super) const TABLES: u8 = 10;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// `struct nlmsghdr`, and `struct nfgenmsg` behind it.
const HEADER: usize = 16;
const GENERIC: usize = 4;
/// The kernel answers at once; a dump may take a while between two parts.
const PATIENCE_SECONDS: i64 = 5;
/// Dumps that changed under the reader are read again so many times.
const AGAIN: u32 = 3;

pub(super) const AF_UNSPEC: u8 = 0;
pub(super) const AF_INET: u8 = libc::AF_INET as u8;
pub(super) const AF_INET6: u8 = libc::AF_INET6 as u8;

/// Attributes of a message in the making.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // No attribute here comes near 64 KiB.
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A string, with its final zero.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    #[cfg(test)]
    pub(super) fn read(&self) -> Read<'_> {
        Read(&self.0)
    }
}

/// Attributes of a message that came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'a>(&'a [u8]);

impl<'a> Read<'a> {
    /// The value of the first attribute of a kind.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        let mut rest = self.0;
        while let [l0, l1, k0, k1, ..] = *rest {
            let length = usize::from(u16::from_ne_bytes([l0, l1]));
            let value = rest.get(4..length)?;
            if u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK == kind {
                return Some(value);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        None
    }

    pub(super) fn nested(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self)
    }

    pub(super) fn u8(self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    pub(super) fn be16(self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(super) fn be32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A string, without its final zero.
    pub(super) fn text(self, kind: u16) -> Option<&'a str> {
        let value = self.get(kind)?;
        std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
    }
}

/// A message to the kernel.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) subsystem: u8,
    pub(super) kind: u8,
    pub(super) flags: u16,
    pub(super) family: u8,
    pub(super) attributes: Attributes,
}

impl Message {
    pub(super) fn new(subsystem: u8, kind: u8, family: u8, attributes: Attributes) -> Self {
        Self { subsystem, kind, flags: 0, family, attributes }
    }

    pub(super) fn with(self, flags: u16) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    fn encode(&self, sequence: u32, into: &mut Vec<u8>) {
        let kind = u16::from(self.subsystem) << 8 | u16::from(self.kind);
        encode(kind, NLM_F_REQUEST | self.flags, sequence, self.family, 0, &self.attributes.0, into);
    }
}

fn encode(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, body: &[u8], into: &mut Vec<u8>) {
    let length = (HEADER + GENERIC + body.len()) as u32;
    into.extend(length.to_ne_bytes());
    into.extend(kind.to_ne_bytes());
    into.extend(flags.to_ne_bytes());
    into.extend(sequence.to_ne_bytes());
    into.extend([0; 4]);
    into.extend([family, 0]);
    into.extend(resource.to_be_bytes());
    into.extend(body);
}

/// One message out of what came.
#[derive(Debug)]
struct Came<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// Takes the next message off what came.
fn next<'a>(rest: &mut &'a [u8]) -> Option<Came<'a>> {
    let number = |at: usize| Some(u32::from_ne_bytes(rest.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    let length = number(0)? as usize;
    let came =
        Came { kind: half(4)?, flags: half(6)?, sequence: number(8)?, body: rest.get(HEADER..length)? };
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(came)
}

/// The error that a message of kind error or done carries.
fn failure(body: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

/// A socket to the kernel's netfilter.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0))?;
        Ok(Self { socket, sequence: 1 })
    }

    /// Sends a message and waits until the kernel says that it is done.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn command(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        let mut bytes = Vec::new();
        message.with(NLM_F_ACK).encode(self.sequence, &mut bytes);
        self.socket.send(&bytes, 0)?;
        self.until_done(self.sequence, |_, _| {})
    }

    /// Asks for one object; `None`: there is no such.
    ///
    /// # Errors
    /// What the kernel said else.
    pub(super) fn exists(&mut self, question: Message) -> io::Result<bool> {
        match self.command(question) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads all objects that a question asks for; `visit` gets each one's family too.
    ///
    /// # Errors
    /// What the kernel said, or when the objects change faster than they can be read.
    pub(super) fn dump<T>(
        &mut self,
        question: &Message,
        mut visit: impl FnMut(u8, Read<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..AGAIN {
            self.sequence += 1;
            let mut bytes = Vec::new();
            question.clone().with(NLM_F_DUMP).encode(self.sequence, &mut bytes);
            self.socket.send(&bytes, 0)?;
            let mut found = Vec::new();
            match self.until_done(self.sequence, |family, attributes| found.extend(visit(family, attributes)))
            {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(|()| found),
            }
        }
        Err(io::Error::other("it changes faster than it can be read"))
    }

    /// Sends messages that happen together or not at all.
    ///
    /// # Errors
    /// What the kernel said of the first one that it refuses.
    pub(super) fn batch(&mut self, subsystem: u8, messages: Vec<Message>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mark = |kind, sequence, bytes: &mut Vec<u8>| {
            encode(kind, NLM_F_REQUEST, sequence, AF_UNSPEC, u16::from(subsystem), &[], bytes);
        };
        self.sequence += 1;
        mark(NFNL_MSG_BATCH_BEGIN, self.sequence, &mut bytes);
        for message in messages {
            self.sequence += 1;
            message.with(NLM_F_ACK).encode(self.sequence, &mut bytes);
        }
        let last = self.sequence;
        self.sequence += 1;
        mark(NFNL_MSG_BATCH_END, self.sequence, &mut bytes);
        self.socket.send(&bytes, 0)?;
        self.until_done(last, |_, _| {})
    }

    /// Receives until the message of this number is acknowledged, its dump is over, or
    /// something fails.
    fn until_done(&self, last: u32, mut visit: impl FnMut(u8, Read<'_>)) -> io::Result<()> {
        let mut interrupted = false;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while let Some(came) = next(&mut rest) {
                interrupted |= came.flags & NLM_F_DUMP_INTR != 0;
                match came.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        if let Some(error) = failure(came.body) {
                            return Err(error);
                        }
                        if came.sequence == last {
                            let changed = io::Error::from(io::ErrorKind::Interrupted);
                            return if interrupted { Err(changed) } else { Ok(()) };
                        }
                    }
                    _ => {
                        if let (Some(family), Some(body)) = (came.body.first(), came.body.get(GENERIC..)) {
                            visit(*family, Read(body));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::default().be32(2, 7).text(1, "nat");
        let written = Attributes::default().bytes(1, &[9]).nested(4, inner).bytes(5, &80u16.to_be_bytes());
        let read = Read(&written.0);
        assert_eq!((read.u8(1), read.be16(5), read.get(6)), (Some(9), Some(80), None));
        let inner = read.nested(4).unwrap();
        assert_eq!((inner.be32(2), inner.text(1)), (Some(7), Some("nat")));
    }

    #[test]
    fn cut_off_attributes_and_messages_end_the_reading() {
        let written = Attributes::default().bytes(1, &[1, 2, 3, 4]).be32(2, 1).0;
        for end in 0..written.len() {
            assert_eq!(Read(&written[..end]).get(2), None, "{end}");
        }
        assert_eq!(Read(&[0, 0, 1, 0, 0, 0, 0, 0]).get(1), None, "a length below its header's");
        let mut bytes = Vec::new();
        Message::new(CONNTRACK, 1, AF_INET, Attributes::default().be32(7, 1)).encode(5, &mut bytes);
        let whole = next(&mut bytes.as_slice()).unwrap();
        assert_eq!((whole.kind, whole.sequence, whole.body.len()), (0x101, 5, 12));
        for end in 0..bytes.len() {
            assert!(next(&mut &bytes[..end]).is_none(), "{end}");
        }
    }
}
