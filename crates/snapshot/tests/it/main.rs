//! The integration tests of the chain, as one binary. Each module names the failure it prevents.

mod batches;
mod bounds;
mod chain;
mod common;
mod crash;
mod damage;
mod dedup;
mod differences;
mod directory;
mod files;
mod golden;
mod golden_2;
mod golden_3;
mod golden_differences;
mod mixups;
mod model;
mod parallel;
mod prune;
mod prune_crash;
mod scale;
mod shown;
