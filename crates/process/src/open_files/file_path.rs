//! A path as the kernel takes it.

use bincode::{Decode, Encode};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path as the kernel takes it: absolute, any bytes but zero.
#[derive(Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct FilePath(Vec<u8>);

/// Longest path of a snapshot, in bytes. The kernel shows no longer ones.
const PATH_BYTES_MAX: usize = 4096;

impl FilePath {
    /// Of a path; none if it cannot be one that is opened.
    pub fn new(path: &Path) -> Option<Self> {
        let path = Self(path.as_os_str().as_bytes().to_vec());
        path.is_possible().then_some(path)
    }

    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    pub(crate) fn is_possible(&self) -> bool {
        self.0.first() == Some(&b'/') && self.0.len() <= PATH_BYTES_MAX && !self.0.contains(&0)
    }
}

impl std::fmt::Debug for FilePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_path().fmt(f)
    }
}

impl std::fmt::Display for FilePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_path().display().fmt(f)
    }
}
