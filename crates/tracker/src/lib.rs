//! Which pages were written since the last harvest.
//!
//! A [`Tracker`] watches mappings of one address space. [`Tracker::harvest`] atomically takes and
//! clears the written set; what it gives is a [`Harvest`], which is either committed (the pages are
//! durably stored) or given back (they count as written again). There is no third way: a harvest
//! that is dropped gives back.
//!
//! The tracker never stops a process, never enters one, and copies no page. It is handed the file
//! descriptors it needs. A page reported too often is a cost, a page missed is a bug; when unsure, it
//! says written.

mod empty;
mod harvest;
mod labels;
mod seen;
mod soft_dirty;
mod wp_async;

pub use harvest::{GivenBack, Harvest};
pub use soft_dirty::SoftDirty;
pub use wp_async::WpAsync;

use pagetide_kernel::clear_refs::ClearRefsError;
use pagetide_kernel::maps::MapsError;
use pagetide_kernel::pagemap::ReadEntriesError;
use pagetide_kernel::pagemap_scan::{OpenPagemapError, ScanError};
use pagetide_kernel::userfaultfd::UserfaultfdError;
use pagetide_pages::{PageCount, PageRange, PageSet, PageSize};
use std::fmt;

/// How written pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// userfaultfd in asynchronous write-protect mode, harvested with PAGEMAP_SCAN (Linux 6.7).
    WpAsync,
    /// Soft-dirty bits, cleared through `/proc/PID/clear_refs`.
    SoftDirty,
    /// No help from the kernel: every page is read and compared with what is stored.
    Rehash,
}

impl Backend {
    /// All backends, the preferred first.
    pub const ALL: [Backend; 3] = [Backend::WpAsync, Backend::SoftDirty, Backend::Rehash];

    /// The name by which users choose it.
    pub const fn name(self) -> &'static str {
        match self {
            Backend::WpAsync => "wp-async",
            Backend::SoftDirty => "soft-dirty",
            Backend::Rehash => "rehash",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A mapping that this tracker cannot watch, and why.
#[derive(Debug)]
pub struct Refused {
    /// The pages of the mapping. Nothing is known of them: they count as written at all times.
    pub pages: PageRange,
    /// Why.
    pub reason: RefusedReason,
}

/// Why a mapping cannot be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedReason {
    /// What the kernel said, with addresses.
    #[error(transparent)]
    Protect(#[from] UserfaultfdError),
    /// Nothing is mapped there any more.
    #[error("nothing is mapped there")]
    NotMapped,
    /// Soft-dirty bits of shared memory are lost when it is reclaimed.
    #[error("shared memory cannot be watched by soft-dirty bits")]
    Shared,
    /// Huge pages of hugetlbfs have no soft-dirty bits.
    #[error("huge pages of hugetlbfs have no soft-dirty bits")]
    HugePages,
    /// Memory of the kernel or of a device changes without a store.
    #[error("memory of the kernel or of a device")]
    Device,
    /// Watching it would make more page tables than are allowed.
    #[error(
        "tracking it would make page tables of {needed_bytes} bytes for memory that holds nothing, \
         and {left_bytes} are left of the limit"
    )]
    PageTables {
        /// How much, in bytes.
        needed_bytes: u64,
        /// How much of the limit the mappings before it have left, in bytes.
        left_bytes: u64,
    },
}

/// What changed in the layout since the tracker last looked.
#[derive(Debug, Default)]
pub struct LayoutChange {
    /// Pages that were not watched until now: new mappings, mappings that replaced others at the
    /// same address, mappings that were moved. Whether they were written is unknown, so all of them
    /// are part of the next harvest.
    pub fresh: PageSet,
    /// Mappings that cannot be watched.
    pub refused: Vec<Refused>,
    /// Of what is new, the pages that are not watched yet because the caller said so. Nothing is known of them.
    pub left: PageSet,
}

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
    fn from(error: ScanError) -> TrackError {
        match error {
            ScanError::SpaceGone { .. } => TrackError::SpaceGone,
            other => TrackError::Scan(other),
        }
    }
}

impl From<UserfaultfdError> for TrackError {
    fn from(error: UserfaultfdError) -> TrackError {
        match error {
            UserfaultfdError::SpaceGone { .. } => TrackError::SpaceGone,
            other => TrackError::Protect(other),
        }
    }
}

/// Finds written pages by one backend.
pub trait Tracker {
    /// Which backend this is.
    fn backend(&self) -> Backend;

    /// The unit in which pages are reported.
    fn page_size(&self) -> PageSize;

    /// True if a harvest is right only while nothing runs in the address space: taking and clearing are
    /// not one step then, and what is written in between is lost.
    fn needs_stop(&self) -> bool;

    /// What a later tracker of the same address space needs to know to go on from the last harvest,
    /// besides what the kernel itself knows. Nothing by default.
    fn remembered(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Begins to watch those of `mappings` that are not watched yet, and tells which these were. The
    /// mappings are whole ones, sorted, as the kernel lists them. Watching does not start with a
    /// clean slate: everything that is fresh counts as written until a harvest takes it.
    fn arm(&mut self, mappings: &[PageRange]) -> Result<LayoutChange, TrackError>;

    /// Takes and clears the written set of `mappings`, after arming what is new among them. What is
    /// written while this runs belongs to this harvest or to the next, never to neither.
    ///
    /// Long parts that hold nothing may be left unmarked, so that they cost nothing: they are part of every
    /// harvest, as ranges, whether they were written or not.
    ///
    /// On an error nothing is lost: what was taken so far is part of the next harvest.
    fn harvest(&mut self, mappings: &[PageRange]) -> Result<Harvest, TrackError> {
        self.harvest_but(mappings, &|_| PageSet::new())
    }

    /// As [`Tracker::harvest`], but what `leave` gives of the pages that are new is not watched yet. They
    /// are new again at the next harvest, and none of them is in the written set.
    ///
    /// A tracker for which watching costs nothing need not ask.
    fn harvest_but(
        &mut self,
        mappings: &[PageRange],
        leave: &dyn Fn(&PageSet) -> PageSet,
    ) -> Result<Harvest, TrackError>;

    /// Ends watching those of `mappings` that this tracker watches, and takes its marks from them: nothing of it can
    /// be seen in the address space any more. What is given to it again later is new.
    fn release(&mut self, mappings: &[PageRange]) -> Result<(), TrackError> {
        let _ = mappings;
        Ok(())
    }

    /// About how many pages of `mappings` hold something and would be in a harvest now; `None` if that cannot be
    /// told without one. Nothing is taken. What is learnt of parts that hold nothing makes the next harvest shorter.
    fn survey(&mut self, mappings: &[PageRange]) -> Result<Option<PageCount>, TrackError> {
        let _ = mappings;
        Ok(None)
    }
}
