//! Values of flags: each parsed once, from text, into what the parts of the agent use.
//!
//! Errors are sentences without the flag's name; clap puts flag and value in front.

use crate::model::ExternalIps;
use crate::source::StatusAddress;
use ipnet::IpNet;
use lb_common::abi::PortRange;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// An address prefix, such as `10.96.0.0/16`. A bare address is a prefix of full length.
pub fn cidr(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let (addr, bits) = text.split_once('/').map_or((text, None), |(addr, bits)| (addr, Some(bits)));
    let addr: IpAddr = addr.parse().map_err(|_| format!("\"{addr}\" is not an IP address"))?;
    let width = if addr.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Ok(width), str::parse).unwrap_or(u8::MAX);
    IpNet::new(addr, bits).map_err(|_| format!("{text} has no prefix length of 0 to {width}"))
}

/// Prefixes between commas; an empty text is an empty list.
fn cidr_list(text: &str) -> Result<Vec<IpNet>, String> {
    text.split(',').filter(|item| !item.trim().is_empty()).map(cidr).collect()
}

/// An address and a port to listen on. An IPv4 address may stand in brackets as well: whoever puts
/// the word together, such as a Pod from its node's address, need not know the family.
///
/// # Errors
/// When it is something else.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    let in_brackets = text.strip_prefix('[').and_then(|rest| rest.split_once("]:"));
    let spelled = match in_brackets {
        Some((ip, port)) if ip.parse::<Ipv4Addr>().is_ok() => format!("{ip}:{port}"),
        _ => text.to_owned(),
    };
    spelled.parse().map_err(|_| "not ADDRESS:PORT".to_owned())
}

/// `on`, `off`, `true`, `false`.
pub fn on_off(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("neither on nor off".into()),
    }
}

/// `240`, `240s`, `4m`, `1h`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "not a duration such as 240s".to_string())?;
    match unit.trim() {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err(format!("\"{unit}\" is not a unit of time (ms, s, m, h)")),
    }
}

/// `30000-32767`, or a single port.
pub fn port_range(text: &str) -> Result<PortRange, String> {
    let text = text.trim();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| -> Result<u16, String> {
        text.trim().parse().map_err(|_| format!("\"{text}\" is not a port number"))
    };
    let range = PortRange { first: port(first)?, last: port(last)? };
    if range.is_empty() || range.first == 0 {
        return Err(format!("{first}-{last} is not a range of ports from 1 up"));
    }
    Ok(range)
}

/// One or two ranges of source ports (`--snat-port-range`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRanges(pub [PortRange; 2]);

impl FromStr for PortRanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ranges = text.split(',').map(port_range).collect::<Result<Vec<_>, _>>()?;
        match ranges.as_slice() {
            [one] => Ok(Self([*one, PortRange::EMPTY])),
            [one, two] => Ok(Self([*one, *two])),
            _ => Err("more than two ranges".into()),
        }
    }
}

/// `auto`, or names of interfaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Devices {
    Auto,
    Named(Vec<String>),
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_string()).collect();
        match names.iter().find(|name| name.is_empty() || name.len() > 15 || name.contains(['/', ' '])) {
            Some(name) => Err(format!("\"{name}\" is not an interface name")),
            None => Ok(Self::Named(names)),
        }
    }
}

/// `on`, `off`, or the prefixes within which externalIPs are served.
pub fn external_ips(text: &str) -> Result<ExternalIps, String> {
    match on_off(text) {
        Ok(true) => Ok(ExternalIps::On),
        Ok(false) => Ok(ExternalIps::Off),
        Err(_) => cidr_list(text).map(ExternalIps::Within),
    }
}

/// Whose calls are translated at the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketLb {
    Off,
    /// Programs of the host, which no packet hook sees in time; pods by packet alone.
    Host,
    On,
}

/// `on`, `off` or `host`.
pub fn socket_lb(text: &str) -> Result<SocketLb, String> {
    match on_off(text) {
        Ok(true) => Ok(SocketLb::On),
        Ok(false) => Ok(SocketLb::Off),
        Err(_) if text == "host" => Ok(SocketLb::Host),
        Err(reason) => Err(format!("{reason}, nor host")),
    }
}

/// Addresses of the node on which node ports answer (S17).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortAddresses {
    /// The Node's internal addresses.
    Primary,
    /// Every local address but loopback.
    All,
    /// Local addresses in these prefixes; a family without a prefix means all of it (S18).
    Within(Vec<IpNet>),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            "all" | "" => Ok(Self::All),
            prefixes => Ok(Self::Within(cidr_list(prefixes)?)),
        }
    }
}

/// Prefixes between commas.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cidrs(pub Vec<IpNet>);

impl FromStr for Cidrs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        cidr_list(text).map(Self)
    }
}

/// Ports between commas.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ports(pub Vec<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|port| !port.is_empty())
            .map(|port| match port.parse() {
                Ok(0) | Err(_) => Err(format!("\"{port}\" is not a port number")),
                Ok(port) => Ok(port),
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// `NS/NAME`.
pub fn object_key(text: &str) -> Result<crate::problem::ObjectKey, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(crate::problem::ObjectKey::new(namespace, name))
        }
        _ => Err("not of the form NAMESPACE/NAME".into()),
    }
}

/// `1048576`, `1m`, `64k`, `2G`: bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "not a size such as 1m".to_string())?;
    let factor: u64 = match unit {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return Err(format!("\"{unit}\" is not a unit of size (k, m, g)")),
    };
    number.checked_mul(factor).ok_or_else(|| "larger than any body can be".into())
}

/// An address, or a host name, as `status.loadBalancer.ingress` holds it (I69).
pub fn status_address(text: &str) -> Result<StatusAddress, String> {
    let text = text.trim();
    if let Ok(ip) = text.parse() {
        return Ok(StatusAddress::Ip(ip));
    }
    let label = |label: &str| {
        let inside = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        (1..=63).contains(&label.len()) && inside && !label.starts_with('-') && !label.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(StatusAddress::Hostname(text.to_string()))
    } else {
        Err("neither an IP address nor a host name".into())
    }
}

/// Where requests are logged (`--access-log`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AccessLog {
    Off,
    /// `-`: standard output.
    Stdout,
    File(PathBuf),
}

impl FromStr for AccessLog {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" | "false" => Ok(Self::Off),
            "-" => Ok(Self::Stdout),
            "" => Err("empty; say off, - or a file".into()),
            path => Ok(Self::File(path.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn prefixes_contain_their_own_addresses_only() {
        for (prefix, ip, inside) in [
            ("10.96.0.0/16", "10.96.255.1", true),
            ("10.96.0.0/16", "10.97.0.1", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("fd00::/8", "fdff::1", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
        ] {
            let prefix = cidr(prefix).unwrap();
            assert_eq!(prefix.contains(&ip.parse::<IpAddr>().unwrap()), inside, "{prefix} {ip}");
        }
        for bad in ["10.0.0.0/33", "10.0.0/8", "::/129", "x", ""] {
            assert!(cidr(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_ranges_refuse_the_empty_and_the_reversed() {
        assert_eq!(port_range("30000-32767").unwrap(), PortRange { first: 30000, last: 32767 });
        assert_eq!(port_range("80").unwrap(), PortRange { first: 80, last: 80 });
        for bad in ["0-10", "10-9", "70000", "a-b", ""] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
        assert!("1-2,3-4,5-6".parse::<PortRanges>().is_err());
    }

    #[test]
    fn sizes_are_those_of_nginx() {
        for (text, bytes) in [("0", 0), ("1m", 1 << 20), ("64K", 65_536), ("2g", 2 << 30), ("17", 17)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "m", "1mb", "-1", "99999999999999999999", "99999999999g"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn status_addresses_are_addresses_or_names() {
        assert_eq!(status_address("192.0.2.1"), Ok(StatusAddress::Ip("192.0.2.1".parse().unwrap())));
        assert_eq!(status_address("lb.example.com"), Ok(StatusAddress::Hostname("lb.example.com".into())));
        for bad in ["", "a b", "-a", "a..b", "192.0.2.1:80", "http://x"] {
            assert!(status_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_to_listen_on_may_stand_in_brackets_whatever_its_family() {
        for (text, address) in [
            ("127.0.0.1:10249", "127.0.0.1:10249"),
            ("[192.0.2.1]:10249", "192.0.2.1:10249"),
            ("[::]:10256", "[::]:10256"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ] {
            assert_eq!(listen(text), Ok(address.parse().unwrap()), "{text}");
        }
        for bad in ["", "80", "::1:80", "[192.0.2.1]", "[192.0.2.1]:70000", "[[::]]:80", "[]:80"] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_take_a_unit() {
        assert_eq!(duration("240").unwrap(), Duration::from_secs(240));
        assert_eq!(duration("4m").unwrap(), Duration::from_secs(240));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert!(duration("4 days").is_err());
        assert!(duration("s").is_err());
    }
}
