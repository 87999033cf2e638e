//! Regular files that their paths lead to.
//!
//! A file is opened again by its path, as the process would open it. What it must be then depends on what the program may do with it:
//!
//! - *Opened for reading only, or for both without O_APPEND*: size and time of modification must be those of the
//!   snapshot. What the program remembers of the file, a database of its pages for instance, would be wrong otherwise.
//! - *Opened for writing only, or with O_APPEND*, as outputs and logs are: they go on growing after the snapshot. It must be the
//!   same inode, or another one that is at least as long as the position; nothing that was written since is taken away, and
//!   the program writes on where it stood (with O_APPEND, at the end).
//!
//! A file that is otherwise is refused, and used as it is if `file-changed:PATH` is accepted; if there is none at all any more, the
//! descriptors are closed then. Files of `/proc`, `/sys` and other file systems that make them up are not compared. No file is ever
//! created, emptied, or written to. A file of memory that processes map shared is what whoever restores made of it
//! ([`ReopenChoices::objects`]), whatever is at its path.

use super::again::{can_read, open_again, open_found, seek};
use super::choices::ReopenChoices;
use super::choices::accept;
use super::error::ReopenError;
use super::foreign::Foreign;
use super::path::{self, PathIdentity};
use super::refused::file_system;
use crate::blocker::Blocker;
use crate::opener::Opener;
use bincode::{Decode, Encode};
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// A regular file that its path leads to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct FileState {
    /// Which file.
    pub at: PathIdentity,
    /// Position, in bytes.
    pub position: u64,
    /// Its length, in bytes.
    pub size_bytes: u64,
    /// When it was modified: seconds and nanoseconds.
    pub modified: (i64, u32),
    /// The file system makes it up, so length and time tell nothing.
    pub made_up: bool,
}

pub(crate) fn read(foreign: &Foreign) -> Result<FileState, Blocker> {
    let stat = &foreign.stat;
    Ok(FileState {
        at: path::of(foreign)?,
        position: foreign.info.position,
        size_bytes: size(stat),
        modified: modified(stat),
        made_up: file_system::is_made_up(foreign.file_system),
    })
}

/// None if the file is gone, and that was accepted.
pub(crate) fn reopen(
    state: &FileState,
    status_flags: u32,
    choices: &ReopenChoices,
    opener: &Opener,
) -> Result<Option<OwnedFd>, ReopenError> {
    let path = &state.at.path;
    let failed = |source| ReopenError::Open {
        path: path.as_path().to_owned(),
        source,
    };
    if let Some(given) = choices.objects.get(&(state.at.device, state.at.inode)) {
        let file = open_again(given, status_flags).map_err(failed)?;
        seek(&file, state.position).map_err(failed)?;
        return Ok(Some(file));
    }
    let found = match state
        .at
        .find_to_open(FileType::RegularFile, opener, status_flags)
    {
        Ok(found) => {
            if !state.made_up
                && let Some(what) = difference(state, status_flags, &found.stat)
            {
                accept(ReopenError::changed(path, &what), choices)?;
            }
            found
        }
        Err(ReopenError::Open {
            source: Errno::NOENT | Errno::NOTDIR,
            ..
        }) => {
            accept(ReopenError::changed(path, "it is gone"), choices)?;
            return Ok(None);
        }
        Err(changed @ ReopenError::FileChanged { .. }) => {
            accept(changed, choices)?;
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let file = open_found(&found, status_flags);
    let file = file.map_err(|error| ReopenError::opening(path, error))?;
    seek(&file, state.position).map_err(failed)?;
    Ok(Some(file))
}

fn difference(state: &FileState, status_flags: u32, now: &Stat) -> Option<String> {
    let appends = status_flags & OFlags::APPEND.bits() != 0;
    if can_read(status_flags) && !appends {
        let (then, size) = (state.size_bytes, size(now));
        if size != then {
            return Some(format!("it was {then} bytes long, and is {size}"));
        }
        return (modified(now) != state.modified).then(|| String::from("it was modified"));
    }
    let same = (now.st_dev, now.st_ino) == (state.at.device, state.at.inode);
    (!same && size(now) < state.position).then(|| {
        format!(
            "it is another one, and with {} bytes shorter than the position of the program, {}",
            size(now),
            state.position
        )
    })
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn modified(stat: &Stat) -> (i64, u32) {
    (
        stat.st_mtime,
        u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    )
}
