//! Signals that wait to be delivered, with all they carry: PTRACE_PEEKSIGINFO, Linux 3.10. Looking at them takes
//! none out of its queue.
//!
//! A signal may be pending without being in a queue (the kernel had no memory for it, or it came from the kernel
//! itself): then only `SigPnd` and `ShdPnd` of `/proc/PID/status` tell.

use super::thread::{ThreadId, check};
use nix::libc;
use std::io;
use std::mem::{offset_of, size_of};

/// Length of `siginfo_t`, in bytes.
pub const SIGNAL_INFO_BYTES: usize = size_of::<libc::siginfo_t>();

/// A `siginfo_t` as the kernel lays it out, see `sigaction(2)`.
pub type SignalInfo = [u8; SIGNAL_INFO_BYTES];

/// Whose queue is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalQueue {
    /// Signals for this thread alone.
    OfThread,
    /// Signals for the process; any thread that does not block them may take them.
    OfProcess,
}

const AT_ONCE: usize = 32;

/// The queue, first signal first. The thread must be in a ptrace-stop.
///
/// # Errors
/// ESRCH not stopped or gone; EIO on kernels before 3.10.
pub fn pending_signals(thread: ThreadId, queue: SignalQueue) -> io::Result<Vec<SignalInfo>> {
    let mut all: Vec<SignalInfo> = Vec::new();
    loop {
        let mut found = [[0; SIGNAL_INFO_BYTES]; AT_ONCE];
        let mut which = libc::ptrace_peeksiginfo_args {
            off: u64::try_from(all.len()).unwrap_or(u64::MAX),
            flags: match queue {
                SignalQueue::OfThread => 0,
                SignalQueue::OfProcess => libc::PTRACE_PEEKSIGINFO_SHARED,
            },
            nr: i32::try_from(AT_ONCE).unwrap_or(0),
        };
        // SAFETY: the request reads `which` and writes at most `nr` siginfo of 128 bytes to `data`; both live until
        // after the call, `found` has `nr` of them, and any bytes are valid ones.
        let result = unsafe {
            libc::ptrace(
                libc::PTRACE_PEEKSIGINFO,
                thread.0,
                &raw mut which,
                found.as_mut_ptr(),
            )
        };
        let count = usize::try_from(check(result)?).unwrap_or(0).min(AT_ONCE);
        all.extend_from_slice(&found[..count]);
        if count < AT_ONCE {
            return Ok(all);
        }
    }
}

const _: () = {
    assert!(SIGNAL_INFO_BYTES == 128);
    assert!(offset_of!(libc::siginfo_t, si_code) == 8);
};
