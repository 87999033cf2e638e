//! Why an operation failed: one enum for each family of operations.

use crate::model::{ContentHash, SnapshotId};
use crate::storage::Untrusted;
use pagetide_pages::PageRange;
use std::borrow::Cow;
use std::io;

const WRITABLE: &str = "a store must be writable to take snapshots into it";
const NEWER: &str = "use the version of pagetide that wrote it, or a newer";

/// Why a store could not be created or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is nothing at this place.
    #[error("{location}: no such store")]
    Missing {
        /// The place.
        location: String,
    },
    /// There is something at this place, but it is not a store.
    #[error("{location}: not a pagetide store")]
    NotAStore {
        /// The place.
        location: String,
    },
    /// A store can only be created where there is nothing yet.
    #[error("{location}: not empty and not a pagetide store")]
    NotEmpty {
        /// The place.
        location: String,
    },
    /// There is a store at this place already.
    #[error("{location}: is a pagetide store already")]
    Exists {
        /// The place.
        location: String,
    },
    /// The store was made by a later version of pagetide.
    #[error(
        "{location}: store format {found} was written by a newer pagetide; this one reads up to {supported}"
    )]
    FutureFormat {
        /// The place.
        location: String,
        /// The format of the store.
        found: u32,
        /// The newest format this version reads.
        supported: u32,
    },
    /// Others can have written to it, or something in it is not what a store has there.
    #[error("{location}: the store cannot be relied on")]
    Untrusted {
        /// The place.
        location: String,
        /// What, and why.
        source: Untrusted,
    },
    /// The store cannot be written.
    #[error("{location}: cannot be written")]
    ReadOnly {
        /// The place.
        location: String,
        /// What the system said.
        source: io::Error,
    },
    /// The store's description of itself is damaged.
    #[error("{location}: the store file is damaged: {what}")]
    Damaged {
        /// The place.
        location: String,
        /// What is wrong with it.
        what: String,
    },
    /// The storage failed.
    #[error("{location}: cannot {operation}")]
    Io {
        /// The place.
        location: String,
        /// What was being done.
        operation: String,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match self {
            Self::Missing { .. } => "name the directory that was given to `checkpoint --store`",
            Self::NotAStore { .. } | Self::NotEmpty { .. } => {
                "name a store; `checkpoint` also takes a directory that is empty or not there yet"
            }
            Self::FutureFormat { .. } => NEWER,
            Self::Untrusted { source, .. } => source.advice(),
            Self::ReadOnly { .. } => WRITABLE,
            _ => return None,
        }))
    }
}

/// Why the right to write a store could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else is writing.
    #[error("{location}: locked by {}", holder.as_deref().unwrap_or("another writer"))]
    Locked {
        /// The store.
        location: String,
        /// Who holds the lock, if that could be found out.
        holder: Option<String>,
    },
    /// The store cannot be written.
    #[error("{location}: cannot be written")]
    ReadOnly {
        /// The store.
        location: String,
        /// What the system said.
        source: io::Error,
    },
    /// The storage failed.
    #[error("{location}: cannot {operation}")]
    Io {
        /// The store.
        location: String,
        /// What was being done.
        operation: String,
        /// What the system said.
        source: io::Error,
    },
}

impl LockError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match self {
            Self::Locked { .. } => "wait until the other command has ended, or use another store",
            Self::ReadOnly { .. } => WRITABLE,
            Self::Io { .. } => return None,
        }))
    }
}

/// Why a snapshot could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The store has no such snapshot.
    #[error("snapshot {snapshot} does not exist")]
    NoSuchSnapshot {
        /// The one asked for.
        snapshot: SnapshotId,
    },
    /// Bytes of the file are not what they were when it was written.
    #[error("snapshot {snapshot} ({file}) is damaged: {what}")]
    Damaged {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Its file.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// What has to be held in memory of it does not fit: see [`crate::limit_memory`].
    #[error(
        "snapshot {snapshot} has a table of {length_bytes} bytes, which does not fit into the {limit_bytes} bytes of memory that may be used"
    )]
    TooLarge {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// How long the table is.
        length_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The file is of a format, or uses an encoding, that this version does not know.
    #[error("snapshot {snapshot} ({file}) was written by a newer pagetide: {what}")]
    Future {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Its file.
        file: String,
        /// What is unknown.
        what: String,
    },
    /// The snapshot was pruned: what is left of it is there for others.
    #[error("snapshot {snapshot} was pruned: what is left of it is only what newer ones need")]
    Pruned {
        /// Which snapshot.
        snapshot: SnapshotId,
    },
    /// The file is not the one that was opened, nor can what it held be found anew.
    #[error("snapshot {snapshot} is no longer what was opened: its file was removed or replaced")]
    Replaced {
        /// Which snapshot.
        snapshot: SnapshotId,
    },
    /// The file is a snapshot of another store.
    #[error("snapshot {snapshot} ({file}) belongs to another store")]
    ForeignSnapshot {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Its file.
        file: String,
    },
    /// The parent of a delta is not in the store.
    #[error("snapshot {snapshot} needs its parent {parent}, which does not exist")]
    ParentMissing {
        /// The delta.
        snapshot: SnapshotId,
        /// The parent it names.
        parent: SnapshotId,
    },
    /// The parent of a delta is not the snapshot that the delta was made from.
    #[error(
        "snapshot {snapshot} was made from another snapshot {parent}: content hash {expected} was expected, {found} is there"
    )]
    ParentReplaced {
        /// The delta.
        snapshot: SnapshotId,
        /// The parent it names.
        parent: SnapshotId,
        /// The hash it names.
        expected: ContentHash,
        /// The hash that was found.
        found: ContentHash,
    },
    /// Pages of a captured region are recorded neither in the snapshot nor in an ancestor.
    #[error("snapshot {snapshot}: space {space}: nothing is recorded for {address:#x}+{length:#x}")]
    MissingPages {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// The name of the space.
        space: String,
        /// The first byte.
        address: u64,
        /// How many bytes.
        length: u64,
    },
    /// The snapshot has fewer spaces.
    #[error("snapshot {snapshot} has no space of index {index}")]
    NoSuchSpace {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// The number asked for.
        index: usize,
    },
    /// The page is not part of the snapshot, or has no content that could be read.
    #[error("snapshot {snapshot}: space {space}: the page at {address:#x} has no content")]
    NoContent {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// The name of the space.
        space: String,
        /// The first byte of the page.
        address: u64,
    },
    /// The bytes of the page are those of a file, and not in the store.
    #[error("snapshot {snapshot}: space {space}: the page at {address:#x} has its bytes in a file")]
    InFile {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// The name of the space.
        space: String,
        /// The first byte of the page.
        address: u64,
    },
    /// The buffer does not have the size of a page.
    #[error("a buffer of {expected} bytes is needed for a page, not one of {found}")]
    WrongBuffer {
        /// The size of a page.
        expected: usize,
        /// The size of the buffer.
        found: usize,
    },
    /// The storage failed.
    #[error("{location}: cannot {operation}")]
    Io {
        /// The store.
        location: String,
        /// What was being done.
        operation: String,
        /// What the system said.
        source: io::Error,
    },
}

impl ReadError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NoSuchSnapshot { .. }
                | Self::Pruned { .. }
                | Self::Future { .. }
                | Self::TooLarge { .. }
        )
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match self {
            Self::NoSuchSnapshot { .. } | Self::Pruned { .. } => {
                "`pagetide log` lists the snapshots"
            }
            Self::TooLarge { .. } => "raise --memory-limit",
            Self::Damaged { .. } => "`pagetide verify` names all damage",
            Self::Future { .. } => NEWER,
            _ => return None,
        }))
    }
}

/// Why a snapshot could not be written. The store is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The lock was taken on another store.
    #[error("{location}: the lock belongs to another store")]
    ForeignLock {
        /// The store.
        location: String,
    },
    /// There is a writer under this lock already.
    #[error("{location}: another snapshot is being written under the same lock")]
    Busy {
        /// The store.
        location: String,
    },
    /// The parent is a snapshot of another store.
    #[error("{location}: snapshot {parent} belongs to another store and cannot be the parent")]
    ForeignParent {
        /// The store.
        location: String,
        /// The parent that was given.
        parent: SnapshotId,
    },
    /// The spaces or attachments cannot be stored as they are.
    #[error("the snapshot cannot be described: {what}")]
    Invalid {
        /// What is wrong with it.
        what: String,
    },
    /// The pages given do not fit the space.
    #[error("space {space}: {} {what}", AsHex(*pages))]
    BadPages {
        /// The name or number of the space.
        space: String,
        /// The pages given.
        pages: PageRange,
        /// What is wrong with them.
        what: String,
    },
    /// Pages of captured regions were neither given nor can be taken from the parent.
    #[error(
        "space {space}: nothing was given for {address:#x}+{length:#x}, and the parent has nothing there"
    )]
    MissingPages {
        /// The name of the space.
        space: String,
        /// The first byte.
        address: u64,
        /// How many bytes.
        length: u64,
    },
    /// An earlier operation on this writer failed.
    #[error("snapshot {snapshot} cannot be written any further after an earlier failure")]
    Failed {
        /// The snapshot that will not be.
        snapshot: SnapshotId,
    },
    /// A file of this name is there already.
    #[error("{location}: snapshot {snapshot} exists already")]
    Exists {
        /// The store.
        location: String,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The storage is full.
    #[error("{location}: no space left for snapshot {snapshot}")]
    Full {
        /// The store.
        location: String,
        /// The snapshot that will not be.
        snapshot: SnapshotId,
        /// What the system said.
        source: io::Error,
    },
    /// The storage failed.
    #[error("{location}: cannot {operation}")]
    Io {
        /// The store.
        location: String,
        /// What was being done.
        operation: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a chain could not be made shorter. Every snapshot that was to stay is there and whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// Nothing was said that is to stay.
    #[error("a prune must keep at least one snapshot")]
    NothingKept,
    /// Nothing is taken away from a store that is not understood.
    #[error(
        "snapshot {snapshot} is damaged, and nothing is taken away from a store that is: 'pagetide verify' says what is lost"
    )]
    Damaged {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// What is wrong with it.
        source: ReadError,
    },
    /// One snapshot does not come from the other.
    #[error(
        "snapshot {to} does not come from snapshot {from}: 'pagetide log' shows the parent of each"
    )]
    NotAncestor {
        /// The older one.
        from: SnapshotId,
        /// The newer one.
        to: SnapshotId,
    },
    /// Another branch of the chain begins in between.
    #[error(
        "snapshot {child} comes from snapshot {snapshot}, which a squash would take away: squash up to {snapshot}, and from there on"
    )]
    Fork {
        /// Where it begins.
        snapshot: SnapshotId,
        /// The first of that branch.
        child: SnapshotId,
    },
    /// Somebody reads it, or writes the one after it.
    #[error(
        "snapshot {snapshot} is in use: it can be rewritten when its reader or writer has ended"
    )]
    InUse {
        /// Which snapshot.
        snapshot: SnapshotId,
    },
    /// There is no room for the file that others are put together in.
    #[error(
        "{location}: no space left for one file of those up to snapshot {snapshot}: every snapshot that was to stay is there; free some space and prune again"
    )]
    Full {
        /// The store.
        location: String,
        /// The last that was to be in that file.
        snapshot: SnapshotId,
        /// What the system said.
        source: io::Error,
    },
    /// The right to prune could not be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A snapshot could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl PruneError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::NothingKept
            | Self::Damaged { .. }
            | Self::NotAncestor { .. }
            | Self::Fork { .. }
            | Self::InUse { .. } => true,
            Self::Lock(inner) => inner.is_refusal(),
            Self::Read(inner) => inner.is_refusal(),
            _ => false,
        }
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Lock(inner) => inner.advice(),
            Self::Read(inner) => inner.advice(),
            _ => None,
        }
    }
}

struct AsHex(PageRange);

impl std::fmt::Display for AsHex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pages {:#x}..{:#x}", self.0.start().0, self.0.end().0)
    }
}
