//! Weir's L7 half attacked from outside, by raw bytes: what H1 to H35 of the specification
//! ask for, each with a figure. Needs root: `cargo xtask test http`.

#![expect(clippy::unwrap_used, reason = "tests")]

mod answers;
mod churn;
mod corpus;
mod downgrade;
mod floods;
mod identity;
mod limits;
mod paths;
mod sequences;
mod slow;
mod tally;
mod upgrade;
