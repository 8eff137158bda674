//! Why packets and connects were dropped, passed on or translated.
//!
//! One enum gives the counter's slot, the metric's label, the row in the documentation
//! and the expectation of a test.

use bytemuck::{Pod, Zeroable};

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident, $first:expr, $last:ident { $($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u32)]
        pub enum $name {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl $name {
            /// All reasons, in counter order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The metric's label.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }

            /// What it means, in one line.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),+ }
            }

            /// Index into the counters map.
            #[inline(always)]
            pub const fn slot(self) -> u32 {
                $first + self as u32
            }
        }

        const $last: u32 = $first + $name::ALL.len() as u32;
    };
}

reasons! {
    /// Traffic that Weir translated or left alone.
    PassReason, 0, AFTER_PASS {
        /// A packet of a known flow, client to backend.
        Forward = "forward",
        /// A packet of a known flow, backend to client.
        Reply = "reply",
        /// The first packet of a flow to a Service.
        NewFlow = "new_flow",
        /// A connect() or sendmsg() to a Service.
        Socket = "socket",
        /// Addressed to no Service.
        NoService = "no_service",
        /// Neither IPv4 nor IPv6.
        NotIp = "not_ip",
        /// A protocol that Services do not carry.
        OtherProtocol = "other_protocol",
        /// A fragment without ports, of no packet that was translated.
        Fragment = "fragment",
        /// Header fields contradict each other or the packet's length; left to the stack.
        Malformed = "malformed",
        /// XDP left the packet to tc, untouched.
        LeftToTc = "left_to_tc",
        /// An ICMP error about a packet of a known flow, turned with it (S70).
        IcmpError = "icmp_error",
        /// Of a flow that netfilter translates since before Weir came; left to it (S82).
        Foreign = "foreign",
    }
}

reasons! {
    /// Traffic that Weir refused, and refused on behalf of whom.
    DropReason, AFTER_PASS, AFTER_DROP {
        /// The Service has no usable endpoint anywhere: refused (S35).
        NoEndpoint = "no_endpoint",
        /// A Local policy leaves no endpoint here: dropped in silence (S37).
        NoLocalEndpoint = "no_local_endpoint",
        /// No route to the chosen backend or back to the client.
        NoRoute = "no_route",
        /// No source port is free towards this backend (S48).
        SnatExhausted = "snat_exhausted",
        /// The flow could not be remembered, or not be confirmed: its map is full (S69).
        ConntrackFull = "conntrack_full",
        /// Hop limit used up.
        TtlExceeded = "ttl_exceeded",
        /// Too large for the way to the backend.
        FragmentationNeeded = "fragmentation_needed",
        /// A helper refused to rewrite the packet.
        RewriteFailed = "rewrite_failed",
        /// To a loopback address, from another machine or a pod (CVE-2020-8558, H37).
        Loopback = "loopback",
        /// The backend tables name a backend that does not exist.
        StaleTable = "stale_table",
        /// From a client outside of `loadBalancerSourceRanges` (S51).
        SourceRange = "source_range",
        /// To a port of a ClusterIP that its Service does not name: refused (S38).
        UndefinedPort = "undefined_port",
        /// To an address out of the ranges of ClusterIPs that no Service has (S38).
        Unallocated = "unallocated",
        /// A fragment without ports to a ClusterIP, and the first one of its packet has not come (S71).
        LostFragment = "lost_fragment",
        /// A fragment of a packet whose first one was refused or dropped.
        RefusedFragment = "refused_fragment",
    }
}

reasons! {
    /// Things worth counting that decide no packet.
    Reason, AFTER_DROP, AFTER_ALL {
        /// A packet found no room for its flow in the confirmed-flow map.
        FlowsFull = "flows_full",
        /// A flow was confirmed.
        Confirmed = "confirmed",
        /// A flow was closed by FIN or RST.
        Closed = "closed",
        /// A source port of a closed flow was taken over.
        PortTakenOver = "port_taken_over",
        /// A UDP flow, or a TCP one still opening, was moved from a backend that is gone (S60).
        Moved = "moved",
    }
}

impl Reason {
    /// Number of counters in all three enums.
    pub const COUNT: u32 = AFTER_ALL;
}

/// Per-Service counters, added to on new flows only.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct ServiceCounters {
    /// New flows seen by the packet path.
    pub packet_flows: u64,
    /// Connects and first datagrams translated at the socket.
    pub socket_flows: u64,
    /// Refused or dropped for lack of an endpoint.
    pub no_endpoint: u64,
    /// Refused or dropped for any other reason.
    pub dropped: u64,
}

const _: () = assert!(size_of::<ServiceCounters>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_dense_and_distinct() {
        let slots = PassReason::ALL
            .iter()
            .map(|r| r.slot())
            .chain(DropReason::ALL.iter().map(|r| r.slot()))
            .chain(Reason::ALL.iter().map(|r| r.slot()));
        for (expected, slot) in (0..).zip(slots) {
            assert_eq!(slot, expected);
        }
        assert_eq!(Reason::ALL.last().map(|r| r.slot() + 1), Some(Reason::COUNT));
    }

    #[test]
    fn every_reason_is_a_row_of_the_documentation() {
        let page = include_str!("../../../docs/counters.md");
        let rows = PassReason::ALL
            .iter()
            .map(|r| (r.label(), r.meaning()))
            .chain(DropReason::ALL.iter().map(|r| (r.label(), r.meaning())))
            .chain(Reason::ALL.iter().map(|r| (r.label(), r.meaning())));
        for (label, meaning) in rows {
            let row = page.lines().find(|line| {
                line.split('|').nth(1).is_some_and(|cell| cell.trim().trim_matches('`') == label)
            });
            assert!(row.is_some_and(|row| row.contains(meaning)), "{label} | {meaning}");
        }
    }

    #[test]
    fn meanings_are_one_line() {
        assert_eq!(DropReason::NoRoute.meaning(), "No route to the chosen backend or back to the client.");
    }
}
