//! End-to-end tests, one binary: see the modules.

mod basics;
mod churn;
