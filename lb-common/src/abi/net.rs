//! Addresses, ports and protocols in wire order.

use bytemuck::{Pod, Zeroable};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv6 address, or an IPv4 one in its mapped form (RFC 4291 2.5.5.2): four 32-bit
/// words as they lie on the wire.
///
/// Words, because `bpf_sock_addr` allows only 4- and 8-byte access and because the
/// verifier tracks them better than bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Pod, Zeroable)]
pub struct Addr(pub [u32; 4]);

/// `ffff` of the mapped prefix, in wire order.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Addr {
    /// `::`, the key of a frontend that answers on every address of the node (IPv6).
    pub const ANY_V6: Self = Self([0; 4]);
    /// `::ffff:0.0.0.0`, the same for IPv4.
    pub const ANY_V4: Self = Self([0, 0, MAPPED, 0]);

    /// The mapped form of an IPv4 address given as its wire-order word.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The last word: the whole of an IPv4 address, in wire order.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.0[3]
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    #[inline(always)]
    pub const fn family(&self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }

    /// In `127.0.0.0/8`, or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// `0.0.0.0` or `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[3] == 0 && self.0[0] == 0 && self.0[1] == 0 && (self.0[2] == 0 || self.0[2] == MAPPED)
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(ip.octets()))
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self(bytemuck::cast(ip.octets()))
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            Self::V4(Ipv4Addr::from(addr.0[3].to_ne_bytes()))
        } else {
            Self::V6(Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(addr.0)))
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which of the two families an [`Addr`] belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The address that stands for "any" in this family.
    pub const fn any(self) -> Addr {
        match self {
            Self::V4 => Addr::ANY_V4,
            Self::V6 => Addr::ANY_V6,
        }
    }
}

impl From<IpAddr> for Family {
    fn from(ip: IpAddr) -> Self {
        Addr::from(ip).family()
    }
}

/// As the Kubernetes API spells it (`spec.ipFamilies`).
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl core::str::FromStr for Family {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "IPv4" => Ok(Self::V4),
            "IPv6" => Ok(Self::V6),
            _ => Err(()),
        }
    }
}

/// A port as it lies on the wire.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Pod, Zeroable)]
pub struct Be16(u16);

impl Be16 {
    #[inline(always)]
    pub const fn new(host_order: u16) -> Self {
        Self(host_order.to_be())
    }

    #[inline(always)]
    pub const fn from_wire(raw: u16) -> Self {
        Self(raw)
    }

    /// The value as it lies on the wire.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }

    /// The value as a number.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl PartialOrd for Be16 {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Be16 {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.get().cmp(&other.get())
    }
}

impl fmt::Display for Be16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.get(), f)
    }
}

impl fmt::Debug for Be16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IP protocol number that Services can carry.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Pod, Zeroable)]
pub struct Proto(pub u8);

impl Proto {
    pub const TCP: Self = Self(6);
    pub const UDP: Self = Self(17);
    pub const SCTP: Self = Self(132);
    pub const ICMP: Self = Self(1);
    pub const ICMPV6: Self = Self(58);
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.write_str("TCP"),
            Self::UDP => f.write_str("UDP"),
            Self::SCTP => f.write_str("SCTP"),
            Self::ICMP => f.write_str("ICMP"),
            Self::ICMPV6 => f.write_str("ICMPv6"),
            Self(other) => write!(f, "proto-{other}"),
        }
    }
}

impl fmt::Debug for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const _: () = assert!(size_of::<Addr>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_know_their_family() {
        for (text, family, unspecified) in [
            ("10.96.0.1", Family::V4, false),
            ("0.0.0.0", Family::V4, true),
            ("255.255.255.255", Family::V4, false),
            ("fd00:10:96::1", Family::V6, false),
            ("::", Family::V6, true),
            ("::1", Family::V6, false),
        ] {
            let ip: IpAddr = text.parse().expect(text);
            let addr = Addr::from(ip);
            assert_eq!(IpAddr::from(addr), ip, "{text}");
            assert_eq!(addr.family(), family, "{text}");
            assert_eq!(addr.is_unspecified(), unspecified, "{text}");
        }
        for (text, loopback) in
            [("127.0.0.1", true), ("127.255.0.9", true), ("::1", true), ("128.0.0.1", false), ("::2", false)]
        {
            let ip: IpAddr = text.parse().expect(text);
            assert_eq!(Addr::from(ip).is_loopback(), loopback, "{text}");
        }
        assert_eq!(Addr::from(Ipv4Addr::UNSPECIFIED), Addr::ANY_V4);
        assert_eq!(Addr::from(Ipv6Addr::UNSPECIFIED), Addr::ANY_V6);
    }

    #[test]
    fn ports_compare_as_numbers() {
        assert!(Be16::new(80) < Be16::new(8080));
        assert!(Be16::new(0x00ff) < Be16::new(0x0100));
        assert_eq!(Be16::new(80).wire(), 80u16.to_be());
    }
}
