//! From desired state to the operations that reach it, make before break.
pub mod op;
