//! The servers in the pods: they say who they are, or echo.
//!
//! TCP: a request that begins with `GET` is answered as HTTP with a line of JSON, so that
//! `curl` works; one that begins with `ECHO` turns the connection into an echo. UDP: a
//! datagram `WHO` is answered with the same JSON; any other is sent back behind the pod's
//! name.

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

/// Serves under `name` until the process ends.
pub(crate) async fn serve(name: &str, tcp: &[u16], udp: &[u16]) -> Result<()> {
    let name: Arc<str> = name.into();
    for &port in tcp {
        let listener = listen(port).with_context(|| format!("listening on TCP port {port}"))?;
        tokio::spawn(accept(listener, Arc::clone(&name)));
    }
    for &port in udp {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("listening on UDP port {port}"))?;
        tokio::spawn(answer_datagrams(socket, Arc::clone(&name)));
    }
    Ok(())
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(4096)
}

async fn accept(listener: TcpListener, name: Arc<str>) {
    loop {
        if let Ok((stream, peer)) = listener.accept().await {
            let name = Arc::clone(&name);
            tokio::spawn(async move {
                // A client that goes away is no fault of the server.
                let _ = answer_connection(stream, peer, &name).await;
            });
        }
    }
}

async fn answer_connection(mut stream: TcpStream, peer: SocketAddr, name: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let mut buffer = vec![0; 4096];
    loop {
        let mut filled = 0;
        while !(buffer[..filled].ends_with(b"\r\n\r\n") || buffer[..filled].starts_with(ECHO)) {
            match stream.read(&mut buffer[filled..]).await? {
                0 => return Ok(()),
                n => filled += n,
            }
        }
        if buffer[..filled].starts_with(ECHO) {
            let greeting = format!("{}\n", identity(name, peer, Some(local)));
            stream.write_all(greeting.as_bytes()).await?;
            stream.write_all(&buffer[ECHO.len()..filled]).await?;
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await?;
            return Ok(());
        }
        let body = format!("{}\n", identity(name, peer, Some(local)));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json";
        let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await?;
    }
}

async fn answer_datagrams(socket: UdpSocket, name: Arc<str>) {
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors here are ICMP answers to earlier replies: of no concern to the next datagram.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let datagram = &buffer[..length];
        let answer = if datagram == WHO {
            identity(&name, peer, None).into_bytes()
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
