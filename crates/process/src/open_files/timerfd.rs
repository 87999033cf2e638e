//! Timers: timerfd_create(2).
//!
//! A timer goes on with the time that was left to it at the snapshot, except one that was set to a moment of the clock of the
//! calendar (TFD_TIMER_ABSTIME): that moment stays, and a timer that it passed meanwhile expires at once.

use super::again::set_flags;
use super::error::ReopenError;
use super::fdinfo::FdInfo;
use super::foreign::Foreign;
use crate::blocker::Blocker;
use bincode::{Decode, Encode};
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_gettime, timerfd_settime,
};
use std::os::fd::OwnedFd;

const NANOSECONDS: i128 = 1_000_000_000;
/// Clocks of clock_gettime(2): those of the calendar.
const REALTIME: u32 = 0;
const REALTIME_ALARM: u32 = 8;

/// A timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct TimerfdState {
    /// Its clock: a number of clock_gettime(2).
    pub clock: u32,
    /// How often it has expired unread.
    pub ticks: u64,
    /// The flags it was set with.
    pub set_flags: u32,
    /// Time until it expires, in nanoseconds; 0 if it will not.
    pub remaining_ns: u64,
    /// The moment of its clock at which it expires, in nanoseconds.
    pub expires_ns: u64,
    /// Time between two expirations, in nanoseconds; 0 for one only.
    pub interval_ns: u64,
}

pub(crate) fn read(foreign: &Foreign) -> Result<TimerfdState, Blocker> {
    let failed = |error: &dyn std::fmt::Display| foreign.unreadable(error);
    let mut state = parse(&foreign.info).map_err(|error| failed(&error))?;
    if state.interval_ns > 0 && state.remaining_ns == 0 && state.ticks > 0 {
        // Since it expired the kernel has not counted. Asking makes it do so, as the next read of the program would have done,
        // and changes nothing that the program could see.
        timerfd_gettime(foreign).map_err(|error| failed(&error))?;
        let info = FdInfo::read(foreign.pid, foreign.number).map_err(|error| failed(&error))?;
        let info = info.ok_or_else(|| failed(&"it is closed"))?;
        state = parse(&info).map_err(|error| failed(&error))?;
    }
    let now = clock(state.clock).ok_or_else(|| failed(&"its clock is not known"))?;
    let expires = nanoseconds_of(clock_gettime(now)) + i128::from(state.remaining_ns);
    state.expires_ns = u64::try_from(expires).unwrap_or(u64::MAX);
    Ok(state)
}

fn parse(info: &FdInfo) -> std::io::Result<TimerfdState> {
    let missing = |what: &str| {
        let message = format!("the kernel does not tell the {what} of the timer");
        std::io::Error::new(std::io::ErrorKind::InvalidData, message)
    };
    let time = |key: &str| {
        let text = info.value(key)?.strip_prefix('(')?.strip_suffix(')')?;
        let (seconds, nanoseconds) = text.split_once(',')?;
        let seconds: u64 = seconds.trim().parse().ok()?;
        let nanoseconds: u64 = nanoseconds.trim().parse().ok()?;
        Some(
            seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(nanoseconds),
        )
    };
    let number = |key: &str, base| {
        let number = info.number(key, base)?;
        u32::try_from(number).map_err(|_| missing(key))
    };
    Ok(TimerfdState {
        clock: number("clockid", 10)?,
        ticks: info.number("ticks", 10)?,
        set_flags: number("settime flags", 8)?,
        remaining_ns: time("it_value").ok_or_else(|| missing("time"))?,
        expires_ns: 0,
        interval_ns: time("it_interval").ok_or_else(|| missing("interval"))?,
    })
}

pub(crate) fn reopen(state: &TimerfdState, status_flags: u32) -> Result<OwnedFd, ReopenError> {
    let failed = |source: Errno| ReopenError::Make {
        what: String::from("a timer"),
        source,
    };
    let clock = clock(state.clock).ok_or_else(|| failed(Errno::INVAL))?;
    let kind = timer_clock(state.clock).ok_or_else(|| failed(Errno::INVAL))?;
    let timer = timerfd_create(kind, TimerfdFlags::CLOEXEC).map_err(failed)?;
    if state.remaining_ns > 0 || state.interval_ns > 0 || state.set_flags != 0 {
        let flags = TimerfdTimerFlags::from_bits_retain(state.set_flags);
        let absolute = flags.contains(TimerfdTimerFlags::ABSTIME);
        // One that has expired, and goes on counting once somebody asks, is one that expires at once.
        let expired = state.interval_ns > 0 && state.remaining_ns == 0 && state.ticks > 0;
        let remaining = i128::from(state.remaining_ns) + i128::from(expired);
        let value = match (remaining, absolute, state.clock) {
            // It is stopped.
            (0, _, _) => 0,
            (_, true, REALTIME | REALTIME_ALARM) => i128::from(state.expires_ns).max(1),
            (_, true, _) => nanoseconds_of(clock_gettime(clock)) + remaining,
            (_, false, _) => remaining,
        };
        let time = Itimerspec {
            it_interval: timespec(i128::from(state.interval_ns))
                .ok_or_else(|| failed(Errno::INVAL))?,
            it_value: timespec(value).ok_or_else(|| failed(Errno::INVAL))?,
        };
        timerfd_settime(&timer, flags, &time).map_err(failed)?;
    }
    if state.ticks > 0 {
        pagetide_kernel::timerfd::set_ticks(&timer, state.ticks)
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    }
    set_flags(&timer, status_flags).map_err(failed)?;
    Ok(timer)
}

fn clock(number: u32) -> Option<ClockId> {
    Some(match number {
        REALTIME => ClockId::Realtime,
        1 => ClockId::Monotonic,
        7 => ClockId::Boottime,
        REALTIME_ALARM => ClockId::RealtimeAlarm,
        9 => ClockId::BoottimeAlarm,
        _ => return None,
    })
}

fn timer_clock(number: u32) -> Option<TimerfdClockId> {
    Some(match number {
        REALTIME => TimerfdClockId::Realtime,
        1 => TimerfdClockId::Monotonic,
        7 => TimerfdClockId::Boottime,
        REALTIME_ALARM => TimerfdClockId::RealtimeAlarm,
        9 => TimerfdClockId::BoottimeAlarm,
        _ => return None,
    })
}

fn nanoseconds_of(time: Timespec) -> i128 {
    i128::from(time.tv_sec) * NANOSECONDS + i128::from(time.tv_nsec)
}

fn timespec(nanoseconds: i128) -> Option<Timespec> {
    Some(Timespec {
        tv_sec: i64::try_from(nanoseconds / NANOSECONDS).ok()?,
        tv_nsec: i64::try_from(nanoseconds % NANOSECONDS).ok()?,
    })
}
