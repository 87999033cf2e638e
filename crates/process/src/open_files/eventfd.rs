//! Counters: eventfd(2).

use super::again::set_flags;
use super::error::ReopenError;
use super::foreign::Foreign;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use bincode::{Decode, Encode};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, write};
use std::os::fd::OwnedFd;

/// A counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct EventfdState {
    /// What it stands at.
    pub count: u64,
    /// Each read takes one (EFD_SEMAPHORE), and not all.
    pub semaphore: bool,
}

/// The counter, and what is doubtful about it.
pub(crate) fn read(foreign: &Foreign) -> Result<(EventfdState, Option<Blocker>), Blocker> {
    let count = foreign.info.number("eventfd-count", 16);
    let count = count.map_err(|error| foreign.unreadable(&error))?;
    if count == u64::MAX {
        return Err(foreign.unreadable(&"its count has overflowed"));
    }
    let semaphore = foreign.info.value("eventfd-semaphore");
    // Linux before 6.5 does not tell.
    let doubt = semaphore.is_none().then(|| {
        foreign.blocker_instead(
            BlockerKind::EventfdSemaphore,
            "is an event counter, and this kernel does not tell whether it is a semaphore",
            "use Linux 6.5 or later",
            "it is restored as one that is no semaphore",
        )
    });
    let semaphore = semaphore == Some("1");
    Ok((EventfdState { count, semaphore }, doubt))
}

pub(crate) fn reopen(state: &EventfdState, status_flags: u32) -> Result<OwnedFd, ReopenError> {
    let failed = |source: Errno| ReopenError::Make {
        what: String::from("an event counter"),
        source,
    };
    let mut flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    flags.set(EventfdFlags::SEMAPHORE, state.semaphore);
    let counter = eventfd(0, flags).map_err(failed)?;
    if state.count > 0 {
        write(&counter, &state.count.to_ne_bytes()).map_err(failed)?;
    }
    set_flags(&counter, status_flags).map_err(failed)?;
    Ok(counter)
}
