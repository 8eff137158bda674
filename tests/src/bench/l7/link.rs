//! A client's connection as the loads use it: plain or within TLS, never blocking.

use anyhow::{Result, bail};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

pub(super) struct Link {
    pub(super) tcp: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// Plain bytes that the socket has not taken.
    unsent: Vec<u8>,
}

/// What a read came to.
pub(super) enum Read1 {
    Bytes(usize),
    /// Nothing for now.
    Later,
    /// The peer has closed.
    End,
}

impl Link {
    /// Connects; a handshake begins with the first bytes that are sent.
    pub(super) fn open(
        to: SocketAddr,
        tls: Option<(&Arc<ClientConfig>, &ServerName<'static>)>,
    ) -> Result<Self> {
        let tcp = TcpStream::connect(to)?;
        tcp.set_nodelay(true)?;
        tcp.set_nonblocking(true)?;
        let tls = match tls {
            None => None,
            Some((config, name)) => {
                let mut session = ClientConnection::new(Arc::clone(config), name.clone())?;
                session.set_buffer_limit(None);
                Some(Box::new(session))
            }
        };
        Ok(Self { tcp, tls, unsent: Vec::new() })
    }

    /// Sends, or keeps what cannot go yet; [`Self::waits_to_write`] tells.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.tls {
            Some(session) => session.writer().write_all(bytes)?,
            None if self.unsent.is_empty() => {
                let count = match self.tcp.write(bytes) {
                    Ok(count) => count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                    Err(error) => return Err(error.into()),
                };
                self.unsent.extend_from_slice(&bytes[count..]);
                return Ok(());
            }
            None => self.unsent.extend_from_slice(bytes),
        }
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        loop {
            let wrote = match &mut self.tls {
                Some(session) if session.wants_write() => session.write_tls(&mut self.tcp),
                None if !self.unsent.is_empty() => self.tcp.write(&self.unsent),
                Some(_) | None => return Ok(()),
            };
            match wrote {
                Ok(count) if self.tls.is_none() => drop(self.unsent.drain(..count)),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn waits_to_write(&self) -> bool {
        match &self.tls {
            Some(session) => session.wants_write(),
            None => !self.unsent.is_empty(),
        }
    }

    /// Reads what there is into `buffer`.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Result<Read1> {
        let Some(session) = &mut self.tls else {
            return match self.tcp.read(buffer) {
                Ok(0) => Ok(Read1::End),
                Ok(count) => Ok(Read1::Bytes(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Read1::Later),
                Err(error) => Err(error.into()),
            };
        };
        loop {
            match session.reader().read(buffer) {
                Ok(0) => return Ok(Read1::End),
                Ok(count) => return Ok(Read1::Bytes(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => bail!("TLS: {error}"),
            }
            match session.read_tls(&mut self.tcp) {
                Ok(0) => return Ok(Read1::End),
                Ok(_) => {
                    session.process_new_packets()?;
                    while session.wants_write() {
                        match session.write_tls(&mut self.tcp) {
                            Ok(_) => {}
                            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Read1::Later),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
