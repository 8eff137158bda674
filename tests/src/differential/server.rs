//! The endpoints' side: who says at once who it is and whom it sees, on addresses of its own.
//!
//! A socket belongs to one address: what a datagram socket on all of them answers with would be
//! the routing table's choice, not the address that was asked.

use crate::servers::plain;
use anyhow::{Context, Result};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Serves on every address and port under `name:port`, until the process ends.
pub(crate) async fn serve(name: &str, ips: &[IpAddr], ports: &[u16]) -> Result<()> {
    for &port in ports {
        let name: Arc<str> = format!("{name}:{port}").into();
        for &ip in ips {
            let at = SocketAddr::new(ip, port);
            let listener = listen(at).with_context(|| format!("listening on {at}"))?;
            tokio::spawn(accept(listener, Arc::clone(&name)));
            let socket = UdpSocket::bind(at).await.with_context(|| format!("listening on {at}"))?;
            tokio::spawn(answer_datagrams(socket, Arc::clone(&name)));
        }
    }
    Ok(())
}

fn listen(at: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(8192)
}

async fn accept(listener: TcpListener, name: Arc<str>) {
    loop {
        if let Ok((stream, peer)) = listener.accept().await {
            let line = identity(&name, peer) + "\n";
            // A client that goes away is no fault of the server.
            tokio::spawn(async move { say(stream, &line).await });
        }
    }
}

async fn say(mut stream: TcpStream, line: &str) -> std::io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    // The client ends it.
    stream.readable().await
}

async fn answer_datagrams(socket: UdpSocket, name: Arc<str>) {
    let mut buffer = [0; 256];
    loop {
        // Errors here are ICMP answers to earlier replies: of no concern to the next datagram.
        let Ok((_, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let _ = socket.send_to(identity(&name, peer).as_bytes(), peer).await;
    }
}

fn identity(name: &str, peer: SocketAddr) -> String {
    json!({ "pod": name, "peer": plain(peer) }).to_string()
}
