//! Reading the kernel's links, addresses and routes over rtnetlink.

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    pub name: String,
    /// `veth`, `bridge`, …; `None` for hardware.
    pub kind: Option<String>,
    pub up: bool,
    pub loopback: bool,
    pub ethernet: bool,
    /// The bridge, bond or VRF that it is a port of.
    pub controller: Option<u32>,
}

/// An address on a device that may be used: not tentative, not found to be a duplicate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    pub ifindex: u32,
    pub prefix: IpNet,
    pub global: bool,
    pub deprecated: bool,
}

/// A unicast route of the main table that names a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    pub destination: IpNet,
    pub ifindex: u32,
    pub gateway: bool,
    pub metric: u32,
    pub source: Option<IpAddr>,
}

/// The tables of this network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tables {
    pub links: BTreeMap<u32, Link>,
    pub addresses: Vec<Address>,
    /// Routes by way of a gateway are kept only if they are default routes: the others say
    /// nothing about this node's devices, and there can be a million of them.
    pub routes: Vec<Route>,
    /// Addresses that the local table delivers here one by one, also those on no device.
    pub local: BTreeSet<IpAddr>,
}

/// Reads all tables.
///
/// # Errors
/// When the kernel refuses a dump.
pub async fn read(handle: &Handle) -> Result<Tables, rtnetlink::Error> {
    let mut tables = Tables::default();
    let mut links = handle.link().get();
    links.message_mut().attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut links = std::pin::pin!(links.execute());
    while let Some(message) = links.try_next().await? {
        tables.links.insert(message.header.index, link(message));
    }
    let mut addresses = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = addresses.try_next().await? {
        tables.addresses.extend(address(message));
    }
    let families =
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    for family in families {
        let mut routes = std::pin::pin!(handle.route().get(family).execute());
        while let Some(message) = routes.try_next().await? {
            tables.route(&message);
        }
    }
    tables.local.extend(tables.addresses.iter().map(|address| address.prefix.addr()));
    Ok(tables)
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        kind: None,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        controller: None,
    };
    for attribute in message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name = name;
        } else if let LinkAttribute::Controller(index) = attribute {
            link.controller = Some(index);
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            link.kind = infos
                .into_iter()
                .find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind_name(&kind)) } else { None });
        }
    }
    link
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

fn address(message: AddressMessage) -> Option<Address> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut peer, mut local) = (None, None);
    for attribute in message.attributes {
        if let AddressAttribute::Flags(all) = attribute {
            flags = all;
        } else if let AddressAttribute::Local(ip) = attribute {
            local = Some(ip);
        } else if let AddressAttribute::Address(ip) = attribute {
            peer = Some(ip);
        }
    }
    if flags.intersects(AddressFlags::Dadfailed)
        || flags.intersects(AddressFlags::Tentative) && !flags.intersects(AddressFlags::Optimistic)
    {
        return None;
    }
    Some(Address {
        ifindex: message.header.index,
        // On a point-to-point link IFA_ADDRESS is the other end and IFA_LOCAL is ours.
        prefix: IpNet::new(local.or(peer)?, message.header.prefix_len).ok()?,
        global: matches!(message.header.scope, AddressScope::Universe | AddressScope::Site),
        deprecated: flags.intersects(AddressFlags::Deprecated),
    })
}

/// `RT_TABLE_LOCAL`.
const LOCAL_TABLE: u32 = 255;

impl Tables {
    fn route(&mut self, message: &RouteMessage) {
        let mut table = u32::from(message.header.table);
        let any = if message.header.address_family == rtnetlink::packet_route::AddressFamily::Inet {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        let (mut destination, mut device, mut gateway, mut metric, mut source) = (any, None, false, 0, None);
        for attribute in &message.attributes {
            if let RouteAttribute::Destination(to) = attribute {
                destination = ip(to).unwrap_or(any);
            } else if let RouteAttribute::Oif(index) = attribute {
                device = Some(*index);
            } else if let RouteAttribute::Gateway(_) | RouteAttribute::Via(_) = attribute {
                gateway = true;
            } else if let RouteAttribute::Priority(priority) = attribute {
                metric = *priority;
            } else if let RouteAttribute::PrefSource(from) = attribute {
                source = ip(from);
            } else if let RouteAttribute::Table(number) = attribute {
                table = *number;
            } else if let RouteAttribute::MultiPath(hops) = attribute {
                device = hops.first().map(|hop| hop.interface_index);
                gateway = true;
            }
        }
        let bits = message.header.destination_prefix_length;
        let whole = bits == if destination.is_ipv4() { 32 } else { 128 };
        if table == LOCAL_TABLE && message.header.kind == RouteType::Local && whole {
            self.local.insert(destination);
        } else if table == u32::from(RouteHeader::RT_TABLE_MAIN)
            && message.header.kind == RouteType::Unicast
            && (!gateway || bits == 0)
            && let Some(ifindex) = device
            && let Ok(destination) = IpNet::new(destination, bits)
        {
            self.routes.push(Route { destination, ifindex, gateway, metric, source });
        }
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(ip) = address {
        Some((*ip).into())
    } else if let RouteAddress::Inet6(ip) = address {
        Some((*ip).into())
    } else {
        None
    }
}
