//! A name server for the lab: knows a few names, and that there are no others (RFC 1035); and a
//! client of others' name servers.

use anyhow::{Context, Result};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RecordType;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use tokio::net::UdpSocket;

/// Names in lower case without a last dot, and their addresses.
pub(crate) type Names = BTreeMap<String, Vec<IpAddr>>;

const PORT: u16 = 53;
const HEADER: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;
const INTERNET: u16 = 1;
/// Seconds that an answer may be kept.
const TTL: u32 = 5;
/// Answer, recursion desired and available; the answer's last four bits are the code.
const FLAGS: u16 = 0x8180;
const NO_SUCH_NAME: u16 = 3;

/// Answers until the process ends.
///
/// # Errors
/// When the port is taken.
pub(crate) async fn serve(names: Names) -> Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).await.context("listening on UDP port 53")?;
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            // Errors here are ICMP answers to earlier replies.
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
            if let Some(answer) = answer(&names, &buffer[..length]) {
                let _ = socket.send_to(&answer, peer).await;
            }
        }
    });
    Ok(())
}

/// The IPv4 addresses of a name, asked of one server over UDP.
///
/// # Errors
/// When it does not answer, or knows no such name.
pub(crate) async fn resolve(server: SocketAddr, name: &str) -> Result<Vec<IpAddr>> {
    let mut config = NameServerConfig::udp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    let config = ResolverConfig::from_name_servers(vec![config]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().cache_size = 0;
    let resolver = builder.build().context("a resolver")?;
    let found = resolver.lookup(format!("{name}."), RecordType::A).await?;
    Ok(found.answers().iter().filter_map(|record| record.data.ip_addr()).collect())
}

/// The answer to a query of one question; none to anything else.
fn answer(names: &Names, query: &[u8]) -> Option<Vec<u8>> {
    let id = query.get(..2)?;
    let mut at = HEADER;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(*query.get(at..)?.first_chunk()?);
    let question = query.get(HEADER..at + 4)?;
    let known = names.get(&labels.join("."));
    let code = if known.is_some() { 0 } else { NO_SUCH_NAME };
    let of_kind = |ip: &&IpAddr| kind == if ip.is_ipv4() { A } else { AAAA };
    let found: Vec<&IpAddr> = known.into_iter().flatten().filter(of_kind).collect();

    let mut out = id.to_vec();
    for number in [FLAGS | code, 1, u16::try_from(found.len()).ok()?, 0, 0] {
        out.extend(number.to_be_bytes());
    }
    out.extend(question);
    for ip in found {
        // The name is the question's.
        out.extend([0xc0, HEADER as u8]);
        out.extend(kind.to_be_bytes());
        out.extend(INTERNET.to_be_bytes());
        out.extend(TTL.to_be_bytes());
        let bytes = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        out.extend(u16::try_from(bytes.len()).ok()?.to_be_bytes());
        out.extend(bytes);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.push(0);
        query.extend(kind.to_be_bytes());
        query.extend(INTERNET.to_be_bytes());
        query
    }

    #[test]
    fn known_names_have_addresses_and_others_are_denied() -> Result<()> {
        let names = Names::from([("shop.test".to_owned(), vec!["192.0.2.7".parse()?])]);
        let said = answer(&names, &query("Shop.test", A)).context("an answer")?;
        assert_eq!(said[..8], [7, 9, 0x81, 0x80, 0, 1, 0, 1]);
        assert!(said.ends_with(&[0, 4, 192, 0, 2, 7]), "{said:?}");
        let other_kind = answer(&names, &query("shop.test", AAAA)).context("an answer")?;
        assert_eq!(other_kind[2..8], [0x81, 0x80, 0, 1, 0, 0], "no such address is no error");
        let unknown = answer(&names, &query("test", A)).context("an answer")?;
        assert_eq!(unknown[2..4], [0x81, 0x83]);
        assert_eq!(answer(&names, &[1, 2, 3]), None);
        Ok(())
    }
}
