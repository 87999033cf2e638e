//! A timer of the kernel that lets this program go on if it is stopped: the one way out of SIGSTOP that needs nobody else
//! (timer_create(2) with SIGCONT).

#![allow(unsafe_code)]

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use std::io;
use std::time::Duration;

/// What `siginfo_t` says of a signal that a timer sent: `SI_TIMER`.
pub const BY_TIMER: i32 = -2;

/// See the head of this file.
#[derive(Debug)]
pub struct WakeUp {
    timer: Timer,
}

// SAFETY: a timer belongs to the process, and any of its threads may set or delete it (timer_create(2)). The pointer in it is
// its number for the C library, which nobody looks behind.
unsafe impl Send for WakeUp {}

impl WakeUp {
    /// One that is not set.
    pub fn new() -> io::Result<Self> {
        let signal = Signal::SIGCONT;
        let event = SigEvent::new(SigevNotify::SigevSignal {
            signal,
            si_value: 0,
        });
        let timer = Timer::new(ClockId::CLOCK_MONOTONIC, event)?;
        Ok(Self { timer })
    }

    /// SIGCONT comes each time that `interval` has passed; never if that is zero.
    pub fn set(&mut self, interval: Duration) -> io::Result<()> {
        let every = Expiration::Interval(interval.into());
        Ok(self.timer.set(every, TimerSetTimeFlags::empty())?)
    }
}
