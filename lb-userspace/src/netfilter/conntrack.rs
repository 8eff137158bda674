//! Flows of netfilter's conntrack (linux/netfilter/nfnetlink_conntrack.h).

use super::wire::{
    AF_INET, AF_INET6, AF_UNSPEC, Attributes, CONNTRACK, Channel, Message, NLM_F_CREATE, NLM_F_EXCL, Read,
};
use lb_common::abi::{Addr, Be16, FlowKey, Proto};
use std::io;
use std::net::IpAddr;

const IPCTNL_MSG_CT_NEW: u8 = 0;
const IPCTNL_MSG_CT_GET: u8 = 1;
const IPCTNL_MSG_CT_DELETE: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_ZONE: u16 = 18;
const CTA_STATUS_MASK: u16 = 26;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const TCP_CONNTRACK_ESTABLISHED: u8 = 3;
/// Its destination is translated.
const IPS_DST_NAT: u32 = 1 << 5;

/// How far a TCP connection is, as netfilter sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tcp {
    /// SYN_SENT, SYN_RECV: the SYN may come again.
    Opening,
    /// From ESTABLISHED to LAST_ACK.
    Open,
    /// TIME_WAIT, CLOSE: both sides are through with it.
    Over,
}

/// A flow whose destination netfilter translates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Translated {
    /// As its first packet arrived.
    pub original: FlowKey,
    /// As the answers to it arrive: from the backend.
    pub reply: FlowKey,
    /// Seconds until netfilter forgets it, if no packet comes.
    pub timeout: u32,
    /// `None`: it is not TCP.
    pub tcp: Option<Tcp>,
}

pub(super) fn translated(channel: &mut Channel) -> io::Result<Vec<Translated>> {
    // Kernels that do not know the filter tell all.
    let filter = Attributes::default().be32(CTA_STATUS, IPS_DST_NAT).be32(CTA_STATUS_MASK, IPS_DST_NAT);
    let question = Message::new(CONNTRACK, IPCTNL_MSG_CT_GET, AF_UNSPEC, filter);
    channel.dump(&question, |_, flow| read(flow))
}

pub(super) fn forget(channel: &mut Channel, original: &FlowKey) -> io::Result<()> {
    let family = if original.destination.is_v4() { AF_INET } else { AF_INET6 };
    let attributes = Attributes::default().nested(CTA_TUPLE_ORIG, write_tuple(original));
    let gone = channel.exists(Message::new(CONNTRACK, IPCTNL_MSG_CT_DELETE, family, attributes));
    gone.map(drop)
}

/// Makes an entry for a flow that netfilter sees no packet of, so that it gives the flow's tuple
/// to no other. False when the tuple was taken already.
pub(super) fn reserve(channel: &mut Channel, original: &FlowKey, seconds: u32) -> io::Result<bool> {
    let family = if original.destination.is_v4() { AF_INET } else { AF_INET6 };
    let mut attributes = Attributes::default()
        .nested(CTA_TUPLE_ORIG, write_tuple(original))
        .nested(CTA_TUPLE_REPLY, write_tuple(&original.reversed()))
        .be32(CTA_TIMEOUT, seconds);
    if original.proto == Proto::TCP {
        let tcp = Attributes::default().bytes(CTA_PROTOINFO_TCP_STATE, &[TCP_CONNTRACK_ESTABLISHED]);
        let info = Attributes::default().nested(CTA_PROTOINFO_TCP, tcp);
        attributes = attributes.nested(CTA_PROTOINFO, info);
    }
    let message = Message::new(CONNTRACK, IPCTNL_MSG_CT_NEW, family, attributes);
    match channel.command(message.with(NLM_F_CREATE | NLM_F_EXCL)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// `None`: neither TCP nor UDP, not translated, or of a zone, which is another network.
fn read(flow: Read<'_>) -> Option<Translated> {
    let zone = flow.be16(CTA_ZONE).unwrap_or(0);
    if flow.be32(CTA_STATUS)? & IPS_DST_NAT == 0 || zone != 0 {
        return None;
    }
    let original = read_tuple(flow.nested(CTA_TUPLE_ORIG)?)?;
    let state = flow
        .nested(CTA_PROTOINFO)
        .and_then(|info| info.nested(CTA_PROTOINFO_TCP))
        .and_then(|tcp| tcp.u8(CTA_PROTOINFO_TCP_STATE));
    Some(Translated {
        original,
        reply: read_tuple(flow.nested(CTA_TUPLE_REPLY)?)?,
        timeout: flow.be32(CTA_TIMEOUT).unwrap_or(0),
        // enum tcp_conntrack; 9 is a simultaneous open.
        tcp: (original.proto == Proto::TCP).then_some(match state {
            Some(0 | 1 | 2 | 9) => Tcp::Opening,
            Some(7 | 8) => Tcp::Over,
            _ => Tcp::Open,
        }),
    })
}

fn read_tuple(tuple: Read<'_>) -> Option<FlowKey> {
    let (ip, proto) = (tuple.nested(CTA_TUPLE_IP)?, tuple.nested(CTA_TUPLE_PROTO)?);
    let number = proto.u8(CTA_PROTO_NUM)?;
    let proto_is = [Proto::TCP, Proto::UDP].into_iter().find(|known| known.0 == number)?;
    let v4 = |kind| Some(Addr::from(IpAddr::from(<[u8; 4]>::try_from(ip.get(kind)?).ok()?)));
    let v6 = |kind| Some(Addr::from(IpAddr::from(<[u8; 16]>::try_from(ip.get(kind)?).ok()?)));
    Some(FlowKey {
        source: v4(CTA_IP_V4_SRC).or_else(|| v6(CTA_IP_V6_SRC))?,
        destination: v4(CTA_IP_V4_DST).or_else(|| v6(CTA_IP_V6_DST))?,
        source_port: Be16::new(proto.be16(CTA_PROTO_SRC_PORT)?),
        destination_port: Be16::new(proto.be16(CTA_PROTO_DST_PORT)?),
        proto: proto_is,
        pad: [0; 3],
    })
}

fn write_tuple(tuple: &FlowKey) -> Attributes {
    let address = |kinds: [u16; 2], attributes: Attributes, addr: Addr| match IpAddr::from(addr) {
        IpAddr::V4(ip) => attributes.bytes(kinds[0], &ip.octets()),
        IpAddr::V6(ip) => attributes.bytes(kinds[1], &ip.octets()),
    };
    let ip = address([CTA_IP_V4_SRC, CTA_IP_V6_SRC], Attributes::default(), tuple.source);
    let ip = address([CTA_IP_V4_DST, CTA_IP_V6_DST], ip, tuple.destination);
    let proto = Attributes::default()
        .bytes(CTA_PROTO_NUM, &[tuple.proto.0])
        .bytes(CTA_PROTO_SRC_PORT, &tuple.source_port.get().to_be_bytes())
        .bytes(CTA_PROTO_DST_PORT, &tuple.destination_port.get().to_be_bytes());
    Attributes::default().nested(CTA_TUPLE_IP, ip).nested(CTA_TUPLE_PROTO, proto)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn tuple(source: &str, destination: &str, proto: Proto) -> FlowKey {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        FlowKey {
            source: addr(source),
            destination: addr(destination),
            source_port: Be16::new(40_000),
            destination_port: Be16::new(80),
            proto,
            pad: [0; 3],
        }
    }

    fn flow(status: u32, original: &FlowKey, reply: &FlowKey, state: u8) -> Attributes {
        let tcp = Attributes::default().bytes(CTA_PROTOINFO_TCP_STATE, &[state]);
        Attributes::default()
            .nested(CTA_TUPLE_ORIG, write_tuple(original))
            .nested(CTA_TUPLE_REPLY, write_tuple(reply))
            .be32(CTA_STATUS, status)
            .be32(CTA_TIMEOUT, 117)
            .nested(CTA_PROTOINFO, Attributes::default().nested(CTA_PROTOINFO_TCP, tcp))
    }

    #[test]
    fn translated_flows_are_read_in_both_families() {
        for (client, frontend, backend, proto, state, expected) in [
            ("10.244.1.2", "10.96.0.1", "10.244.2.3", Proto::TCP, 3, Some(Tcp::Open)),
            ("10.244.1.2", "10.96.0.1", "10.244.2.3", Proto::TCP, 1, Some(Tcp::Opening)),
            ("fd00::2", "fd00:96::1", "fd00:2::3", Proto::TCP, 7, Some(Tcp::Over)),
            ("fd00::2", "fd00:96::1", "fd00:2::3", Proto::UDP, 0, None),
        ] {
            let (original, reply) = (tuple(client, frontend, proto), tuple(backend, client, proto));
            let attributes = flow(IPS_DST_NAT | 0xe, &original, &reply, state);
            let found = read(attributes.read()).unwrap();
            assert_eq!(found, Translated { original, reply, timeout: 117, tcp: expected });
            assert_eq!(read(flow(0xe, &original, &reply, state).read()), None, "not translated");
            let zone = attributes.bytes(CTA_ZONE, &7u16.to_be_bytes());
            assert_eq!(read(zone.read()), None, "of a zone");
        }
    }
}
