//! How often a timerfd has expired unread: ioctl TFD_IOC_SET_TICKS.
//!
//! Since Linux 3.17, with CONFIG_CHECKPOINT_RESTORE (ENOTTY without); needs no privilege.

#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOW('T', 0, __u64)`.
const SET_TICKS: libc::Ioctl = 0x4008_5400;

/// Sets the number that the next read(2) gives, and wakes who waits for it. EINVAL for 0, ECANCELED if the clock was set and the
/// timer is one that this cancels.
pub fn set_ticks(timer: impl AsFd, ticks: u64) -> io::Result<()> {
    let timer = timer.as_fd().as_raw_fd();
    // SAFETY: the kernel reads a u64 from the address, which is that of one, and keeps nothing.
    let result = unsafe { libc::ioctl(timer, SET_TICKS, &raw const ticks) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    #[test]
    fn ticks_are_read() {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).expect("a timer");
        match set_ticks(&timer, 7) {
            // A kernel without CONFIG_CHECKPOINT_RESTORE.
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => return,
            done => done.expect("set"),
        }
        let mut bytes = [0; 8];
        assert_eq!(rustix::io::read(&timer, &mut bytes), Ok(8));
        assert_eq!(u64::from_ne_bytes(bytes), 7);
        assert!(set_ticks(&timer, 0).is_err());
    }
}
