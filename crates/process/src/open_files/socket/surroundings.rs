//! What all sockets of a tree are read with, and what one of them can be asked without a change.

use super::diag::UnixDiag;
use super::groups::Groups;
use super::options::Defaults;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashSet;
use std::os::fd::BorrowedFd;

/// What reading one socket needs to know of the others and of this system.
pub(super) struct Surroundings {
    /// The inodes of all sockets of the tree.
    pub inside: HashSet<u64>,
    /// Asks for Unix sockets; `None` if the kernel cannot be asked.
    pub diag: Option<UnixDiag>,
    /// All multicast groups of this system.
    pub groups: Groups,
    pub defaults: Defaults,
    /// The network namespace of this process.
    pub namespace: Option<Vec<u8>>,
}

/// What poll(2) says of a socket right now. It changes nothing.
pub(super) fn events(socket: BorrowedFd<'_>) -> PollFlags {
    let mut asked = [PollFd::new(&socket, PollFlags::IN | PollFlags::RDHUP)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut asked, Some(&at_once)) {
        Ok(_) => asked[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}
