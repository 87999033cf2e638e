//! How processes are left after a snapshot: running, stopped, or killed once the snapshot is durable. A
//! snapshot that fails lets them run again, and so does one that is to be followed by a kill and from which they could not be restored.

use crate::error::TakeError;
use crate::member::Member;
use crate::options::Leave;
use pagetide_kernel::pidfd::{PidFd, PidFdError};
use rustix::io::Errno;
use rustix::process::Signal;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// See the head of this file.
pub(crate) struct LeaveGuard {
    leave: Leave,
    timeout: Duration,
    /// All processes of the snapshot. They are held by descriptor: until the snapshot is durable any of them may have ended,
    /// and its number may belong to somebody else.
    all: Vec<Held>,
    /// Those that were stopped here, and run again if nothing comes of the snapshot. A process that was
    /// stopped already is not ours to let run.
    stopped: Vec<Held>,
}

/// One process, with its number for messages.
#[derive(Clone)]
struct Held {
    pid: i32,
    /// `None` if it had ended before.
    process: Option<Arc<PidFd>>,
}

impl LeaveGuard {
    pub fn new(leave: Leave, timeout: Duration) -> Self {
        Self {
            leave,
            timeout,
            all: Vec::new(),
            stopped: Vec::new(),
        }
    }

    /// Stops the process by SIGSTOP before it is stopped by us, so that it does not run for a moment
    /// between the two.
    pub fn stop(&mut self, member: &Member) -> Result<(), TakeError> {
        if self.leave == Leave::Running {
            return Ok(());
        }
        let pid = member.pid();
        let was_stopped = is_stopped(pid);
        self.stop_now(member)?;
        let deadline = Instant::now() + self.timeout;
        while !was_stopped && may_run(pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// The same for a process that is stopped by us already: it stops when it is let go.
    pub fn stop_now(&mut self, member: &Member) -> Result<(), TakeError> {
        if self.leave == Leave::Running {
            return Ok(());
        }
        let held = Held {
            pid: member.pid(),
            process: member.held(),
        };
        self.all.push(held.clone());
        if !is_stopped(held.pid) {
            self.stopped.push(held.clone());
            held.signal(Signal::STOP)?;
        }
        Ok(())
    }

    /// The processes that run on if nothing comes of the snapshot: that they are stopped is nothing of their own.
    pub fn stopped_here(&self) -> Vec<i32> {
        self.stopped.iter().map(|held| held.pid).collect()
    }

    /// What is wanted, once the snapshot is durable. `is_blocked`: they could not be restored from it. Returns how they are
    /// left.
    pub fn after_commit(mut self, is_blocked: bool) -> Result<Leave, TakeError> {
        if self.leave == Leave::Killed && is_blocked {
            return Ok(Leave::Running);
        }
        self.stopped.clear();
        if self.leave == Leave::Killed {
            self.all
                .iter()
                .try_for_each(|held| held.signal(Signal::KILL))?;
        }
        Ok(self.leave)
    }
}

impl Drop for LeaveGuard {
    fn drop(&mut self) {
        for held in &self.stopped {
            let _ = held.signal(Signal::CONT);
        }
    }
}

impl Held {
    fn signal(&self, signal: Signal) -> Result<(), TakeError> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        match process.send_signal(signal) {
            // It has ended by itself.
            Err(PidFdError::SendSignal {
                source: Errno::SRCH,
                ..
            }) => Ok(()),
            Err(source) => Err(TakeError::Signal {
                pid: self.pid,
                source,
            }),
            Ok(()) => Ok(()),
        }
    }
}

/// True if every thread of the process is stopped by a signal.
fn is_stopped(pid: i32) -> bool {
    threads_are(pid, &['T']).unwrap_or(false)
}

/// True if a thread of the process is neither stopped by a signal nor over.
fn may_run(pid: i32) -> bool {
    threads_are(pid, &['T', 'Z', 'X']).is_some_and(|all| !all)
}

/// Whether every thread is in one of these states; `None` if there is no such process.
fn threads_are(pid: i32, states: &[char]) -> Option<bool> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    Some(tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
        state.is_some_and(|rest| rest.starts_with(states))
    }))
}
