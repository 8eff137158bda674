//! What a refused packet's sender must be told, built from the packet with sums of its own.

use super::build::{Link, internet_sum, transport_sum};
use super::show::Read;

/// The frame that refuses `frame`: a RST for a whole SYN, else ICMP or ICMPv6 "port unreachable".
pub fn refusal(frame: &[u8], link: Link) -> Vec<u8> {
    match Read::new(frame, link.len()) {
        Some(read) if read.proto == 6 && !read.fragment && frame[read.l4 + 13] & 0x17 == 2 => {
            reset(frame, &read)
        }
        _ => port_unreachable(frame, link),
    }
}

fn swapped_link(head: &[u8]) -> Vec<u8> {
    if head.is_empty() {
        return Vec::new();
    }
    [&head[6..12], &head[..6], &head[12..]].concat()
}

/// RFC 9293 3.10.7.1: sequence 0, acknowledging the SYN. All else of the packet stays.
fn reset(frame: &[u8], read: &Read) -> Vec<u8> {
    let mut answer = swapped_link(&frame[..read.l3]);
    answer.extend(&frame[read.l3..]);
    let swap = |answer: &mut Vec<u8>, at: usize, other: usize, len: usize| {
        let old = answer.clone();
        answer[at..at + len].copy_from_slice(&old[other..other + len]);
        answer[other..other + len].copy_from_slice(&old[at..at + len]);
    };
    if read.from.is_ipv4() {
        swap(&mut answer, read.l3 + 12, read.l3 + 16, 4);
        answer[read.l3 + 8] = 64;
    } else {
        swap(&mut answer, read.l3 + 8, read.l3 + 24, 16);
        answer[read.l3 + 7] = 64;
    }
    let l4 = read.l4;
    swap(&mut answer, l4, l4 + 2, 2);
    let sequence = u32::from_be_bytes([frame[l4 + 4], frame[l4 + 5], frame[l4 + 6], frame[l4 + 7]]);
    answer[l4 + 4..l4 + 8].fill(0);
    answer[l4 + 8..l4 + 12].copy_from_slice(&sequence.wrapping_add(1).to_be_bytes());
    answer[l4 + 12] &= 0xf0;
    answer[l4 + 13] = 0x14;
    answer[l4 + 14..l4 + 16].fill(0);
    answer[l4 + 16..l4 + 18].fill(0);
    let sum = transport_sum(read.to, read.from, 6, &answer[l4..read.end]);
    answer[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
    if read.from.is_ipv4() {
        answer[read.l3 + 10..read.l3 + 12].fill(0);
        let sum = internet_sum(&[&answer[read.l3..l4]]);
        answer[read.l3 + 10..read.l3 + 12].copy_from_slice(&sum.to_be_bytes());
    }
    answer
}

/// The frame that answers `frame` with ICMP or ICMPv6 "port unreachable".
fn port_unreachable(frame: &[u8], link: Link) -> Vec<u8> {
    let (head, packet) = frame.split_at(link.len());
    let v4 = packet[0] >> 4 == 4;
    let header = if v4 { 20 } else { 40 };
    let tcp = packet[if v4 { 9 } else { 6 }] == 6;
    let quote = &packet[..header + if tcp { 20 } else { 8 }];
    let mut icmp = if v4 { vec![3, 3, 0, 0, 0, 0, 0, 0] } else { vec![1, 4, 0, 0, 0, 0, 0, 0] };
    icmp.extend(quote);
    let mut answer = swapped_link(head);
    if v4 {
        let sum = internet_sum(&[&icmp]);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut ip = vec![0x45, 0];
        ip.extend(((20 + icmp.len()) as u16).to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 1, 0, 0]);
        ip.extend(&packet[16..20]);
        ip.extend(&packet[12..16]);
        let sum = internet_sum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        answer.extend(ip);
    } else {
        let pseudo = [&packet[24..40], &packet[8..24], &(icmp.len() as u32).to_be_bytes(), &[0, 0, 0, 58]];
        let sum = internet_sum(&[&pseudo.concat(), &icmp]);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        answer.extend([0x60, 0, 0, 0]);
        answer.extend((icmp.len() as u16).to_be_bytes());
        answer.extend([58, 64]);
        answer.extend(&packet[24..40]);
        answer.extend(&packet[8..24]);
    }
    answer.extend(icmp);
    answer
}
