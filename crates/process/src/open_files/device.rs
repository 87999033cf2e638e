//! Character devices that have no state: null(4), random(4) and kin.

use super::again::open_found;
use super::error::ReopenError;
use super::file_path::FilePath;
use super::foreign::Foreign;
use super::path;
use super::refused;
use crate::blocker::Blocker;
use crate::opener::Opener;
use bincode::{Decode, Encode};
use rustix::fs::{FileType, major, minor};
use std::os::fd::OwnedFd;

/// A device without state.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DeviceState {
    /// Its path.
    pub path: FilePath,
    /// Its device number: major and minor.
    pub number: (u32, u32),
}

/// null, zero, full, random, urandom.
pub(crate) fn has_no_state(number: (u32, u32)) -> bool {
    matches!(number, (1, 3 | 5 | 7 | 8 | 9))
}

pub(crate) fn read(foreign: &Foreign) -> Result<DeviceState, Blocker> {
    let number = (major(foreign.stat.st_rdev), minor(foreign.stat.st_rdev));
    if !has_no_state(number) {
        return Err(refused::device(foreign));
    }
    Ok(DeviceState {
        path: path::of(foreign)?.path,
        number,
    })
}

pub(crate) fn reopen(
    state: &DeviceState,
    status_flags: u32,
    opener: &Opener,
) -> Result<OwnedFd, ReopenError> {
    let found = path::find(&state.path, None, FileType::CharacterDevice, opener)?;
    let number = found.stat.st_rdev;
    if (major(number), minor(number)) != state.number {
        return Err(ReopenError::changed(
            &state.path,
            "it is another device now",
        ));
    }
    open_found(&found, status_flags).map_err(|error| ReopenError::opening(&state.path, error))
}
