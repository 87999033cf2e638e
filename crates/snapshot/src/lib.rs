//! Chains of full and delta snapshots: the model, the on-disk format, storage and verification.
//!
//! A snapshot holds *spaces* (named sparse arrays of pages) with their *regions*, and *attachments*
//! (named bytes this crate does not interpret). This crate knows no process and no kernel: where
//! pages come from, and where they go when they are read back, is the caller's business.
//!
//! A [`Store`] is a place that holds snapshots. A [`SnapshotWriter`] makes one more; a [`View`] is
//! one snapshot with its ancestors resolved, so that every page of it can be read. The bytes on
//! disk are specified in `docs/FORMAT.md`.
//!
//! ```
//! use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
//! use pagetide_snapshot::*;
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::create(Arc::new(MemoryStorage::new()))?;
//! let lock = store.lock()?;
//! let mut writer = store.begin(&lock, None, WriteOptions::default())?;
//! let pages = PageRange::with_count(PageIndex(16), PageCount(2));
//! let region = Region { name: "heap".into(), ..Region::anonymous(pages) };
//! writer.set_spaces(vec![Space::new("mem", PageSize::KIB_4, vec![region])])?;
//! writer.put_pages(0, &[(PageIndex(16), &[7; 4096])])?;
//! writer.put_state(0, PageRange::single(PageIndex(17)), PageState::Zero)?;
//! let view = writer.commit()?;
//!
//! let mut page = vec![0; 4096];
//! view.read_page(0, PageIndex(16), &mut page)?;
//! assert_eq!(page, [7; 4096]);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod assembly;
mod attachments;
mod back;
mod batches;
mod beneath;
mod changed;
mod decompress;
mod dedup;
mod depth;
mod differences;
mod error;
mod format;
mod frame;
mod frame_cache;
mod frames;
mod ingest;
mod kept;
mod layer;
mod lineage;
mod memory;
mod merge;
mod model;
mod options;
mod patches;
mod prune;
mod read;
mod resolve;
mod runs;
mod shadow;
mod shown;
pub mod storage;
mod store;
mod varint;
mod verify;
mod view;
mod words;
mod writer;

pub use attachments::{ATTACHMENTS_BYTES_MAX, check_attachments};
pub use batches::{Batch, BatchReader};
pub use decompress::{DECOMPRESS_BYTES_MAX, Decompress, Decompressor, decompress_elsewhere};
pub use error::{LockError, OpenError, PruneError, ReadError, WriteError};
pub use memory::{limit_memory, memory_limit};
pub use model::{
    Attachment, Backing, Capture, ContentHash, PageHash, PageState, Protection, Region, Sharing,
    Shown, SnapshotId, SnapshotInfo, SnapshotKind, Space, StoreId,
};
pub use options::{Compression, DEFAULT_FRAME_BYTES, WriteCounters, WriteOptions};
pub use prune::{Keep, Pruned};
pub use read::RangeContent;
pub use shadow::Shadow;
pub use storage::{DirectoryStorage, MemoryStorage, Storage, Untrusted};
pub use store::{DamagedSnapshot, Snapshots, Store, WriterLock};
pub use verify::{Damage, VerifyProgress, VerifyReport};
pub use view::{PageContent, View};
pub use writer::SnapshotWriter;
