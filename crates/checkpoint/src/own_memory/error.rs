//! Why own memory could not be captured, stored or put back.

use crate::capture::CaptureError;
use pagetide_kernel::maps::MapsError;
use pagetide_kernel::memory::MemoryError;
use pagetide_kernel::pagemap_scan::{OpenPagemapError, ScanError};
use pagetide_snapshot::{LockError, ReadError, SnapshotId, WriteError};
use pagetide_tracker::TrackError;

/// Why own memory could not be captured, stored or put back. Whatever it is, nothing that was written is lost: the
/// next snapshot has it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnMemoryError {
    /// A range is not made of whole pages, or cannot be captured for what is mapped there.
    #[error("{address:#x}+{length_bytes:#x} cannot be captured: {reason}")]
    Range {
        /// Address of the first byte.
        address: u64,
        /// Length in bytes.
        length_bytes: u64,
        /// Why not, for people.
        reason: String,
    },
    /// Nothing is mapped at a part of a region.
    #[error(
        "nothing is mapped at {address:#x}+{length_bytes:#x} of the region at {region:#x}: it was unmapped, or moved \
         elsewhere by mremap(2). Map it again, or make another OwnMemory of what is there"
    )]
    NotMapped {
        /// Address of the first byte.
        address: u64,
        /// Length in bytes.
        length_bytes: u64,
        /// Where the region begins.
        region: u64,
    },
    /// Two ranges overlap, in memory or in the space.
    #[error("the range at {address:#x} overlaps another, in memory or in the space")]
    Overlap {
        /// Address of the first byte.
        address: u64,
    },
    /// Another [`OwnMemory`](crate::OwnMemory) of this process has a part of the range.
    #[error("{address:#x}+{length_bytes:#x} belongs to another OwnMemory of this process")]
    InUse {
        /// Address of the first byte.
        address: u64,
        /// Length in bytes.
        length_bytes: u64,
    },
    /// Memory that was promised to be written through its region only can be written elsewhere.
    #[error(
        "the shared memory at {address:#x}+{length_bytes:#x} is also mapped at {elsewhere:#x}, though it was declared \
         to be written through its region only"
    )]
    AlsoMapped {
        /// Address of the first byte.
        address: u64,
        /// Length in bytes.
        length_bytes: u64,
        /// Address of the other mapping.
        elsewhere: u64,
    },
    /// A forked child has used what belongs to its parent.
    #[error(
        "this OwnMemory belongs to process {owner} and does nothing in its child {child}: make one there, with a store \
         of its own"
    )]
    Forked {
        /// The pid of the process that made it.
        owner: u32,
        /// The pid of the caller.
        child: u32,
    },
    /// The snapshot has no such space.
    #[error("snapshot {id} has no space {name}")]
    NoSpace {
        /// The snapshot.
        id: SnapshotId,
        /// The name of the space.
        name: String,
    },
    /// The snapshot does not say what a part of the memory held.
    #[error(
        "snapshot {id} has no bytes for {count} pages of the regions, the first of them at {address:#x}: nothing was \
         put back"
    )]
    NotInSnapshot {
        /// The snapshot.
        id: SnapshotId,
        /// How many pages.
        count: u64,
        /// Address of the first of them.
        address: u64,
    },
    /// Two places of the regions show the same shared memory by now, and the snapshot has different bytes for them.
    #[error(
        "{address:#x} and {elsewhere:#x} show the same page of shared memory by now and did not in snapshot {id}, which has \
         different bytes for {count} pages there: nothing was put back. Map the regions as they were first"
    )]
    ShowTheSame {
        /// The snapshot.
        id: SnapshotId,
        /// How many pages of the two regions are concerned.
        count: u64,
        /// Address of the first page that cannot be put back.
        address: u64,
        /// Address of the other place that shows it.
        elsewhere: u64,
    },
    /// Written pages could not be found.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// Pages could not be copied.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Memory could not be read or written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The pagemap could not be opened.
    #[error(transparent)]
    OpenPagemap(#[from] OpenPagemapError),
    /// The page tables could not be scanned.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Descriptors could not be kept from forked children.
    #[error("keep descriptors from forked children")]
    Withhold(#[source] std::io::Error),
    /// The store is not free.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The store could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}
