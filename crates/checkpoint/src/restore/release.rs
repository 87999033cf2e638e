//! The last step of a restore: the processes are let go, or stopped at their first instruction.

use super::birth::Newborns;
use super::error::RestoreError;
use super::lazy::{Filling, Lazy};
use super::plan::RestorePlan;
use super::stops;
use pagetide_process::{NewProcess, RebuildError, StopOptions, StoppedProcess, ThreadState};
use rustix::process::Signal;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Processes that are ready for their first instruction, in the order of the plans.
pub(super) struct Release<'a> {
    pub plans: &'a [RestorePlan<'a>],
    pub born: &'a Newborns,
    pub processes: Vec<NewProcess>,
    /// What the threads of each are set to.
    pub states: Vec<Vec<ThreadState>>,
    /// Who was whose parent in the snapshot.
    pub parents: HashMap<i32, i32>,
}

impl Release<'_> {
    /// Lets them go. Returns how long after `started` the first instruction could run, and with `lazy` the memory that still comes.
    ///
    /// On an error all are killed before any that is let go by it could run.
    pub fn let_go(
        self,
        lazy: Option<Lazy>,
        stopped: bool,
        options: StopOptions,
        started: Instant,
    ) -> Result<(Duration, Option<Filling>), RestoreError> {
        let born = self.born;
        // One whose memory is not there must never run without whoever serves it.
        let finish = match lazy {
            Some(_) => NewProcess::finish_bound,
            None => NewProcess::finish,
        };
        let all = self.processes.into_iter().map(finish);
        let all = all.zip(self.plans).zip(&self.states);
        let halted = all.map(|((process, plan), states)| {
            let process = match stop_signal(plan, stopped) {
                Some(signal) => halt(process, states, signal, options)?,
                None => process,
            };
            Ok::<_, RestoreError>(Some(process))
        });
        let halted = halted.collect::<Result<_, _>>();
        let mut held = stops::Held {
            plans: self.plans,
            born,
            processes: halted.inspect_err(|_| born.kill())?,
            parents: self.parents,
        };
        let filling = lazy.map(Lazy::fill).transpose();
        let mut filling = filling.inspect_err(|_| born.kill())?;
        let first_instruction = started.elapsed();
        let mut guards = Vec::new();
        let guarded = |process: StoppedProcess, pid: i32| match filling {
            Some(ref filling) => filling
                .resume_guarded(process, born.is_root(pid))
                .map(|guard| guards.push(guard))
                .map_err(RestoreError::from),
            None => process.resume().map_err(RestoreError::from),
        };
        held.resume_all(guarded).inspect_err(|_| born.kill())?;
        if let Some(filling) = &mut filling {
            filling.guard(guards);
        }
        Ok((first_instruction, filling))
    }
}

/// The signal by which a process is stopped before it runs: its own, if it was stopped in the snapshot.
fn stop_signal(plan: &RestorePlan<'_>, is_asked_for: bool) -> Option<i32> {
    let asked = is_asked_for.then_some(Signal::STOP.as_raw());
    let Some(own) = plan.kernel.since_2.group_stop else {
        return asked;
    };
    // One that is not stopped by it any more would run its handler.
    let is_handled = |signal| {
        let mut actions = plan.kernel.signal_actions.iter();
        actions.any(|action| action.signal == signal)
    };
    if is_handled(own.signal) {
        Some(Signal::STOP.as_raw())
    } else {
        Some(own.signal)
    }
}

/// Puts a process into the group-stop of `signal` at its very instruction: no other signal that waits may be delivered before, so
/// all are blocked until it stands.
fn halt(
    mut process: StoppedProcess,
    states: &[ThreadState],
    signal: i32,
    options: StopOptions,
) -> Result<StoppedProcess, RestoreError> {
    let mut deaf = states.to_vec();
    let but_it = !(1_u64 << (signal - 1).clamp(0, 63));
    deaf.iter_mut().for_each(|state| state.signal_mask = but_it);
    process
        .set_thread_states(&deaf)
        .map_err(RebuildError::from)?;
    process
        .enter_group_stop(signal, options.timeout)
        .map_err(RebuildError::from)?;
    process
        .set_thread_states(states)
        .map_err(RebuildError::from)?;
    Ok(process)
}
