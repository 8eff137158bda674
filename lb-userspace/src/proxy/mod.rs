//! The L7 proxy: serves Ingress over HTTP and HTTPS, in a process of its own.
//!
//! It is fed with [routes](crate::model::routes) and listening sockets over a unix socket and
//! knows nothing of Kubernetes or of BPF. Without privilege, it goes on serving what it was
//! told last when the agent is gone.

pub mod access_log;
mod account;
pub mod balance;
mod body;
pub mod channel;
mod confine;
mod conn;
pub mod control;
mod cork;
mod deadline;
mod drain;
pub mod engine;
mod error;
mod forward;
pub mod handover;
mod headers;
mod io;
pub mod judge;
mod listener;
pub mod matcher;
pub mod metrics;
mod pace;
mod pool;
pub mod pressure;
pub(crate) mod privileges;
pub mod process;
pub mod record;
mod serve;
mod session;
pub mod settings;
mod silence;
mod stream;
pub mod table;
pub mod target;
pub mod tls;
mod upgrade;
mod upload;
mod upstream;
mod worker;
