//! The servers in the pods: they say who they are, or echo.
//!
//! TCP: HTTP is answered with what the server saw of the request, as a line of JSON, so that
//! `curl` works ([`web`]); what begins with `ECHO` turns the connection into an echo. UDP: a
//! datagram `WHO` is answered with the same JSON; any other is sent back behind the pod's
//! name.

use crate::web::{self, Sign};
use anyhow::{Context, Result};
use serde_json::json;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Asks a UDP server who it is.
pub(crate) const WHO: &[u8] = b"WHO";
/// Turns a TCP connection into an echo.
pub(crate) const ECHO: &[u8] = b"ECHO\n";

/// Serves until the process ends.
pub(crate) async fn serve(sign: Sign, tcp: &[u16], udp: &[u16]) -> Result<()> {
    let sign = Arc::new(sign);
    for &port in tcp {
        let listener = listen(port).with_context(|| format!("listening on TCP port {port}"))?;
        tokio::spawn(accept(listener, Arc::clone(&sign)));
    }
    for &port in udp {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("listening on UDP port {port}"))?;
        tokio::spawn(answer_datagrams(socket, Arc::clone(&sign)));
    }
    Ok(())
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(4096)
}

async fn accept(listener: TcpListener, sign: Arc<Sign>) {
    loop {
        if let Ok((stream, peer)) = listener.accept().await {
            let sign = Arc::clone(&sign);
            tokio::spawn(async move {
                // A client that goes away is no fault of the server.
                let _ = answer_connection(stream, peer, sign).await;
            });
        }
    }
}

async fn answer_connection(mut stream: TcpStream, peer: SocketAddr, sign: Arc<Sign>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    // No HTTP method begins as ECHO does.
    if stream.peek(&mut first).await? == 0 || first != ECHO[..1] {
        web::answer(stream, peer, sign).await;
        return Ok(());
    }
    let mut opening = [0; ECHO.len()];
    stream.read_exact(&mut opening).await?;
    let greeting = format!("{}\n", identity(&sign.name, peer, Some(stream.local_addr()?)));
    stream.write_all(greeting.as_bytes()).await?;
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await?;
    Ok(())
}

async fn answer_datagrams(socket: UdpSocket, sign: Arc<Sign>) {
    let name = sign.name.as_str();
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors here are ICMP answers to earlier replies: of no concern to the next datagram.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let datagram = &buffer[..length];
        let answer = if datagram == WHO {
            identity(name, peer, None).into_bytes()
        } else {
            [name.as_bytes(), b"\n", datagram].concat()
        };
        let _ = socket.send_to(&answer, peer).await;
    }
}

fn identity(name: &str, peer: SocketAddr, local: Option<SocketAddr>) -> String {
    json!({ "pod": name, "peer": plain(peer), "local": local.map(plain) }).to_string()
}

/// IPv4 as IPv4: dual-stack sockets see it mapped.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), address.port()),
    }
}
