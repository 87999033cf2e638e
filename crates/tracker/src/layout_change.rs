//! What is new in a layout, and what of it cannot be watched.

use pagetide_kernel::userfaultfd::UserfaultfdError;
use pagetide_pages::{PageRange, PageSet};

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
