//! From desired state to the operations that reach it, make before break.
//!
//! [`Planner`] remembers what has been applied (nothing else counts), gives out ids and table
//! blocks, and compares one Service at a time with what it should be. The order inside a plan
//! is that of its safety: backends, then tables, then the frontends that switch to them, then
//! what nobody refers to any more. Pure: time is an argument, in whole seconds of a monotonic
//! clock.
//!
//! ```ignore
//! let plan = planner.diff(&key, model.state(&key), now);
//! let failed = planner.carry_out(&plan.ops, now, |ops| datapath.apply(ops));
//! ```
//! A plan is carried out before the next one is asked for. Whatever fails, or waits for room
//! ([`Plan::problems`]), is asked for again later: the next plan of that Service starts from
//! what is really there.

mod holding;
mod ids;
mod maglev;
pub mod op;
mod planner;
mod port;
mod tables;
#[cfg(test)]
mod tests;

pub use planner::{Failed, Plan, Planner};
