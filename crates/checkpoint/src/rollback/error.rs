//! Why a process was not put back.

use crate::error::TrackingError;
use crate::file_pages::FilePagesError;
use pagetide_kernel::maps::MapsError;
use pagetide_kernel::memory::MemoryError;
use pagetide_kernel::pagemap_scan::{OpenPagemapError, ScanError};
use pagetide_process::{
    RefusalError, RemoteCallError, ResumeError, StateDecodeError, StopError, ThreadStateError,
};
use pagetide_snapshot::{ReadError, SnapshotId};
use std::borrow::Cow;

/// Why a process was not put back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RollbackError {
    /// The process cannot be handled.
    #[error(transparent)]
    Refused(#[from] RefusalError),
    /// The snapshot is not one of a process.
    #[error("snapshot {id} holds no process")]
    NotAProcess {
        /// Its id.
        id: SnapshotId,
    },
    /// The snapshot is of a process tree.
    #[error("snapshot {id} holds a tree of processes, which cannot be put back in place")]
    Tree {
        /// Its id.
        id: SnapshotId,
    },
    /// The snapshot is of another process.
    #[error("snapshot {id} is of another process: of {was} ({comm}), and not of this {pid}")]
    AnotherProcess {
        /// The snapshot.
        id: SnapshotId,
        /// The process it is of.
        was: i32,
        /// Its name.
        comm: String,
        /// The process that was to be put back.
        pid: i32,
    },
    /// Threads have come or gone since.
    #[error(
        "the threads of process {pid} are not those of snapshot {id}: {born} came and {gone} went since"
    )]
    Threads {
        /// The process.
        pid: i32,
        /// The snapshot.
        id: SnapshotId,
        /// Threads that are there now and were not then.
        born: usize,
        /// Threads that were there then and are not now.
        gone: usize,
    },
    /// A mapping is needed that cannot be made again.
    #[error("{start:#x}-{end:#x} {name}: {reason}")]
    Mapping {
        /// First address.
        start: u64,
        /// Address past the last byte.
        end: u64,
        /// The name of the mapping.
        name: String,
        /// Why not, for people.
        reason: &'static str,
    },
    /// The state in the snapshot cannot be read.
    #[error("the process state in the snapshot")]
    State(#[from] StateDecodeError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] ReadError),
    /// Pages that were left in a file are no longer there.
    #[error(transparent)]
    File(#[from] FilePagesError),
    /// The process could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The tracking of the process.
    #[error(transparent)]
    Tracking(#[from] TrackingError),
    /// The mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The page tables could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The pagemap could not be opened.
    #[error(transparent)]
    OpenPagemap(#[from] OpenPagemapError),
    /// Memory could not be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Registers could not be read or set.
    #[error(transparent)]
    Threading(#[from] ThreadStateError),
    /// The process could not be let go.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// A system call inside the process failed before anything was changed.
    #[error("a system call inside process {pid}")]
    Remote {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: RemoteCallError,
    },
    /// Something failed when part of the process was put back already. It is left stopped (SIGSTOP),
    /// because it is neither what it was nor what it should be.
    #[error("process {pid} is only partly put back, and was left stopped")]
    Partly {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: Box<Self>,
    },
}

impl RollbackError {
    /// True if the process or the snapshot cannot be handled, as opposed to something that failed.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(inner) => inner.is_refusal(),
            Self::Stop(inner) => inner.is_refusal(),
            Self::Store(inner) => inner.is_refusal(),
            Self::Tracking(inner) => inner.is_refusal(),
            Self::NotAProcess { .. }
            | Self::Tree { .. }
            | Self::AnotherProcess { .. }
            | Self::Threads { .. }
            | Self::Mapping { .. } => true,
            _ => false,
        }
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Refused(inner) => inner.advice(),
            Self::Stop(inner) => inner.advice(),
            Self::Store(inner) => inner.advice(),
            Self::Tracking(inner) => inner.advice(),
            _ => None,
        }
    }
}
