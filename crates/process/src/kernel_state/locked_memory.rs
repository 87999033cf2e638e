//! Whether all that a process maps from now on is locked into memory: mlockall(2) with MCL_FUTURE.
//!
//! The kernel shows it nowhere; but what is mapped then is locked, which a page that is mapped for a moment tells: msync(2) with
//! MS_INVALIDATE refuses it (EBUSY), and it is there before it is touched (mincore(2)) unless pages are locked as they come
//! (MCL_ONFAULT).

use crate::kernel_state::calls::Caller;
use crate::kernel_state::error::KernelStateApplyError;
use crate::remote::RemoteCalls;
use crate::remote_error::RemoteCallError;
use crate::stop::StoppedProcess;
use nix::libc;
use pagetide_kernel::ptrace::ThreadId;

const PAGE_BYTES: u64 = 4096;
const READ_AND_WRITE: u64 = 3;
/// MAP_PRIVATE | MAP_ANONYMOUS.
const PRIVATE_MEMORY: u64 = 0x22;
const MS_INVALIDATE: u64 = 2;
pub(super) const MCL_FUTURE: u32 = 2;
pub(super) const MCL_ONFAULT: u32 = 4;

/// The flags of mlockall(2) that hold for what is mapped from now on; 0 if none do.
pub(super) fn ask(stopped: &mut StoppedProcess) -> Result<u32, RemoteCallError> {
    let pid = stopped.identity().pid;
    let mut calls = stopped.remote_calls_by(ThreadId::new(pid))?;
    let arguments = [0, PAGE_BYTES, READ_AND_WRITE, PRIVATE_MEMORY, u64::MAX, 0];
    let asked = match calls.call(libc::SYS_mmap, arguments) {
        Ok(page) => {
            let told = ask_of(&mut calls, page);
            let unmapped = calls.call(libc::SYS_munmap, [page, PAGE_BYTES, 0, 0, 0, 0]);
            unmapped.and(told)
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

/// The same, by a page that has just been mapped and was not touched.
fn ask_of(calls: &mut RemoteCalls<'_>, page: u64) -> Result<u32, RemoteCallError> {
    match calls.call(libc::SYS_msync, [page, PAGE_BYTES, MS_INVALIDATE, 0, 0, 0]) {
        Err(RemoteCallError::Failed { errno, .. }) if errno == rustix::io::Errno::BUSY => {}
        Ok(_)
        | Err(RemoteCallError::Failed { .. } | RemoteCallError::ForbiddenBySeccomp { .. }) => {
            return Ok(0);
        }
        Err(error) => return Err(error),
    }
    let is_there = calls.with_bytes(&[0], |calls, told| {
        calls.call(libc::SYS_mincore, [page, PAGE_BYTES, told, 0, 0, 0])?;
        let mut byte = [0];
        calls.read(told, &mut byte)?;
        Ok::<bool, RemoteCallError>(byte[0] & 1 != 0)
    })?;
    Ok(if is_there {
        MCL_FUTURE
    } else {
        MCL_FUTURE | MCL_ONFAULT
    })
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
