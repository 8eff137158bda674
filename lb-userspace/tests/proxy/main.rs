//! The proxy engine over real loopback sockets, between raw clients and scripted origins.

#![expect(clippy::unwrap_used, reason = "tests")]

mod early;
mod failures;
mod harness;
mod http2;
mod overload;
mod patience;
mod serving;
mod shared;
