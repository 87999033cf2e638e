//! A process with all its threads stopped, and how it gets into and out of that.

use crate::descriptors::{self, DescriptorError, FileDescriptor};
use crate::examine::{NoPrivilege, ONE_TRACER, ONLY_64_BIT, why_no_privilege};
use crate::freezer::Freezer;
use crate::identity::ProcessIdentity;
use crate::landing::{Landing, Terrain};
use crate::proc_files::{Stat, Status, comm_of};
use crate::remote_error::RemoteCallError;
use crate::standing::{self, Standing};
use crate::thread_state::{self, ThreadState, ThreadStateError};
use crate::tracees::{Ending, StopFailure};
use crate::tracer::{self, Tracer};
use crate::waits::Waits;
use pagetide_kernel::pidfd::{PidFd, PidFdError};
use pagetide_kernel::ptrace::ThreadId;
use rustix::io::Errno;
use rustix::process::Signal;
use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How to stop a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopOptions {
    /// How long to wait for all threads to stop. The threads that have stopped stand still
    /// meanwhile. Default: one second.
    pub timeout: Duration,
}

impl Default for StopOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(1),
        }
    }
}

impl StopOptions {
    /// The default options with another time limit.
    pub fn with_timeout(timeout: Duration) -> Self {
        Self { timeout }
    }
}

/// Why a process was not stopped. It runs on, all of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// It has ended, or its number belongs to another process now.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// It ended by itself while it was being stopped.
    #[error("process {pid} ended with status {status} while it was being stopped")]
    Exited {
        /// The process.
        pid: i32,
        /// Its exit status, 0 to 255.
        status: i32,
    },
    /// A signal ended it while it was being stopped.
    #[error("process {pid} was killed by signal {signal} while it was being stopped")]
    Killed {
        /// The process.
        pid: i32,
        /// The signal.
        signal: i32,
    },
    /// Its first thread has ended while others run on; `/proc` then shows no memory of it.
    #[error("the first thread of process {pid} has ended while others run on")]
    FirstThreadEnded {
        /// The process.
        pid: i32,
    },
    /// It began to run another program while it was being stopped.
    #[error("process {pid} began to run another program while it was being stopped")]
    Exec {
        /// The process.
        pid: i32,
    },
    /// One of its threads has a tracer already.
    #[error(
        "thread {thread} of process {pid} is already traced by process {tracer} ({tracer_comm})"
    )]
    AlreadyTraced {
        /// The process.
        pid: i32,
        /// The thread.
        thread: ThreadId,
        /// Who traces it.
        tracer: i32,
        /// The tracer's name.
        tracer_comm: String,
    },
    /// We may not trace it.
    #[error("no permission to stop thread {thread} of process {pid}: {reason}")]
    NoPrivilege {
        /// The process.
        pid: i32,
        /// The thread.
        thread: ThreadId,
        /// What stands in the way.
        reason: NoPrivilege,
    },
    /// A thread runs 32-bit code.
    #[error("thread {thread} of process {pid} runs 32-bit code")]
    ThirtyTwoBit {
        /// The process.
        pid: i32,
        /// The thread.
        thread: ThreadId,
    },
    /// A thread did not stop in time; in state D it sleeps uninterruptibly in the kernel, as the
    /// parent of a `vfork` does.
    #[error(
        "thread {thread} of process {pid} did not stop within {waited_ms} ms: it is in state {state}, in {place}"
    )]
    Timeout {
        /// The process.
        pid: i32,
        /// The thread.
        thread: ThreadId,
        /// State letter of `proc(5)`.
        state: char,
        /// The kernel function it waits in, as far as the kernel tells.
        place: String,
        /// How long was waited, in milliseconds.
        waited_ms: u128,
    },
    /// A control group keeps it frozen, or froze it while it was being stopped, in such a way that it
    /// cannot be stopped by ptrace(2).
    #[error("process {pid} is frozen by {freezer}")]
    Frozen {
        /// The process.
        pid: i32,
        /// By what.
        freezer: Freezer,
    },
    /// It made threads faster than they could be found.
    #[error("process {pid} kept making threads for {waited_ms} ms")]
    TooManyThreads {
        /// The process.
        pid: i32,
        /// How long was tried, in milliseconds.
        waited_ms: u128,
    },
    /// The kernel refused a request.
    #[error("cannot {what} thread {thread} of process {pid}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The process.
        pid: i32,
        /// The thread.
        thread: ThreadId,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The thread states could not be read.
    #[error("cannot prepare the threads of process {pid}")]
    Prepare {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: ThreadStateError,
    },
    /// `/proc` could not be read.
    #[error("cannot read what /proc says of process {pid}")]
    Proc {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No thread for tracing could be started here.
    #[error("cannot start a thread for tracing")]
    Tracer(#[source] io::Error),
}

impl StopError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::AlreadyTraced { .. }
                | Self::NoPrivilege { .. }
                | Self::ThirtyTwoBit { .. }
                | Self::FirstThreadEnded { .. }
                | Self::Frozen { .. }
        )
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match self {
            Self::NoPrivilege { reason, .. } => reason.advice(),
            Self::AlreadyTraced { .. } => ONE_TRACER,
            Self::ThirtyTwoBit { .. } => ONLY_64_BIT,
            Self::Timeout { state: 'D', .. } => {
                "the process runs on; try again when that wait in the kernel is over, which for the parent of a vfork is when its \
                 child ends or executes a program"
            }
            Self::Timeout { .. } => "the process runs on; try again",
            _ => return None,
        }))
    }
}

/// Why a process could not be told to go on. It is not stopped by us any more in any case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// It was killed while it was stopped.
    #[error("process {pid} was killed while it was stopped")]
    Gone {
        /// The process.
        pid: i32,
    },
}

/// A process, stopped: no thread of it runs user code until this value is dropped.
///
/// Dropping it (or the end of this program, by whatever means) lets the target run on as it was. A
/// process that was in a group-stop (SIGSTOP and the like) before is in it again afterwards.
/// System calls that were interrupted are continued; no signal is lost or doubled.
///
/// While it exists, no thread of the program may wait for *any* child (`wait(2)`, `waitpid(-1)`):
/// it would take the reports of the target's threads. Waiting for children by number is fine.
#[derive(Debug)]
pub struct StoppedProcess {
    identity: ProcessIdentity,
    /// Its number may be another's as soon as it is killed.
    held: Arc<PidFd>,
    threads: Vec<ThreadId>,
    since: Instant,
    tracer: Tracer,
    pub(crate) terrain: Terrain,
    /// What kept it frozen before it was stopped: it runs no calls.
    freezer: Option<Freezer>,
    _standing: Standing,
}

impl StoppedProcess {
    /// Stops every thread of the process: `PTRACE_SEIZE` and `PTRACE_INTERRUPT`.
    ///
    /// What a remote call needs to know of the target's code is looked up before the stop begins.
    pub fn stop(identity: &ProcessIdentity, options: StopOptions) -> Result<Self, StopError> {
        Self::stop_in(identity, options, Terrain::survey)
    }

    /// Stops a process that waits to be made another one: its code, its stacks and its waits are nobody's any more.
    pub(crate) fn stop_new(
        identity: &ProcessIdentity,
        options: StopOptions,
    ) -> Result<Self, StopError> {
        Self::stop_in(identity, options, Terrain::of_new)
    }

    fn stop_in(
        identity: &ProcessIdentity,
        options: StopOptions,
        survey: impl FnOnce(&ProcessIdentity) -> Terrain,
    ) -> Result<Self, StopError> {
        let pid = identity.pid;
        let held = hold(identity)?;
        let freezer = Freezer::of_first_thread(pid);
        if let Some(freezer) = freezer.clone().filter(|by| !by.lets_threads_stop()) {
            return Err(StopError::Frozen { pid, freezer });
        }
        let terrain = survey(identity);
        // Dropped after the tracer, also by an early return: until then somebody may stand.
        let standing;
        let tracer = Tracer::start(pid).map_err(StopError::Tracer)?;
        let memory = terrain.memory();
        let (looked_at, stacks) = (memory.clone(), terrain.stacks());
        if !terrain.is_new() {
            tracer.run(move |tracees| tracees.waits = Waits::survey(pid, looked_at, stacks));
        }
        standing = Standing::begin();
        let begin = Instant::now();
        let deadline = begin + options.timeout;
        let outcome = tracer.run(move |tracees| {
            let all_stopped = tracees.stop_all(deadline);
            // Those that have stopped were interrupted, also if others have not.
            let hidden = thread_state::hide_interruptions(tracees, memory.as_deref());
            all_stopped.map(|()| (tracees.stopped(), hidden))
        });
        let explain = |failure| match failure {
            // All that we had seized is gone, but it lives: it runs another program.
            StopFailure::Ended(Ending::Unknown) if identity.is_alive_and_same() => {
                StopError::Exec { pid }
            }
            // It had no other threads, or they have ended, too.
            StopFailure::FirstThreadEnded if !identity.is_alive_and_same() => {
                StopError::Gone { pid }
            }
            failure => explain(failure, pid, begin.elapsed()),
        };
        // An early return drops the tracer, which lets all threads go.
        let (threads, hidden) = outcome.map_err(explain)?;
        hidden.map_err(|source| match source {
            ThreadStateError::ThirtyTwoBit { thread } => StopError::ThirtyTwoBit { pid, thread },
            // Its threads were killed for one that was not seized yet and runs another program now.
            ThreadStateError::Gone { .. } if identity.is_alive_and_same() => {
                StopError::Exec { pid }
            }
            ThreadStateError::Gone { .. } => StopError::Gone { pid },
            source => StopError::Prepare { pid, source },
        })?;
        if !identity.is_alive_and_same() {
            return Err(StopError::Gone { pid });
        }
        Ok(Self {
            identity: identity.clone(),
            held: Arc::new(held),
            threads,
            since: begin,
            tracer,
            terrain,
            _standing: standing,
            freezer,
        })
    }

    /// Lets go whatever this program has stopped, for the moment before it ends because something hangs: the kernel would do
    /// so only after it has closed what is open, and that may be what hangs. Nothing else may be done with what was stopped.
    pub fn let_all_go(patience: Duration) {
        tracer::let_everybody_go(patience);
    }

    /// Does this while no process stands still by this program; whoever is to be stopped meanwhile is stopped afterwards.
    /// For what keeps this program from letting anybody go, as its own stop does.
    pub fn while_none_stands<T>(work: impl FnOnce() -> T) -> T {
        standing::while_none(work)
    }

    /// From now on `told` is called with true before the first process is stopped, and with false when none stands still any
    /// more. It must not stop any.
    pub fn on_change(told: fn(bool)) {
        standing::on_change(told);
    }

    /// True while any process stands still by this program, or is being stopped.
    pub fn any() -> bool {
        standing::any()
    }

    /// Which process it is.
    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Sends it a signal, or nobody if it was killed meanwhile.
    pub fn signal(&self, signal: Signal) -> Result<(), PidFdError> {
        self.held.send_signal(signal)
    }

    /// When the first thread was asked to stop.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Its threads, the first one first.
    pub fn threads(&self) -> &[ThreadId] {
        &self.threads
    }

    /// The signal of the group-stop (SIGSTOP, SIGTSTP, ...) the process was in when it was stopped.
    pub fn group_stop(&self) -> Option<i32> {
        self.tracer.run(|tracees| tracees.group_stop())
    }

    /// Puts the process into the group-stop of `signal` (SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU; of SIGSTOP where that one would not stop
    /// it), while it stays stopped by us. All signals but that one must be blocked in its first thread, or others may be
    /// delivered before.
    pub fn enter_group_stop(&mut self, signal: i32, timeout: Duration) -> Result<(), StopError> {
        let pid = self.identity.pid;
        let begin = Instant::now();
        let deadline = begin + timeout;
        let held = Arc::clone(&self.held);
        self.tracer
            .run(move |tracees| tracees.enter_group_stop(signal, &held, deadline))
            .map_err(|failure| explain(failure, pid, begin.elapsed()))
    }

    /// Reads all threads: some 3 us a thread, and as much again for its name. Threads of the process
    /// that only ever run kernel code (workers of io_uring) have no state and are left out.
    #[tracing::instrument(level = "debug", skip_all, name = "registers")]
    pub fn thread_states(&self) -> Result<Vec<ThreadState>, ThreadStateError> {
        let mut states = self.tracer.run(thread_state::read_all)?;
        thread_state::name_all(&mut states);
        Ok(states)
    }

    /// Sets threads back to states of an earlier time. All of them, or none.
    ///
    /// A thread that was in a system call then does it again. A wait with a time limit goes on with
    /// what was left of it then, if that was known; where the limit stands in memory, it is now below
    /// the thread's stack, and comes back with the memory. If not, a wait that the kernel continues
    /// with `restart_syscall(2)` begins anew. (Such a call that had been continued before has lost its
    /// number; it is found in the code if the instruction before loads it, as every libc does, or
    /// else the call ends in EINTR.) Names are not set.
    pub fn set_thread_states(&mut self, states: &[ThreadState]) -> Result<(), ThreadStateError> {
        let states = states.to_vec();
        let memory = self.terrain.memory();
        self.tracer
            .run(move |tracees| thread_state::write_all(tracees, &states, memory.as_deref()))
    }

    /// What keeps it frozen, as was found before it was stopped. Then it can be read and runs no calls.
    pub fn freezer(&self) -> Option<&Freezer> {
        self.freezer.as_ref()
    }

    /// An error at once if it runs no calls because it is frozen.
    pub(crate) fn must_run(&self) -> Result<(), RemoteCallError> {
        match self.freezer.clone() {
            None => Ok(()),
            Some(freezer) => Err(RemoteCallError::Frozen {
                pid: self.identity.pid,
                freezer,
            }),
        }
    }

    /// The open files of the process, by number.
    pub fn fds(&self) -> Result<Vec<FileDescriptor>, DescriptorError> {
        descriptors::list(self.identity.pid)
    }

    /// A copy of one of its file descriptors, close-on-exec: `pidfd_getfd(2)`.
    pub fn take_fd(&self, number: i32) -> Result<OwnedFd, DescriptorError> {
        descriptors::take(&self.identity, number)
    }

    /// Lets the process run on.
    pub fn resume(self) -> Result<(), ResumeError> {
        let pid = self.identity.pid;
        let ending = self.tracer.run(|tracees| {
            tracees.reap();
            let all = tracees.let_all_go();
            tracees.ending().or((!all).then_some(Ending::Unknown))
        });
        match ending {
            None => Ok(()),
            // A thread that ended by itself, say.
            Some(Ending::Unknown) if self.identity.is_alive_and_same() => Ok(()),
            Some(_) => Err(ResumeError::Gone { pid }),
        }
    }

    /// A remote call has made this thread.
    pub(crate) fn add_thread(&mut self, thread: ThreadId) {
        self.threads.push(thread);
    }

    pub(crate) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    pub(crate) fn landing(&mut self) -> Option<Landing> {
        self.terrain.landing()
    }
}

fn hold(identity: &ProcessIdentity) -> Result<PidFd, StopError> {
    let pid = identity.pid;
    identity.hold().map_err(|error| match error {
        PidFdError::Open { source, .. } if source != Errno::SRCH => StopError::Kernel {
            what: "open a descriptor of the first",
            pid,
            thread: ThreadId::new(pid),
            source: source.into(),
        },
        _ => StopError::Gone { pid },
    })
}

fn explain(failure: StopFailure, pid: i32, waited: Duration) -> StopError {
    let waited_ms = waited.as_millis();
    match failure {
        StopFailure::Ended(Ending::Exited(status)) => StopError::Exited { pid, status },
        StopFailure::Ended(Ending::Killed(signal)) => StopError::Killed { pid, signal },
        StopFailure::Ended(Ending::Unknown) => StopError::Gone { pid },
        StopFailure::FirstThreadEnded => StopError::FirstThreadEnded { pid },
        StopFailure::Exec => StopError::Exec { pid },
        StopFailure::AlreadyTraced { thread, tracer } => StopError::AlreadyTraced {
            pid,
            thread,
            tracer,
            tracer_comm: comm_of(tracer),
        },
        StopFailure::NotPermitted { thread } => {
            let uid = Status::of_process(pid).map_or(0, |status| status.number("Uid"));
            let uid = u32::try_from(uid).unwrap_or(u32::MAX);
            StopError::NoPrivilege {
                pid,
                thread,
                reason: why_no_privilege(pid, uid),
            }
        }
        StopFailure::Timeout { thread: None } => StopError::TooManyThreads { pid, waited_ms },
        StopFailure::Timeout {
            thread: Some(thread),
        } => did_not_stop(pid, thread, waited_ms),
        StopFailure::Kernel {
            what,
            thread,
            source,
        } => StopError::Kernel {
            what,
            pid,
            thread,
            source,
        },
        StopFailure::Proc(source) => StopError::Proc { pid, source },
    }
}

fn did_not_stop(pid: i32, thread: ThreadId, waited_ms: u128) -> StopError {
    if let Some(freezer) = Freezer::of_thread(pid, thread) {
        return StopError::Frozen { pid, freezer };
    }
    StopError::Timeout {
        pid,
        thread,
        state: Stat::of_thread(pid, thread).map_or('?', |stat| stat.state()),
        place: std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/wchan"))
            .ok()
            .filter(|place| !place.is_empty() && place != "0")
            .unwrap_or_else(|| String::from("an unknown place")),
        waited_ms,
    }
}
