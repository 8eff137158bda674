//! Datagrams of connected sockets whose backend is gone (S64).
//!
//! Such a socket was translated once, at connect(), and sends to the old backend for as long as
//! it lives. The kernel keeps the sender with each packet until a socket of the host takes it, and
//! with the sender both names of its peer; so a datagram from a pod that is on its way to a backend
//! which serves no more is told from one that was sent there on purpose. It is then a packet for
//! the frontend that the program had asked for, and its answers come from the address that the
//! socket is connected to.

use super::{Network, Tables, lookup_frontend};
use crate::abi::{BackendFlags, FlowKey, Frontend, Peer, Proto};

/// The frontend that the sender of a datagram had connected to, if its backend is gone and there
/// is another one.
#[inline(always)]
pub(super) fn find_frontend<T: Tables, N: Network>(
    tables: &T,
    network: &N,
    tuple: &FlowKey,
    into: &mut Frontend,
) -> bool {
    if tuple.proto != Proto::UDP {
        return false;
    }
    let Some(peer) = network.sender() else { return false };
    // It may have been connected elsewhere since.
    if peer.backend != tuple.destination || peer.backend_port != tuple.destination_port {
        return false;
    }
    !serves(tables, &peer)
        && lookup_frontend(tables, &peer.frontend, peer.frontend_port, Proto::UDP, into)
        && into.inside.count != 0
}

/// Whether the backend of a connected socket still serves. Its id may have been given to another
/// Service's backend at the same address and port: that is the same server.
#[inline(always)]
fn serves<T: Tables>(tables: &T, peer: &Peer) -> bool {
    tables.backend(peer.backend_id).is_some_and(|backend| {
        backend.addr == peer.backend
            && backend.port == peer.backend_port
            && backend.flags.has(BackendFlags::SERVING)
    })
}
