//! Packets in, packets out: the table that the simulator, tc and XDP must all agree with.
//!
//! ```text
//!  build ── row ── table ──┬── run (simulator)
//!           world ─────────┴── kernel (the loaded programs, through the kernel's test-run)
//! ```
//! [`build`] makes packets and what they should become from scratch, with checksums of its
//! own; [`show`] reads them for people.

pub mod answer;
pub mod build;
pub mod capture;
pub mod fuzz;
pub mod kernel;
pub mod model;
pub mod netfilter;
pub mod row;
pub mod run;
pub mod show;
pub mod table;
pub mod world;
