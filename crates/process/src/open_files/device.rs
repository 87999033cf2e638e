//! Character devices that have no state: null(4), random(4) and kin.

use std::os::fd::OwnedFd;

use bincode::{Decode, Encode};
use rustix::fs::{FileType, major, minor};

use crate::blocker::Blocker;

use super::again::open_again;
use super::foreign::Foreign;
use super::path::{self, FilePath};
use super::refused;
use super::reopen::ReopenError;

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

pub(crate) fn reopen(state: &DeviceState, status_flags: u32) -> Result<OwnedFd, ReopenError> {
    let (file, stat) = path::open_path(&state.path, FileType::CharacterDevice)?;
    if (major(stat.st_rdev), minor(stat.st_rdev)) != state.number {
        return Err(ReopenError::changed(
            &state.path,
            "it is another device now",
        ));
    }
    open_again(file, status_flags).map_err(|source| ReopenError::Open {
        path: state.path.as_path().to_owned(),
        source,
    })
}
