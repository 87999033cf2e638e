//! Memory that was poisoned is so again: whoever touches it gets a SIGBUS, as before. It is done by a userfaultfd that
//! the new process has for this moment only; its marks stay. Source: ioctl_userfaultfd(2), UFFDIO_POISON.

use super::error::LazyError;
use super::error::RestoreError;
use crate::capture::SIZE;
use crate::poison::can_be_again;
use pagetide_kernel::pidfd::PidFd;
use pagetide_kernel::userfaultfd::missing::{MISSING_CREATION_FLAGS, MissingPages};
use pagetide_pages::PageSet;
use pagetide_process::{NewProcess, RebuildError, ThreadId};
use pagetide_snapshot::Region;

/// A userfaultfd of `new`, which has it no more.
pub(super) fn userfaultfd(new: &mut NewProcess) -> Result<MissingPages, RestoreError> {
    let pid = new.pid();
    let create = |source| LazyError::Create { pid, source };
    let fetch = |source| LazyError::Fetch { pid, source };
    let mut calls = new.calls(ThreadId::new(pid))?;
    let flags = u64::from(MISSING_CREATION_FLAGS);
    let number = calls.call(nix::libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]);
    let number = number.map_err(create)?;
    let pidfd = PidFd::open(pid).map_err(fetch)?;
    let fetched = pidfd.get_fd(i32::try_from(number).unwrap_or(-1));
    let closed = calls.call(nix::libc::SYS_close, [number, 0, 0, 0, 0, 0]);
    closed.map_err(create)?;
    calls.finish().map_err(|source| RebuildError::Remote {
        what: "end system calls",
        pid,
        source,
    })?;
    Ok(MissingPages::enable(fetched.map_err(fetch)?).map_err(LazyError::from)?)
}

/// Poisons those of `pages` that can be. The others were accepted as what they are now.
pub(super) fn poison(
    new: &mut NewProcess,
    regions: &[Region],
    pages: &PageSet,
    accepted: bool,
) -> Result<(), RestoreError> {
    if pages.is_empty() {
        return Ok(());
    }
    let missing = userfaultfd(new)?;
    if !missing.can_poison() && accepted {
        return Ok(());
    }
    for region in regions.iter().filter(|region| can_be_again(region)) {
        let poisoned = pages.within(region.pages);
        if poisoned.is_empty() {
            continue;
        }
        // All of the mapping, so that it is not cut.
        let (start, end) = SIZE.span_of(region.pages);
        let registered = missing.register(start, end - start);
        registered.map_err(LazyError::from)?;
        for &range in poisoned.ranges() {
            let (start, end) = SIZE.span_of(range);
            if let Some(why) = missing.poison(start, end - start).stopped {
                return Err(RestoreError::Poison { start, end, why });
            }
        }
    }
    Ok(())
}
