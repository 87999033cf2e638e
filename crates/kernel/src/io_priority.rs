//! With which priority a thread reads and writes disks: ioprio_get(2) and ioprio_set(2), Linux 2.6.13.
//!
//! A priority is a class (bits 13 to 15) and a level in it. 0: none was set, and it follows the nice value.

#![allow(unsafe_code)]

use crate::ptrace::ThreadId;
use nix::libc;
use std::io;

const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// The priority of one thread. ESRCH if there is no such thread.
pub fn io_priority(thread: ThreadId) -> io::Result<u32> {
    // SAFETY: the call takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, thread.get()) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sets the priority of one thread.
///
/// # Errors
/// ESRCH no such thread; EPERM no privilege (for the real-time class: CAP_SYS_ADMIN or CAP_SYS_NICE).
pub fn set_io_priority(thread: ThreadId, priority: u32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            thread.get(),
            priority,
        )
    };
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
        thread::spawn(|| {
            let own = ThreadId::new(0);
            // Class best effort, level 6.
            let priority = 2 << 13 | 6;
            set_io_priority(own, priority).expect("best effort needs no privilege");
            assert_eq!(io_priority(own).expect("read it"), priority);
        })
        .join()
        .expect("the thread's assertions hold");
    }
}
