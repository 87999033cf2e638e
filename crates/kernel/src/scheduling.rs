//! How a thread is scheduled: sched_getattr(2) and sched_setattr(2), Linux 3.14. Policy, flags, nice value, priority
//! and the numbers of deadline threads in one structure.
//!
//! Reading needs no privilege; for what writing needs see `sched(7)`.

#![allow(unsafe_code)]

use crate::ptrace::ThreadId;
use nix::libc;
use std::io;
use std::mem::size_of;

/// `struct sched_attr` of `linux/sched/types.h`, as Linux 5.3 and later have it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedulingAttributes {
    size_bytes: u32,
    /// SCHED_OTHER 0, SCHED_FIFO 1, SCHED_RR 2, SCHED_BATCH 3, SCHED_IDLE 5, SCHED_DEADLINE 6.
    pub policy: u32,
    /// SCHED_FLAG_...: reset on fork 1, util clamps 0x20 and 0x40.
    pub flags: u64,
    /// Nice value, -20 to 19, for SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// Priority, 1 to 99, for SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Nanoseconds a period for SCHED_DEADLINE; the length of a slice for SCHED_OTHER and SCHED_BATCH.
    pub runtime_ns: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub deadline_ns: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub period_ns: u64,
    /// Least utilization to plan with, 0 to 1024.
    pub util_min: u32,
    /// Most utilization to plan with, 0 to 1024.
    pub util_max: u32,
}

const _: () = assert!(size_of::<SchedulingAttributes>() == 56);

/// The attributes of a thread; number 0 is the calling one. ESRCH if there is no such thread.
pub fn attributes(thread: ThreadId) -> io::Result<SchedulingAttributes> {
    let mut attributes = SchedulingAttributes::default();
    // SAFETY: the call writes at most the given size to `attributes`, which lives until after it; any bytes are valid
    // values of its fields.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            thread.get(),
            &raw mut attributes,
            size_of::<SchedulingAttributes>(),
            0,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(attributes)
}

/// Sets the attributes of a thread; number 0 is the calling one.
///
/// # Errors
/// EPERM no privilege; EINVAL values that do not go together; EBUSY too many deadline threads; E2BIG on a kernel that
/// knows less.
pub fn set_attributes(thread: ThreadId, attributes: &SchedulingAttributes) -> io::Result<()> {
    let mut copy = SchedulingAttributes {
        size_bytes: u32::try_from(size_of::<SchedulingAttributes>()).unwrap_or(0),
        ..*attributes
    };
    // SAFETY: the call reads `size` bytes from `copy`, which has as many and lives until after it; on E2BIG it writes
    // the size the kernel knows to the first field.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, thread.get(), &raw mut copy, 0) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_is_set_is_read() {
        // A thread of its own: what a test sets must not stay with the harness.
        thread::spawn(|| {
            let own = ThreadId::new(0);
            let before = attributes(own).expect("the kernel has sched_getattr");
            let wanted = SchedulingAttributes {
                policy: 3,
                nice: before.nice.max(0) + 1,
                flags: 1,
                ..before
            };
            set_attributes(own, &wanted).expect("nicer is always allowed");
            let after = attributes(own).expect("read again");
            assert_eq!(
                (after.policy, after.nice, after.flags & 1),
                (3, wanted.nice, 1)
            );
        })
        .join()
        .expect("the thread's assertions hold");
    }

    #[test]
    fn a_thread_that_is_not_there_is_an_error() {
        let error = attributes(ThreadId::new(i32::MAX)).expect_err("no such thread");
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }
}
