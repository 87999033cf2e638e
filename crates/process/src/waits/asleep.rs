//! Since when a thread has been asleep, as the scheduler knows it.
//!
//! `/proc/PID/task/TID/sched` says when the thread last ran (`se.exec_start`), by the clock of the processor that it
//! ran on. That clock leaves out the time of interrupts, and what a hypervisor has taken, so clocks of two processors
//! cannot be compared: whoever asks goes to that very processor and reads its own entry there.
//!
//! From Linux 6.12 on, a thread that falls asleep may stay in the queue of its processor for a moment, and be moved to
//! another one: then its entry speaks of a clock that is not that of the processor it is said to be on. So a second time is
//! looked at, that of its load average (`se.avg.last_update_time`), which is always by the present processor, and goes slower
//! than time if anything. The shorter of the two sleeps counts. All errors are on one side: a thread is taken to have fallen
//! asleep no earlier than it did.
//!
//! A thread that wakes and falls asleep again has one more voluntary switch, which is how that is seen.

use crate::proc_files::Stat;
use pagetide_kernel::proc_file;
use pagetide_kernel::ptrace::ThreadId;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::time::{Duration, Instant};

/// What the scheduler says of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scheduled {
    /// When it last ran, in nanoseconds by its processor.
    last_ran_ns: u64,
    /// When its load was last accounted, in nanoseconds by a clock of its processor; 0 if it has none (real time).
    last_accounted_ns: u64,
    /// How often it has given up its processor by itself, as by falling asleep.
    pub(super) switches: u64,
}

impl Scheduled {
    /// `None` if the kernel does not tell.
    pub(super) fn of(pid: i32, thread: ThreadId) -> Option<Self> {
        Self::read(&format!("/proc/{pid}/task/{thread}/sched"))
    }

    fn read(path: &str) -> Option<Self> {
        let text = proc_file::read_text(path).ok()?;
        let value = |key: &str| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                (name.trim() == key).then(|| value.trim().to_owned())
            })
        };
        Some(Self {
            last_ran_ns: nanoseconds(&value("se.exec_start")?).filter(|ran| *ran != 0)?,
            last_accounted_ns: value("se.avg.last_update_time")
                .and_then(|time| time.parse().ok())
                .unwrap_or(0),
            switches: value("nr_voluntary_switches")?.parse().ok()?,
        })
    }
}

/// How long the sleeper has been asleep, in nanoseconds; `runs` is what is said of a thread that runs on its processor.
fn asleep_ns(runs: Scheduled, sleeper: Scheduled) -> Option<u64> {
    let by_clock = runs.last_ran_ns.checked_sub(sleeper.last_ran_ns)?;
    if runs.last_accounted_ns == 0 || sleeper.last_accounted_ns == 0 {
        return Some(by_clock);
    }
    let by_load = runs
        .last_accounted_ns
        .checked_sub(sleeper.last_accounted_ns)?;
    Some(by_clock.min(by_load))
}

/// `MILLISECONDS.NANOSECONDS`, the latter with six digits.
fn nanoseconds(text: &str) -> Option<u64> {
    let (milliseconds, rest) = text.split_once('.')?;
    let rest = (rest.len() == 6).then(|| rest.parse::<u64>().ok())??;
    let milliseconds: u64 = milliseconds.parse().ok()?;
    milliseconds.checked_mul(1_000_000)?.checked_add(rest)
}

/// How long processors are visited: each takes some 50 us, and longer if it is busy.
const VISITING_MAX: Duration = Duration::from_millis(100);

/// What was said of a thread that ran on a processor, and when, or a moment later.
#[derive(Debug, Clone, Copy)]
struct Reading {
    runs: Scheduled,
    at: Instant,
}

/// Asks processors for their clocks. The calling thread moves from one to the next, and may run where it could
/// before once this is dropped.
#[derive(Debug)]
pub(super) struct Clocks {
    before: CpuSet,
    /// No further processor is visited after that.
    until: Instant,
    readings: Vec<(usize, Option<Reading>)>,
}

impl Clocks {
    pub(super) fn new() -> Option<Self> {
        Some(Self {
            before: sched_getaffinity(None).ok()?,
            until: Instant::now() + VISITING_MAX,
            readings: Vec::new(),
        })
    }

    /// Since when a sleeping thread has been asleep, at the latest.
    pub(super) fn asleep_since(
        &mut self,
        pid: i32,
        thread: ThreadId,
        scheduled: Scheduled,
    ) -> Option<Instant> {
        let processor = Stat::of_thread(pid, thread).ok()?.field(39);
        let reading = self.reading(usize::try_from(processor).ok()?)?;
        let asleep_ns = asleep_ns(reading.runs, scheduled)?;
        // The scheduler's clock may go faster than CLOCK_MONOTONIC, which is steered: by 500 ppm at most.
        let asleep = Duration::from_nanos(asleep_ns - asleep_ns / 1000);
        reading.at.checked_sub(asleep)
    }

    fn reading(&mut self, processor: usize) -> Option<Reading> {
        let known = self.readings.iter().find(|(known, _)| *known == processor);
        if let Some((_, reading)) = known {
            return *reading;
        }
        let reading = if Instant::now() < self.until {
            read_clock(processor)
        } else {
            None
        };
        self.readings.push((processor, reading));
        reading
    }
}

impl Drop for Clocks {
    fn drop(&mut self) {
        if !self.readings.is_empty() {
            // It may run on fewer then, which is no harm: it ends with the stop.
            sched_setaffinity(None, &self.before).ok();
        }
    }
}

fn read_clock(processor: usize) -> Option<Reading> {
    let mut only = CpuSet::new();
    if processor >= CpuSet::MAX_CPU {
        return None;
    }
    only.set(processor);
    sched_setaffinity(None, &only).ok()?;
    // The entry of a thread that runs is only as new as the last time it was scheduled.
    std::thread::sleep(Duration::from_nanos(1));
    let runs = Scheduled::read("/proc/thread-self/sched")?;
    let at = Instant::now();
    // A change of what it may run on can move it at any time.
    (rustix::thread::sched_getcpu() == processor).then_some(Reading { runs, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_the_scheduler_is_read_to_the_nanosecond() {
        assert_eq!(nanoseconds("1217742.037221"), Some(1_217_742_037_221));
        assert_eq!(nanoseconds("1217742"), None);
        assert_eq!(nanoseconds("1.5"), None);
    }

    /// A thread that was moved after it fell asleep is spoken of by two clocks, here 5 s apart.
    #[test]
    fn the_shorter_of_two_sleeps_counts() {
        let said = |last_ran_ns, last_accounted_ns| Scheduled {
            last_ran_ns,
            last_accounted_ns,
            switches: 0,
        };
        assert_eq!(asleep_ns(said(90, 1090), said(40, 1040)), Some(50));
        assert_eq!(asleep_ns(said(5090, 1090), said(40, 1040)), Some(50));
        assert_eq!(asleep_ns(said(90, 1090), said(40, 1060)), Some(30));
        assert_eq!(asleep_ns(said(90, 1090), said(5040, 1040)), None);
        assert_eq!(asleep_ns(said(90, 0), said(40, 1040)), Some(50));
        assert_eq!(asleep_ns(said(90, 1090), said(40, 0)), Some(50));
    }

    #[test]
    fn a_sleeper_is_never_taken_to_have_slept_longer_than_it_did() {
        let (sender, number) = std::sync::mpsc::channel();
        let begun = Instant::now();
        let sleeper = std::thread::spawn(move || {
            sender
                .send(rustix::thread::gettid().as_raw_nonzero().get())
                .expect("somebody waits for it");
            std::thread::sleep(Duration::from_millis(400));
        });
        let thread = ThreadId::new(number.recv().expect("it runs"));
        std::thread::sleep(Duration::from_millis(150));
        let pid = std::process::id().cast_signed();
        let scheduled = Scheduled::of(pid, thread).expect("the scheduler tells");
        let mut clocks = Clocks::new().expect("affinity can be asked for");
        let since = clocks
            .asleep_since(pid, thread, scheduled)
            .expect("the processor can be visited");
        assert!(since >= begun, "{:?} too early", begun - since);
        // It was asleep when it was looked at, for 400 ms at most.
        let slept = Instant::now() - since;
        assert!(slept >= Duration::from_millis(100), "{slept:?}");
        sleeper.join().expect("it ends");
    }
}
