//! Where memory or connections run out, what is open goes on and what is new is closed (H26).

use crate::harness::{Client, Origin, Proxy, settings};
use std::fs;
use std::time::Duration;
use weir::proxy::engine::{ClientLimits, Settings};

/// Whether a client that has just come is served.
fn is_served(proxy: &Proxy) -> bool {
    let mut client = Client::new(proxy.http);
    client.send("GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n");
    client.try_reply().is_some_and(|reply| reply.status == 200)
}

#[test]
fn short_memory_costs_new_connections_and_no_open_one() {
    let group = tempfile::tempdir().unwrap();
    let uses = |bytes: u64| fs::write(group.path().join("memory.current"), bytes.to_string()).unwrap();
    fs::write(group.path().join("memory.max"), "1000000\n").unwrap();
    uses(500_000);
    let origin = Origin::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let memory = Some(group.path().to_owned());
    let proxy = Proxy::start(Settings { memory, ..settings() }, &[origin.address]);
    let mut open = proxy.client();
    assert_eq!(open.get("/").status, 200);
    // What was seen of memory holds for a tenth of a second.
    let look = || std::thread::sleep(Duration::from_millis(150));
    let (mut served, mut refused) = (0, 0);
    for round in 0..3 {
        uses(985_000);
        look();
        for _ in 0..100 {
            refused += usize::from(!is_served(&proxy));
            assert_eq!(open.get("/").status, 200, "round {round}: an open connection");
        }
        uses(500_000);
        look();
        for _ in 0..100 {
            served += usize::from(is_served(&proxy));
        }
    }
    println!("H26: {refused} of 300 refused at 98.5 % of the limit, {served} of 300 served below");
    assert_eq!((refused, served), (300, 300));
}

#[test]
fn more_connections_than_the_limit_are_closed_and_open_ones_go_on() {
    let origin = Origin::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let client = ClientLimits { connections: 10, ..ClientLimits::default() };
    let proxy = Proxy::start(Settings { client, ..settings() }, &[origin.address]);
    let mut open: Vec<_> = (0..10).map(|_| proxy.client()).collect();
    open.iter_mut().for_each(|client| assert_eq!(client.get("/").status, 200));
    for _ in 0..100 {
        assert!(!is_served(&proxy));
    }
    open.iter_mut().for_each(|client| assert_eq!(client.get("/").status, 200));
    open.clear();
    let served = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        is_served(&proxy)
    });
    assert!(served, "room again");
}
