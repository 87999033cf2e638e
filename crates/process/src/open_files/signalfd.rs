//! Signals as something that can be read: signalfd(2). It holds none itself: those that wait belong to the process.

use super::error::ReopenError;
use super::foreign::Foreign;
use crate::blocker::Blocker;
use bincode::{Decode, Encode};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Which signals are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct SignalfdState {
    /// Bit N - 1 for signal N.
    pub mask: u64,
}

pub(crate) fn read(foreign: &Foreign) -> Result<SignalfdState, Blocker> {
    let mask = foreign.info.number("sigmask", 16);
    let mask = mask.map_err(|error| foreign.unreadable(&error))?;
    Ok(SignalfdState { mask })
}

pub(crate) fn reopen(state: &SignalfdState, status_flags: u32) -> Result<OwnedFd, ReopenError> {
    let nonblocking = status_flags & OFlags::NONBLOCK.bits() != 0;
    pagetide_kernel::signalfd::open(state.mask, nonblocking).map_err(|error| ReopenError::Make {
        what: String::from("a reader of signals"),
        source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })
}
