//! End-to-end tests, one binary: see the modules.

mod backends;
mod bad;
mod bad_store;
mod bad_target;
mod churn;
mod commands;
mod debugger;
mod disk_full;
mod inspect;
mod kills;
mod many_mappings;
mod pages;
mod postgres;
mod redis;
mod restore;
mod restore_failures;
mod restore_lazy;
mod rollback;
mod shared;
mod shell;
mod signals;
mod traps;
mod tree;
mod unseen;
mod untrusted_store;
mod whole;
