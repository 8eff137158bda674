//! The L7 proxy: serves Ingress over HTTP and HTTPS, in a process of its own.
//!
//! It is fed with [routes](crate::model::routes) and listening sockets over a unix socket and
//! knows nothing of Kubernetes or of BPF. Without privilege, it goes on serving what it was
//! told last when the agent is gone.

pub mod channel;
pub mod judge;
pub mod target;
pub mod tls;
