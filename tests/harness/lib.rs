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
mod json;
mod machine;
mod maps;
mod run;
mod scratch;
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
pub use cycle::{Program, comes_back, cycle};
pub use failures::caught;
pub use frozen::{Frozen, children, family, thread_states};
pub use image::Image;
pub use json::{list, number, text};
pub use machine::Machine;
pub use maps::{Mapped, maps};
pub use pagetide_testing::skipped;
pub use run::{Background, Outcome, background, pagetide, pagetide_by};
pub use scratch::Scratch;
pub use sizes::{anonymous_kib, resident_kib};
pub use steps::Steps;
pub use store::{TestStore, accepting};
pub use subject::Subject;
pub use target::{Target, compiled};
pub use variation::{epochs, from_environment, seed};
pub use whole::Whole;
