//! Weir: the agent of a node, the proxy that serves Ingress, and their supervisor.
//!
//! ```text
//!  API server ─┐                            ┌─> plan ──> datapath ──> BPF maps ──> lb-ebpf
//!              ├─> source ──> model (pure) ─┤   (pure)   (the only aya user)        (thin)
//!  manifests ──┘   Objects     Desired      └─> routes ──link──> proxy (own process) ──> endpoints
//!                  lb-common: the packet path itself, shared by lb-ebpf and the simulator
//! ```

mod address;
mod admin;
pub mod agent;
pub mod args;
pub mod board;
mod cgroup;
pub mod cleanup;
pub mod cli;
pub mod datapath;
pub mod events;
pub mod explain;
pub mod health;
mod http;
pub mod init_node;
pub mod link;
pub mod lock;
pub mod logs;
pub mod metrics;
pub mod model;
pub mod netfilter;
pub mod node;
pub mod plan;
pub mod problem;
pub mod proxy;
pub mod reconcile;
pub mod resolve;
pub mod service_health;
pub mod source;
pub mod status;
pub mod supervisor;
pub mod takeover;
