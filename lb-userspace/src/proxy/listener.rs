//! Accepts connections of one listening socket, for one worker.
//!
//! A socket error of one connection costs only that one. Without descriptors or memory for
//! another connection the loop rests for a moment and leaves the connection in the queue,
//! where other workers and later moments may take it; it never spins (H60).

use crate::proxy::deadline::millis;
use crate::proxy::engine::Scheme;
use crate::proxy::session;
use crate::proxy::worker::Worker;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::spawn_local;
use tracing::{error, warn};

/// The rest after an error that time may mend.
const REST: Duration = Duration::from_millis(100);

/// Accepts until the task is aborted.
pub(super) async fn accept(worker: Rc<Worker>, listener: TcpListener, scheme: Scheme) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            error!(%error, "a listening socket cannot be waited on");
            return;
        }
    };
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                told = false;
                let full = worker.connections.count() >= worker.shared.settings.client.connections;
                if full || worker.shared.pressure.is_high(millis(worker.shared.started.elapsed())) {
                    // Closed by being dropped: established connections come first (H26).
                    continue;
                }
                // Small answers must not wait for acknowledgements. It fails only when the
                // connection is gone already, which the first read tells.
                let _ = stream.set_nodelay(true);
                spawn_local(session::serve(Rc::clone(&worker), stream, peer, scheme));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if !told {
                    warn!(%error, "no connection can be accepted for the moment");
                    told = true;
                }
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Errors of a connection that was gone before it was accepted, accept(2).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}
