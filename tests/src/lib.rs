//! Weir's test lab: a small network of namespaces with real servers and clients in it, the
//! agent started in its own corner of the machine, and the cases that must hold there.
//!
//! ```text
//!  scratch (cgroup, bpffs, folder) ──┐
//!  netns ── topology ── helper ──────┼── agent ── cases
//!           manifests   (servers, clients, flows: processes of their own, told by `wire`)
//! ```

pub mod agent;
pub mod apiserver;
pub mod attack;
pub mod authority;
pub mod bench;
pub mod cases;
pub mod clients;
pub mod cluster;
pub mod conformance;
pub mod deploy;
pub mod differential;
pub mod flood;
pub mod flows;
mod go;
pub mod h2spec;
pub mod helper;
pub mod hostile;
pub mod kube_proxy;
pub mod kubelet;
pub mod manifests;
mod names;
pub mod netns;
pub mod packets;
pub mod raw;
pub mod scenarios;
pub mod scratch;
pub mod servers;
pub mod topology;
pub mod wait;
pub mod web;
pub mod wire;
