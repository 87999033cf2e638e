//! The integration tests of the chain, as one binary. Each module names the failure it prevents.

mod bounds;
mod chain;
mod common;
mod crash;
mod damage;
mod directory;
mod golden;
mod mixups;
mod parallel;
