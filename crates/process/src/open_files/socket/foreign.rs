//! A socket of the target, held here, and how it is named when it is a blocker.

use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use std::os::fd::BorrowedFd;

/// A socket of the target, held here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForeignSocket<'a> {
    /// The process that has it.
    pub pid: i32,
    /// Its number there.
    pub number: i32,
    /// The number in `socket:[...]`.
    pub inode: u64,
    /// A copy by pidfd_getfd(2), which shares the open file description.
    pub fd: BorrowedFd<'a>,
}

impl ForeignSocket<'_> {
    /// A blocker of this socket: `what` goes on after "descriptor N ".
    pub(super) fn blocker(
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

    /// One without which the socket cannot be opened again at all.
    pub(super) fn closed(&self, kind: BlockerKind, what: &str) -> Blocker {
        self.blocker(
            kind,
            what,
            "close it before the checkpoint",
            &format!("descriptor {} is closed", self.number),
        )
    }
}
