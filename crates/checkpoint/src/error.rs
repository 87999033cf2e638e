//! Why an operation on a process fails, an enum an operation: attaching, tracking, taking a snapshot, inspecting.
//! They stand below all that raises them.

use crate::capture::CaptureError;
use pagetide_kernel::maps::MapsError;
use pagetide_kernel::memory::MemoryError;
use pagetide_kernel::pagemap_scan::{OpenPagemapError, ScanError};
use pagetide_kernel::pidfd::PidFdError;
use pagetide_kernel::userfaultfd::UserfaultfdError;
use pagetide_process::{
    RebuildError, RefusalError, RemoteCallError, ResumeError, StateReadError, StopError,
    ThreadStateError,
};
use pagetide_snapshot::{LockError, ReadError, StoreId, WriteError};
use pagetide_tracker::{Backend, TrackError};
use std::borrow::Cow;

/// Why checkpoints of a process cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The process cannot be handled.
    #[error(transparent)]
    Refused(#[from] RefusalError),
    /// The backend that was asked for does not work here.
    #[error("the backend {backend} cannot be used: {reason}")]
    Backend {
        /// Which.
        backend: Backend,
        /// Why not.
        reason: String,
    },
    /// Somebody else takes checkpoints of the process now.
    #[error("process {pid} is under checkpoints by {} already", by.map_or("another program".to_owned(), |by| format!("pagetide {by}")))]
    Busy {
        /// The process.
        pid: i32,
        /// Who does, if that is known.
        by: Option<i32>,
    },
    /// The store is not free.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] ReadError),
    /// It could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// Tracking could not be found.
    #[error(transparent)]
    Tracking(#[from] TrackingError),
    /// The memory could not be opened.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The pagemap could not be opened.
    #[error(transparent)]
    OpenPagemap(#[from] OpenPagemapError),
}

impl AttachError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Backend { .. } | Self::Busy { .. } => true,
            Self::Refused(inner) => inner.is_refusal(),
            Self::Stop(inner) => inner.is_refusal(),
            Self::Lock(inner) => inner.is_refusal(),
            Self::Store(inner) => inner.is_refusal(),
            Self::Tracking(inner) => inner.is_refusal(),
            _ => false,
        }
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Busy { by: Some(by), .. } => Some(Cow::Owned(format!(
                "end that one first (`kill {by}`), or use its store"
            ))),
            Self::Busy { by: None, .. } => {
                Some(Cow::Borrowed("end that one first, or use its store"))
            }
            Self::Refused(inner) => inner.advice(),
            Self::Stop(inner) => inner.advice(),
            Self::Lock(inner) => inner.advice(),
            Self::Store(inner) => inner.advice(),
            Self::Tracking(inner) => inner.advice(),
            _ => None,
        }
    }
}

/// Why tracking could not begin, be found again, or be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackingError {
    /// The process is tracked for another store.
    #[error("process {pid} is tracked for {} already", named(place, owner))]
    OwnedByAnother {
        /// The process.
        pid: i32,
        /// The id of that store.
        owner: StoreId,
        /// Where it was when tracking began; empty if that is not known.
        place: String,
    },
    /// The process could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// A system call inside the process failed.
    #[error("prepare process {pid} for tracking")]
    Remote {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: RemoteCallError,
    },
    /// A system call that ends tracking inside the process failed, or cannot be made now.
    #[error("tracking cannot be removed from process {pid}")]
    Detach {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: RemoteCallError,
    },
    /// The process could not be let go.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// A file descriptor of the process could not be fetched.
    #[error("fetch a file descriptor from process {pid}")]
    Fetch {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: PidFdError,
    },
    /// The userfaultfd cannot track.
    #[error(transparent)]
    Protect(#[from] UserfaultfdError),
    /// The pagemap could not be opened.
    #[error(transparent)]
    OpenPagemap(#[from] OpenPagemapError),
    /// The tracker could not be made.
    #[error(transparent)]
    Tracker(#[from] TrackError),
    /// The mark in the process could not be read or written.
    #[error("the tracking mark of process {pid}")]
    Mark {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
}

impl TrackingError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::OwnedByAnother { .. } => true,
            Self::Stop(inner) => inner.is_refusal(),
            _ => false,
        }
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::OwnedByAnother { pid, place, .. } => {
                let instead = match &place[..] {
                    "" => "use that store".to_owned(),
                    place => format!("use `--store {place}`"),
                };
                Some(Cow::Owned(format!(
                    "{instead}, or `pagetide detach {pid}` to begin anew (the next snapshot is full then)"
                )))
            }
            Self::Stop(inner) => inner.advice(),
            _ => None,
        }
    }
}

impl TrackingError {
    /// True if a control group keeps the process frozen: it runs no call until it is thawed.
    pub(crate) fn is_frozen(&self) -> bool {
        matches!(
            self,
            Self::Remote {
                source: RemoteCallError::Frozen { .. },
                ..
            }
        )
    }
}

fn named(place: &str, owner: &StoreId) -> String {
    match place {
        "" => format!("the store with id {owner}"),
        place => format!("the store {place} (id {owner})"),
    }
}

/// Why a snapshot was not taken. The process runs on, the store is as it was before, and what was
/// harvested counts as written again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// The caller asked for it.
    #[error("the checkpoint was cancelled")]
    Cancelled,
    /// The process ended.
    #[error("process {pid} has ended")]
    Ended {
        /// The process.
        pid: i32,
    },
    /// A child cannot be handled.
    #[error("process {pid} of the tree")]
    Member {
        /// The child.
        pid: i32,
        /// Why not.
        #[source]
        source: Box<AttachError>,
    },
    /// A process that is being restored could not be tracked.
    #[error(transparent)]
    Build(Box<RebuildError>),
    /// The process could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The process could not be let go.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// Tracking could not begin.
    #[error(transparent)]
    Tracking(#[from] TrackingError),
    /// Written pages could not be found.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// The mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// Registers could not be read.
    #[error(transparent)]
    Threads(#[from] ThreadStateError),
    /// Other state of the process could not be read.
    #[error(transparent)]
    State(#[from] StateReadError),
    /// Pages could not be copied.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The snapshot could not be stored.
    #[error(transparent)]
    Store(#[from] WriteError),
    /// The process could not be left stopped or be killed.
    #[error("signal process {pid}")]
    Signal {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: PidFdError,
    },
}

impl TakeError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Member { source, .. } => source.is_refusal(),
            Self::Stop(inner) => inner.is_refusal(),
            Self::Tracking(inner) => inner.is_refusal(),
            _ => false,
        }
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Member { source, .. } => source.advice(),
            Self::Stop(inner) => inner.advice(),
            Self::Tracking(inner) => inner.advice(),
            _ => None,
        }
    }

    /// True if the address space that was tracked is gone: the process ended or executed a program.
    pub(crate) fn is_space_gone(&self) -> bool {
        matches!(
            self,
            Self::Track(TrackError::SpaceGone | TrackError::Scan(ScanError::SpaceGone { .. }))
                | Self::Capture(
                    CaptureError::Memory(MemoryError::SpaceGone { .. })
                        | CaptureError::Scan(ScanError::SpaceGone { .. })
                )
                | Self::Stop(StopError::Exec { .. })
        )
    }
    /// True if the end of a child can be the reason.
    pub(crate) fn may_be_of_a_child(&self) -> bool {
        !matches!(self, Self::Cancelled | Self::Store(_))
    }
}

/// Why the processes of a checkpoint could not be found, or not be stopped together. Those that stood run on.
#[derive(Debug)]
pub(crate) enum MembersError {
    /// This child cannot be handled.
    Member { pid: i32, source: Box<AttachError> },
    /// This process could not be stopped.
    Stop { pid: i32, source: StopError },
}

impl MembersError {
    /// Child `pid` cannot be handled.
    pub fn of(pid: i32, source: AttachError) -> Self {
        Self::Member {
            pid,
            source: Box::new(source),
        }
    }
}

impl From<MembersError> for TakeError {
    fn from(error: MembersError) -> Self {
        match error {
            MembersError::Member { pid, source } => Self::Member { pid, source },
            MembersError::Stop { source, .. } => Self::Stop(source),
        }
    }
}

/// Why a process could not be inspected. It runs on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// It cannot be handled.
    #[error(transparent)]
    Refused(#[from] RefusalError),
    /// A child cannot be handled.
    #[error("process {pid} of the tree")]
    Member {
        /// The child.
        pid: i32,
        /// Why not.
        #[source]
        source: Box<AttachError>,
    },
    /// It could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// Its mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// Its memory could not be opened.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// It was killed while it stood still.
    #[error(transparent)]
    Resume(#[from] ResumeError),
}

impl InspectError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(inner) => inner.is_refusal(),
            Self::Member { source, .. } => source.is_refusal(),
            Self::Stop(inner) => inner.is_refusal(),
            Self::Attach(inner) => inner.is_refusal(),
            _ => false,
        }
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Refused(inner) => inner.advice(),
            Self::Member { source, .. } => source.advice(),
            Self::Stop(inner) => inner.advice(),
            Self::Attach(inner) => inner.advice(),
            _ => None,
        }
    }
}
