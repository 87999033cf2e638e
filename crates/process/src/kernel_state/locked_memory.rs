//! Whether all that a process maps from now on is locked into memory: mlockall(2) with MCL_FUTURE.
//!
//! The kernel shows it nowhere; but what is mapped then is locked, which a page that is mapped for a moment tells: the sum of
//! locked memory (`VmLck` of proc_pid_status(5)) grows by it, and it is there before it is touched (mincore(2)) unless pages are
//! locked as they come (MCL_ONFAULT).

use crate::kernel_state::calls::Caller;
use crate::kernel_state::error::KernelStateApplyError;
use crate::proc_files::Status;
use crate::remote_error::RemoteCallError;
use crate::stop::StoppedProcess;
use nix::libc;
use pagetide_kernel::ptrace::ThreadId;

const PAGE_BYTES: u64 = 4096;
const READ_AND_WRITE: u64 = 3;
/// MAP_PRIVATE | MAP_ANONYMOUS.
const PRIVATE_MEMORY: u64 = 0x22;
pub(super) const MCL_FUTURE: u32 = 2;
pub(super) const MCL_ONFAULT: u32 = 4;

/// The flags of mlockall(2) that hold for what is mapped from now on; 0 if none do.
pub(super) fn ask(stopped: &mut StoppedProcess) -> Result<u32, RemoteCallError> {
    let pid = stopped.identity().pid;
    let locked = || Status::of_process(pid).map(|status| status.number("VmLck"));
    let before = locked().ok();
    let mut calls = stopped.remote_calls_by(ThreadId::new(pid))?;
    let asked = match calls.call(
        libc::SYS_mmap,
        [0, PAGE_BYTES, READ_AND_WRITE, PRIVATE_MEMORY, u64::MAX, 0],
    ) {
        Ok(page) => {
            let is_locked = locked().ok() > before;
            let is_there = if !is_locked {
                Ok(false)
            } else {
                calls.with_bytes(&[0], |calls, told| {
                    calls.call(libc::SYS_mincore, [page, PAGE_BYTES, told, 0, 0, 0])?;
                    let mut byte = [0];
                    calls.read(told, &mut byte)?;
                    Ok::<bool, RemoteCallError>(byte[0] & 1 != 0)
                })
            };
            let unmapped = calls.call(libc::SYS_munmap, [page, PAGE_BYTES, 0, 0, 0, 0]);
            unmapped
                .and(is_there)
                .map(|is_there| match (is_locked, is_there) {
                    (false, _) => 0,
                    (true, true) => MCL_FUTURE,
                    (true, false) => MCL_FUTURE | MCL_ONFAULT,
                })
        }
        // No more may be locked (EAGAIN), and this would have been. Whatever else is refused tells nothing.
        Err(RemoteCallError::Failed { errno, .. }) if errno == rustix::io::Errno::AGAIN => {
            Ok(MCL_FUTURE)
        }
        Err(RemoteCallError::Failed { .. } | RemoteCallError::ForbiddenBySeccomp { .. }) => Ok(0),
        Err(error) => Err(error),
    };
    let finished = calls.finish();
    let asked = asked?;
    finished.map(|()| asked)
}

/// Has all that is mapped from now on locked again. What is mapped already stays as it is.
pub(super) fn apply(flags: u32, caller: &mut Caller<'_>) -> Result<(), KernelStateApplyError> {
    if flags != 0 {
        let flags = u64::from(flags);
        caller.call(
            "locking of memory",
            libc::SYS_mlockall,
            [flags, 0, 0, 0, 0, 0],
        )?;
    }
    Ok(())
}
