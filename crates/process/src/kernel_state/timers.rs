//! Timers that signal: those of `setitimer(2)` and those of `timer_create(2)`.
//!
//! A timer counts on from where it was. Numbers of POSIX timers are given back: by request where the kernel knows
//! `PR_TIMER_CREATE_RESTORE_IDS` (Linux 6.15), else by making and deleting timers until the number comes.

use crate::kernel_state::ask::{Answer, Question};
use crate::kernel_state::calls::{Caller, signed};
use crate::kernel_state::error::KernelStateApplyError;
use crate::kernel_state::signals::PendingSignal;
use crate::system_calls::SystemCalls;
use bincode::{Decode, Encode};
use nix::libc;
use pagetide_kernel::ptrace::ThreadId;

/// `struct itimerspec` and `struct itimerval`: interval and value, of two words each.
const TIMER_BYTES: usize = 32;
const SIGEVENT_BYTES: usize = 64;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
/// How many numbers are tried out on a kernel that gives them in order.
const NUMBERS_TRIED_MAX: i32 = 100_000;

const SIGALRM: i32 = 14;
const SIGVTALRM: i32 = 26;
const SIGPROF: i32 = 27;
/// The code of a signal that the kernel sends of its own.
const SI_KERNEL: i32 = 0x80;
/// Of the signal of a timer of `timer_create(2)`: its code, and where it has the number of the timer.
const SI_TIMER: i32 = -2;
const TIMER_ID: usize = 16;

const NOTIFY_NONE: i32 = 1;
const NOTIFY_THREAD_ID: i32 = 4;

/// A timer of `setitimer(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct IntervalTimer {
    /// Until it goes off next, in microseconds; 0 if it does not run.
    pub remaining_us: u64,
    /// From one time to the next, in microseconds; 0 if there is no next time.
    pub interval_us: u64,
}

/// A timer of `timer_create(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PosixTimer {
    /// Its number.
    pub id: i32,
    /// The clock. For one that counts processor time: as of the calling thread or process.
    pub clock: i32,
    /// The thread whose processor time it counts, if it counts that of one; else 0.
    pub clock_thread: i32,
    /// The signal.
    pub signal: i32,
    /// What the signal carries.
    pub value: u64,
    /// SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD 2, and the flag SIGEV_THREAD_ID 4.
    pub notify: i32,
    /// The thread that gets the signal with SIGEV_THREAD_ID; else 0.
    pub notify_thread: i32,
    /// Until it goes off next, in nanoseconds; 0 if it does not run.
    pub remaining_ns: u64,
    /// From one time to the next, in nanoseconds; 0 if there is no next time.
    pub interval_ns: u64,
    /// How often it went off unnoticed before its last signal was taken. Cannot be set.
    pub overrun: u32,
}

pub(super) fn interval_question(which: u64) -> Question {
    Question::bytes(libc::SYS_getitimer, [which, 0, 0, 0, 0, 0], 1, TIMER_BYTES)
}

pub(super) fn interval_answered(answer: &Answer) -> IntervalTimer {
    let (interval_us, remaining_us) = times(answer, 1_000_000);
    IntervalTimer {
        remaining_us,
        interval_us,
    }
}

fn times(answer: &Answer, parts_of_second: u64) -> (u64, u64) {
    let time = |index| {
        let seconds = answer.word(index).saturating_mul(parts_of_second);
        seconds.saturating_add(answer.word(index + 1))
    };
    (time(0), time(2))
}

/// Arms one of the three timers.
pub(super) fn apply_interval(
    which: u64,
    timer: IntervalTimer,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let mut remaining_us = timer.remaining_us;
    // ITIMER_REAL stands still from its signal until that is taken, which sets it going again. The kernel does not let
    // a timer be made like this, so it begins its next interval now.
    if which == 0 && remaining_us == 0 {
        remaining_us = timer.interval_us;
    }
    let mut bytes = timer_bytes(timer.interval_us, remaining_us, 1_000_000);
    caller.call_with(
        "interval timers",
        libc::SYS_setitimer,
        &mut bytes,
        &|address| [which, address, 0, 0, 0, 0],
    )?;
    Ok(())
}

fn timer_bytes(interval: u64, remaining: u64, parts_of_second: u64) -> Vec<u8> {
    let words = [interval, remaining].map(|time| [time / parts_of_second, time % parts_of_second]);
    words
        .concat()
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// What `/proc/PID/timers` says, the lowest number first. Times are left at 0.
pub(super) fn parse(text: &str) -> Vec<PosixTimer> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if key == "ID" {
            timers.push(PosixTimer {
                id: value.parse().unwrap_or(-1),
                clock: 0,
                clock_thread: 0,
                signal: 0,
                value: 0,
                notify: 0,
                notify_thread: 0,
                remaining_ns: 0,
                interval_ns: 0,
                overrun: 0,
            });
        }
        let Some(timer) = timers.last_mut() else {
            continue;
        };
        match key {
            "signal" => {
                let (signal, carried) = value.split_once('/').unwrap_or((value, ""));
                timer.signal = signal.parse().unwrap_or(0);
                timer.value = u64::from_str_radix(carried, 16).unwrap_or(0);
            }
            "notify" => parse_notify(value, timer),
            "ClockID" => timer.clock = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    timers.sort_by_key(|timer| timer.id);
    timers
}

/// `signal/tid.4712`
fn parse_notify(text: &str, timer: &mut PosixTimer) {
    let (how, whom) = text.split_once('/').unwrap_or((text, ""));
    timer.notify = match how {
        "none" => NOTIFY_NONE,
        "thread" => 2,
        _ => 0,
    };
    if let Some(thread) = whom.strip_prefix("tid.") {
        timer.notify_thread = thread.parse().unwrap_or(0);
        timer.notify |= NOTIFY_THREAD_ID;
    }
}

/// Whose processor time a clock counts, see `linux/posix-timers.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    /// It is no such clock.
    Nobodys,
    OfProcess(i32),
    OfThread(i32),
}

fn counted(clock: i32) -> Counted {
    if clock >= 0 {
        return Counted::Nobodys;
    }
    // 0: whoever made the timer.
    let whose = !(clock >> 3);
    if clock & 4 == 0 {
        Counted::OfProcess(whose)
    } else {
        Counted::OfThread(whose)
    }
}

/// Makes a timer on a clock of processor time independent of numbers; `threads` are those of the process, ascending. `Err` says, for people, what it counts if that
/// cannot be made again.
pub(super) fn settle(timer: &mut PosixTimer, pid: i32, threads: &[i32]) -> Result<(), String> {
    if timer.notify & NOTIFY_THREAD_ID != 0 && threads.binary_search(&timer.notify_thread).is_err()
    {
        // The thread has ended, and no signal will come.
        timer.notify = NOTIFY_NONE;
        timer.notify_thread = 0;
    }
    let kind = timer.clock & 7;
    let of_caller = (!0 << 3) | kind;
    match counted(timer.clock) {
        Counted::Nobodys => return Ok(()),
        Counted::OfProcess(whose) if whose == 0 || whose == pid => {}
        Counted::OfThread(0) if threads.len() == 1 => timer.clock_thread = threads[0],
        Counted::OfThread(0) => return Err(String::from("one of its threads")),
        Counted::OfThread(whose) if threads.binary_search(&whose).is_ok() => {
            timer.clock_thread = whose
        }
        Counted::OfThread(whose) => return Err(format!("thread {whose} of another process")),
        Counted::OfProcess(whose) => return Err(format!("process {whose}")),
    }
    timer.clock = of_caller;
    let (of, to) = (timer.clock_thread, timer.notify_thread);
    if of != 0 && to != 0 && of != to {
        return Err(format!("thread {of} and signals thread {to}"));
    }
    Ok(())
}

pub(super) fn posix_questions(timer: &PosixTimer) -> [Question; 2] {
    let args = [signed(timer.id), 0, 0, 0, 0, 0];
    [
        Question::bytes(libc::SYS_timer_gettime, args, 1, TIMER_BYTES),
        Question::number(libc::SYS_timer_getoverrun, args),
    ]
}

pub(super) fn posix_answered(
    timer: &mut PosixTimer,
    time: Option<&Answer>,
    overrun: Option<&Answer>,
) {
    if let Some(answer) = time {
        (timer.interval_ns, timer.remaining_ns) = times(answer, 1_000_000_000);
    }
    if let Some(answer) = overrun {
        timer.overrun = u32::try_from(answer.result).unwrap_or(u32::MAX);
    }
}

/// The number of the timer that a signal is of, if it is of one of `timer_create(2)`.
fn timer_of(pending: &PendingSignal) -> Option<i32> {
    (pending.code() == SI_TIMER).then(|| pending.number(TIMER_ID))
}

/// Timers whose signal waits in `late` and not yet in `early` went off in between, perhaps after they had told how much
/// time is left.
pub(super) fn gone_off(timers: &mut [PosixTimer], early: &[PendingSignal], late: &[PendingSignal]) {
    for timer in timers.iter_mut() {
        let waits =
            |queue: &[PendingSignal]| queue.iter().any(|one| timer_of(one) == Some(timer.id));
        if waits(late) && !waits(early) {
            timer.remaining_ns = timer.interval_ns;
        }
    }
}

/// The same for the three of `setitimer(2)`.
pub(super) fn interval_gone_off(
    timers: &mut [IntervalTimer; 3],
    early: &[PendingSignal],
    late: &[PendingSignal],
) {
    for (timer, signal) in timers.iter_mut().zip([SIGALRM, SIGVTALRM, SIGPROF]) {
        let is_its = |one: &PendingSignal| one.signal() == signal && one.code() == SI_KERNEL;
        let waits = |queue: &[PendingSignal]| queue.iter().any(is_its);
        if waits(late) && !waits(early) {
            timer.remaining_us = timer.interval_us;
        }
    }
}

impl PosixTimer {
    /// The thread, in the snapshot, that has to make it; `None`: any.
    fn maker(&self) -> Option<i32> {
        [self.notify_thread, self.clock_thread]
            .into_iter()
            .find(|thread| *thread != 0)
    }
}

/// Timers with consecutive numbers that one thread has to make.
#[derive(Debug)]
pub struct TimerBatch<'a> {
    /// The thread, in the snapshot; `None`: any.
    pub maker: Option<ThreadId>,
    timers: &'a [PosixTimer],
}

impl<'a> TimerBatch<'a> {
    pub(super) fn all(timers: &'a [PosixTimer]) -> impl Iterator<Item = TimerBatch<'a>> {
        let batches = timers.chunk_by(|one, next| one.maker() == next.maker());
        batches.map(|timers| TimerBatch {
            maker: timers[0].maker().map(ThreadId::new),
            timers,
        })
    }

    /// Makes them, by calls of the thread that is `thread` now. They do not run yet.
    pub fn create(
        &self,
        thread: ThreadId,
        calls: &mut dyn SystemCalls,
    ) -> Result<(), KernelStateApplyError> {
        let thread = thread.get();
        let caller = &mut Caller { calls, thread };
        let by_request = switch_restoring(true, caller)?;
        for timer in self.timers {
            if by_request {
                create_one(timer, caller)?;
            } else {
                create_in_order(timer, caller)?;
            }
        }
        if by_request && !switch_restoring(false, caller)? {
            return Err(caller.refused("POSIX timers")(
                std::io::ErrorKind::Other.into(),
            ));
        }
        Ok(())
    }
}

/// False if the kernel does not know it.
fn switch_restoring(on: bool, caller: &mut Caller<'_>) -> Result<bool, KernelStateApplyError> {
    let args = [PR_TIMER_CREATE_RESTORE_IDS, u64::from(on), 0, 0, 0, 0];
    let result = caller.try_call("POSIX timers", libc::SYS_prctl, args)?;
    Ok(result.is_some())
}

/// Returns the number it got.
fn create_one(timer: &PosixTimer, caller: &mut Caller<'_>) -> Result<i32, KernelStateApplyError> {
    let mut bytes = [0; SIGEVENT_BYTES + 16];
    bytes[..8].copy_from_slice(&timer.value.to_le_bytes());
    bytes[8..12].copy_from_slice(&timer.signal.to_le_bytes());
    bytes[12..16].copy_from_slice(&timer.notify.to_le_bytes());
    let mut clock = timer.clock;
    if timer.maker().is_some() {
        let own = caller.call("POSIX timers", libc::SYS_gettid, [0; 6])?;
        let own = i32::try_from(own).unwrap_or(0);
        if timer.notify_thread != 0 {
            bytes[16..20].copy_from_slice(&own.to_le_bytes());
        }
        if timer.clock_thread != 0 {
            // By its number, or nobody could tell later whose time it counts.
            clock = (!own << 3) | (clock & 7);
        }
    }
    let number = SIGEVENT_BYTES..SIGEVENT_BYTES + 4;
    bytes[number.clone()].copy_from_slice(&timer.id.to_le_bytes());
    let clock = signed(clock);
    caller.call_with(
        "POSIX timers",
        libc::SYS_timer_create,
        &mut bytes,
        &|address| [clock, address, address + 64, 0, 0, 0],
    )?;
    let number = bytes[number].first_chunk().copied();
    Ok(number.map_or(-1, i32::from_le_bytes))
}

fn create_in_order(
    timer: &PosixTimer,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    for _ in 0..NUMBERS_TRIED_MAX {
        let got = create_one(timer, caller)?;
        if got == timer.id {
            return Ok(());
        }
        caller.call(
            "POSIX timers",
            libc::SYS_timer_delete,
            [signed(got), 0, 0, 0, 0, 0],
        )?;
        if got > timer.id {
            break;
        }
    }
    Err(KernelStateApplyError::TimerNumber {
        id: timer.id,
        thread: caller.thread,
    })
}

/// Sets the timers going that were.
pub(super) fn arm(
    timers: &[PosixTimer],
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    for timer in timers.iter().filter(|timer| timer.remaining_ns != 0) {
        let mut bytes = timer_bytes(timer.interval_ns, timer.remaining_ns, 1_000_000_000);
        let id = signed(timer.id);
        caller.call_with(
            "POSIX timers",
            libc::SYS_timer_settime,
            &mut bytes,
            &|address| [id, 0, address, 0, 0, 0],
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ID: 9\nsignal: 40/0000000000000007\nnotify: signal/tid.2184\nClockID: 1\n\
        ID: 4\nsignal: 0/00007fff86e452a8\nnotify: none/pid.2184\nClockID: -17478\n";

    #[test]
    fn the_list_of_the_kernel_is_read_in_the_order_of_numbers() {
        let timers = parse(TEXT);
        let numbers: Vec<_> = timers.iter().map(|timer| timer.id).collect();
        assert_eq!(numbers, [4, 9]);
        let first = &timers[0];
        assert_eq!(
            (first.notify, first.notify_thread, first.clock),
            (1, 0, -17478)
        );
        assert_eq!(first.value, 0x7fff_86e4_52a8);
        let second = &timers[1];
        assert_eq!((second.signal, second.value), (40, 7));
        assert_eq!((second.notify, second.notify_thread), (4, 2184));
        assert_eq!((first.maker(), second.maker()), (None, Some(2184)));
    }

    #[test]
    fn clocks_of_processor_time_are_settled_or_refused() {
        let of = |clock: i32, threads: &[i32]| {
            let mut timer = parse(TEXT).remove(0);
            timer.clock = clock;
            settle(&mut timer, 100, threads).map(|()| (timer.clock, timer.clock_thread))
        };
        let clock = |whose: i32, kind: i32| (!whose << 3) | kind;
        assert_eq!(of(1, &[100, 101]), Ok((1, 0)));
        assert_eq!(of(clock(0, 2), &[100, 101]), Ok((-6, 0)));
        assert_eq!(of(clock(100, 2), &[100, 101]), Ok((-6, 0)));
        assert_eq!(of(clock(0, 6), &[100]), Ok((-2, 100)));
        assert_eq!(of(clock(101, 6), &[100, 101]), Ok((-2, 101)));
        assert!(of(clock(0, 6), &[100, 101]).is_err());
        assert!(of(clock(7, 2), &[100, 101]).is_err());
        assert!(of(clock(7, 6), &[100, 101]).is_err());
    }

    #[test]
    fn the_signal_of_a_thread_that_has_ended_never_comes() {
        let mut timer = parse(TEXT).remove(1);
        settle(&mut timer, 100, &[100]).expect("settled");
        assert_eq!((timer.notify, timer.notify_thread), (1, 0));
    }
}

#[cfg(test)]
mod hostile_tests {
    use super::*;

    #[test]
    fn hostile_text_of_timers() {
        let sound = b"ID: 9\nsignal: 40/0000000000000007\nnotify: signal/tid.2184\nClockID: 1\n\
            ID: 2\nsignal: 14/0000000000000000\nnotify: none/pid.100\nClockID: -6\n";
        pagetide_testing::hostile::survives(sound, |text| {
            let mut all = parse(&String::from_utf8_lossy(text));
            all.iter_mut()
                .for_each(|timer| drop(settle(timer, 100, &[100, 2184])));
            text != sound || all.len() == 2
        });
    }
}
