//! What refers to a process of the snapshot itself: pidfd_open(2), and files of `/proc/PID`.
//!
//! They can be opened again only when the process is there, and under its new number; each process that has one opens it for
//! itself then. Files of processes outside are refused.

use super::foreign::Foreign;
use super::refused::file_system;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use bincode::{Decode, Encode};
use std::os::unix::ffi::OsStrExt;

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

    /// The thread that it is of, if that is not the first one, by its number at the time of the snapshot.
    pub(crate) fn thread(&self) -> Option<i32> {
        let ProcessFileKind::Proc { name, .. } = &self.kind else {
            return None;
        };
        thread_of(name)
            .map(|(thread, _)| thread)
            .filter(|thread| *thread != self.pid)
    }

    /// A file of the same process that is always there.
    pub(crate) fn in_place_of_it(&self) -> Self {
        Self {
            pid: self.pid,
            kind: ProcessFileKind::Proc {
                name: b"stat".to_vec(),
                position: 0,
            },
        }
    }

    /// Its path, once the process has the number `pid`, and its thread, if it has one of its own, the number `thread`.
    pub(crate) fn path(&self, pid: i32, thread: Option<i32>) -> Option<Vec<u8>> {
        let ProcessFileKind::Proc { name, .. } = &self.kind else {
            return None;
        };
        let mut path = format!("/proc/{pid}/").into_bytes();
        match thread_of(name) {
            // The first thread has the number of the process.
            Some((_, rest)) => {
                path.extend_from_slice(format!("task/{}", thread.unwrap_or(pid)).as_bytes());
                path.extend_from_slice(rest);
            }
            None => path.extend_from_slice(name),
        }
        path.push(0);
        Some(path)
    }
}

/// The thread whose directory this path in `/proc/PID` leads into, and what is behind it.
fn thread_of(name: &[u8]) -> Option<(i32, &[u8])> {
    let rest = name.strip_prefix(b"task/")?;
    let end = rest.iter().position(|byte| *byte == b'/');
    let (number, behind) = rest.split_at(end.unwrap_or(rest.len()));
    let number = std::str::from_utf8(number).ok()?.parse().ok()?;
    Some((number, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_follows_the_process_and_its_thread_to_their_new_numbers() {
        let path = |name: &str, thread: Option<i32>| {
            let file = ProcessFile {
                pid: 7,
                kind: ProcessFileKind::Proc {
                    name: name.as_bytes().to_vec(),
                    position: 0,
                },
            };
            let path = file.path(70, thread).expect("a file of /proc");
            (file.thread(), String::from_utf8(path).expect("ASCII"))
        };
        let is = |thread, path: &str| (thread, format!("{path}\0"));
        assert_eq!(path("maps", None), is(None, "/proc/70/maps"));
        assert_eq!(path("task/7/comm", None), is(None, "/proc/70/task/70/comm"));
        assert_eq!(path("task/7", None), is(None, "/proc/70/task/70"));
        assert_eq!(path("task", None), is(None, "/proc/70/task"));
        assert_eq!(path("task/x", None), is(None, "/proc/70/task/x"));
        assert_eq!(
            path("task/8/comm", Some(80)),
            is(Some(8), "/proc/70/task/80/comm")
        );
        assert_eq!(path("task/8", Some(80)), is(Some(8), "/proc/70/task/80"));
    }
}
