//! Files by path: whether a path leads to a file, and descriptors opened with O_PATH.

use super::again::flags_of_open;
use super::error::ReopenError;
use super::file_path::FilePath;
use super::foreign::Foreign;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::opener::{FileIdentity, OpenError, Opener, PathTarget};
use bincode::{Decode, Encode};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, open, statat};
use std::os::fd::OwnedFd;
use std::path::Path;

/// A path, and the file it led to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PathIdentity {
    /// The path, from the root directory of pagetide.
    pub path: FilePath,
    /// Device of the file.
    pub device: u64,
    /// Inode of the file.
    pub inode: u64,
}

/// A file opened with O_PATH.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PathState {
    /// Which file.
    pub at: PathIdentity,
    /// Its type: the bits `S_IFMT` of `st_mode`, inode(7).
    pub file_type: u32,
}

/// The path if it leads to this very file as seen from here. A link at its end is not followed.
pub(crate) fn leads_to(path: &Path, stat: &Stat) -> Option<PathIdentity> {
    let found = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let same = found.st_dev == stat.st_dev && found.st_ino == stat.st_ino;
    let path = FilePath::new(path).filter(|_| same && stat.st_nlink > 0)?;
    Some(PathIdentity {
        path,
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// The path of a description, or that it leads elsewhere.
pub(crate) fn of(foreign: &Foreign) -> Result<PathIdentity, Blocker> {
    leads_to(&foreign.link, &foreign.stat).ok_or_else(|| {
        let what = format!(
            "is a file that its path {} does not lead to",
            foreign.link.display()
        );
        let advice =
            "close it before the checkpoint: it was deleted, or something is mounted over it";
        foreign.blocker(BlockerKind::Path, &what, advice)
    })
}

pub(crate) fn read(foreign: &Foreign) -> Result<PathState, Blocker> {
    Ok(PathState {
        at: of(foreign)?,
        file_type: foreign.file_type().as_raw_mode(),
    })
}

impl PathIdentity {
    /// Which file it led to.
    pub fn file(&self) -> FileIdentity {
        FileIdentity {
            device: self.device,
            inode: self.inode,
        }
    }

    /// Looks it up, if it is a file of this type. A link at its end is not followed.
    pub(crate) fn find(
        &self,
        wanted: FileType,
        opener: &Opener,
    ) -> Result<PathTarget, ReopenError> {
        find(&self.path, Some(self.file()), wanted, opener)
    }

    /// The same, of what is opened with these status flags afterwards.
    pub(crate) fn find_to_open(
        &self,
        wanted: FileType,
        opener: &Opener,
        status_flags: u32,
    ) -> Result<PathTarget, ReopenError> {
        let flags = flags_of_open(status_flags).difference(OFlags::PATH);
        let found = opener.find_to_open(self.path.as_path(), Some(self.file()), flags);
        checked(&self.path, found, wanted)
    }
}

/// Looks up what a path leads to, if it is a file of this type. A link at its end is not followed.
pub(crate) fn find(
    path: &FilePath,
    was: Option<FileIdentity>,
    wanted: FileType,
    opener: &Opener,
) -> Result<PathTarget, ReopenError> {
    checked(path, opener.find(path.as_path(), was), wanted)
}

fn checked(
    path: &FilePath,
    found: Result<PathTarget, OpenError>,
    wanted: FileType,
) -> Result<PathTarget, ReopenError> {
    let found = found.map_err(|error| ReopenError::opening(path, error))?;
    if found.kind() == wanted {
        Ok(found)
    } else {
        Err(ReopenError::changed(
            path,
            "it is a file of another type now",
        ))
    }
}

pub(crate) fn reopen(
    state: &PathState,
    status_flags: u32,
    opener: &Opener,
) -> Result<OwnedFd, ReopenError> {
    let wanted = FileType::from_raw_mode(state.file_type);
    let found = state.at.find(wanted, opener)?;
    let own = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let flags = OFlags::from_bits_retain(status_flags).intersection(own);
    let flags_of_open = flags | OFlags::PATH | OFlags::CLOEXEC;
    let opened = if flags == OFlags::NOFOLLOW {
        return Ok(found.into_path());
    } else if flags.contains(OFlags::NOFOLLOW) {
        found.open_not_following(flags_of_open)
    } else {
        found.by_link(move |link| open(link, flags_of_open, Mode::empty()))
    };
    opened.map_err(|error| ReopenError::opening(&state.at.path, error))
}
