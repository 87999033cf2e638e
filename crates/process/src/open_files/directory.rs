//! Directories that are open, and those that processes stand in.

use super::again::{open_found, seek};
use super::error::ReopenError;
use super::foreign::Foreign;
use super::path::{self, PathIdentity};
use super::served::Mounts;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::opener::Opener;
use bincode::{Decode, Encode};
use rustix::fs::{FileType, stat};
use std::os::fd::OwnedFd;
use std::path::Path;

/// A directory that is open.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DirectoryState {
    /// Which one.
    pub at: PathIdentity,
    /// How far it was listed, in the numbers of its file system.
    pub position: u64,
}

pub(crate) fn read(foreign: &Foreign) -> Result<DirectoryState, Blocker> {
    Ok(DirectoryState {
        at: path::of(foreign)?,
        position: foreign.info.position,
    })
}

pub(crate) fn reopen(
    state: &DirectoryState,
    status_flags: u32,
    opener: &Opener,
) -> Result<OwnedFd, ReopenError> {
    let failed = |source| ReopenError::Open {
        path: state.at.path.as_path().to_owned(),
        source,
    };
    let found = state
        .at
        .find_to_open(FileType::Directory, opener, status_flags)?;
    let directory = open_found(&found, status_flags);
    let directory = directory.map_err(|error| ReopenError::opening(&state.at.path, error))?;
    seek(&directory, state.position).map_err(failed)?;
    Ok(directory)
}

/// The directory behind a link of `/proc/PID`: `cwd` or `root`.
pub(crate) fn of_process(pid: i32, name: &str, mounts: &Mounts) -> Result<PathIdentity, Blocker> {
    let link = format!("/proc/{pid}/{name}");
    let (kind, what, instead) = match name {
        "cwd" => (
            BlockerKind::WorkingDirectory,
            "current",
            "the process is put into its root directory",
        ),
        _ => (
            BlockerKind::RootDirectory,
            "root",
            "the process keeps the root directory of pagetide",
        ),
    };
    let blocker = |path: &Path| Blocker {
        pid,
        kind: kind.clone(),
        place: String::from("process"),
        what: format!(
            "no path leads to the {what} directory of the process, {}",
            path.display()
        ),
        advice: String::from("let the program change its directory before the checkpoint"),
        instead: Some(instead.to_owned()),
    };
    let path = std::fs::read_link(&link).map_err(|_| blocker(Path::new("?")))?;
    if mounts.lead_to(&path) || mounts.are_behind_link(&link) {
        let served = " (a program or another machine serves it)";
        let mut refused = blocker(&path);
        refused.what.push_str(served);
        return Err(refused);
    }
    let found = stat(link.as_str()).map_err(|_| blocker(&path))?;
    path::leads_to(&path, &found).ok_or_else(|| blocker(&path))
}

/// Opens a directory for a process to stand in.
pub(crate) fn reopen_for_process(
    at: &PathIdentity,
    opener: &Opener,
) -> Result<OwnedFd, ReopenError> {
    let found = at.find(FileType::Directory, opener)?;
    let entered = found.check_enter();
    entered.map_err(|error| ReopenError::opening(&at.path, error))?;
    Ok(found.into_path())
}
