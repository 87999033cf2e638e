//! The adversary: random programs of memory management run in a target under checkpoints, and every
//! snapshot of the stopped target must equal it, byte for byte. A program that finds a difference is cut
//! down to the few steps that need it.
//!
//! Everything follows from a seed but how threads and checkpoints of a running target interleave.

pub mod conditions;
pub mod devices;
pub mod driver_stores;
pub mod generate;
pub mod kinds;
pub mod machine;
pub mod model;
pub mod operations;
pub mod own;
pub mod program;
pub mod random;
pub mod report;
pub mod rings;
pub mod run;
pub mod shrink;
pub mod stage;
pub mod tally;
