//! When and where a thread runs: policy, processors, disk priority, timer slack. Set from outside, but the slack.

use crate::kernel_state::ask::Question;
use crate::kernel_state::calls::Caller;
use crate::kernel_state::error::{KernelStateApplyError, KernelStateError};
use bincode::{Decode, Encode};
use nix::libc;
use pagetide_kernel::io_priority::{io_priority, set_io_priority};
use pagetide_kernel::ptrace::ThreadId;
use pagetide_kernel::scheduling::{SchedulingAttributes, attributes, set_attributes};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

const PR_SET_TIMERSLACK: u64 = 29;
const PR_GET_TIMERSLACK: u64 = 30;
const SCHED_OTHER: u32 = 0;
const SCHED_BATCH: u32 = 3;
const SCHED_FLAG_RESET_ON_FORK: u64 = 1;
const SCHED_FLAG_DEADLINE: u64 = 2 | 4;
const SCHED_FLAG_UTIL_CLAMPS: u64 = 0x20 | 0x40;
const UTIL_MAX: u32 = 1024;

/// When and where a thread runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Scheduling {
    /// SCHED_OTHER 0, SCHED_FIFO 1, SCHED_RR 2, SCHED_BATCH 3, SCHED_IDLE 5, SCHED_DEADLINE 6.
    pub policy: u32,
    /// SCHED_FLAG_...: reset on fork 1, and those of deadline threads.
    pub flags: u64,
    /// Nice value, -20 to 19.
    pub nice: i32,
    /// Priority of a real-time thread, 1 to 99.
    pub priority: u32,
    /// For SCHED_DEADLINE; else a slice of a length of its own, or 0. In nanoseconds.
    pub runtime_ns: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub deadline_ns: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub period_ns: u64,
    /// Least utilization to plan with, 0 to 1024.
    pub util_min: u32,
    /// Most utilization to plan with, 0 to 1024.
    pub util_max: u32,
    /// Processors it may run on: bit n%64 of word n/64 for number n.
    pub processors: Vec<u64>,
    /// As of `ioprio_get(2)`; 0: none was set.
    pub io_priority: u32,
    /// By how much its timers may be late, in nanoseconds.
    pub timer_slack_ns: u64,
}

/// How a thread of our own is scheduled, to know what is the default.
pub(super) fn default_attributes() -> Option<SchedulingAttributes> {
    attributes(ThreadId::new(0))
        .ok()
        .filter(|own| own.policy == SCHED_OTHER)
}

/// All but the slack.
pub(super) fn read(
    thread: ThreadId,
    default: Option<&SchedulingAttributes>,
) -> Result<Scheduling, KernelStateError> {
    let failed = |what| {
        move |source| KernelStateError::Kernel {
            what,
            thread,
            source,
        }
    };
    let attributes = attributes(thread).map_err(failed("scheduling"))?;
    let processors = Pid::from_raw(thread.get())
        .map_or_else(
            || sched_getaffinity(None),
            |pid| sched_getaffinity(Some(pid)),
        )
        .map_err(|errno| failed("processors")(errno.into()))?;
    let is_default_slice = matches!(attributes.policy, SCHED_OTHER | SCHED_BATCH)
        && default.is_some_and(|default| default.runtime_ns == attributes.runtime_ns);
    Ok(Scheduling {
        policy: attributes.policy,
        flags: attributes.flags & (SCHED_FLAG_RESET_ON_FORK | SCHED_FLAG_DEADLINE),
        nice: attributes.nice,
        priority: attributes.priority,
        runtime_ns: if is_default_slice {
            0
        } else {
            attributes.runtime_ns
        },
        deadline_ns: attributes.deadline_ns,
        period_ns: attributes.period_ns,
        util_min: attributes.util_min,
        util_max: attributes.util_max,
        processors: words(&processors),
        io_priority: io_priority(thread).map_err(failed("I/O priority"))?,
        timer_slack_ns: 0,
    })
}

fn words(set: &CpuSet) -> Vec<u64> {
    let mut words = Vec::new();
    let mut left = set.count();
    for number in 0..CpuSet::MAX_CPU {
        if left == 0 {
            break;
        }
        if number % 64 == 0 {
            words.push(0);
        }
        if set.is_set(number) {
            left -= 1;
            if let Some(word) = words.last_mut() {
                *word |= 1 << (number % 64);
            }
        }
    }
    words
}

fn set_of(words: &[u64]) -> CpuSet {
    let mut set = CpuSet::new();
    for number in 0..CpuSet::MAX_CPU {
        let word = words.get(number / 64).copied().unwrap_or(0);
        if word & (1 << (number % 64)) != 0 {
            set.set(number);
        }
    }
    set
}

pub(super) fn slack_question() -> Question {
    Question::number(libc::SYS_prctl, [PR_GET_TIMERSLACK, 0, 0, 0, 0, 0])
}

/// What is so already is not set.
pub(super) fn apply(
    wanted: &Scheduling,
    thread: ThreadId,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let default = default_attributes();
    let present = read(thread, default.as_ref()).map_err(|error| match error {
        KernelStateError::Kernel { what, source, .. } => caller.refused(what)(source),
        error => caller.refused("scheduling")(std::io::Error::other(error)),
    })?;
    if wanted.timer_slack_ns != 0 {
        // Before the policy: a real-time thread has none, and keeps the one of before.
        let args = [wanted.timer_slack_ns, 0];
        caller.prctl("timer slack", PR_SET_TIMERSLACK, args)?;
    }
    if wanted.processors != present.processors {
        let set = set_of(&wanted.processors);
        sched_setaffinity(Pid::from_raw(thread.get()), &set)
            .map_err(|errno| caller.refused("processors")(errno.into()))?;
    }
    let compared = Scheduling {
        processors: wanted.processors.clone(),
        io_priority: wanted.io_priority,
        timer_slack_ns: wanted.timer_slack_ns,
        ..present.clone()
    };
    if compared != *wanted {
        let clamps = (wanted.util_min, wanted.util_max);
        let are_default = matches!(clamps, (0, 0 | UTIL_MAX));
        let mut attributes = SchedulingAttributes::default();
        attributes.policy = wanted.policy;
        attributes.flags = wanted.flags
            | if are_default {
                0
            } else {
                SCHED_FLAG_UTIL_CLAMPS
            };
        attributes.nice = wanted.nice;
        attributes.priority = wanted.priority;
        attributes.runtime_ns = wanted.runtime_ns;
        attributes.deadline_ns = wanted.deadline_ns;
        attributes.period_ns = wanted.period_ns;
        attributes.util_min = wanted.util_min;
        attributes.util_max = wanted.util_max;
        set_attributes(thread, &attributes).map_err(caller.refused("scheduling"))?;
    }
    if wanted.io_priority != present.io_priority {
        set_io_priority(thread, wanted.io_priority).map_err(caller.refused("I/O priority"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_processors_survive_being_words() {
        for numbers in [vec![], vec![0], vec![3, 63, 64], vec![130, 1023]] {
            let mut set = CpuSet::new();
            for number in &numbers {
                set.set(*number);
            }
            assert_eq!(set_of(&words(&set)), set, "{numbers:?}");
        }
    }
}
