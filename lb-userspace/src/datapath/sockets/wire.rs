//! sock_diag: the sockets of this network namespace (linux/sock_diag.h, linux/inet_diag.h).

use bytemuck::{Pod, Zeroable};
use lb_common::abi::{Addr, Be16, Proto, SocketKey};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::io;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Bit of a socket that has a peer.
const ESTABLISHED: u32 = 1 << 1;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
const PATIENCE_SECONDS: i64 = 5;

/// `struct inet_diag_sockid`: a socket's name, given back as it came.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct SocketId([u32; 12]);

/// `struct inet_diag_req_v2`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Request {
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

/// A socket to the kernel's sock_diag.
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The connected UDP sockets of a family, and by which key their peers' other name is kept.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn connected(&mut self, family: u8) -> io::Result<Vec<(SocketId, SocketKey)>> {
        self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, SocketId::zeroed())?;
        let mut found = Vec::new();
        self.receive(|body| found.extend(told(body)))?;
        Ok(found)
    }

    /// Ends a socket; false when it is gone already.
    ///
    /// # Errors
    /// What the kernel said: without CONFIG_INET_DIAG_DESTROY, that it cannot.
    pub(super) fn destroy(&mut self, family: u8, id: &SocketId) -> io::Result<bool> {
        self.send(SOCK_DESTROY, NLM_F_ACK, family, *id)?;
        match self.receive(|_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, kind: u16, flags: u16, family: u8, id: SocketId) -> io::Result<()> {
        self.sequence += 1;
        let protocol = libc::IPPROTO_UDP as u8;
        let request = Request { family, protocol, extensions: 0, pad: 0, states: ESTABLISHED, id };
        let length = (HEADER + size_of::<Request>()) as u32;
        let mut bytes = Vec::new();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(bytemuck::bytes_of(&request));
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Receives until the last message is answered. What an earlier one left is passed over.
    fn receive(&self, mut visit: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while let Some((kind, sequence, body)) = next(&mut rest) {
                if sequence != self.sequence {
                    continue;
                }
                if kind != NLMSG_ERROR && kind != NLMSG_DONE {
                    visit(body);
                    continue;
                }
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
        }
    }
}

/// Takes the next message off what came: its kind, its number, what is behind its header.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(u16, u32, &'a [u8])> {
    let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3] = *rest.first_chunk()?;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let body = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes([s0, s1, s2, s3]), body))
}

/// A socket of a dump (`struct inet_diag_msg`: four bytes, the first of them the family, then its
/// name).
fn told(body: &[u8]) -> Option<(SocketId, SocketKey)> {
    let family = *body.first()?;
    let id: SocketId = bytemuck::pod_read_unaligned(body.get(4..4 + size_of::<SocketId>())?);
    let SocketId([ports, _, _, _, _, a, b, c, d, _, low, high]) = id;
    let addr = if i32::from(family) == libc::AF_INET { Addr::from_v4_word(a) } else { Addr([a, b, c, d]) };
    let [_, _, p, q] = ports.to_ne_bytes();
    let port = Be16::from_wire(u16::from_ne_bytes([p, q]));
    let cookie = u64::from(low) | u64::from(high) << 32;
    Some((id, SocketKey { cookie, addr, port, proto: Proto::UDP, reverse: 1, pad: 0 }))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn a_dumped_socket_is_named_by_its_cookie_and_peer() {
        let mut words = [0; 12];
        words[0] = u32::from_ne_bytes([0x9c, 0x40, 0x1f, 0x90]);
        words[5..9].copy_from_slice(&[u32::from_ne_bytes([10, 0, 1, 5]), 0, 0, 0]);
        (words[10], words[11]) = (7, 1);
        let dumped =
            |family, words: [u32; 12]| [&[family, 1, 0, 0], bytemuck::bytes_of(&words), &[0; 20]].concat();
        let body = dumped(libc::AF_INET as u8, words);
        let (id, key) = told(&body).unwrap();
        assert_eq!((id, IpAddr::from(key.addr)), (SocketId(words), "10.0.1.5".parse().unwrap()));
        assert_eq!((key.port.get(), key.cookie), (8080, 1 << 32 | 7));
        // An IPv6 socket that is connected to an IPv4 address.
        words[5..9].copy_from_slice(&Addr::from(IpAddr::from([10, 0, 1, 5])).0);
        assert_eq!(told(&dumped(libc::AF_INET6 as u8, words)).unwrap().1, key);
        for end in 0..52 {
            assert_eq!(told(&body[..end]), None, "{end}");
        }
    }

    #[test]
    fn messages_are_taken_one_by_one_and_a_cut_one_ends_the_reading() {
        let message = |kind: u16, body: &[u8]| {
            let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(5_u32.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(body);
            bytes
        };
        let both = [message(20, &[1, 2, 3, 4]), message(3, &[0; 4])].concat();
        let mut rest = both.as_slice();
        assert_eq!(next(&mut rest), Some((20, 5, &[1, 2, 3, 4][..])));
        assert_eq!(next(&mut rest), Some((3, 5, &[0; 4][..])));
        assert_eq!(next(&mut rest), None);
        assert_eq!(next(&mut &both[..18]), None);
    }
}
