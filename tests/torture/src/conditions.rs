//! Under what a program runs.

use std::path::PathBuf;
use std::time::Duration;

/// Under what a program runs.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The backend, as `--backend` takes it.
    pub backend: String,
    /// A directory on a disk, for files.
    pub disk: PathBuf,
    /// How long one run of pagetide may take.
    pub patience: Duration,
}
