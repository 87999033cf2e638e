//! Processes that were stopped by a signal (SIGSTOP, SIGTSTP) come back stopped, and their parents know of it what they knew: a parent
//! that had waited for the stop is told nothing, one that had not finds it.
//!
//! A stop is told to the parent again, as the kernel knows no other way into it. So those that are stopped are let go first, which
//! does not let them run; then each parent, which still stands, takes back what it is not to find, and goes.

use super::birth::Newborns;
use super::error::RestoreError;
use super::plan::RestorePlan;
use pagetide_process::{RemoteCallError, RemoteCalls, StoppedProcess};
use rustix::process::Signal;
use std::collections::HashMap;
use std::time::{Duration, Instant};

const SYS_WAIT4: i64 = nix::libc::SYS_wait4;
const SYS_RT_SIGTIMEDWAIT: i64 = nix::libc::SYS_rt_sigtimedwait;
/// WNOHANG | WUNTRACED.
const STOPPED_NOW: u64 = 3;
/// A set of signals, and a time of 0 behind it.
const SIGNALS_BYTES: u64 = 8;
const TIME_BYTES: usize = 16;
/// So long all threads of a process may take to stand still.
const PATIENCE: Duration = Duration::from_secs(2);

/// The processes that are let go, in the order of their plans: parents before children.
pub(super) struct Held<'a> {
    pub plans: &'a [RestorePlan<'a>],
    pub born: &'a Newborns,
    pub processes: Vec<Option<StoppedProcess>>,
    /// Who was whose parent in the snapshot.
    pub parents: HashMap<i32, i32>,
}

impl Held<'_> {
    /// Lets all go, by `resume`, which is given the number that each had in the snapshot.
    pub fn resume_all(
        &mut self,
        mut resume: impl FnMut(StoppedProcess, i32) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let is_stopped = |plan: &RestorePlan<'_>| plan.kernel.since_2.group_stop.is_some();
        let plans = self.plans;
        let stopped = (0..plans.len()).rev().filter(|at| is_stopped(&plans[*at]));
        let others = (0..plans.len()).filter(|at| !is_stopped(&plans[*at]));
        for at in stopped.chain(others) {
            self.take_back(at)?;
            let pid = plans[at].pid;
            if let Some(process) = self.processes[at].take() {
                resume(process, pid)?;
            }
            if is_stopped(&plans[at]) {
                wait_until_stopped(self.born.now(pid));
            }
        }
        Ok(())
    }

    /// Takes back what the process number `at`, which still stands, is not to find of the stops of its children.
    fn take_back(&mut self, at: usize) -> Result<(), RestoreError> {
        let parent = &self.plans[at];
        let (parents, born) = (&self.parents, self.born);
        let own = |plan: &&RestorePlan<'_>| parents.get(&plan.pid) == Some(&parent.pid);
        let stops = self.plans.iter().filter(own).filter_map(|plan| {
            let stop = plan.kernel.since_2.group_stop?;
            Some((born.now(plan.pid), stop.is_told))
        });
        let stops: Vec<(i32, bool)> = stops.collect();
        let Some(process) = self.processes[at].as_mut().filter(|_| !stops.is_empty()) else {
            return Ok(());
        };
        let signals_child = parent.kernel.pending_signals.iter();
        let mut signals_child = signals_child.map(|pending| pending.signal());
        let had_signal = signals_child.any(|signal| signal == Signal::CHILD.as_raw());
        let pid = parent.pid;
        let failed = |source| RestoreError::Stops { pid, source };
        let mut calls = process.remote_calls().map_err(failed)?;
        let taken = take(&mut calls, &stops, had_signal);
        taken.and(calls.finish()).map_err(failed)
    }
}

/// Waits for those of the children, each with whether that is to be done, and takes the signal that told of them unless one
/// is to wait.
fn take(
    calls: &mut RemoteCalls<'_>,
    stops: &[(i32, bool)],
    keeps_signal: bool,
) -> Result<(), RemoteCallError> {
    for &(child, _) in stops.iter().filter(|(_, is_told)| *is_told) {
        let child = u64::from(child.unsigned_abs());
        refused_is_done(calls.call(SYS_WAIT4, [child, 0, STOPPED_NOW, 0, 0, 0]))?;
    }
    if keeps_signal {
        return Ok(());
    }
    let mut bytes = (1_u64 << (Signal::CHILD.as_raw() - 1))
        .to_le_bytes()
        .to_vec();
    bytes.resize(bytes.len() + TIME_BYTES, 0);
    calls.with_bytes(&bytes, |calls, set| {
        let arguments = [set, 0, set + SIGNALS_BYTES, SIGNALS_BYTES, 0, 0];
        refused_is_done(calls.call(SYS_RT_SIGTIMEDWAIT, arguments))
    })
}

/// There was nothing to take.
fn refused_is_done(called: Result<u64, RemoteCallError>) -> Result<(), RemoteCallError> {
    match called {
        Ok(_) | Err(RemoteCallError::Failed { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Of several threads each comes to stand by itself, and the last one tells the parent.
fn wait_until_stopped(pid: i32) {
    let deadline = Instant::now() + PATIENCE;
    let stands = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with(['T', 't']))
    };
    while !stands() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
}
