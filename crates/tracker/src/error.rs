//! Why tracking failed.

use pagetide_kernel::clear_refs::ClearRefsError;
use pagetide_kernel::maps::MapsError;
use pagetide_kernel::pagemap::ReadEntriesError;
use pagetide_kernel::pagemap_scan::{OpenPagemapError, ScanError};
use pagetide_kernel::userfaultfd::UserfaultfdError;

/// Why tracking failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackError {
    /// The address space is gone: the process exited, or replaced itself by execve(2). Start again
    /// with a new tracker and a full snapshot.
    #[error(
        "the tracked address space no longer exists: the process exited or executed a new program"
    )]
    SpaceGone,
    /// The userfaultfd failed.
    #[error(transparent)]
    Protect(UserfaultfdError),
    /// The scan failed. What it had reported until then is part of the next harvest.
    #[error(transparent)]
    Scan(ScanError),
    /// The pagemap could not be opened.
    #[error(transparent)]
    OpenPagemap(#[from] OpenPagemapError),
    /// The entries of the pagemap could not be read.
    #[error(transparent)]
    Entries(ReadEntriesError),
    /// The kernel does not show where pages lie.
    #[error("the frame numbers of pages are hidden: CAP_SYS_ADMIN is needed")]
    FramesHidden,
    /// Soft-dirty bits could not be cleared. Everything is fresh at the next harvest.
    #[error(transparent)]
    ClearRefs(ClearRefsError),
    /// The mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

impl From<ScanError> for TrackError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::SpaceGone { .. } => Self::SpaceGone,
            other => Self::Scan(other),
        }
    }
}

impl From<UserfaultfdError> for TrackError {
    fn from(error: UserfaultfdError) -> Self {
        match error {
            UserfaultfdError::SpaceGone { .. } => Self::SpaceGone,
            other => Self::Protect(other),
        }
    }
}
