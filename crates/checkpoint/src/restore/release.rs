//! The last step of a restore: the processes are let go, or stopped at their first instruction.

use super::birth::Newborns;
use super::error::RestoreError;
use super::lazy::{Filling, Lazy};
use super::plan::RestorePlan;
use pagetide_process::{NewProcess, RebuildError, StopOptions, StoppedProcess, ThreadState};
use std::time::{Duration, Instant};

/// Processes that are ready for their first instruction, in the order of the plans.
pub(super) struct Release<'a> {
    pub plans: &'a [RestorePlan<'a>],
    pub born: &'a Newborns,
    pub processes: Vec<NewProcess>,
    /// What the threads of each are set to.
    pub states: Vec<Vec<ThreadState>>,
}

impl Release<'_> {
    /// Lets them go. Returns how long after `started` the first instruction could run, and with `lazy` the memory that still comes.
    ///
    /// On an error all are killed before any that is let go by it could run.
    pub fn let_go(
        self,
        lazy: Option<Lazy>,
        stopped: Option<StopOptions>,
        started: Instant,
    ) -> Result<(Duration, Option<Filling>), RestoreError> {
        let born = self.born;
        // One whose memory is not there must never run without whoever serves it.
        let finish = match lazy {
            Some(_) => NewProcess::finish_bound,
            None => NewProcess::finish,
        };
        let mut processes: Vec<StoppedProcess> = self.processes.into_iter().map(finish).collect();
        if let Some(options) = stopped {
            let halted = processes.into_iter().zip(&self.states);
            let halted = halted.map(|(process, states)| {
                halt(process, states, options).inspect_err(|_| born.kill())
            });
            processes = halted.collect::<Result<_, _>>()?;
        }
        let filling = lazy.map(Lazy::fill).transpose();
        let mut filling = filling.inspect_err(|_| born.kill())?;
        let first_instruction = started.elapsed();
        let mut guards = Vec::new();
        for (plan, process) in self.plans.iter().zip(processes) {
            let resumed = match filling {
                Some(ref filling) => filling
                    .resume_guarded(process, born.is_root(plan.pid))
                    .map(|guard| guards.push(guard))
                    .map_err(RestoreError::from),
                None => process.resume().map_err(RestoreError::from),
            };
            resumed.inspect_err(|_| born.kill())?;
        }
        if let Some(filling) = &mut filling {
            filling.guard(guards);
        }
        Ok((first_instruction, filling))
    }
}

/// Puts a process into the group-stop of SIGSTOP at its very instruction: no signal that waits may be delivered before, so all
/// are blocked until it stands.
fn halt(
    mut process: StoppedProcess,
    states: &[ThreadState],
    options: StopOptions,
) -> Result<StoppedProcess, RestoreError> {
    let mut deaf = states.to_vec();
    deaf.iter_mut()
        .for_each(|state| state.signal_mask = u64::MAX);
    process
        .set_thread_states(&deaf)
        .map_err(RebuildError::from)?;
    process
        .enter_group_stop(options.timeout)
        .map_err(RebuildError::from)?;
    process
        .set_thread_states(states)
        .map_err(RebuildError::from)?;
    Ok(process)
}
