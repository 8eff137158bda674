//! What `weir explain` is asked about, from its text.

use super::url::Url;
use crate::problem::ObjectKey;
use lb_common::abi::Proto;
use std::net::{IpAddr, SocketAddr};

/// The text and its meaning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub text: String,
    pub wanted: Wanted,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    Address {
        ip: IpAddr,
        port: u16,
        proto: Proto,
    },
    /// Port name or number, with `/udp` or `/sctp` where that matters.
    Service {
        key: ObjectKey,
        port: String,
    },
    /// Something for the L7 half.
    Url(Url),
}

/// Reads `IP:PORT[/PROTO]`, `svc/NS/NAME:PORT[/PROTO]` or a URL.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn parse(text: &str) -> Result<Target, String> {
    let text = text.trim();
    let target = |wanted| Ok(Target { text: text.to_string(), wanted });
    if text.starts_with("http://") || text.starts_with("https://") {
        return target(Wanted::Url(Url::parse(text)?));
    }
    if let Some(service) = text.strip_prefix("svc/") {
        let (name, port) =
            service.split_once(':').ok_or_else(|| format!("{text}: no port; say svc/NS/NAME:PORT"))?;
        let key = crate::args::value::object_key(name).map_err(|why| format!("{text}: {why}"))?;
        return target(Wanted::Service { key, port: port.to_string() });
    }
    let (address, proto) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let proto = match proto.to_ascii_lowercase().as_str() {
        "tcp" => Proto::TCP,
        "udp" => Proto::UDP,
        "sctp" => Proto::SCTP,
        other => return Err(format!("{text}: {other} is none of tcp, udp, sctp")),
    };
    let at: SocketAddr = address
        .parse()
        .map_err(|_| format!("{text}: neither IP:PORT[/PROTO], nor svc/NS/NAME:PORT, nor a URL"))?;
    target(Wanted::Address { ip: at.ip().to_canonical(), port: at.port(), proto })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_services_or_urls() {
        let address =
            |ip: &str, port, proto| Some(Wanted::Address { ip: ip.parse().expect(ip), port, proto });
        let service =
            |port: &str| Some(Wanted::Service { key: ObjectKey::new("default", "web"), port: port.into() });
        for (text, wanted) in [
            ("10.96.0.10:80", address("10.96.0.10", 80, Proto::TCP)),
            ("10.96.0.10:53/udp", address("10.96.0.10", 53, Proto::UDP)),
            ("[fd00::1]:80/SCTP", address("fd00::1", 80, Proto::SCTP)),
            ("[::ffff:10.0.0.1]:80", address("10.0.0.1", 80, Proto::TCP)),
            ("svc/default/web:80", service("80")),
            ("svc/default/web:dns/udp", service("dns/udp")),
            ("https://example.com/x", Some(Wanted::Url(Url::parse("https://example.com/x").expect("a URL")))),
            ("https:///x", None),
            ("10.96.0.10", None),
            ("10.96.0.10:80/icmp", None),
            ("svc/web:80", None),
            ("svc/default/web", None),
        ] {
            assert_eq!(parse(text).ok().map(|target| target.wanted), wanted, "{text}");
        }
    }
}
