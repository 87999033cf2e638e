//! One open file description of the stopped processes while it is looked at.

use super::fdinfo::FdInfo;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use rustix::fs::{FileType, Stat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A descriptor of the description, and a copy of it.
pub(crate) struct Foreign {
    pub(crate) pid: i32,
    /// The descriptor that stands for all of them: the lowest of the first process that has it.
    pub(crate) number: i32,
    /// The lowest number up to 2 under which any process has it.
    pub(crate) standard: Option<i32>,
    /// All descriptors of it: process and number.
    pub(crate) places: Vec<(i32, i32)>,
    /// What `/proc/PID/fd` shows.
    pub(crate) link: PathBuf,
    pub(crate) info: FdInfo,
    pub(crate) stat: Stat,
    /// Kind of the file system: `f_type` of statfs(2).
    pub(crate) file_system: u64,
    /// Somebody else serves it: then `copy`, `stat` and `file_system` are of something else, so that it is not touched.
    pub(crate) is_served: bool,
    pub(crate) copy: OwnedFd,
}

impl Foreign {
    pub(crate) fn link_bytes(&self) -> &[u8] {
        self.link.as_os_str().as_bytes()
    }

    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Device and inode.
    pub(crate) fn key(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    pub(crate) fn blocker(&self, kind: BlockerKind, what: &str, advice: &str) -> Blocker {
        let number = self.number;
        let instead = match self.places.len() {
            0 | 1 => format!("descriptor {number} is closed"),
            _ => {
                let others: Vec<String> = self
                    .places
                    .iter()
                    .map(|(pid, number)| format!("{number} of {pid}"))
                    .collect();
                format!("descriptors {} are closed", others.join(", "))
            }
        };
        self.blocker_instead(kind, what, advice, &instead)
    }

    pub(crate) fn blocker_instead(
        &self,
        kind: BlockerKind,
        what: &str,
        advice: &str,
        instead: &str,
    ) -> Blocker {
        Blocker {
            pid: self.pid,
            kind,
            place: format!("fd:{}", self.number),
            what: format!("descriptor {} {what}", self.number),
            advice: advice.to_owned(),
            instead: Some(instead.to_owned()),
        }
    }

    /// What the kernel does not let us see.
    pub(crate) fn unreadable(&self, error: &dyn std::fmt::Display) -> Blocker {
        let what = format!("({}) cannot be looked at: {error}", self.link.display());
        self.blocker(
            BlockerKind::Unreadable,
            &what,
            "close it before the checkpoint",
        )
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.copy.as_fd()
    }
}
