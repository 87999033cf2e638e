//! Calls that wait no longer than they are told to, and where they are told. Sources: the man pages of section 2, signal(7)
//! ("Interruption of system calls and library functions by stop signals"), io_uring_enter(2), futex(2).
//!
//! Not here, because the kernel goes on with what is left by itself: waits for a moment (TIMER_ABSTIME, FUTEX_WAIT_BITSET,
//! mq_timedreceive(2)), and select(2), pselect6(2) and ppoll(2) as long as it can write the rest to where the caller had
//! the time. recvmmsg(2) writes the rest, too, but only when it has something: its time is not touched.

use crate::restart::{EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND};
use crate::syscall_names::SYS_IO_PGETEVENTS;
use nix::libc;
use pagetide_kernel::ptrace::Registers;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// One of the six registers with the arguments of a system call, by its place among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Argument(usize);

impl Argument {
    pub(super) fn index(self) -> usize {
        self.0
    }

    /// The registers with another value for this argument.
    pub(super) fn set(self, registers: &Registers, value: u64) -> Registers {
        let mut changed = *registers;
        let register = match self.0 {
            0 => &mut changed.rdi,
            1 => &mut changed.rsi,
            2 => &mut changed.rdx,
            3 => &mut changed.r10,
            4 => &mut changed.r8,
            _ => &mut changed.r9,
        };
        *register = value;
        changed
    }
}

/// All six arguments.
pub(super) fn arguments(registers: &Registers) -> [u64; 6] {
    [
        registers.rdi,
        registers.rsi,
        registers.rdx,
        registers.r10,
        registers.r8,
        registers.r9,
    ]
}

/// How a time is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The argument is the time, in milliseconds; below zero for ever.
    Milliseconds,
    /// The argument points to a `struct timespec`; none for ever.
    Timespec,
    /// The argument points to a `struct timeval`; none for ever.
    Timeval,
    /// The argument points to a `struct io_uring_getevents_arg`, and that to a `struct timespec`.
    RingArgument,
}

/// Where a call is told how long it may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) argument: Argument,
    pub(super) form: Form,
    /// The call writes the rest to where the time was, if it can; if not, it says EINTR.
    pub(super) writes_rest: bool,
}

const FUTEX_PRIVATE: u64 = 128;
const FUTEX_CLOCK_REALTIME: u64 = 256;
const IORING_ENTER_EXT_ARG: u64 = 8;
/// IORING_ENTER_ABS_TIMER and IORING_ENTER_EXT_ARG_REG
const IORING_ENTER_OTHER_TIMES: u64 = 32 | 64;
/// Bytes of `struct io_uring_getevents_arg`: signal mask, its length, a least time, and where the time is.
pub(super) const RING_ARGUMENT_BYTES: usize = 24;
const RING_LEAST_TIME: std::ops::Range<usize> = 12..16;
pub(super) const RING_TIME: std::ops::Range<usize> = 16..24;
/// CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI: they run while a process stands still.
const CLOCKS: [u64; 4] = [0, 1, 7, 11];

impl Limit {
    /// `None` if the call has no time that counts from when it began, or goes on with the rest by itself.
    pub(super) fn of(call: i64, arguments: &[u64; 6]) -> Option<Self> {
        let [first, second, _, fourth, _, sixth] = *arguments;
        let limit = |argument, form| Self {
            argument: Argument(argument),
            form,
            writes_rest: false,
        };
        let or_rest = |argument, form| Self {
            writes_rest: true,
            ..limit(argument, form)
        };
        Some(match call {
            libc::SYS_poll => limit(2, Form::Milliseconds),
            libc::SYS_select => or_rest(4, Form::Timeval),
            libc::SYS_nanosleep => limit(0, Form::Timespec),
            libc::SYS_rt_sigtimedwait => limit(2, Form::Timespec),
            libc::SYS_futex /* FUTEX_WAIT */ if second & !(FUTEX_PRIVATE | FUTEX_CLOCK_REALTIME) == 0 => {
                limit(3, Form::Timespec)
            }
            libc::SYS_io_getevents | SYS_IO_PGETEVENTS => limit(4, Form::Timespec),
            libc::SYS_semtimedop => limit(3, Form::Timespec),
            libc::SYS_clock_nanosleep if second == 0 && CLOCKS.contains(&first) => {
                limit(2, Form::Timespec)
            }
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => limit(3, Form::Milliseconds),
            libc::SYS_pselect6 => or_rest(4, Form::Timespec),
            libc::SYS_ppoll => or_rest(2, Form::Timespec),
            libc::SYS_io_uring_enter
                if fourth & (IORING_ENTER_EXT_ARG | IORING_ENTER_OTHER_TIMES)
                    == IORING_ENTER_EXT_ARG
                    && sixth == RING_ARGUMENT_BYTES as u64 =>
            {
                limit(4, Form::RingArgument)
            }
            libc::SYS_epoll_pwait2 => limit(3, Form::Timespec),
            _ => return None,
        })
    }

    /// True if a call that ended with `error` was interrupted in its wait.
    pub(super) fn is_interrupted(self, error: i64) -> bool {
        matches!(error, EINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK)
    }

    /// True if it has written what was left over its time.
    ///
    /// After a register was changed the error is the same, and the time where it points to is ours.
    pub(super) fn has_written_rest(self, error: i64) -> bool {
        self.writes_rest && error == ERESTARTNOHAND
    }

    /// How long the call may wait; `None` for ever, or not to be known.
    pub(super) fn time(self, arguments: &[u64; 6], memory: Option<&File>) -> Option<Duration> {
        let value = arguments[self.argument.0];
        if self.form == Form::Milliseconds {
            // The kernel takes 32 bits of it.
            let milliseconds = (value & 0xffff_ffff) as u32;
            let milliseconds = u64::try_from(milliseconds.cast_signed()).ok()?;
            return Some(Duration::from_millis(milliseconds));
        }
        let memory = memory.filter(|_| value != 0)?;
        let address = match self.form {
            Form::RingArgument => {
                let argument: [u8; RING_ARGUMENT_BYTES] = bytes(memory, value)?;
                if argument[RING_LEAST_TIME] != [0; 4] {
                    return None;
                }
                u64::from_le_bytes(argument[RING_TIME].try_into().ok()?)
            }
            _ => value,
        };
        let words: [u8; 16] = bytes(memory, address).filter(|_| address != 0)?;
        let (seconds, fraction) = words.split_at(8);
        let seconds = i64::from_le_bytes(seconds.try_into().ok()?);
        let fraction = i64::from_le_bytes(fraction.try_into().ok()?);
        let scale = self.fraction_ns();
        let nanoseconds = u32::try_from(fraction.checked_mul(scale)?).ok()?;
        let whole = u64::try_from(seconds).ok()?;
        (nanoseconds < 1_000_000_000).then(|| Duration::new(whole, nanoseconds))
    }

    /// Nanoseconds in a unit of the second word of a time.
    fn fraction_ns(self) -> i64 {
        match self.form {
            Form::Timeval => 1000,
            _ => 1,
        }
    }

    /// A time as the argument has it, if that is the time itself. What does not fit is rounded up.
    pub(super) fn milliseconds(left: Duration) -> u64 {
        let milliseconds = left.as_nanos().div_ceil(1_000_000);
        // What is left is never more than what there was.
        u64::try_from(milliseconds.min(i32::MAX as u128)).unwrap_or(0)
    }

    /// A time as memory has it. What does not fit is rounded up.
    pub(super) fn words(self, left: Duration) -> [u8; 16] {
        let unit = u128::from(self.fraction_ns().unsigned_abs());
        let whole = 1_000_000_000 / unit;
        let units = left.as_nanos().div_ceil(unit);
        let word = |value: u128| u64::try_from(value).unwrap_or(u64::MAX >> 1).to_le_bytes();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&word(units / whole));
        bytes[8..].copy_from_slice(&word(units % whole));
        bytes
    }
}

pub(super) fn bytes<const N: usize>(memory: &File, address: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    memory.read_exact_at(&mut bytes, address).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_never_rounded_down() {
        let left = Duration::from_nanos(1_500_000_001);
        assert_eq!(Limit::milliseconds(left), 1501);
        assert_eq!(Limit::milliseconds(Duration::ZERO), 0);
        let words = |call| {
            let limit = Limit::of(call, &[0; 6]).expect("it has a time");
            let bytes = limit.words(left);
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
            (word(0), word(8))
        };
        assert_eq!(words(libc::SYS_rt_sigtimedwait), (1, 500_000_001));
        assert_eq!(words(libc::SYS_select), (1, 500_001));
    }

    #[test]
    fn calls_that_wait_for_a_moment_are_left_alone() {
        for (call, arguments) in [
            (libc::SYS_clock_nanosleep, [1, 1, 0, 0, 0, 0]),
            (libc::SYS_clock_nanosleep, [2, 0, 0, 0, 0, 0]),
            (libc::SYS_futex, [0, 9, 0, 0, 0, 0]),
            (libc::SYS_io_uring_enter, [0, 0, 1, 1, 0, 0]),
            (libc::SYS_io_uring_enter, [0, 0, 1, 1 | 8 | 32, 0, 24]),
            (libc::SYS_recvmmsg, [0; 6]),
            (libc::SYS_read, [0; 6]),
        ] {
            assert_eq!(Limit::of(call, &arguments), None, "{call} {arguments:?}");
        }
    }

    #[test]
    fn a_negative_number_of_milliseconds_is_for_ever() {
        let arguments = [3, 0, 1, 0xffff_ffff, 0, 0];
        let limit = Limit::of(libc::SYS_epoll_wait, &arguments).expect("it has a time");
        assert_eq!(limit.time(&arguments, None), None);
    }
}
