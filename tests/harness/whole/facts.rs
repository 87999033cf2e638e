//! What is known of processes.

use std::collections::BTreeMap;

/// Names of things of processes, and what each is.
pub type Facts = BTreeMap<String, String>;
