//! How a snapshot is to be written, and what has been written so far. Values only.

use crate::shadow::Shadow;
use pagetide_pages::PageCount;

/// How many bytes of pages a frame has if nothing else is asked for; see `docs/FORMAT.md` for the
/// measurement.
pub const DEFAULT_FRAME_BYTES: usize = 128 << 10;

/// How pages are compressed. Those of which only differences are stored are as small whatever is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// With lz4: larger than with zstd, and in less time.
    Lz4,
    /// With zstd at this level.
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd(1)
    }
}

/// How a snapshot is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    /// How pages are compressed.
    pub compression: Compression,
    /// How many threads hash and compress; 0 is one for each core.
    pub threads: usize,
    /// Whether pages that have the bytes of the parent are left out.
    pub elide_unchanged: bool,
    /// How many bytes of pages are compressed together: one page at least, 4 MiB at most.
    pub frame_bytes: usize,
    /// Whether a page is stored only once if several pages of the snapshot have its bytes, in any of
    /// its spaces with that page size. Until the snapshot is committed this takes some 30 to 60 bytes
    /// of memory for each stored page: its hash, its number, and the slack of a hash table.
    pub deduplicate: bool,
    /// The pages that the last snapshots were written with. A page that is the parent's but for a few words, and whose
    /// bytes in the parent are here, is stored as these words. What is stored is kept here for the next snapshot.
    pub shadow: Option<Shadow>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            compression: Compression::default(),
            threads: 0,
            elide_unchanged: true,
            frame_bytes: DEFAULT_FRAME_BYTES,
            deduplicate: false,
            shadow: None,
        }
    }
}

/// What a writer has done so far. A page that was put twice counts twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteCounters {
    /// Pages given to `put_pages`.
    pub written_pages: PageCount,
    /// Of these, pages whose bytes are stored.
    pub stored_pages: PageCount,
    /// Of these, pages of which the words are stored that differ from the parent's.
    pub difference_pages: PageCount,
    /// Of these, pages that are all zeros.
    pub zero_pages: PageCount,
    /// Of these, pages left out because the parent has the same bytes.
    pub elided_pages: PageCount,
    /// Of these, pages not stored again because another page of the snapshot has the same bytes.
    pub deduplicated_pages: PageCount,
    /// Pages given to `put_file_pages`.
    pub file_pages: PageCount,
    /// Bytes in the file so far.
    pub stored_bytes: u64,
}
