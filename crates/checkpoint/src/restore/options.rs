//! How to restore, and what a restore did.

use super::lazy::Filling;
use pagetide_pages::PageCount;
use pagetide_process::{StopOptions, TcpChoice};
use std::path::PathBuf;
use std::time::Duration;

/// What the clocks show that count from the boot on (CLOCK_MONOTONIC and CLOCK_BOOTTIME).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClockChoice {
    /// They go on from where they were: after a reboot, or on another machine, in a time namespace of their own. In the same boot the
    /// time since the snapshot has passed.
    #[default]
    GoOn,
    /// What they show to this program.
    Host,
}

/// How to restore.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RestoreOptions {
    /// Let the kernel choose the pids of processes and threads.
    pub new_pid: bool,
    /// Leave the processes stopped (SIGSTOP) before their first instruction.
    pub stopped: bool,
    /// Let them run as soon as the memory is there that they need first. All else comes meanwhile, see
    /// [`Restored::filling`].
    pub lazy: bool,
    /// The names of things that cannot be brought back and that the process may go without.
    pub accept: Vec<String>,
    /// Directories in which all paths that the snapshot names must lie, see [`paths_of`](crate::paths_of); if there are none, all paths are
    /// allowed.
    pub allow: Vec<PathBuf>,
    /// What becomes of TCP connections.
    pub tcp: TcpChoice,
    /// What the clocks show.
    pub clock: ClockChoice,
    /// Standard streams that led to a terminal, or to a process that is not restored, lead to `/dev/null`, and not where
    /// this program's own do.
    pub without_streams: bool,
    /// How long the new processes may take to stand still while they are built.
    pub stop: StopOptions,
}

/// What a restore did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Restored {
    /// The process, or the first of the tree. It is a child of this process.
    pub pid: i32,
    /// All processes, the first one first.
    pub pids: Vec<i32>,
    /// Pages that were written before the first instruction.
    pub restored_pages: PageCount,
    /// From the beginning until the first instruction could run.
    pub first_instruction: Duration,
    /// Why what is written from now on is not tracked, if it is not: the next snapshot is full then.
    pub not_tracked: Option<String>,
    /// What is otherwise than it was, for people.
    pub notes: Vec<String>,
    /// With [`RestoreOptions::lazy`]: the memory that still comes. If this program ends before all is there, the processes are
    /// killed.
    pub filling: Option<Filling>,
}
