//! What the clocks of a process show that count from the boot on: CLOCK_MONOTONIC and CLOCK_BOOTTIME. What a program remembers of them means
//! nothing after the next boot, or on another machine, unless they go on there from where they were (time_namespaces(7)).

use bincode::{Decode, Encode};
use pagetide_kernel::time_namespace::{self, Clocks};

/// Both clocks of one process, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ClockState {
    /// What CLOCK_MONOTONIC showed.
    pub monotonic_ns: i64,
    /// What CLOCK_BOOTTIME showed.
    pub boottime_ns: i64,
    /// By how much that was more than the kernel's own.
    pub monotonic_offset_ns: i64,
    /// The same of CLOCK_BOOTTIME.
    pub boottime_offset_ns: i64,
}

/// Of a process now. `None` if the kernel does not tell.
pub(super) fn read(pid: i32) -> Option<ClockState> {
    let own = time_namespace::offsets(std::process::id().cast_signed()).ok()?;
    let its = time_namespace::offsets(pid).ok()?;
    let shown = Clocks::now().minus(own).plus(its);
    Some(ClockState {
        monotonic_ns: shown.monotonic_ns,
        boottime_ns: shown.boottime_ns,
        monotonic_offset_ns: its.monotonic_ns,
        boottime_offset_ns: its.boottime_ns,
    })
}

impl ClockState {
    /// The offsets with which the clocks go on. In the same boot those that they had, so that the time until now has passed; else
    /// those with which they show from now on what they showed then.
    pub fn offsets(&self, same_boot: bool) -> Clocks {
        if same_boot {
            return Clocks {
                monotonic_ns: self.monotonic_offset_ns,
                boottime_ns: self.boottime_offset_ns,
            };
        }
        let own = time_namespace::offsets(std::process::id().cast_signed()).unwrap_or_default();
        let kernel = Clocks::now().minus(own);
        let shown = Clocks {
            monotonic_ns: self.monotonic_ns,
            boottime_ns: self.boottime_ns,
        };
        shown.minus(kernel)
    }
}
