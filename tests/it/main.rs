//! End-to-end tests, one binary: see the modules.

mod bad;
mod bad_store;
mod bad_target;
mod churn;
mod commands;
mod debugger;
mod disk_full;
mod kills;
mod pages;
mod redis;
mod rollback;
mod shell;
mod signals;
mod traps;
mod unseen;
