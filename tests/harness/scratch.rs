//! A directory for a test.

use crate::{failures, signals};
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
