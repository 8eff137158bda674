//! Real sockets over network namespaces, a real agent between them. Needs root:
//! `cargo xtask test netns`.

#![expect(clippy::unwrap_used, reason = "tests")]

mod api;
mod cleanup;
mod connected;
mod differential;
mod explain;
mod flood;
mod fragments;
mod full;
mod health_check;
mod ingress;
mod malformed;
mod plain;
mod processes;
mod ranges;
mod reach;
mod removal;
mod restart;
mod rig;
mod same_port;
mod stand_in;
mod standby;
mod table;
mod takeover;
