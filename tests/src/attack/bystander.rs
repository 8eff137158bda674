//! A client that has nothing to do with an attack, and must not notice it (H12).

use super::reply::Replies;
use super::rig::{HOST, Rig};
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

/// A client on one connection, kept for as long as the server likes.
#[derive(Debug, Default)]
pub struct Bystander {
    connection: Option<Replies<TcpStream>>,
    number: u32,
}

impl Bystander {
    /// Asks for something of its own, here and as a client that has just come.
    ///
    /// # Errors
    /// When one of them does not get its own answer.
    pub fn ask(&mut self, rig: &Rig) -> Result<(), String> {
        rig.probe().map_err(|error| error.to_string())?;
        self.number += 1;
        let target = format!("/probe/bystander/{}", self.number);
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Replies::new(rig.connect().map_err(|error| error.to_string())?),
        };
        let request = format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        connection.wire.write_all(request.as_bytes()).map_err(|error| format!("a bystander: {error}"))?;
        let reply = connection.next(false, Duration::from_secs(10));
        match reply {
            Ok(reply) if reply.status == 200 && reply.whole && reply.text().ends_with(&target) => {
                self.connection = Some(connection).filter(|_| reply.reusable);
                Ok(())
            }
            other => Err(format!("a bystander asked for {target} and got {other:?}")),
        }
    }
}
