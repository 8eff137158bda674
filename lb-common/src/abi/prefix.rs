//! Sets of addresses, each written as prefixes: who may use a load balancer's address (S51), who
//! is a pod (S43), which addresses are for Services (S38).

use super::{Addr, ServiceId};
use bytemuck::{Pod, Zeroable};

/// Which set a prefix belongs to: the source ranges of the Service port of that id, or one of
/// those of the whole node, whose numbers no Service gets.
pub type PrefixSet = ServiceId;

/// The sets of the whole node. Each is two, one for each family.
pub mod prefix_set {
    use super::{Addr, PrefixSet};

    /// The first number that is no Service's.
    pub const FIRST: PrefixSet = 0xffff_ff00;
    /// Addresses of pods, as `--cluster-cidr` says.
    const PODS: PrefixSet = FIRST;
    /// Ranges that ClusterIPs are taken from, and the ClusterIPs that are.
    const SERVICES: PrefixSet = FIRST + 2;

    #[inline(always)]
    pub const fn pods(addr: &Addr) -> PrefixSet {
        PODS + (!addr.is_v4()) as u32
    }

    #[inline(always)]
    pub const fn services(addr: &Addr) -> PrefixSet {
        SERVICES + (!addr.is_v4()) as u32
    }
}

/// What the longest prefix that holds an address says of it.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
pub struct Held(pub u32);

impl Held {
    /// It is in the set, no more.
    pub const MEMBER: Self = Self(1);
    /// A Service has it: ports that it does not name are refused.
    pub const TAKEN: Self = Self(2);
    /// It belongs to a Service that another proxy serves, and is left to that one.
    pub const FOREIGN: Self = Self(3);
}

/// A member of the longest-prefix map, as the kernel compares it: `len` leading bits of what
/// follows. The set comes first and always counts in full.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
pub struct Prefix {
    pub len: u32,
    pub set: PrefixSet,
    pub addr: Addr,
}

/// Bits of the set's number.
const SET_BITS: u32 = 32;

impl Prefix {
    /// The prefix of `bits` bits, as its family counts them, in a set. The address must have no
    /// bit beyond them. A set holds one family: a short IPv6 prefix would hold IPv4 as well.
    #[inline(always)]
    pub const fn new(set: PrefixSet, addr: Addr, bits: u8) -> Self {
        let mapped = if addr.is_v4() { 96 } else { 0 };
        Self { len: SET_BITS + mapped + bits as u32, set, addr }
    }

    /// The question whether a set holds an address.
    #[inline(always)]
    pub const fn of(set: PrefixSet, addr: Addr) -> Self {
        Self { len: SET_BITS + 128, set, addr }
    }

    /// The number of bits as the address' family counts them.
    pub const fn bits(&self) -> u32 {
        self.len.saturating_sub(if self.addr.is_v4() { SET_BITS + 96 } else { SET_BITS })
    }

    /// Whether the set, as far as this prefix says, holds an address.
    pub fn contains(&self, set: PrefixSet, addr: &Addr) -> bool {
        let mut left = self.len.saturating_sub(SET_BITS);
        let words = self.addr.0.iter().zip(&addr.0);
        set == self.set
            && words.into_iter().all(|(a, b)| {
                let bits = left.min(32);
                left -= bits;
                let differ = u32::from_be(a ^ b);
                bits == 0 || differ >> (32 - bits) == 0
            })
    }
}

const _: () = assert!(size_of::<Prefix>() == 24);

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn prefixes_hold_what_their_family_says() {
        for (prefix, bits, address, held) in [
            ("10.0.0.0", 8, "10.255.0.1", true),
            ("10.0.0.0", 8, "11.0.0.0", false),
            ("10.1.2.3", 32, "10.1.2.3", true),
            ("10.1.2.3", 32, "10.1.2.2", false),
            ("0.0.0.0", 0, "203.0.113.1", true),
            ("0.0.0.0", 0, "2001:db8::1", false),
            ("2001:db8::", 32, "10.1.2.3", false),
            ("2001:db8::", 33, "2001:db8:7fff::1", true),
            ("2001:db8::", 33, "2001:db8:8000::1", false),
            ("::", 0, "fd00::1", true),
        ] {
            let ip = |text: &str| Addr::from(text.parse::<IpAddr>().expect("an address"));
            let member = Prefix::new(7, ip(prefix), bits);
            assert_eq!(member.contains(7, &ip(address)), held, "{prefix}/{bits} {address}");
            assert!(!member.contains(8, &ip(address)), "another set");
            assert_eq!(member.bits(), u32::from(bits));
        }
    }
}
