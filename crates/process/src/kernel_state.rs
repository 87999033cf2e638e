//! What the kernel keeps for a process besides memory, open files and registers: read from a stopped process, kept as
//! bytes, and put into a process that is being built.
//!
//! Most of it is asked of the kernel from outside; the rest by remote calls, which every thread makes for itself.
//! Nothing of the process changes by being read. Times are those that are left, not points in time.
//!
//! Not here: registers, extended state and signal masks (see [`crate::ThreadState`]), mappings and the addresses of
//! `PR_SET_MM_MAP`, descriptors, directories, session and process group. Not known, because the kernel tells nobody:
//! keys in keyrings, whether a timer was set to a point in time, overruns that a program has yet to ask
//! for.

mod apply;
mod ask;
mod blockers;
mod calls;
mod clocks;
mod credentials;
mod error;
mod format;
mod group_stop;
mod locked_memory;
mod memory_policy;
mod namespaces;
mod processor;
mod read;
mod registrations;
mod scheduling;
mod semaphores;
mod shared_space;
mod signals;
mod switches;
mod thread_addresses;
mod timers;
mod tracing;

use bincode::{Decode, Encode};
use pagetide_kernel::ptrace::ThreadId;
use std::collections::HashMap;

pub use clocks::ClockState;
pub use credentials::Credentials;
pub use error::{KernelStateApplyError, KernelStateError};
pub use group_stop::GroupStop;
pub use memory_policy::MemoryPolicy;
pub use namespaces::other_clocks;
pub use processor::ProcessorSwitches;
pub use registrations::Registrations;
pub use scheduling::Scheduling;
pub use shared_space::shared_space;
pub use signals::{PendingSignal, SignalAction};
pub use switches::{ProcessSwitches, ResourceLimit};
pub use thread_addresses::{AlternateStack, RobustFutexes, RseqRegistration};
pub use timers::{IntervalTimer, PosixTimer, TimerBatch};

/// The name of the attachment that holds a [`KernelState`], if its process is checkpointed alone.
pub const KERNEL_STATE_ATTACHMENT: &str = "kernel";

/// What the kernel keeps for one process. See the head of this file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct KernelState {
    /// The process.
    pub pid: i32,
    /// Signals with a handler or ignored, in the order of their numbers, and SIGCHLD always. The others have the
    /// default action.
    pub signal_actions: Vec<SignalAction>,
    /// Signals that wait for any thread of the process, first one first.
    pub pending_signals: Vec<PendingSignal>,
    /// The signal of the group-stop (SIGSTOP, SIGTSTP, ...) the process is in, whoever stopped it, or 0.
    pub group_stop: i32,
    /// ITIMER_REAL, ITIMER_VIRTUAL and ITIMER_PROF.
    pub interval_timers: [IntervalTimer; 3],
    /// Timers of `timer_create(2)`, in the order of their ids.
    pub posix_timers: Vec<PosixTimer>,
    /// Resource limits, by the number of the resource.
    pub limits: Vec<ResourceLimit>,
    /// What is on or off for the whole process.
    pub switches: ProcessSwitches,
    /// `/proc/PID/cgroup`: see [`crate::enter_control_groups`].
    pub cgroups: String,
    /// The threads, the first one first.
    pub threads: Vec<ThreadKernelState>,
    /// What is known since version 2 of the format.
    pub since_2: StateSince2,
}

/// What the first version of the format did not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StateSince2 {
    /// The group-stop it is in, unless whoever takes the snapshot has stopped it. Nothing here puts a process into one: that is for
    /// whoever lets it go.
    pub group_stop: Option<GroupStop>,
    /// What it has registered for its memory.
    pub registrations: Registrations,
    /// What it maps from now on is locked into memory: MCL_FUTURE 2, and MCL_ONFAULT 4, of mlockall(2).
    pub future_locks: u32,
    /// Its clocks; none if they are not known.
    pub clocks: Option<ClockState>,
}

/// What the kernel keeps for one thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ThreadKernelState {
    /// Its id.
    pub thread: i32,
    /// Its name, at most 15 bytes.
    pub name: Vec<u8>,
    /// The stack for signal handlers.
    pub alternate_stack: AlternateStack,
    /// Where its list of robust futexes begins.
    pub robust_list: RobustFutexes,
    /// The word that is set to 0 when the thread ends: `set_tid_address(2)`. 0: none.
    pub tid_address: u64,
    /// Its restartable sequences, if it registered an area for them.
    pub rseq: Option<RseqRegistration>,
    /// When and where it runs.
    pub scheduling: Scheduling,
    /// On which NUMA nodes it wants its memory.
    pub memory_policy: MemoryPolicy,
    /// What it may do with the processor.
    pub processor: ProcessorSwitches,
    /// `personality(2)`.
    pub personality: u32,
    /// Who it is, and what it may do.
    pub credentials: Credentials,
    /// It and its descendants gain nothing by an `execve`: `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// The signal it gets when its parent ends, or 0. Set it to 0 before applying if the parent will be another one
    /// than it was, above all one that ends soon.
    pub parent_death_signal: i32,
    /// Signals that wait for this very thread, first one first.
    pub pending_signals: Vec<PendingSignal>,
}

impl KernelState {
    /// The states of its threads, found by id: looking through all of them for each would take the square of their count.
    pub fn by_number(&self) -> ThreadsByNumber<'_> {
        let threads = self.threads.iter().rev();
        ThreadsByNumber(threads.map(|state| (state.thread, state)).collect())
    }
}

/// What the kernel keeps for each of the threads of a process, by their ids in the snapshot.
#[derive(Debug)]
pub struct ThreadsByNumber<'a>(HashMap<i32, &'a ThreadKernelState>);

impl<'a> ThreadsByNumber<'a> {
    /// That of the thread that had this id.
    pub fn of(&self, was: ThreadId) -> Result<&'a ThreadKernelState, KernelStateApplyError> {
        let state = self.0.get(&was.get()).copied();
        state.ok_or(KernelStateApplyError::NoSuchThread { thread: was })
    }
}
