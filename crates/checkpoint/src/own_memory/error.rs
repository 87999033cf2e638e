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
    /// The capture was stored together with a later one: that snapshot has its pages.
    #[error(
        "this capture was stored together with a later one, and there is no snapshot of it alone"
    )]
    StoredWithLater,
    /// A capture that fell to this one was stored in part when its store failed, and its pages are not at hand.
    #[error(
        "an earlier capture could not be stored and was too large to be kept: capture again, which has the pages of both"
    )]
    EarlierLost,
    /// `/proc/self` belongs to root, because this process is not dumpable.
    #[error(
        "this process is not dumpable (PR_SET_DUMPABLE, or it changed its user), so it may not open its own /proc/self/pagemap: \
         make this before privileges are given up, or set PR_SET_DUMPABLE to 1 for so long"
    )]
    NotDumpable {
        /// What was refused.
        #[source]
        source: Box<Self>,
    },
    /// The buffer is full, and what was captured earlier is neither stored nor given back.
    #[error(
        "more was written than buffer_bytes holds while an earlier capture is neither stored nor given back: commit that one \
         first, or make the buffer larger"
    )]
    BufferFull,
    /// The owner of the capture is gone, and has given it back.
    #[error(
        "the OwnMemory of this capture is gone, and what was not stored by then was given back"
    )]
    Closed,
    /// A snapshot could not be stored in the background, and the reason was lost.
    #[error("the thread that stores snapshots did not store this one: it is given back")]
    NotStored,
    /// The thread that stores snapshots could not be started.
    #[error("start a thread that stores snapshots")]
    Thread(#[source] std::io::Error),
    /// Some pages were put back and others were not.
    #[error(
        "{count} pages were not put back, the first of them at {address:#x}; the others were",
        count = not_put_back.count(),
        address = crate::capture::SIZE.address_of(not_put_back.ranges().first().map_or(pagetide_pages::PageIndex(0), |pages| pages.start()))
    )]
    PutBackInPart {
        /// The pages that may not hold what the snapshot has, by address / 4096.
        not_put_back: pagetide_pages::PageSet,
        /// Why not.
        #[source]
        source: Box<Self>,
    },
    /// Memory that is to come from a snapshot holds something.
    #[error(
        "{count} pages of the regions hold something, the first of them at {address:#x}: lazily only fresh memory is populated, \
         which nobody has touched"
    )]
    NotFresh {
        /// Address of the first of them.
        address: u64,
        /// How many pages.
        count: u64,
    },
    /// Memory did not come from the snapshot as a whole.
    #[error("not all of the memory came from the snapshot: {reason}")]
    NotPopulated {
        /// Why not, for people.
        reason: String,
    },
    /// The baseline is of other memory.
    #[error("the baseline was taken of other regions, or by another owner: take one of these")]
    OtherBaseline,
    /// The snapshot is in another store.
    #[error(
        "snapshot {id} is in another store than the next one would be: a delta needs its parent beside it"
    )]
    OtherStore {
        /// The snapshot.
        id: SnapshotId,
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
