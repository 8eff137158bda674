//! Rules of iptables-legacy (linux/netfilter_ipv4/ip_tables.h, ip6_tables.h): kube-proxy's
//! chain in them.
//!
//! The kernel gives a table as one block, by getsockopt on any socket of the family; nf_tables
//! knows nothing of it. A chain begins with an entry that holds its name, padded with zeros.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

/// Table and chain that kube-proxy's iptables mode begins with.
const TABLE: &str = "nat";
const CHAIN: &str = "KUBE-SERVICES";

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: i32 = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: i32 = 65;
/// `struct ipt_getinfo`, and where its `size` is.
const INFO: usize = 84;
const INFO_SIZE: usize = 80;
/// `struct ipt_get_entries`: `size` behind the name, entries where eight bytes align.
const NAME: usize = 32;
const ENTRIES: usize = 40;
/// Far beyond what kube-proxy writes for 100,000 endpoints.
const LARGEST: usize = 1 << 30;
/// Somebody may write the table between the two questions.
const ATTEMPTS: u32 = 5;

struct Family {
    spelled: &'static str,
    level: i32,
    /// The tables that are there. To ask for another one would make it.
    names: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { spelled: "ip", level: libc::SOL_IP, names: "/proc/net/ip_tables_names" },
    Family { spelled: "ip6", level: libc::SOL_IPV6, names: "/proc/net/ip6_tables_names" },
];

/// kube-proxy's chains.
///
/// # Errors
/// Without CAP_NET_ADMIN. A kernel without these tables has none of their chains.
pub(super) fn kube_proxy() -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for family in &FAMILIES {
        let there = match fs::read_to_string(family.names) {
            Ok(names) => names.lines().any(|name| name == TABLE),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if there && names_chain(&entries(family.level)?) {
            found.push(format!("chain {} {TABLE} {CHAIN} of iptables-legacy", family.spelled));
        }
    }
    Ok(found)
}

fn names_chain(entries: &[u8]) -> bool {
    let name = [CHAIN.as_bytes(), &[0]].concat();
    entries.windows(name.len()).any(|window| window == name)
}

/// All entries of the table, as they are in the kernel.
fn entries(level: i32) -> io::Result<Vec<u8>> {
    let socket = if level == libc::SOL_IPV6 {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?
    } else {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?
    };
    for _ in 0..ATTEMPTS {
        let mut info = vec![0; INFO];
        info[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        get(&socket, level, GET_INFO, &mut info)?;
        let size: [u8; 4] = info[INFO_SIZE..].try_into().unwrap_or_default();
        let length = u32::from_ne_bytes(size) as usize;
        if length > LARGEST {
            return Err(io::Error::other(format!("table {TABLE} has {length} bytes")));
        }
        let mut block = vec![0; ENTRIES + length];
        block[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        block[NAME..NAME + size.len()].copy_from_slice(&size);
        match get(&socket, level, GET_ENTRIES, &mut block) {
            Ok(()) => return Ok(block.split_off(ENTRIES)),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("table {TABLE} changes all the time")))
}

fn get(socket: &UdpSocket, level: i32, name: i32, block: &mut [u8]) -> io::Result<()> {
    let mut length = block.len() as libc::socklen_t;
    // SAFETY: the block is valid for the length that is given with it.
    let failed = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, block.as_mut_ptr().cast(), &raw mut length)
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_is_known_by_its_whole_name() {
        for (entries, is) in [
            (&b"..ERROR\0\0\0KUBE-SERVICES\0\0\0"[..], true),
            (b"KUBE-SERVICES", false),
            (b"KUBE-SERVICES-MORE\0", false),
            (b"", false),
        ] {
            assert_eq!(names_chain(entries), is, "{}", entries.escape_ascii());
        }
    }
}
