//! Why the page tables of a process could not be read.

use pagetide_kernel::kpagecgroup::ReadFramesError;
use pagetide_kernel::maps::MapsError;
use pagetide_kernel::pagemap::ReadEntriesError;
use pagetide_kernel::pagemap_scan::{OpenPagemapError, ScanError};

/// Why the page tables of a process could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageUsageError {
    /// It ended, or executed another program, meanwhile.
    #[error("process {pid} ended or executed another program while it was looked at")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// Nothing is mapped at the address.
    #[error("process {pid} has nothing mapped at {address:#x}")]
    NotMapped {
        /// The process.
        pid: i32,
        /// The address asked for.
        address: u64,
    },
    /// `pagemap` could not be opened.
    #[error(transparent)]
    Open(#[from] OpenPagemapError),
    /// `smaps` could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The categories of pages could not be scanned.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Entries of `pagemap` could not be read.
    #[error(transparent)]
    Entries(#[from] ReadEntriesError),
    /// The kernel does not show page frames to this user.
    #[error("which frames two processes share is shown to root only (CAP_SYS_ADMIN)")]
    FramesHidden,
    /// A table of page frames could not be read.
    #[error(transparent)]
    Frames(#[from] ReadFramesError),
}

impl PageUsageError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::NotMapped { .. } | Self::FramesHidden)
    }
}
