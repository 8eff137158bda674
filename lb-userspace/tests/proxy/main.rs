//! The proxy engine over real loopback sockets, between raw clients and scripted origins.

mod failures;
mod harness;
mod http2;
mod serving;
