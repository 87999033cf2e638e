//! Why a process could not be started again from a snapshot, or why its memory did not come.

use crate::file_pages::FilePagesError;
use pagetide_kernel::memory::MemoryError;
use pagetide_kernel::pidfd::PidFdError;
use pagetide_kernel::spawn::SpawnError;
use pagetide_kernel::userfaultfd::UserfaultfdError;
use pagetide_process::{
    Blocker, KeeperError, KernelStateApplyError, OpenFilesDecodeError, RebuildError,
    RemoteCallError, ReopenError, ResumeError, StateDecodeError,
};
use pagetide_snapshot::{ReadError, SnapshotId};
use rustix::io::Errno;
use std::borrow::Cow;
use std::path::PathBuf;

/// Why a process was not restored. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The snapshot is not one of a process.
    #[error("snapshot {id} holds no process")]
    NotAProcess {
        /// Its id.
        id: SnapshotId,
    },
    /// Things that cannot be brought back, and that were not accepted.
    #[error("snapshot {id} holds what cannot be brought back and was not accepted")]
    Blocked {
        /// Its id.
        id: SnapshotId,
        /// What.
        blockers: Vec<Blocker>,
    },
    /// The state in the snapshot cannot be read.
    #[error("the process state in the snapshot")]
    State(#[from] StateDecodeError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] ReadError),
    /// A file that is needed is not what it was.
    #[error("{path}, which the process had mapped, {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it, for people.
        reason: String,
    },
    /// The code that the kernel maps into every process is another.
    #[error(
        "the vdso of this kernel is not that of snapshot {id}, and the program may call into it"
    )]
    Vdso {
        /// The snapshot.
        id: SnapshotId,
    },
    /// It says something of a process that is true of none.
    #[error("snapshot {id} is of no process that there can be: {what}")]
    Impossible {
        /// The snapshot.
        id: SnapshotId,
        /// What.
        what: String,
    },
    /// It has more mappings than this machine allows.
    #[error(
        "process {pid} of the snapshot needs {needed} mappings, and this machine allows {allowed}: sysctl -w vm.max_map_count={needed}"
    )]
    TooManyMappings {
        /// The process.
        pid: i32,
        /// How many it needs while it is made.
        needed: u64,
        /// How many a process may have.
        allowed: u64,
    },
    /// A pid that the process had belongs to another.
    #[error("pid {pid}, which a process or thread of the snapshot had, belongs to {owner} now")]
    Taken {
        /// The pid.
        pid: i32,
        /// Who has it.
        owner: String,
    },
    /// A process that was made cannot be held.
    #[error("cannot hold the new process {pid}")]
    Held {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: PidFdError,
    },
    /// Its parent began another session when it was born already.
    #[error(
        "process {pid} is in session {session}, and its parent {parent} is in another: such a child cannot be made again"
    )]
    Session {
        /// The child.
        pid: i32,
        /// Its session.
        session: i32,
        /// Its parent.
        parent: i32,
    },
    /// The processes could not be made.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A process could not be built.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// A mapping could not be made.
    #[error("cannot map {start:#x}-{end:#x} {name}")]
    Map {
        /// First address.
        start: u64,
        /// Address past the last byte.
        end: u64,
        /// Its name.
        name: String,
        /// What went wrong.
        #[source]
        source: RemoteCallError,
    },
    /// What was made could not be looked at.
    #[error(transparent)]
    Maps(#[from] pagetide_kernel::maps::MapsError),
    /// Its memory could not be written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Shared memory could not be made again.
    #[error("cannot make {name} again")]
    Object {
        /// Its name.
        name: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The snapshot was taken without what a restore needs.
    #[error("snapshot {id} holds memory and registers only: it was taken with --memory-only")]
    MemoryOnly {
        /// Its id.
        id: SnapshotId,
    },
    /// A path of the snapshot is none that the user allows.
    #[error("the snapshot names {path}, which is not allowed")]
    NotAllowed {
        /// The path.
        path: PathBuf,
    },
    /// The list of open files cannot be read.
    #[error("the open files in the snapshot")]
    FilesDecode(#[from] OpenFilesDecodeError),
    /// An open file could not be brought back.
    #[error(transparent)]
    Reopen(#[from] ReopenError),
    /// What the kernel keeps for a process could not be brought back.
    #[error(transparent)]
    Kernel(#[from] KernelStateApplyError),
    /// Pages that were left in a file are no longer there.
    #[error(transparent)]
    FilePages(#[from] FilePagesError),
    /// No descriptor could be made.
    #[error("cannot have another file descriptor: the limit of open files is too low")]
    Descriptors(#[source] std::io::Error),
    /// This process could not be examined.
    #[error("cannot read what /proc says of this process")]
    Own(#[source] std::io::Error),
    /// Its memory could not be made to come later.
    #[error(transparent)]
    Lazy(#[from] LazyError),
    /// Memory could not be made such that reading it is a SIGBUS, as it was.
    #[error("poison {start:#x}-{end:#x}, which was so: {why:?} (UFFDIO_POISON needs Linux 6.6)")]
    Poison {
        /// First address.
        start: u64,
        /// Address past the last byte.
        end: u64,
        /// What the kernel said.
        why: pagetide_kernel::userfaultfd::missing::NotPut,
    },
    /// The clocks of the processes could not be made to go on.
    #[error("the clocks cannot go on from where they were: no time namespace can be made")]
    Clocks(#[source] std::io::Error),
    /// A parent could not be made to know of the stops of its children what it knew.
    #[error("cannot take back from process {pid} that its children have stopped")]
    Stops {
        /// The parent, by its number in the snapshot.
        pid: i32,
        /// What went wrong.
        #[source]
        source: RemoteCallError,
    },
    /// It was killed before it ran.
    #[error(transparent)]
    Resume(#[from] ResumeError),
}

impl RestoreError {
    /// True if the snapshot cannot be restored here, as opposed to something that failed.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::NotAProcess { .. }
            | Self::Blocked { .. }
            | Self::File { .. }
            | Self::Vdso { .. }
            | Self::Impossible { .. }
            | Self::TooManyMappings { .. }
            | Self::Taken { .. }
            | Self::Session { .. }
            | Self::MemoryOnly { .. }
            | Self::NotAllowed { .. }
            | Self::Spawn(SpawnError::NotPermitted { .. })
            | Self::Rebuild(RebuildError::KernelMappings(_)) => true,
            Self::Reopen(inner) => inner.is_refusal(),
            Self::Store(inner) => inner.is_refusal(),
            _ => false,
        }
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Taken { pid, .. } => Some(Cow::Owned(format!(
                "end it first (`kill {pid}`), put it back as it was (`pagetide rollback {pid} DIR`), or start a copy with --new-pid"
            ))),
            Self::NotAllowed { path } => Some(Cow::Owned(format!(
                "add `--allow {}`; --dry-run lists all such paths",
                path.display()
            ))),
            Self::Store(inner) => inner.advice(),
            Self::Clocks(_) => Some(Cow::Borrowed(
                "restore with --clock host, if the program does not mind another time since boot",
            )),
            _ => None,
        }
    }
}

/// Why a process could not be made such that its memory comes later.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LazyError {
    /// It could not make a userfaultfd.
    #[error(
        "process {pid} cannot make a userfaultfd for its missing memory; without --lazy it needs none"
    )]
    Create {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: RemoteCallError,
    },
    /// The userfaultfd could not be fetched.
    #[error("fetch the userfaultfd of process {pid}")]
    Fetch {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: PidFdError,
    },
    /// The userfaultfd could not be used.
    #[error(transparent)]
    Userfaultfd(#[from] UserfaultfdError),
    /// Nothing keeps the userfaultfd open when this program is killed.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// No thread could be started.
    #[error("cannot start a thread that serves memory")]
    Thread(#[source] std::io::Error),
}

/// Why memory of a process that runs is missing for ever.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FillError {
    /// The store could not be read.
    #[error("{lost_pages} pages of memory are lost: {consequence}")]
    Store {
        /// How many pages.
        lost_pages: u64,
        /// What that means for the process, for people.
        consequence: &'static str,
        /// The first error.
        #[source]
        source: ReadError,
    },
    /// The kernel took pages no more.
    #[error("{lost_pages} pages of memory could not be put into the process: {consequence}")]
    Kernel {
        /// How many pages.
        lost_pages: u64,
        /// What that means for the process, for people.
        consequence: &'static str,
        /// The first error.
        #[source]
        source: Errno,
    },
}
