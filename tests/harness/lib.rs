//! What end-to-end tests share: building and starting targets, running `pagetide`, ground truth.
//!
//! Nothing here uses the crates under test. What a process holds is read by means of the kernel alone,
//! and `pagetide` is the binary a user would run.

mod binary;
mod client;
mod control_group;
mod cycle;
mod failures;
mod frozen;
mod image;
mod machine;
mod run;
mod signals;
mod sizes;
mod steps;
mod store;
mod subject;
mod target;
mod variation;
mod whole;

pub use binary::pagetide_path;
pub use client::{Client, Load, ask_once, free_port};
pub use control_group::ControlGroup;
pub use cycle::{Program, cycle};
pub use failures::caught;
pub use frozen::{Frozen, children, family, thread_states};
pub use image::{Image, Mapped, maps};
pub use machine::Machine;
pub use pagetide_testing::skipped;
pub use run::{Background, Outcome, background, pagetide, pagetide_by};
pub use sizes::{anonymous_kib, resident_kib};
pub use steps::Steps;
pub use store::{TestStore, accepting};
pub use subject::Subject;
pub use target::{Target, compiled};
pub use variation::{epochs, from_environment, seed};
pub use whole::Whole;

use serde_json::Value;
use std::path::{Path, PathBuf};

/// A directory for a test, removed when it is dropped.
pub struct Scratch {
    directory: tempfile::TempDir,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

impl Scratch {
    /// A new and empty directory on the disk that holds temporary files.
    pub fn new() -> Scratch {
        failures::tell_at_once();
        signals::leave_none_ignored();
        let directory = tempfile::Builder::new()
            .prefix("pagetide-it-")
            .tempdir()
            .expect("make a temporary directory");
        Scratch { directory }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// `value[name]` as a number, or a panic that shows the object.
pub fn number(value: &Value, name: &str) -> u64 {
    value[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {name:?} in {value}"))
}

/// `value[name]` as text, or a panic that shows the object.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no text {name:?} in {value}"))
}

/// `value[name]` as a list, or a panic that shows the object.
pub fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name]
        .as_array()
        .unwrap_or_else(|| panic!("no list {name:?} in {value}"))
}
