//! What a snapshot holds, as values: ids, spaces, regions, page states. No bytes on disk here (see
//! `format`), and nothing of how pages are found (see `view`).

use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use std::fmt;

/// The number of a snapshot in its store: 1 for the first, counting up, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The BLAKE3 hash that covers every byte of a snapshot file, and through the parent's hash every
/// byte of its ancestors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

/// The XXH3-128 hash of the bytes of a page, as 16 little-endian bytes. It tells pages apart that
/// differ by chance; it is no defence against pages made to collide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageHash(pub [u8; 16]);

/// The name of a store: random, drawn when the store is created.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub [u8; 16]);

impl PageHash {
    /// The hash of the page whose bytes are `page`.
    pub fn of(page: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(page).to_le_bytes())
    }

    /// The hash that these bytes are, of which there are sixteen.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        Self(bytes.first_chunk().copied().unwrap_or_default())
    }
}

macro_rules! hexadecimal {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    )*};
}
hexadecimal!(ContentHash, PageHash, StoreId);

/// A named sparse array of pages, as one snapshot holds it. Spaces of different snapshots of a chain
/// are the same space if name and page size agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// The name, unique within the snapshot.
    pub name: String,
    /// The size of each of its pages; at most 4 MiB.
    pub page_size: PageSize,
    /// The regions: ascending, none empty, none overlapping another.
    pub regions: Vec<Region>,
}

impl Space {
    /// A space of these parts.
    pub fn new(name: impl Into<String>, page_size: PageSize, regions: Vec<Region>) -> Self {
        Self {
            name: name.into(),
            page_size,
            regions,
        }
    }
}

/// A contiguous part of a space with one set of attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Which pages of the space.
    pub pages: PageRange,
    /// What the owner may do with them.
    pub protection: Protection,
    /// Whether writes are seen by others.
    pub sharing: Sharing,
    /// Where the contents come from.
    pub backing: Backing,
    /// The name, such as `[heap]`; may be empty.
    pub name: String,
    /// Advice given to the kernel, by field name: `hugepage`, `dontfork`.
    pub advice: Vec<String>,
    /// Whether the snapshot holds the contents.
    pub capture: Capture,
    /// What its pages with the state [`PageState::Shown`] show.
    pub shows: Option<Shown>,
}

/// Pages of another space of the same snapshot, which a region shows: page `p` of the region shows
/// the page `first_page + (p - start of the region)` of that space. The space has the same page size,
/// and its own regions show nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The name of the space.
    pub space: String,
    /// Its page that the first page of the region shows.
    pub first_page: PageIndex,
}

impl Region {
    /// A captured, private, anonymous, readable and writable region without a name.
    pub fn anonymous(pages: PageRange) -> Self {
        Self {
            pages,
            protection: Protection {
                read: true,
                write: true,
                execute: false,
            },
            sharing: Sharing::Private,
            backing: Backing::Anonymous,
            name: String::new(),
            advice: Vec::new(),
            capture: Capture::Captured,
            shows: None,
        }
    }

    /// Whether a page of the region can be in this state.
    pub(crate) fn admits(&self, state: PageState) -> bool {
        match state {
            PageState::Shown => self.shows.is_some(),
            PageState::File => matches!(self.backing, Backing::File { .. }),
            PageState::Data | PageState::Zero | PageState::Guard | PageState::Unbacked => true,
        }
    }
}

/// What may be done with the pages of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// They may be read.
    pub read: bool,
    /// They may be written.
    pub write: bool,
    /// They may be executed.
    pub execute: bool,
}

/// Whether writes to a region are seen by others who map the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// A write makes a private copy of the page.
    Private,
    /// A write is seen by all.
    Shared,
}

/// Where the contents of a region come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: zeros until written.
    Anonymous,
    /// A file, with what is needed to tell later whether it is still the same.
    File {
        /// The bytes of the path; any bytes but NUL.
        path: Vec<u8>,
        /// Where in the file the region starts.
        offset_bytes: u64,
        /// The device number of the file system.
        device: u64,
        /// The inode number.
        inode: u64,
        /// The length of the file.
        size_bytes: u64,
        /// When the file was last modified, in nanoseconds since 1970.
        modified_ns: i64,
        /// The GNU build-id, if the file is an ELF file that has one; otherwise empty.
        build_id: Vec<u8>,
    },
    /// A shared memory object (a memfd, shared anonymous memory, tmpfs or System V memory).
    SharedMemory {
        /// The bytes of the path the kernel shows.
        path: Vec<u8>,
        /// Where in the object the region starts.
        offset_bytes: u64,
        /// The device number.
        device: u64,
        /// The inode number.
        inode: u64,
    },
    /// The kernel itself: vdso, vvar and the like.
    Kernel,
}

/// Whether a snapshot holds the contents of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Every page of the region has a state in the snapshot.
    Captured,
    /// No page of the region has.
    NotCaptured {
        /// Why not, for people.
        reason: String,
    },
}

/// Named bytes that travel with a snapshot and are not interpreted here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The name, unique within the snapshot.
    pub name: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// What a snapshot says about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageState {
    /// The page has these bytes, and they are stored.
    Data,
    /// The page is all zeros.
    Zero,
    /// The page is in a guard region: touching it is a fault.
    Guard,
    /// The page is mapped but can have no content, as past the end of a file.
    Unbacked,
    /// The page is what its region shows. A writer is told this; a view is asked what that is, and
    /// never answers so.
    Shown,
    /// The page has the bytes that the file of its region has at that place. The store has their hash
    /// and not the bytes.
    File,
}

impl PageState {
    /// Whether each page in this state has a hash in an index.
    pub(crate) fn is_hashed(self) -> bool {
        matches!(self, Self::Data | Self::File)
    }
}

/// Whether a snapshot stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// It has no parent.
    Full,
    /// It says what differs from its parent.
    Delta,
}

/// What is known about a snapshot without reading its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Its number.
    pub id: SnapshotId,
    /// The snapshot it is a delta to, if any.
    pub parent: Option<SnapshotId>,
    /// Full or delta.
    pub kind: SnapshotKind,
    /// When it was committed, in nanoseconds since 1970.
    pub created_unix_ns: u64,
    /// The length of its file.
    pub stored_bytes: u64,
    /// How many pages it records with their bytes.
    pub pages: PageCount,
    /// How many pages it records as all zeros.
    pub zero_pages: PageCount,
    /// How many pages it records as those of a file, with their hash.
    pub file_pages: PageCount,
    /// The length of all its captured regions, whether recorded here or in an ancestor. Pages that
    /// several regions show count for each of them and for their own space.
    pub logical_bytes: u64,
    /// The hash a child names it by.
    pub content_hash: ContentHash,
}
