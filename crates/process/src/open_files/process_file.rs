//! What refers to a process of the snapshot itself: pidfd_open(2), and files of `/proc/PID`.
//!
//! They can be opened again only when the process is there, and under its new number; each process that has one opens it for
//! itself then. Files of processes outside are refused.

use std::os::unix::ffi::OsStrExt;

use bincode::{Decode, Encode};

use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;

use super::foreign::Foreign;
use super::refused::file_system;

/// A file that belongs to a process of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ProcessFile {
    /// The process, by its number at the time of the snapshot.
    pub pid: i32,
    /// Which file of it.
    pub kind: ProcessFileKind,
}

/// Which file of a process. The order is part of the format.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum ProcessFileKind {
    /// The process as such.
    Pidfd,
    /// A file or directory of `/proc/PID`.
    Proc {
        /// Its path in there; empty for the directory itself.
        name: Vec<u8>,
        /// Position, in bytes.
        position: u64,
    },
}

/// Longest path inside of `/proc/PID`, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// What in there leads elsewhere.
const LINKS: [&[u8]; 4] = [b"cwd", b"exe", b"root", b"map_files"];
const ADVICE: &str =
    "let the program close it before the checkpoint, or checkpoint that process, too";

/// A pidfd; `pids` are the processes of the snapshot.
pub(crate) fn read_pidfd(foreign: &Foreign, pids: &[i32]) -> Result<ProcessFile, Blocker> {
    let pid = foreign
        .info
        .value("Pid")
        .and_then(|text| text.parse().ok())
        .unwrap_or(-1);
    if !pids.contains(&pid) {
        let what = match pid {
            -1 | 0 => String::from("refers to a process that has ended"),
            _ => format!("refers to process {pid}, which is outside"),
        };
        return Err(foreign.blocker(BlockerKind::Pidfd, &what, ADVICE));
    }
    Ok(ProcessFile {
        pid,
        kind: ProcessFileKind::Pidfd,
    })
}

/// A file of `/proc/PID`; none if it is another file.
pub(crate) fn read_proc(foreign: &Foreign, pids: &[i32]) -> Option<Result<ProcessFile, Blocker>> {
    if foreign.file_system != file_system::PROC {
        return None;
    }
    let path = foreign.link_bytes().strip_prefix(b"/proc/")?;
    let end = path
        .iter()
        .position(|byte| *byte == b'/')
        .unwrap_or(path.len());
    let pid: i32 = std::str::from_utf8(&path[..end]).ok()?.parse().ok()?;
    let name = path.get(end + 1..).unwrap_or_default().to_vec();
    if !pids.contains(&pid) || name.len() > NAME_BYTES_MAX {
        let what = format!("is {}, of a process outside", foreign.link.display());
        return Some(Err(foreign.blocker(BlockerKind::Proc, &what, ADVICE)));
    }
    if foreign.link.as_os_str().as_bytes().ends_with(b" (deleted)") {
        return Some(Err(foreign.unreadable(&"what it is of has ended")));
    }
    Some(Ok(ProcessFile {
        pid,
        kind: ProcessFileKind::Proc {
            name,
            position: foreign.info.position,
        },
    }))
}

impl ProcessFile {
    pub(crate) fn is_possible(&self) -> bool {
        let name = match &self.kind {
            ProcessFileKind::Pidfd => true,
            ProcessFileKind::Proc { name, .. } => {
                let mut parts = name.split(|byte| *byte == b'/');
                name.len() <= NAME_BYTES_MAX
                    && !name.contains(&0)
                    && parts.all(|part| part != b".." && !LINKS.contains(&part))
            }
        };
        self.pid > 0 && name
    }

    /// Its path, once the process has the number `pid`.
    pub(crate) fn path(&self, pid: i32) -> Option<Vec<u8>> {
        let ProcessFileKind::Proc { name, .. } = &self.kind else {
            return None;
        };
        let mut path = format!("/proc/{pid}/").into_bytes();
        path.extend_from_slice(&threads_follow(name, self.pid, pid));
        path.push(0);
        Some(path)
    }
}

/// The first thread has the number of the process; the others keep theirs.
fn threads_follow(name: &[u8], then: i32, now: i32) -> Vec<u8> {
    let rest = name.strip_prefix(format!("task/{then}").as_bytes());
    match rest.filter(|rest| rest.is_empty() || rest[0] == b'/') {
        Some(rest) => [format!("task/{now}").as_bytes(), rest].concat(),
        None => name.to_vec(),
    }
}
