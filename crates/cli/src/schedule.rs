//! When the next snapshot is due. A schedule ends when it is told to: what fails is told at once, and tried again after pauses
//! that grow, for the process stands still for some of the time that is tried.

use crate::failure;
use crate::output;
use crate::signals::Signals;
use std::time::{Duration, Instant};

/// The first pause after a failure, if the interval is shorter; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer, unless the interval is, or a try takes long.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A failure that repeats is told again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// See the head of this file.
pub struct Schedule {
    every: Option<Duration>,
    count: Option<u64>,
    most_failures: Option<u64>,
    next: Instant,
    /// How many were taken.
    pub taken: u64,
    begun: Instant,
    failures: Failures,
}

/// Those in a row.
#[derive(Default)]
struct Failures {
    count: u64,
    since: Option<Instant>,
    told: Option<(String, Instant)>,
}

impl Schedule {
    /// One snapshot now, or one each `every`, the first one now, `count` of them. After `most_failures` in a row it ends.
    pub fn new(every: Option<Duration>, count: Option<u64>, most_failures: Option<u64>) -> Self {
        Self {
            every,
            count: if every.is_some() { count } else { Some(1) },
            most_failures,
            next: Instant::now(),
            taken: 0,
            begun: Instant::now(),
            failures: Failures::default(),
        }
    }

    /// True if there may be another snapshot after one that failed.
    pub fn repeats(&self) -> bool {
        self.every.is_some()
    }

    /// One more was taken.
    pub fn count_one(&mut self) {
        self.taken += 1;
        let failures = std::mem::take(&mut self.failures);
        if let Some(since) = failures.since {
            output::note!(
                "pagetide: snapshots go on: {} in vain, for {}",
                output::counted(failures.count, "try", "tries"),
                output::duration(since.elapsed())
            );
        }
    }

    /// Tells why there is no snapshot for now, and says when the next is due. The error itself if it is one too many.
    pub fn put_off(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        let failures = &mut self.failures;
        failures.count += 1;
        failures.since.get_or_insert(self.begun);
        if self
            .most_failures
            .is_some_and(|most| failures.count >= most)
        {
            return Err(error);
        }
        let pause = pause(failures.count, self.begun.elapsed());
        let pause = pause.max(self.every.unwrap_or_default());
        self.next = Instant::now() + pause;
        let message = failure::message(&error);
        let is_told =
            |(told, at): &(String, Instant)| *told == message && at.elapsed() < TELL_AGAIN;
        if !failures.told.as_ref().is_some_and(is_told) {
            output::note!(
                "pagetide: no snapshot for now: {message} (the next try is in {})",
                output::duration(pause)
            );
            failures.told = Some((message, Instant::now()));
        }
        Ok(())
    }

    /// What had to be there first is there: the snapshot that is due is due now.
    pub fn at_once(&mut self) {
        self.next = Instant::now();
    }

    /// True if the snapshot now due is the last one.
    pub fn is_last(&self) -> bool {
        self.count == Some(self.taken + 1)
    }

    /// True if all snapshots that were asked for are taken.
    pub fn is_over(&self) -> bool {
        self.count == Some(self.taken)
    }

    /// Waits until the next snapshot is due; false if there is none any more. A snapshot that took
    /// longer than the interval does not make the next ones come in a burst.
    pub fn wait(&mut self, signals: &Signals, mut goes_on: impl FnMut() -> bool) -> bool {
        if self.is_over() {
            return false;
        }
        loop {
            if signals.came() || !goes_on() {
                return false;
            }
            let now = Instant::now();
            if now >= self.next {
                self.next = (self.next + self.every.unwrap_or_default()).max(now);
                self.begun = now;
                return true;
            }
            std::thread::sleep((self.next - now).min(Duration::from_millis(20)));
        }
    }
}

/// How long to wait after so many failures in a row, of which the last took this long.
fn pause(failures: u64, took: Duration) -> Duration {
    let doublings = u32::try_from(failures.saturating_sub(1)).map_or(16, |n| n.min(16));
    let grown = (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE);
    let share = u32::try_from(failures).map_or(20, |n| n.min(20));
    grown.max(took * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_to_grow() {
        let at_once = |failures| pause(failures, Duration::ZERO).as_millis();
        assert_eq!([1, 2, 3, 4].map(at_once), [100, 200, 400, 800]);
        assert_eq!(at_once(100), 30_000);
        assert_eq!(at_once(u64::MAX), 30_000);
        let slow = pause(3, Duration::from_secs(2));
        assert_eq!(slow, Duration::from_secs(6), "most of the time it runs");
    }

    #[test]
    fn one_failure_too_many_ends_it() {
        let mut schedule = Schedule::new(Some(Duration::from_millis(1)), None, Some(2));
        let wrong = || anyhow::anyhow!("wrong");
        assert!(schedule.put_off(wrong()).is_ok());
        schedule.count_one();
        assert!(schedule.put_off(wrong()).is_ok());
        assert!(schedule.put_off(wrong()).is_err());
    }
}
